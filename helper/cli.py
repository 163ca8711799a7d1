"""The command lines: general flags, then those of what was chosen."""

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import LogitDistiller
from helper import checkpoint, config, distributed, teachers
from helper.device import DeviceOptions
from helper.errors import UserError
from helper.loop import RecipeOptions, in_proportion
from helper.options import Parser, Resolved, count, not_negative, option, positive, resolve
from helper.run import RunOptions
from models import MODELS


@dataclass(frozen=True)
class ConfigOptions:
    cfg: str = option("", "YAML file of flags; those on the command line win over it")


@dataclass(frozen=True)
class DataOptions:
    dataset: str = option("cifar100", f"one of {', '.join(DATASETS)}", "-d")


@dataclass(frozen=True)
class TeacherOptions:
    model: str = option(
        "resnet110", "network to train: a name, torchvision:NAME, timm:NAME, pkg:fn"
    )


@dataclass(frozen=True)
class TransferOptions:
    path_s: str = option("", "checkpoint whose features are probed")
    model_s: str = option("", "its network (default: what the file says)")


@dataclass(frozen=True)
class EvalOptions:
    ckpt: str = option("", "checkpoint to evaluate", "-c", "--checkpoint")
    model: str = option("", "its network (default: what the file says)", "-m")
    per_class: bool = option(False, "the accuracy of each class as well")
    json: str = option("", "file to write the numbers to")
    batch_size: int = option(500, "images a step", parse=positive)
    num_workers: int = option(
        8, "processes that read image files; data sets in memory need none", parse=count
    )


@dataclass(frozen=True)
class StudentOptions:
    distill: str = option("kd", f"method, one of {', '.join(METHODS)}")
    model_s: str = option(
        "resnet8", "student: a name, torchvision:NAME, timm:NAME, package.module:fn"
    )
    model_t: str = option("", "teacher (default: what --path_t says, else resnet32x4)")
    path_t: str = option("", "checkpoint of the teacher (default: the published one, fetched)")
    # Without a value of their own: the method's recipe has it.
    gamma: float | None = option(
        None, "weight of cross-entropy (default: the method's)", "-r", parse=not_negative
    )
    alpha: float | None = option(
        None, "weight of KD (default: the method's)", "-a", parse=not_negative
    )
    beta: float | None = option(
        None, "weight of the method (default: its own)", "-b", parse=not_negative
    )
    warmup: int | None = option(
        None, "epochs over which the method's weight grows to its value", parse=count
    )
    init_epochs: int = option(30, "epochs of the first stage of methods that have one", parse=count)
    no_pair_defaults: bool = option(False, "leave out what papers set for single pairs of networks")


COMMON = (ConfigOptions, DataOptions, RecipeOptions, DeviceOptions, RunOptions)
LOST = "error: a process of this run ended; --resume goes on after the last whole epoch"
PROBE_RECIPE = {"epochs": 120, "lr_decay_epochs": (30, 60, 90), "learning_rate": 0.05}


def parse_teacher(argv: Sequence[str]) -> Resolved:
    """Command line of train_teacher.py -> its options."""
    classes, typed = parse((TeacherOptions, *COMMON), argv, "Train a network without a teacher.")
    layer = data_layer(typed, "model")
    return resolve(classes, layer, ("typed", typed))


def parse_transfer(argv: Sequence[str]) -> Resolved:
    """Command line of transfer_student.py -> its options."""
    about = "Train a new classifier on the frozen features of a checkpoint."
    classes, typed = parse((TransferOptions, *COMMON), argv, about)
    of = PROBE_RECIPE["epochs"]
    decays = in_proportion(PROBE_RECIPE["lr_decay_epochs"], of, typed.get("epochs", of))
    probe = {**PROBE_RECIPE, "lr_decay_epochs": decays}
    return resolve(classes, ("linear probe", probe), ("typed", typed))


def parse_eval(argv: Sequence[str]) -> Resolved:
    """Command line of tools/eval.py -> its options."""
    about = "Say how good a checkpoint is on the test split of a data set."
    classes, typed = parse((EvalOptions, ConfigOptions, DataOptions, DeviceOptions), argv, about)
    return resolve(classes, ("typed", typed))


