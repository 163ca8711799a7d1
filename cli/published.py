"""What papers published, beside runs of the same data, networks, method and recipe."""

import functools
import re
import shlex
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import yaml

from cli.job import make_job
from helper.config import read_yaml
from helper.errors import UserError
from helper.forms import is_count, is_number, is_text, wrong_in
from runs.experiment import Experiment
from runs.results import Result

FILE = Path(__file__).resolve().parent.parent / "scripts" / "published.yaml"
LARGEST = 1 << 20  # bytes of it
ALONE = ("student", "teacher")  # flags of a network by itself
# Words of a protocol that is the recipe here.
OF_RECIPE = {"crop and flip", "last epoch", "best epoch"}


@dataclass(frozen=True)
class Published:
    """One published accuracy."""

    data: str
    student: str  # the network that was trained
    flags: str  # the method and its flags, or one of ALONE
    accuracy: float  # in %, on the test set
    protocol: str  # epochs, augmentation, which epoch
    source: str
    teacher: str = ""
    deviation: float | None = None  # over `trials`
    trials: int | None = None

    @property
    def epochs(self) -> int | None:
        """Epochs of its recipe, where that is the one here; None where it is another or unknown."""
        first, *rest = self.protocol.split(", ")
        found = re.fullmatch(r"(\d+) epochs", first)
        return int(found[1]) if found and OF_RECIPE.issuperset(rest) else None

    @property
    def note(self) -> str:
        """Who published it, under which protocol."""
        said = self.protocol.endswith((" last epoch", " best epoch"))
        return f"{self.source} ({self.protocol}{'' if said else '; last or best epoch not said'})"

    @functools.cached_property
    def experiment(self) -> Experiment | None:
        """The experiment here that its flags and recipe are; None where there is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                experiment = self._resolve()
            except ValueError:  # of a method that is not here
                return None
        return experiment if dict(experiment.options)["epochs"] == self.epochs else None

    def _resolve(self) -> Experiment:
        """The experiment that its flags are."""
        if self.flags in ALONE:
            own = {"model": self.student, "dataset": self.data}
            return make_job("", "teacher", own, []).experiment
        method, *more = shlex.split(self.flags)
        own = {"distill": method, "model_t": self.teacher, "model_s": self.student}
        return make_job("", "student", {**own, "dataset": self.data}, more).experiment

    def is_of(self, run: Result) -> bool:
        """Whether a run is what was published, but for its seed."""
        teacher = "" if self.flags in ALONE else self.teacher
        if (self.data, self.student, teacher) != (run.data, run.model, run.teacher):
            return False
        if run.kind == "probe" or not self.epochs or not self.experiment:
            return False
        here, there = dict(self.experiment.options), dict(run.options)
        return {**here, "seed": 0} == {**there, "seed": 0}


FORMS = {
    "data": is_text,
    "student": is_text,
    "flags": lambda value: is_text(value) and bool(value.strip()),
    "accuracy": is_number,
    "protocol": is_text,
    "source": is_text,
}
MORE_FORMS = {"teacher": is_text, "deviation": is_number, "trials": is_count}


def read_published() -> list[Published]:
    """The entries of scripts/published.yaml; UserError that says which of them is none."""
    entries = read_yaml(FILE, yaml.safe_load, LARGEST) or []
    for number, entry in enumerate(entries if isinstance(entries, list) else [entries], start=1):
        if wrong := wrong_entry(entry):
            raise UserError(
                f"{FILE}, entry {number}: {wrong}; each has {', '.join(FORMS)}, and teacher "
                "where it is of a method"
            )
    return [Published(**entry) for entry in entries]


def wrong_entry(entry: object) -> str:
    """What is wrong with an entry; "" for none."""
    if wrong := wrong_in(entry, FORMS) or wrong_in(entry, MORE_FORMS, complete=False):
        return wrong
    names = {f.name for f in fields(Published)}
    if unknown := [name for name in entry if name not in names]:
        return f"{unknown[0]} is no part of one"
    if (entry["flags"] in ALONE) == ("teacher" not in entry):
        return ""
    return "it has a teacher and no method" if "teacher" in entry else "it lacks teacher"


def published(run: Result, known: Sequence[Published]) -> Published | None:
    """What was published of such a run: the first entry; None where nothing is known."""
    return next((entry for entry in known if entry.is_of(run)), None)
