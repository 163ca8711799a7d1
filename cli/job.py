"""One run of a plan: a command line, resolved before anything is loaded or trained.

What only the data, or a teacher that is not trained yet, can tell (its sha256 in a folder's name)
is '?' in a path here, one for each character, as the shell reads it.
"""

import functools
import glob
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cli.choice import StudentResolved
from cli.identity import Title, make_experiment, probe_title, student_title, teacher_title
from cli.networks import at_its_place
from cli.objective import kd_and_method
from cli.parse import parse_student, parse_teacher, parse_transfer
from cli.setting import Setting
from cli.start import start_of
from cli.training import KINDS
from dataset import DATASETS
from distiller_zoo.base import Setup
from engine.recipe import make_schedule
from helper.errors import UserError
from helper.options import Resolved
from models.any import build, check_name, learning_rate
from models.base import Classifier, Features
from runs import checkpoint
from runs.experiment import Experiment, plain
from runs.folder import RunFolder
from runs.stored import FINISHED

UNKNOWN = "0" * 8  # stands for the first digits of a sha256
SIZE, CLASSES = 32, 100  # of images and data that are not known before they are read
SCRIPTS = {
    "teacher": "train_teacher.py",
    "student": "train_student.py",
    "probe": "transfer_student.py",
}


@dataclass(frozen=True)
class Job:
    """A run of a plan: exactly one command, what it waits for and where it will be kept."""

    label: str  # of its method in the plan; the networks by themselves have `ALONE`
    kind: str  # of its experiment
    argv: tuple[str, ...]
    experiment: Experiment  # without the fingerprint of the data and the sha256 of its source
    root: str  # its --save_dir
    place: str  # of its folder in `root`
    model: str  # what is trained
    source: str = ""  # checkpoint that it reads; empty where it is none, or a published one
    needs: tuple["Job", ...] = field(default=(), repr=False)  # runs that have to be finished

    @property
    def script(self) -> str:
        return SCRIPTS[self.kind]

    @property
    def teacher(self) -> str:
        """Network of its teacher; empty where it has none."""
        return dict(self.experiment.options).get("model_t", "")

    @property
    def checkpoint(self) -> str:
        """What those that need the run read of it: its last epoch."""
        return f"{self.root}/{self.place}/{plain(self.model)}_last.pth"

    @property
    def stage(self) -> int:
        """0 for a run that waits for none, else one more than those it waits for."""
        return 1 + max((job.stage for job in self.needs), default=-1)

    def command(self, script: str = "") -> str:
        """As a user types it; `script` where it lies elsewhere."""
        return " ".join(["python", *map(quoted, (script or self.script, *self.argv))])

    def argv_now(self) -> list[str]:
        """The words with the checkpoint that is there; UserError where it is not."""
        if (source := self.source_now()) is None:
            raise UserError(
                f"there is no {self.source} yet: it is made by {self.needs[0].command()}"
            )
        return [str(source) if self.needs and word == self.source else word for word in self.argv]

    def source_now(self) -> Path | None:
        """The checkpoint that it reads; None where it is not there yet."""
        if not self.needs:
            return Path(self.source)
        folder = self.needs[0].finished()
        return folder and folder / Path(self.source).name

    def finished(self) -> Path | None:
        """The folder of this run, from the checkpoint that is there now, if it is finished.

        The images are not looked at: the command itself does.
        """
        source = self.source_now()
        if source is None or (self.source and not checkpoint.is_there(source)):
            return None
        digest = checkpoint.digest(source) if self.source else ""
        return next((path for path in self.folders() if self._is_in(path, digest)), None)

    def folders(self) -> list[Path]:
        """Folders that are called like its own."""
        pattern = re.sub(r"([*[])", r"[\1]", f"{self.root}/{self.place}")
        return [Path(path) for path in glob.glob(pattern)]

    def _is_in(self, path: Path, digest: str) -> bool:
        """Whether a folder holds this run, finished; `digest` of its source, empty if unknown."""
        folder = RunFolder(path, self.experiment)
        try:
            summary = folder.read_summary()
            run = Experiment.from_dict(summary.get("experiment"))
        except UserError:
            return False
        whole = summary.get("status") == FINISHED and any(path.glob("*_last.pth"))
        return whole and digest in ("", run.source) and same_but_data(self.experiment, run)


def same_but_data(planned: Experiment, run: Experiment) -> bool:
    """Whether two experiments are one but for the images and the checkpoint that is read."""
    unknown = {"image_size"} if dict(planned.options).get("image_size", 0) is None else set()

    def known(experiment: Experiment) -> Experiment:
        options = tuple((name, x) for name, x in experiment.options if name not in unknown)
        return replace(experiment, options=options, data="", source="")

    return known(planned) == known(run)


