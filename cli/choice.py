"""What a command line of train_student.py chooses: a method and views, and what of them counts."""

import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from cli.flags import StudentOptions
from distiller_zoo import METHODS, VIEWS, option_names
from distiller_zoo.base import Distiller, LogitDistiller, View
from helper.errors import UserError
from helper.options import Resolved, words_in
from models.base import Features

OF_TEACHER = (  # flags that have a meaning only where there is one
    "path_t", "model_t", "teacher_weights", "any_teacher", "mean_t", "std_t", "teacher_bank",
    "bank_type", "bank_batch", "bank_limit",
)  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The method and the views of a command line."""

    method: type[Distiller]
    views: Mapping[str, type[View]]  # those that are on, in the order in which they apply

    @property
    def on_logits(self) -> bool:
        """Whether views go in front of the method, and not only of KD."""
        return issubclass(self.method, LogitDistiller)

    @property
    def wrappers(self) -> dict[str, type[Distiller]]:
        """What the views put around a method that reads features, by the name of the view."""
        if self.on_logits:
            return {}
        return {name: view.wrapper for name, view in self.views.items() if view.wrapper}

    @property
    def parts(self) -> list[type]:
        """Everything that has options, in the order of the help."""
        return [self.method, METHODS["kd"], *self.views.values(), *self.wrappers.values()]

    @property
    def has_first_stage(self) -> bool:
        """Whether the method may train something before the student's own turn."""
        return self.method.first_stage is not Distiller.first_stage

    def views_per_image(self, options: Resolved) -> int:
        """Augmented views of an image that the objective reads."""
        of_method = self.method.views_per_image(options.read(self.method.Options))
        return of_method if options.beta or self.has_first_stage else 1

    def views_with_effect(self, weights: Any) -> list[str]:
        """Those that change a term of the objective; `weights` has `alpha` and `beta`."""
        of_method = self.views if self.on_logits else self.wrappers
        return [n for n in self.views if weights.alpha or (weights.beta and n in of_method)]

    def without_effect(self, weights: Any) -> set[str]:
        """Names of the options that change no number; `weights` has `alpha` and `beta`."""
        in_use = [self.views[name] for name in self.views_with_effect(weights)]
        in_use += [METHODS["kd"]] if weights.alpha else []
        in_use += [self.method] if weights.beta or self.has_first_stage else []
        in_use += self.wrappers.values() if weights.beta else []
        names = names_of(self.parts) - names_of(in_use)
        names |= set() if weights.beta else {"warmup"}
        names |= set() if self.method.has_teacher else {"model_t"}
        names |= set() if self.method.mutual else {"peer", "peer_rate"}
        return names | (set() if self.has_first_stage else {"init_epochs"})


@dataclass(frozen=True)
class StudentResolved(Resolved):
    """The options of train_student.py, and what they choose."""

    choice: Choice = field(kw_only=True)


def choose(typed: Mapping[str, Any]) -> Choice:
    """Values of a command line -> the method and the views that it chooses."""
    on = [name for name in VIEWS if typed.get(name)]
    views = {name: VIEWS[name] for name in sorted(on, key=lambda name: VIEWS[name].order)}
    return Choice(METHODS[typed.get("distill", StudentOptions.distill)], views)


def names_of(parts: Iterable[type]) -> set[str]:
    """Names of all options of methods and views."""
    return {name for part in parts for name in option_names(part)}


def check_objective(options: StudentResolved) -> None:
    """UserError where nothing would be trained, or something that was asked for has no effect."""
    name, choice = options.distill, options.choice
    if not choice.method.has_teacher:
        check_no_teacher(options)
    check_several_teachers(options)
    of_peer = [n for n in ("peer", "peer_rate") if options.values[n]]
    if of_peer and not choice.method.mutual:
        able = ", ".join(n for n in METHODS if METHODS[n].mutual)
        raise UserError(
            f"{name} trains one student, and --{of_peer[0]} is of a second one: it is for {able}"
        )
    if one := [n for n in ("ema", "backbone_rate") if choice.method.mutual and options.values[n]]:
        raise UserError(f"--{one[0]} is of one student, and {name} trains two: leave it out")
    if choice.method is METHODS["kd"] and options.beta:
        raise UserError("--distill kd is the -a term already: give its weight with -a, and -b 0")
    if bool(options.mean_t) != bool(options.std_t):
        raise UserError("--mean_t and --std_t go together: give both, or neither")
    if not (options.gamma or options.alpha or options.beta):
        raise UserError("-r, -a and -b are all 0: there is nothing to train on")
    if options.dot:
        check_dot(options)
    if options.mixup:
        check_mixup(options)
    idle = [n for n in ("warmup", "init_epochs") if n in choice.without_effect(options)]
    if typed := [name for name in idle if options.origin[name] == "typed"]:
        why = {"warmup": "its weight is 0; -b sets it", "init_epochs": "it has no first stage"}
        raise UserError(f"--{typed[0]} has no meaning for {name} here: {why[typed[0]]}")
    of_labels = {"label_smoothing": options.label_smoothing, "balance": options.balance == "loss"}
    if not options.gamma and (useless := [n for n, on in of_labels.items() if on]):
        raise UserError(
            f"--{useless[0]} changes cross-entropy, which has no weight here: -r gives it one"
        )
    if useless := sorted(typed_in_vain(options)):
        raise UserError(
            f"--{useless[0]} changes nothing here: what it is of has no weight; -a gives one to "
            f"KD, -b to {name}"
        )
    if options.beta and options.warmup > options.epochs:
        warnings.warn(
            f"the weight of {name} grows over {options.warmup} epochs and the run has "
            f"{options.epochs}: it never reaches {options.beta:g}; --warmup sets it",
            stacklevel=2,
        )
    if options.beta:
        check_wrappers(name, choice)
    for view, entry in choice.views.items():
        if reason := entry.refuses(choice.method):
            raise UserError(f"--{view} has no meaning for {name}: {reason}")
    with_effect = choice.views_with_effect(options)
    if useless := [view for view in choice.views if view not in with_effect]:
        raise UserError(
            f"--{useless[0]} changes rows of logits, and none are read here: {name} reads "
            "features, and KD has no weight: give it one with -a"
        )


