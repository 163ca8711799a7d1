"""An experiment: everything that changes a number, and nothing else."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from helper.errors import UserError

# Options that change no number, or only where things lie and what is said. The one such list.
NO_NUMBER = frozenset({
    "any_teacher", "bank_batch", "bank_limit", "cache_dir", "cfg", "data_dir", "methods_dir",
    "no_pair_defaults", "num_workers", "overwrite", "path_s", "path_t", "print_freq", "resume",
    "save_dir", "save_freq", "skip_corrupt", "tb_freq", "trial", "wandb",
})  # fmt: skip
# Options that change numbers by rounding alone: recorded, and a run may go on under others.
ROUNDING = frozenset({
    "amp", "bank_type", "channels_last", "compile", "cuda_graph", "deterministic", "device",
    "teacher_bank", "tf32",
})  # fmt: skip
LONGEST_NAME = 150


@dataclass(frozen=True)
class Experiment:
    """Equal for two runs if, and only if, they would give the same numbers (but for rounding).

    `options` has every option in force with its effective value, in a canonical form. The last
    three fields make the name and are no part of the identity: of two equal experiments one may be
    called trial 3.
    """

    kind: str  # "teacher", "student" or "probe"
    options: tuple[tuple[str, Any], ...]  # by name
    data: str  # fingerprint of the images and labels
    source: str = ""  # sha256 of the teacher's or the probed checkpoint
    code: tuple[tuple[str, str], ...] = ()  # versions of code that changes numbers
    title: str = field(default="", compare=False)  # networks, data, method and weights
    unusual: tuple[str, ...] = field(default=(), compare=False)  # names of options to be named
    trial: int = field(default=1, compare=False)

    def __post_init__(self):
        options = {name: canonical(value) for name, value in self.options}
        object.__setattr__(self, "options", tuple(sorted(options.items())))

    @property
    def digest(self) -> str:
        """sha256 of the identity in a canonical form, in hex."""
        identity = self.to_dict()
        for label in ("title", "unusual", "trial"):
            del identity[label]
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def row(self) -> str:
        """Digest of the experiment without its seed: equal for the trials of one table row."""
        options = tuple((name, value) for name, value in self.options if name != "seed")
        return Experiment(self.kind, options, self.data, self.source, self.code).digest

    @property
    def name(self) -> str:
        """What its folder is called; past 150 bytes the tail becomes the digest."""
        values = dict(self.options)
        tokens = [token(name, values[name]) for name in self.unusual]
        name, end = plain("_".join([self.title, *tokens])), f"_trial_{self.trial}"
        if len((name + end).encode()) > LONGEST_NAME:
            end = f"_{self.digest[:12]}{end}"
            name = name.encode()[: LONGEST_NAME - len(end)].decode(errors="ignore")
        return name + end

    def differences(self, other: "Experiment") -> list[str]:
        """What differs, in words: 'kd_T is 4.0 there and 20.0 here' of self here, other there."""
        found = []
        if self.kind != other.kind:
            found.append(f"it is a {other.kind} there and a {self.kind} here")
        here, there = dict(self.options), dict(other.options)
        for name in sorted(here.keys() | there.keys()):
            if (name in here, here.get(name)) != (name in there, there.get(name)):
                a, b = (in_words(values, name) for values in (there, here))
                found.append(f"{name} is {a} there and {b} here")
        if self.data != other.data and here.get("hash_content") == there.get("hash_content"):
            found.append("the images or labels of the data set are others")
        if self.source != other.source:
            what = "probed checkpoint" if self.kind == "probe" else "teacher"
            found.append(f"the {what} is another file")
        if self.code != other.code:
            mine, theirs = dict(self.code), dict(other.code)
            # What one of them alone has follows from another option, where one differs.
            names = mine.keys() & theirs.keys() if found else mine.keys() | theirs.keys()
            if changed := [n for n in sorted(names) if mine.get(n) != theirs.get(n)]:
                found.append(f"the code of {', '.join(changed)} has changed")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        fields = {**vars(self), "options": dict(self.options), "code": dict(self.code)}
        return json.loads(json.dumps(fields))

    @staticmethod
    def from_dict(stored: Mapping[str, Any]) -> "Experiment":
        """What `to_dict` gave, here or in an earlier release; UserError for anything else."""
        try:
            return Experiment(
                str(stored["kind"]),
                identity_of(stored["options"]),
                str(stored["data"]),
                str(stored["source"]),
                tuple(sorted(stored["code"].items())),
                str(stored["title"]),
                tuple(stored["unusual"]),
                int(stored["trial"]),
            )
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(f"no experiment is described there ({error!r})") from None


def identity_of(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Those of a run's options that belong to its identity, in order."""
    return tuple((k, v) for k, v in options.items() if k not in NO_NUMBER | ROUNDING)


def rounding_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a run's options that change numbers by rounding alone."""
    return {name: options[name] for name in sorted(ROUNDING & options.keys())}


def canonical(value: Any) -> Any:
    """Equal values in one form that JSON keeps: 4.0 as 4, -0.0 as 0, a list as a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(map(canonical, value))
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def in_words(values: Mapping[str, Any], name: str) -> str:
    return str(values[name]) if name in values else "not in force"


def token(name: str, value: Any) -> str:
    """An option in a folder's name: 'nce_k_4096', 'sdd-1-2', 'aug', 'aug_off'."""
    if isinstance(value, bool):
        return name if value else f"{name}_off"
    if isinstance(value, tuple):
        return "-".join([name, *map(str, value)])
    return f"{name}_{value}"


def plain(name: str) -> str:
    """A name that every file system takes: 'torchvision:resnet18' -> 'torchvision-resnet18'."""
    return "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