def quoted(word: str) -> str:
    """A word of a shell's command line, whose '?' are any character."""
    return "?".join(shlex.quote(part) if part else "" for part in word.split("?")) or "''"


# ---- from words to a job


class Outline(NamedTuple):
    """What is known of a data set before it is loaded."""

    name: str
    networks: Mapping[str, str]
    image_size: int | None
    classes: Sequence[int] = range(CLASSES)


class Planned(Setting):
    """The ground of a run that is not started: its networks have shapes and no numbers."""

    def network(self, name: str) -> Classifier:
        known_as = self.data.networks.get(name, name)
        return shaped(known_as, self.data.image_size or SIZE)[0]


@functools.cache
def shaped(name: str, image_size: int) -> tuple[Classifier, Features]:
    """A network and its features of two images, on the meta device."""
    elsewhere = ":" in name  # its features are found by running it on numbers
    with torch.device("cpu" if elsewhere else "meta"):
        network = build(name, CLASSES, image_size).to("meta").eval()
    with torch.no_grad():
        return network, network.features(torch.zeros(2, 3, image_size, image_size, device="meta"))


def planned(options: Resolved, model: str) -> Planned:
    """What the options of a command say of a run, for the network that it trains."""
    entry = DATASETS[options.dataset]
    known_as = entry.networks.get(model, model)
    check_name(known_as)
    name = entry.called(options.read(entry.Options)) or options.dataset
    data = Outline(name, entry.networks, options.values.get("image_size"))
    rate = learning_rate(known_as)
    start = start_of(options, known_as)
    return Planned(options, model, None, data, make_schedule(options, rate), rate, "", start)


def make_job(
    label: str, kind: str, own: Mapping[str, Any], more: Sequence[str], needs: Sequence[Job] = ()
) -> Job:
    """The job of a command line: flags that the plan sets, by name, and `more` words behind them.

    UserError where they cannot be, or `more` changes what the plan sets.
    """
    argv = [part for name, value in own.items() for part in (f"--{name}", str(value))] + [*more]
    if {"-h", "--help"} & {*more}:
        raise UserError("--help is no flag of a plan")
    options = PARSERS[kind](argv)
    for name, value in {**own, "overwrite": False}.items():
        if options.values[name] != value and name != "distill":
            raise UserError(f"--{name} is not for the flags of a plan: leave it out")
    model = options.model if kind == "teacher" else options.model_s
    setting = planned(options, model)
    setting.network(model)
    source = options.values.get("path_t" if kind == "student" else "path_s", "")
    experiment = make_experiment(kind, setting, TITLES[kind](setting))
    return Job(
        label, kind, tuple(argv), experiment, options.save_dir,
        f"{KINDS[kind]}/{pattern(experiment)}", model, source, tuple(needs),
    )  # fmt: skip


def pattern(experiment: Experiment) -> str:
    """The name of a folder, with '?' for each digit that is not known yet."""
    name = experiment.name.replace(experiment.digest[:12], "?" * 12)
    return name.replace(UNKNOWN, "?" * len(UNKNOWN))


def title_of_student(setting: Setting) -> Title:
    return student_title(setting, "" if at_its_place(setting.options) else f"-{UNKNOWN}")


def title_of_probe(setting: Setting) -> Title:
    path = Path(setting.options.path_s.replace("?" * len(UNKNOWN), UNKNOWN))
    return probe_title(setting, path, UNKNOWN)


PARSERS: dict[str, Callable[[Sequence[str]], Resolved]] = {
    "teacher": parse_teacher,
    "student": parse_student,
    "probe": parse_transfer,
}
TITLES: dict[str, Callable[[Setting], Title]] = {
    "teacher": teacher_title,
    "student": title_of_student,
    "probe": title_of_probe,
}


def check_fit(options: StudentResolved) -> None:
    """UserError where the method or a view cannot work on this pair of networks."""
    setting = planned(options, options.model_s)
    size = setting.data.image_size or SIZE
    names = [setting.data.networks.get(n, n) for n in (options.model_s, options.model_t)]
    (student, shown), (teacher, teacher_shown) = (
        shaped(name, size) if name else (None, None) for name in names
    )
    labels = torch.arange(2 * CLASSES) % CLASSES
    with torch.device("meta"):
        kd_and_method(options, Setup(shown, teacher_shown, student, teacher, labels))
