"""Options are dataclasses: one field is one flag, one default and one help text.

`option(default, help)` declares a field; the class it lives in is the class it configures. Values
come in layers (field default, then what the method's paper used, then what the user typed); the
last layer that names a value wins, and `Resolved` remembers which one that was.
"""

import argparse
import difflib
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields
from typing import Any

from helper.errors import UserError

# Flags that every training has; no method, view or data set may call an option of its own like one.
GENERAL = frozenset({
    "alpha", "amp", "any_teacher", "aug", "backbone_rate", "balance", "bank_batch", "bank_limit",
    "bank_type", "batch_size", "beta", "cfg", "channels_last", "clip_grad", "compile", "cuda_graph",
    "dataset", "deterministic", "device", "distill", "dot", "ema", "epochs", "fraction_seed",
    "gamma", "init", "init_epochs", "label_smoothing", "learning_rate", "lr_decay_epochs",
    "lr_decay_rate", "mean_t", "methods_dir", "mixup", "model", "model_s", "model_t", "momentum",
    "no_pair_defaults", "num_workers", "optimizer", "overwrite", "path_s", "path_t", "peer",
    "peer_rate", "pretrained", "print_freq", "randaugment", "resume", "save_dir", "save_freq",
    "schedule", "seed", "std_t", "sync_bn", "tb_freq", "teacher_bank", "teacher_weights", "tf32",
    "train_fraction", "trial", "val_fraction", "val_seed", "wandb", "warmup", "weight_decay",
})  # fmt: skip
# Other spellings of these, and what experiments call the number of processes.
RESERVED = GENERAL | {"a", "b", "d", "lr", "m", "processes", "r", "wd"}
LARGEST = 2**31 - 1  # whole number; of a seed 2**63 - 1
LARGEST_FLOAT = 3.4e38  # float32 has no larger one
METAVARS = {bool: "on|off", int: "N", float: "X", tuple: "N,N"}
TRUE, FALSE = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def option(
    default: Any,
    help: str,
    *flags: str,
    parse: Callable | None = None,
    choices: Sequence[str] | None = None,
    added: bool = False,
    several: bool = False,
) -> Any:
    """A dataclass field that is also a flag.

    `flags` are spellings beside --name; `parse` turns the typed text into the value (default: the
    field's type); `choices` are the values allowed. `added` says that the option came after runs
    were kept which its default describes: at its default it is no part of an experiment's identity,
    so that those runs stay what they are. Of `several` words the value is a tuple.
    """
    metadata = {"help": help, "flags": flags, "parse": parse, "choices": choices, "added": added}
    metadata["several"] = several
    return field(default=default, metadata=metadata)


