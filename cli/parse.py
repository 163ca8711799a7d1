"""From a command line to the options of a run: general flags, then those of what was chosen."""

import functools
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from cli.flags import (
    ConfigOptions,
    DataOptions,
    EvalOptions,
    FractionOptions,
    RunOptions,
    StudentOptions,
    TeacherOptions,
    TransferOptions,
    networks,
)
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller, LogitDistiller, View
from engine.device import DeviceOptions
from engine.recipe import RecipeOptions, in_proportion
from helper import config, teachers
from helper.errors import UserError
from helper.options import Parser, Resolved, resolve
from models import MODELS
from models.base import Features
from runs import checkpoint

COMMON = (ConfigOptions, DataOptions, FractionOptions, RecipeOptions, DeviceOptions, RunOptions)
PROBE_RECIPE = {"epochs": 120, "lr_decay_epochs": (30, 60, 90)}
UNUSABLE = object()  # the value of an option without which a command line is refused
# What people of the field type, and what it is called here.
HINTS = {
    "gpu": "--device cuda:N", "gpu_id": "--device cuda:N", "T": "--kd_T", "temperature": "--kd_T",
    "kd_temperature": "--kd_T", "teacher": "--model_t or --path_t", "student": "--model_s",
    "arch": "--model", "bs": "--batch_size",
    "method": "--distill", "dataset_dir": "--data_dir", "data": "--data_dir", "j": "--num_workers",
    "workers": "--num_workers", "fp16": "--amp fp16", "k": "--nce_k",
}  # fmt: skip

Typed = Mapping[str, Any]


def parse_teacher(argv: Sequence[str]) -> Resolved:
    """Command line of train_teacher.py -> its options."""
    classes, typed = parse((TeacherOptions, *COMMON), argv, "Train a network without a teacher.")
    return with_usual(lambda t: resolve(classes, data_layer(t, "model"), ("typed", t)), typed)


def parse_transfer(argv: Sequence[str]) -> Resolved:
    """Command line of transfer_student.py -> its options."""
    about = "Train a new classifier on the frozen features of a checkpoint."
    classes, typed = parse((TransferOptions, *COMMON), argv, about)
    network_of = functools.cache(checkpoint.network_of)  # else the file is read for every flag

    def make(typed):
        of = PROBE_RECIPE["epochs"]
        decays = in_proportion(PROBE_RECIPE["lr_decay_epochs"], of, typed.get("epochs", of))
        probe = {**PROBE_RECIPE, "lr_decay_epochs": decays}
        if Path(typed.get("path_s", "")).is_file() and not typed.get("model_s"):
            probe["model_s"] = network_of(typed["path_s"], "--model_s")
        return resolve(classes, ("linear probe", probe), ("typed", typed))

    return with_usual(make, typed)


def parse_eval(argv: Sequence[str]) -> Resolved:
    """Command line of tools/eval.py -> its options.

    The data set and its options are those that the checkpoint says, where they are not typed.
    """
    about = "Say how good a checkpoint is on the test split of a data set."
    general = (EvalOptions, ConfigOptions, DataOptions, DeviceOptions)
    chooser = Parser()
    chooser.add(EvalOptions, DataOptions)
    ahead = vars(chooser.parse_known_args(strip_help(argv))[0])
    known = checkpoint.data_of(ahead["ckpt"]) if ahead.get("ckpt") else {}
    trained_on = known.get("dataset", known.get("data"))  # old files have the name alone
    use_it = trained_on in DATASETS and "dataset" not in ahead
    classes, typed = parse(general, [*argv, *([f"--dataset={trained_on}"] * use_it)], about)
    options = {"image_size": known.get("image_size"), **known.get("data_options", {})}
    same_set = trained_on == typed.get("dataset", DataOptions.dataset)
    names = {f.name for f in fields(data_set(typed).Options)} if same_set else set()
    layer = {name: value for name, value in options.items() if name in names}
    return resolve(classes, ("checkpoint", layer), ("typed", typed))


def parse_student(argv: Sequence[str]) -> Resolved:
    """Command line of train_student.py -> its options.

    The weights come from the method's recipe, then from the views, then from what was typed.
    """
    about = "Train a student with the help of a teacher."
    classes, typed = parse((StudentOptions, *COMMON), argv, about, students=True)
    network_of = functools.cache(checkpoint.network_of)  # else the file is read for every flag
    options = with_usual(lambda typed: resolve_student(classes, typed, network_of), typed)
    check_objective(options)
    return options


def resolve_student(
    classes: Sequence[type], typed: Typed, network_of: Callable[[str, str], str]
) -> Resolved:
    """Options of train_student.py, in layers."""
    name = typed.get("distill", StudentOptions.distill)
    method, views = METHODS[name], chosen_views(typed)
    entry, teacher = data_set(typed), teacher_name(typed, network_of)
    student = typed.get("model_s", entry.student or StudentOptions.model_s)
    pair = method.pair_defaults(teacher, student, views, typed.get("dataset", DataOptions.dataset))
    pair, left_out = ({}, bool(pair)) if typed.get("no_pair_defaults") else (pair, False)
    data = data_layer({**pair, **typed}, "model_s")
    if method.recipe.warmup and entry.warmup is not None:
        data[1]["warmup"] = entry.warmup
    # One name of a method, and off where there is nothing to leave out.
    plain = {"distill": METHODS.canonical(name), "no_pair_defaults": left_out}
    typed = {**typed, **{key: value for key, value in plain.items() if key in typed}}
    layers = [(f"recipe of {name}", {**vars(method.recipe), "model_t": teacher}), data]
    layers.append(("pair", pair))
    layers += [view_defaults(view, typed, pair, method) for view in views]
    return resolve(classes, *layers, ("typed", typed))