def check_no_teacher(options: StudentResolved) -> None:
    """UserError where something is asked of a teacher, and the method has none."""
    flags = [f"--{n}" for n in OF_TEACHER if options.origin.get(n) == "typed" and options.values[n]]
    flags += [f"--{view}" for view in options.choice.views]
    flags += ["-a"] if options.alpha else []
    if flags:
        raise UserError(f"{options.distill} has no teacher, and {flags[0]} is of one: leave it out")


def check_dot(options: StudentResolved) -> None:
    """UserError where --dot has no two gradients, or no momenta from 0 to below 1."""
    first_alone = options.choice.method.only_first_stage
    of_method = options.beta and not first_alone
    if not options.gamma or not (options.alpha or of_method):
        raise UserError(
            "--dot keeps the gradients of cross-entropy and of distillation apart: give both a "
            "weight, with -r and with -a"
            + (f"; {options.distill} distils in its first stage alone" * first_alone or " or -b")
        )
    if options.optimizer != "sgd":
        raise UserError(f"--dot is SGD with two momenta: leave out --optimizer {options.optimizer}")
    task, distillation = options.momentum - options.dot, options.momentum + options.dot
    if task < 0 or distillation >= 1:
        raise UserError(
            f"--dot {options.dot:g} makes the momenta {task:g} and {distillation:g} of --momentum "
            f"{options.momentum:g}: they have to be at least 0 and below 1"
        )
    if options.amp == "fp16":
        raise UserError(
            "--dot takes two gradients a step, and --amp fp16 scales one: give --amp bf16"
        )


def check_mixup(options: StudentResolved) -> None:
    """UserError where something that reads the label or the number of a sample is shown two."""
    choice = options.choice
    found = [f"--{n}" for n in choice.views_with_effect(options) if choice.views[n].reads_samples]
    found += [options.distill] if options.beta and choice.method.reads_samples else []
    if found:
        able = [n for n in METHODS if not METHODS[n].reads_samples]
        raise UserError(
            f"--mixup shows two images in one, and {found[0]} reads the label or the number of a "
            f"sample: leave one of them out; of the methods these read neither: {', '.join(able)}"
        )


def typed_in_vain(options: StudentResolved) -> set[str]:
    """Typed options of terms without a weight; older ones are let pass, as they always were."""
    of_terms = (f for part in options.choice.parts for f in fields(part.Options))
    newer = {f.name for f in of_terms if f.metadata["added"] and options.origin[f.name] == "typed"}
    return newer & options.choice.without_effect(options)


def check_several_teachers(options: StudentResolved) -> None:
    """UserError where several teachers do not fit one another, or what is read of them."""
    method = options.choice.method
    names, paths = words_in(options.model_t), words_in(options.path_t)
    if paths and len(names) != len(paths):
        raise UserError(f"--path_t has {len(paths)} teachers and --model_t {len(names)}: as many")
    weights = len(options.teacher_weights)
    if len(names) < 2:
        if options.origin["teacher_weights"] == "typed":
            raise UserError("--teacher_weights are of several teachers: give --path_t A B")
        return
    if "ctkd" in options.choice.views:
        raise UserError(
            "--ctkd learns the temperature of one teacher, and several are averaged at --kd_T: "
            "leave it out, or give one teacher"
        )
    if weights and weights != len(names):
        raise UserError(f"--teacher_weights has {weights} numbers for {len(names)} teachers")
    prepares = method.prepare is not Distiller.prepare
    beside_logits = in_order(method.reads - {"logits"}) if method.reads else "what it does not say"
    beside_logits = beside_logits or ("last_map" if prepares else "")
    if beside_logits and (options.beta or options.choice.has_first_stage):
        raise UserError(
            f"{options.distill} reads {beside_logits} of a teacher, and of several there are only "
            "logits, the mean of all: choose a method on logits, or one teacher"
        )


def check_wrappers(name: str, choice: Choice) -> None:
    """UserError where a view changes other features than the method called `name` reads."""
    reads = choice.method.reads
    for view, wrapper in choice.wrappers.items():
        if reads <= wrapper.reads:
            continue
        able = [n for n in METHODS if METHODS[n].reads and METHODS[n].reads <= wrapper.reads]
        able = [n for n in able if not issubclass(METHODS[n], LogitDistiller)]
        able = [n for n in able if METHODS[n].has_teacher]
        raise UserError(
            f"--{view} changes the pooled vector, and {name} reads {in_order(reads)}: its "
            "loss would only count several times; it works with the methods on logits and with "
            + ", ".join(able)
        )


def in_order(features: Collection[str]) -> str:
    """Names of features in network order."""
    return ", ".join(f.name for f in fields(Features) if f.name in features)