def parse_student(argv: Sequence[str]) -> Resolved:
    """Command line of train_student.py -> its options.

    The weights come from the method's recipe, then from the views, then from what was typed.
    """
    about = "Train a student with the help of a teacher."
    classes, typed = parse((StudentOptions, *COMMON), argv, about, students=True)
    name = typed.get("distill", StudentOptions.distill)
    method, views = METHODS[name], chosen_views(typed)
    teacher, data = teacher_name(typed), data_layer(typed, "model_s")
    if method.recipe.warmup and hasattr(data_set(typed), "warmup"):
        data[1]["warmup"] = data_set(typed).warmup
    pair = {}
    if not typed.get("no_pair_defaults"):
        student = typed.get("model_s", data[1].get("model_s", StudentOptions.model_s))
        pair = method.pair_defaults(teacher, student, views)
    layers = [(f"recipe of {name}", {**vars(method.recipe), "model_t": teacher}), data]
    layers.append(("pair", pair))
    layers += [view_defaults(view, {**pair, **typed}, method) for view in views]
    options = resolve(classes, *layers, ("typed", typed))
    if method is METHODS["kd"] and options.beta:
        raise UserError("--distill kd is the -a term already: give its weight with -a, and -b 0")
    if not (options.gamma or options.alpha or options.beta):
        raise UserError("-r, -a and -b are all 0: there is nothing to train on")
    if options.beta and options.warmup > options.epochs:
        warnings.warn(
            f"the weight of {name} grows over {options.warmup} epochs and the run has "
            f"{options.epochs}: it never reaches {options.beta:g}; --warmup sets it",
            stacklevel=2,
        )
    if useless := [view for view in views if not has_effect(VIEWS[view], method, options)]:
        raise UserError(
            f"--{useless[0]} changes rows of logits, and none are read here: {name} reads "
            "features, and KD has no weight: give it one with -a"
        )
    return options


def data_set(typed: Mapping[str, Any]) -> type:
    """The data set of a command line."""
    return DATASETS[typed.get("dataset", DataOptions.dataset)]


def data_layer(typed: Mapping[str, Any], trained: str) -> tuple[str, dict[str, Any]]:
    """What a data set has in the recipe's place; `trained` is the flag of the trained network.

    A data set may have a static `recipe(typed)`: option -> value, a `warmup` for methods that have
    one, and a `student` and a `teacher`, the networks to take where none is named.
    """
    entry = data_set(typed)
    layer = entry.recipe(typed) if hasattr(entry, "recipe") else {}
    if "lr_decay_epochs" in layer:
        of = layer["epochs"]
        decays = in_proportion(layer["lr_decay_epochs"], of, typed.get("epochs", of))
        layer["lr_decay_epochs"] = decays
    if hasattr(entry, "student"):
        layer[trained] = entry.student
    name = typed.get("dataset", DataOptions.dataset)
    return f"recipe of {name}", layer


def has_effect(view: type, method: type, options: Resolved) -> bool:
    """Whether a view that is on changes a term of the objective."""
    on_features = hasattr(view, "wrapper") and options.beta
    return bool(options.alpha or issubclass(method, LogitDistiller) or on_features)


def teacher_name(typed: dict[str, Any]) -> str:
    """The teacher's network: the one typed, else the one its checkpoint is of, else the default."""
    if typed.get("model_t") or not typed.get("path_t"):
        usual = getattr(data_set(typed), "teacher", teachers.DEFAULT)
        return typed.get("model_t") or usual
    return checkpoint.network_of(typed["path_t"], "--model_t")


def view_defaults(name: str, typed: dict[str, Any], method: type) -> tuple[str, dict[str, Any]]:
    """What a view changes in the recipe; UserError where the command line says two things."""
    view = VIEWS[name]
    if not hasattr(view, "defaults"):
        return f"--{name}", {}
    own = {f.name: typed[f.name] for f in fields(view.Options) if f.name in typed}
    defaults = view.defaults(resolve([view.Options], ("typed", own)).read(view.Options), method)
    for option_name, (flag, value) in defaults.items():
        if flag in typed and typed.get(option_name, value) != value:
            raise UserError(
                f"--{flag} {typed[flag]:g} and --{option_name} {typed[option_name]:g} set the same "
                "thing to different values: give one of them"
            )
    return f"--{name}", {option_name: value for option_name, (_, value) in defaults.items()}


def parse(
    general: Sequence[type], argv: Sequence[str], about: str, students: bool = False
) -> tuple[list[type], dict[str, Any]]:
    """The option classes that this command line brings in, and the values typed on it.

    What is chosen (data set, method, views) is read first; only the chosen classes add their flags,
    so that a flag of another method is an error.
    """
    chooser = Parser()
    chooser.add(ConfigOptions, DataOptions, *([StudentOptions] if students else []))
    chooser.add_switches(*(VIEWS[name].Options for name in VIEWS if students))
    path = vars(chooser.parse_known_args(strip_help(argv))[0]).get("cfg")
    words = config.words_of(path) if path else []
    with config.in_file(path):
        chosen = vars(chooser.parse_known_args(words)[0])
    chosen |= vars(chooser.parse_known_args(strip_help(argv))[0])

    classes = [*general, DATASETS[chosen.get("dataset", DataOptions.dataset)].Options]
    if students:
        method = METHODS[chosen.get("distill", StudentOptions.distill)]
        classes += [METHODS["kd"].Options, method.Options]
        classes += [VIEWS[name].Options for name in chosen_views(chosen)]
        classes += [wrapper.Options for wrapper in wrappers(method, chosen)]
    parser = Parser(description=about)
    parser.add(*classes)
    parser.add_switches(*(VIEWS[name].Options for name in VIEWS if students))
    if len(strip_help(argv)) < len(argv):
        print(parser.format_help())
        print(f"networks: {', '.join(MODELS)}")
        raise SystemExit(0)
    typed = read_words(parser, argv)
    with config.in_file(path):
        configured = read_words(parser, words)
    for name in configured.keys() & typed.keys():
        if configured[name] != typed[name]:
            warnings.warn(
                f"--{name} is {typed[name]} on the command line and {configured[name]} in {path}: "
                "the command line wins",
                stacklevel=2,
            )
    return classes, {**configured, **typed}