def check_objective(options: Resolved) -> None:
    """UserError where nothing would be trained, or something that was asked for has no effect."""
    name, method = options.distill, METHODS[options.distill]
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
    if options.beta:
        check_wrappers(options)
    useless = [view for view in chosen_views(options.values) if not has_effect(view, options)]
    if useless:
        raise UserError(
            f"--{useless[0]} changes rows of logits, and none are read here: {name} reads "
            "features, and KD has no weight: give it one with -a"
        )


def check_wrappers(options: Resolved) -> None:
    """UserError where a view changes other features than the method reads."""
    name, method = options.distill, METHODS[options.distill]
    for view in chosen_views(options.values):
        wrapper = None if issubclass(method, LogitDistiller) else VIEWS[view].wrapper
        if wrapper is None or method.reads <= wrapper.reads:
            continue
        able = [n for n in METHODS if METHODS[n].reads and METHODS[n].reads <= wrapper.reads]
        able = [n for n in able if not issubclass(METHODS[n], LogitDistiller)]
        raise UserError(
            f"--{view} changes the pooled vector, and {name} reads {in_order(method.reads)}: its "
            "loss would only count several times; it works with the methods on logits and with "
            + ", ".join(able)
        )


def in_order(features: Collection[str]) -> str:
    """Names of features in network order."""
    return ", ".join(f.name for f in fields(Features) if f.name in features)


def with_usual(make: Callable[[Typed], Resolved], typed: Typed) -> Resolved:
    """Options, and for each typed one the value that the command line would give without it."""
    options, usual = make(typed), {}
    for name in typed:
        try:
            without = make({key: value for key, value in typed.items() if key != name})
            usual[name] = without.values.get(name, UNUSABLE)
        except UserError:
            usual[name] = UNUSABLE
    return replace(options, usual=usual)


def data_set(typed: Typed) -> type:
    """The data set of a command line."""
    return DATASETS[typed.get("dataset", DataOptions.dataset)]


def data_layer(typed: Typed, trained: str) -> tuple[str, dict[str, Any]]:
    """What a data set has in the recipe's place; `trained` is the flag of the trained network."""
    entry = data_set(typed)
    layer = dict(entry.recipe(typed))
    if "lr_decay_epochs" in layer:
        of = layer["epochs"]
        decays = in_proportion(layer["lr_decay_epochs"], of, typed.get("epochs", of))
        layer["lr_decay_epochs"] = decays
    if entry.student:
        layer[trained] = entry.student
    return f"recipe of {typed.get('dataset', DataOptions.dataset)}", layer


def teacher_name(typed: Typed, network_of: Callable[[str, str], str]) -> str:
    """The teacher's network: the one typed, else the one its checkpoint is of, else the default."""
    if typed.get("model_t") or not typed.get("path_t"):
        return typed.get("model_t") or data_set(typed).teacher or teachers.DEFAULT
    return network_of(typed["path_t"], "--model_t")


def has_effect(view: str, options: Resolved) -> bool:
    """Whether a view that is on changes a term of the objective."""
    method = METHODS[options.distill]
    on_method = VIEWS[view].wrapper or issubclass(method, LogitDistiller)
    return bool(options.alpha or (options.beta and on_method))


def view_defaults(
    name: str, typed: Typed, pair: Typed, method: type[Distiller]
) -> tuple[str, dict[str, Any]]:
    """What a view changes in the recipe; UserError where the command line says two things."""
    view: type[View] = VIEWS[name]
    known = {**pair, **typed}
    own = {f.name: known[f.name] for f in fields(view.Options) if f.name in known}
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
    so that a flag of another method is an error. Prints help and exits where it is asked for.
    """
    words = strip_help(argv)
    path, chosen = read_choices(words, students)
    warn_of_broken_files()
    classes = chosen_classes(general, chosen, students)
    parser = Parser(description=about, usage="%(prog)s [flags]")
    parser.add(*classes)
    if students:
        parser.add_switches("views", *(VIEWS[name].Options for name in VIEWS))
    if len(words) < len(argv):
        print(parser.format_help())
        print(networks())
        raise SystemExit(0)
    typed = read_words(parser, words)
    with config.in_file(path):
        configured = read_words(parser, config.words_of(path) if path else [])
    for name in configured.keys() & typed.keys():
        if configured[name] != typed[name]:
            warnings.warn(
                f"--{name} is {typed[name]} on the command line and {configured[name]} in {path}: "
                "the command line wins",
                stacklevel=2,
            )
    return classes, {**configured, **typed}


def read_choices(words: Sequence[str], students: bool) -> tuple[str, dict[str, Any]]:
    """The config file of a command line, and what both of them choose."""
    chooser = Parser()
    chooser.add(ConfigOptions, DataOptions, *([StudentOptions] if students else []))
    if students:
        chooser.add_switches("views", *(VIEWS[name].Options for name in VIEWS))
    chosen = vars(chooser.parse_known_args(words)[0])
    path = chosen.get("cfg", "")
    if path:
        configured = config.words_of(path)
        with config.in_file(path):
            chosen = {**vars(chooser.parse_known_args(configured)[0]), **chosen}
    if where := chosen.get("methods_dir"):
        import_methods(where)
    return path, chosen


def chosen_classes(general: Sequence[type], chosen: Typed, students: bool) -> list[type]:
    """Option classes in the order of the help: the method's own first."""
    classes = []
    if students:
        method = METHODS[chosen.get("distill", StudentOptions.distill)]
        classes += [method.Options, METHODS["kd"].Options]
        classes += [VIEWS[name].Options for name in chosen_views(chosen)]
        classes += [wrapper.Options for wrapper in wrappers(method, chosen)]
    return [*classes, *general, data_set(chosen).Options]