def positive(text: str) -> int:
    """A whole number from 1 to LARGEST."""
    if (value := whole(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def whole(text: str, largest: int = LARGEST) -> int:
    """A whole number that is not too large."""
    if not -largest <= (value := int(text)) <= largest:
        raise argparse.ArgumentTypeError(f"{text} is too large: {largest} at most")
    return value


def not_negative(text: str) -> float:
    """A finite number of at least 0."""
    value = float(text)
    if not 0 <= value <= LARGEST_FLOAT:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number of at least 0 in float32")
    return value


def positive_number(text: str) -> float:
    """A finite number above 0."""
    if (value := not_negative(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def at_most(largest: float, parse: Callable[[str], Any]) -> Callable[[str], Any]:
    """A parser whose values end at `largest`."""

    def bounded(text: str) -> Any:
        if (value := parse(text)) > largest:
            raise argparse.ArgumentTypeError(f"{text} is more than {largest}")
        return value

    return bounded


def share(text: str) -> float:
    """A number from 0 to 1."""
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def share_below_1(text: str) -> float:
    """A number from 0 on, below 1."""
    if (value := share(text)) == 1:
        raise argparse.ArgumentTypeError(f"{text} is not below 1")
    return value


def positive_share(text: str) -> float:
    """A number above 0, at most 1."""
    if (value := share(text)) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def of_each_color(read: Callable[[str], float]) -> Callable[[str], tuple[float, ...]]:
    """A parser of '0.485,0.456,0.406' or '[0.485, 0.456, 0.406]': a number of each color."""

    def three(text: str) -> tuple[float, ...]:
        values = tuple(read(part) for part in without_brackets(text).split(","))
        if len(values) != 3:
            raise argparse.ArgumentTypeError(f"{text!r} is not three numbers: red,green,blue")
        return values

    return three


def shares(text: str) -> tuple[float, ...]:
    """'3,1' -> (0.75, 0.25); () where all are alike."""
    parts = [positive_number(part) for part in without_brackets(text).split(",")]
    if len(parts) == 1:
        raise argparse.ArgumentTypeError(f"{text} is one number: give one to each, 3,1")
    return tuple(part / sum(parts) for part in parts) if len(set(parts)) > 1 else ()


def count(text: str) -> int:
    """A whole number from 0 to LARGEST."""
    return not_below_0(text, whole(text))


def seed(text: str) -> int:
    """A whole number from 0 to 2**63 - 1."""
    return not_below_0(text, whole(text, 2**63 - 1))


def not_below_0(text: str, value: int) -> int:
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return value


def whole_numbers(text: str) -> tuple[int, ...]:
    """'150,180,210' or '[150,180,210]' -> (150, 180, 210); '' or '[]' -> ()"""
    text = without_brackets(text)
    return tuple(whole(part) for part in text.split(",")) if text.strip() else ()


def without_brackets(text: str) -> str:
    """'[1, 2]', '(1, 2)' or '1, 2' -> '1, 2'"""
    return text[1:-1] if text[:1] + text[-1:] in ("[]", "()") else text


def switch(text: str) -> bool:
    """A flag that may stand alone, or be followed by on/off."""
    if text.lower() in TRUE | FALSE:
        return text.lower() in TRUE
    raise argparse.ArgumentTypeError(f"{text!r} is neither on nor off")


class OneOrSeveral(argparse.Action):
    """One word as it is, several as a tuple."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def words_in(value: str | tuple[str, ...]) -> tuple[str, ...]:
    """The words of an option that may have several; none of an empty one."""
    return value if isinstance(value, tuple) else (value,) if value else ()


class Parser(argparse.ArgumentParser):
    """argparse that keeps only what was typed, accepts --a-b for --a_b and raises UserError."""

    def __init__(self, **how):
        super().__init__(
            **how, allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False
        )

    def error(self, message):
        raise UserError(message)

    def _get_values(self, action, arg_strings):
        # Of `--flag=--` argparse would make an empty list, whatever the flag's type.
        if action.option_strings and arg_strings == ["--"]:
            raise argparse.ArgumentError(action, "-- is no value")
        return super()._get_values(action, arg_strings)

    def add(self, *classes: type) -> None:
        """Add the flags of dataclasses; a flag that several of them share is added once."""
        for cls in classes:
            group = self.add_argument_group(title_of(cls))
            for f in fields(cls):
                if f"--{f.name}" not in self._option_string_actions:
                    self._add_field(group, f)

    def add_switches(self, title: str, *classes: type) -> None:
        """Add the first field of each dataclass alone: the flag that turns the class on."""
        group = self.add_argument_group(title)
        for cls in classes:
            first = fields(cls)[0]
            if f"--{first.name}" not in self._option_string_actions:
                self._add_field(group, first)

    def closest(self, flag: str) -> str | None:
        """The flag that resembles this one most."""
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
        return close[0] if close else None

    def has(self, flag: str) -> bool:
        return flag in self._option_string_actions

    def is_list(self, flag: str) -> bool:
        """Whether a flag takes a list of values."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.metavar == METAVARS[tuple]

    def takes_several(self, flag: str) -> bool:
        """Whether a flag takes several words."""
        action = self._option_string_actions.get(flag)
        return action is not None and action.nargs == "+"

    def _add_field(self, group, f) -> None:
        kind = plain_type(f.type)
        parse = readable(f.metadata["parse"] or (switch if kind is bool else kind), kind)
        spellings = [f"--{f.name}", *f.metadata["flags"]]
        spellings += [s.replace("_", "-") for s in spellings if "_" in s]
        how = {"nargs": "?", "const": True} if kind is bool else {}
        how |= {"nargs": "+", "action": OneOrSeveral} if f.metadata["several"] else {}
        shown = f.default if f.default not in (None, "", ()) else None
        text = f.metadata["help"] + (f" (default {shown})" if shown is not None else "")
        group.add_argument(
            *spellings,
            dest=f.name,
            type=parse,
            choices=f.metadata["choices"],
            metavar=None if f.metadata["choices"] else METAVARS.get(kind, f.name.upper()),
            help=text.replace("%", "%%"),
            **how,
        )


def readable(parse: Callable[[str], Any], kind: type) -> Callable[[str], Any]:
    """The same parse function; where it knows no better it says what was expected."""

    def checked(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            expected = {int: "whole number", float: "number"}.get(kind, "value for this")
            raise argparse.ArgumentTypeError(f"{text!r} is no {expected}") from None

    return checked


def plain_type(annotation: Any) -> type:
    """`int | None` -> int; `tuple[int, ...]` -> tuple."""
    if isinstance(annotation, types.UnionType):
        annotation = next(a for a in typing.get_args(annotation) if a is not type(None))
    return typing.get_origin(annotation) or annotation


def added_defaults(classes: Iterable[type]) -> dict[str, Any]:
    """Defaults of options that came later: at these they are no part of an experiment."""
    return {f.name: f.default for cls in classes for f in fields(cls) if f.metadata["added"]}


def title_of(cls: type) -> str:
    """'KD.Options' -> 'KD', 'RecipeOptions' -> 'Recipe'."""
    return cls.__qualname__.removesuffix("Options").rstrip(".")


UNKNOWN = object()  # what an option would be where nothing can say it


@dataclass(frozen=True)
class Resolved:
    """Every option of a run and where its value came from. Never changed after parsing."""

    values: Mapping[str, Any]
    origin: Mapping[str, str]  # option -> "default", "typed", or the layer that set it
    idle: Set[str] = frozenset()  # names of those that are no part of the experiment
    usual: Mapping[str, Any] = field(default_factory=dict)  # of typed ones: the value otherwise
    set_by: Mapping[str, str] = field(default_factory=dict)  # option -> another that set it

    def __getattr__(self, name: str) -> Any:
        values = self.__dict__.get("values", {})  # empty while it is copied or unpickled
        if name not in values:
            raise AttributeError(name)
        return values[name]

    def read(self, cls: type) -> Any:
        """The options of one dataclass."""
        return cls(**{f.name: self.values[f.name] for f in fields(cls)})


def resolve(classes, *layers: tuple[str, Mapping[str, Any]]) -> Resolved:
    """Defaults of the dataclasses, overridden by each (origin, values) layer in turn.

    Of an option that several classes share the first class has the default.
    """
    values: dict[str, Any] = {}
    for cls in classes:
        for f in fields(cls):
            values.setdefault(f.name, f.default)
    origin = dict.fromkeys(values, "default")
    for name, layer in layers:
        for key, value in layer.items():
            values[key], origin[key] = value, name
    every = [f for cls in classes for f in fields(cls)]
    idle = {f.name for f in every if f.metadata["added"] and values[f.name] == f.default}
    return Resolved(types.MappingProxyType(values), types.MappingProxyType(origin), idle)