def read_words(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """The values that a command line sets; UserError for a word that is none of its flags."""
    typed, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(explain_unknown(unknown[0], parser))
    return vars(typed)


def strip_help(argv: Sequence[str]) -> list[str]:
    return [word for word in argv if word not in ("-h", "--help")]


def chosen_views(typed: Mapping[str, Any]) -> list[str]:
    """Names of the views that are switched on, in the order in which they apply."""
    on = [name for name in VIEWS if typed.get(name)]
    return sorted(on, key=lambda name: VIEWS[name].order)


def wrappers(method: type, typed: Mapping[str, Any]) -> list[type]:
    """What the views that are on put around a method that reads features."""
    if issubclass(method, LogitDistiller):
        return []
    views = [VIEWS[name] for name in chosen_views(typed)]
    return [view.wrapper for view in views if hasattr(view, "wrapper")]


def explain_unknown(word: str, parser: Parser) -> str:
    """Why a word of the command line is none of the flags: whose it is, or what it may mean."""
    flag = word.split("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    kinds = {"--distill": METHODS, "": VIEWS, "--dataset": DATASETS}
    owners = [
        f"{kind} {entry}".strip() if kind else f"--{entry}"
        for kind, registry in kinds.items()
        for entry in registry
        if name in {f.name for f in fields(registry[entry].Options)}
    ]
    if owners and word.startswith("--"):
        return f"{flag} is a flag of {', '.join(owners)}: it has no meaning here"
    close = parser.closest(flag)
    return f"unknown argument {word}" + (f": did you mean {close}?" if close else "; see --help")


def describe(options: Resolved) -> str:
    """The objective that a student is trained on, in one line."""
    terms = [
        (options.gamma, "CE"),
        (options.alpha, f"KD(T={options.kd_T:g})"),
        (options.beta, options.distill),
    ]
    text = " + ".join(f"{weight:g}*{term}" for weight, term in terms if weight)
    views = [
        f"{name}={value}" if (value := options.values[name]) is not True else name
        for name in chosen_views(options.values)
    ]
    warm = f", {options.distill} grows over {options.warmup} epochs" if options.warmup else ""
    return text + (f" on rows: {', '.join(views)}" if views else "") + warm


def pair_note(options: Resolved) -> str:
    """What was set because a paper set it for this pair of networks; empty where nothing was."""
    named = [name for name, origin in options.origin.items() if origin == "pair"]
    settings = ", ".join(f"{name}={options.values[name]}" for name in named)
    pair = f"{options.model_t} -> {options.model_s}"
    return f"settings of {pair}: {settings} (--no_pair_defaults leaves them out)" if named else ""


def build(flag: str, cls: type, options: Resolved, *parts) -> Any:
    """Make a method or a view from its options; what it refuses becomes a line for the user."""
    try:
        return cls(options.read(cls.Options), *parts)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def main(command: Callable[[Sequence[str]], Any]) -> None:
    """Run a script. Bad input is one line on stderr and exit code 2."""
    with warnings.catch_warnings(), distributed.membership():
        warnings.showwarning = show_warning
        try:
            command(sys.argv[1:])
        except UserError as error:
            if distributed.speaks_first():
                print(f"error: {one_line(error)}", file=sys.stderr)
            raise SystemExit(2) from None
        except BrokenPipeError:  # whoever read the output has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(1) from None
        except BaseException as error:
            if distributed.is_loss_of_a_process(error):
                if distributed.speaks_first():
                    print(LOST, file=sys.stderr)
                raise SystemExit(1) from None
            if not interrupted(error):
                raise
            print("stopped; --resume goes on after the last whole epoch", file=sys.stderr)
            raise SystemExit(130) from None


def interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the root of an exception: a writer that it stops may raise its own."""
    return isinstance(error, KeyboardInterrupt) or (
        error is not None and interrupted(error.__context__)
    )


def show_warning(message, *_, **__) -> None:
    if not distributed.rank():
        print(f"warning: {one_line(message)}", file=sys.stderr)


def one_line(text) -> str:
    return " ".join(str(text).split())