def import_methods(where: str) -> None:
    """Import methods from outside the toolkit: all files of a folder, or one package.module.

    A file that cannot be imported is noted in METHODS.broken. UserError where there are none.
    """
    if "" not in sys.path:
        sys.path.insert(0, "")  # a package of the working folder
    if not Path(where).is_dir() and not where.endswith(".py"):
        try:
            importlib.import_module(where)
        except (Exception, SystemExit) as error:  # whatever somebody's module raises
            raise UserError(
                f"--methods_dir {where} is no folder, and as a module it cannot be imported: "
                f"{type(error).__name__}: {error}"
            ) from error
        return
    files = sorted(Path(where).glob("*.py")) if Path(where).is_dir() else [Path(where)]
    if not files or not files[0].is_file():
        raise UserError(f"--methods_dir {where}: there are no .py files")
    for file in files:
        name = f"methods_dir_{file.stem}"
        if name in sys.modules:
            continue
        spec = importlib.util.spec_from_file_location(name, file)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever somebody's file raises
            del sys.modules[name]
            METHODS.broken[str(file)] = f"{type(error).__name__}: {error}"


def warn_of_broken_files() -> None:
    """Name the files of methods, networks and data sets that could not be imported."""
    for registry in (METHODS, VIEWS, MODELS, DATASETS):
        for file, reason in registry.broken.items():
            warnings.warn(f"{file} is left out: {reason}", stacklevel=2)


def read_words(parser: Parser, words: Sequence[str]) -> dict[str, Any]:
    """The values that a command line sets; UserError for a word that is none of its flags."""
    typed, unknown = parser.parse_known_args(words)
    if unknown:
        raise UserError(explain_unknown(unknown[0], words, parser))
    return vars(typed)


def strip_help(argv: Sequence[str]) -> list[str]:
    return [word for word in argv if word not in ("-h", "--help")]


def chosen_views(typed: Typed) -> list[str]:
    """Names of the views that are switched on, in the order in which they apply."""
    on = [name for name in VIEWS if typed.get(name)]
    return sorted(on, key=lambda name: VIEWS[name].order)


def wrappers(method: type[Distiller], typed: Typed) -> list[type[Distiller]]:
    """What the views that are on put around a method that reads features."""
    if issubclass(method, LogitDistiller):
        return []
    views = [VIEWS[name] for name in chosen_views(typed)]
    return [view.wrapper for view in views if view.wrapper]


def flag_before(words: Sequence[str], place: int) -> str:
    """The last flag before a word of a command line; empty where there is none."""
    return next((word for word in reversed(words[:place]) if word.startswith("--")), "")


def explain_unknown(word: str, words: Sequence[str], parser: Parser) -> str:
    """Why a word of the command line is none of the flags: whose it is, or what it may mean."""
    flag = word.split("=")[0]
    name = flag.lstrip("-").replace("-", "_")
    if not word.startswith("-"):
        flags = [flag_before(words, i) for i, other in enumerate(words) if other == word]
        if lists := [flag for flag in flags if parser.is_list(flag)]:
            return f"unknown argument {word}: a list has commas, as in {lists[0]} 1,2"
        return f"unknown argument {word}: it belongs to no flag; see --help"
    kinds = {"--distill": METHODS, "": VIEWS, "--dataset": DATASETS}
    owners = [
        f"{kind} {entry}".strip() if kind else f"--{entry}"
        for kind, registry in kinds.items()
        for entry in registry
        if name in {f.name for f in fields(registry[entry].Options)}
    ]
    if owners and word.startswith("--"):
        return f"{flag} is a flag of {', '.join(owners)}: it has no meaning here"
    if name in HINTS and parser.has(HINTS[name].split()[0]):
        return f"unknown argument {word}: it is {HINTS[name]} here"
    close = parser.closest(flag)
    return f"unknown argument {word}" + (f": did you mean {close}?" if close else "; see --help")
