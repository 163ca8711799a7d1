"""From a command line to the options of a run: general flags, then those of what was chosen."""

import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

from cli.choice import Choice, StudentResolved, check_objective, choose
from cli.flags import (
    BankOptions,
    ConfigOptions,
    DataOptions,
    EvalOptions,
    FractionOptions,
    RunOptions,
    StartOptions,
    StudentOptions,
    TeacherOptions,
    TransferOptions,
)
from cli.words import Typed, data_set, parse, read_said, strip_help
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller, View
from engine.device import DeviceOptions
from engine.recipe import (
    FINE_TUNING_RATES,
    RECIPES,
    RecipeOptions,
    in_proportion,
    without_meaning,
)
from helper import config, teachers
from helper.errors import UserError
from helper.options import UNKNOWN, Parser, Resolved, resolve, words_in
from models.any import check_name
from runs import checkpoint

COMMON = (ConfigOptions, DataOptions, FractionOptions, RecipeOptions, DeviceOptions, RunOptions)
NEEDS = {  # what has a meaning beside another option alone
    "val_seed": "val_fraction",
    **dict.fromkeys(("bank_type", "bank_batch", "bank_limit"), "teacher_bank"),
}
Layer = tuple[str, dict[str, Any]]  # what set some options, and to which values
PROBE_RECIPE = {"epochs": 120, "lr_decay_epochs": (30, 60, 90)}


def parse_teacher(argv: Sequence[str]) -> Resolved:
    """Command line of train_teacher.py -> its options."""
    classes, typed = parse(
        (TeacherOptions, StartOptions, *COMMON), argv, "Train a network without a teacher."
    )
    start = start_layer(typed, "model")

    def make(typed):
        layers = data_layer(typed, "model"), start, optimizer_layer(typed), ("typed", typed)
        return resolve(classes, *layers)

    return with_usual(make, typed)


def parse_transfer(argv: Sequence[str]) -> Resolved:
    """Command line of transfer_student.py -> its options."""
    about = "Train a new classifier on the frozen features of a checkpoint."
    classes, typed = parse((TransferOptions, *COMMON), argv, about)
    network_of = functools.cache(checkpoint.network_of)  # else the file is read for every flag

    def make(typed):
        of = PROBE_RECIPE["epochs"]
        decays = in_proportion(PROBE_RECIPE["lr_decay_epochs"], of, typed.get("epochs", of))
        probe = {**PROBE_RECIPE, "lr_decay_epochs": decays}
        if os.path.exists(typed.get("path_s", "")) and not typed.get("model_s"):
            probe["model_s"] = network_of(typed["path_s"], "--model_s")
        return resolve(classes, ("linear probe", probe), optimizer_layer(typed), ("typed", typed))

    return with_usual(make, typed)


def parse_eval(argv: Sequence[str]) -> Resolved:
    """Command line of tools/eval.py -> its options."""
    about = "Say how good a checkpoint is on the test split of a data set."
    return parse_trained(argv, EvalOptions, about)


def parse_trained(argv: Sequence[str], own: type, about: str) -> Resolved:
    """Command line of a command about a checkpoint, the `ckpt` of its `own` options, and a data set
    -> its options. The checkpoint may stand first, without its flag.

    The data set and its options are those that the checkpoint says, where they are not typed.
    """
    argv = ["-c", *argv] if argv and not argv[0].startswith("-") else argv
    general = (own, ConfigOptions, DataOptions, DeviceOptions)
    chooser = Parser()
    chooser.add(own, DataOptions)
    ahead = vars(chooser.parse_known_args(strip_help(argv))[0])
    known = checkpoint.data_of(ahead["ckpt"]) if ahead.get("ckpt") else {}
    trained_on = known.get("dataset", known.get("data"))  # old files have the name alone
    use_it = trained_on in DATASETS and "dataset" not in ahead
    classes, typed = parse(general, [*argv, *([f"--dataset={trained_on}"] * use_it)], about)
    options = {"image_size": known.get("image_size"), **known.get("data_options", {})}
    layer = {}
    if known and trained_on in (None, typed.get("dataset", DataOptions.dataset)):
        with config.in_file(ahead["ckpt"]):
            layer = read_said(data_set(typed).Options, options)
    return resolve(classes, ("checkpoint", layer), ("typed", typed))


def parse_student(argv: Sequence[str]) -> StudentResolved:
    """Command line of train_student.py -> its options.

    The weights come from the method's recipe, then from the views, then from what was typed.
    """
    about = "Train a student with the help of a teacher."
    general = (StudentOptions, StartOptions, BankOptions, *COMMON)
    classes, typed = parse(general, argv, about, students=True)
    typed = {name: value for name, value in typed.items() if value or name not in VIEWS}
    network_of = functools.cache(checkpoint.network_of)  # else the file is read for every flag
    start = start_layer(typed, "model_s")
    options = with_usual(lambda typed: resolve_student(classes, typed, network_of, start), typed)
    check_objective(options)
    return options


def resolve_student(
    classes: Sequence[type], typed: Typed, network_of: Callable[[str, str], str], start: Layer
) -> StudentResolved:
    """Options of train_student.py, in layers; `start` is that of --init."""
    choice, name = choose(typed), typed.get("distill", StudentOptions.distill)
    method, recipe = choice.method, choice.method.recipe
    entry = data_set(typed)
    teacher = teacher_name(typed, network_of) if method.has_teacher else ""
    by_default = start[1].get("model_s") or entry.student or StudentOptions.model_s
    student = typed.get("model_s", by_default)
    dataset = typed.get("dataset", DataOptions.dataset)
    names = {network: name for name, network in entry.networks.items()}  # as papers call them
    networks = [names.get(network, network) for network in (teacher, student)]
    pair, chosen = settings_of_papers(choice, networks, dataset, typed)
    left_out = bool(pair and typed.get("no_pair_defaults"))
    if left_out:
        pair, chosen = {}, settings_of_papers(choice, ("", ""), dataset, typed)[1]
    data = data_layer({**pair, **typed}, "model_s")
    if recipe.warmup and entry.warmup is not None:
        data[1]["warmup"] = entry.warmup
    # One name of a method, and off where there is nothing to leave out.
    plain = {"distill": METHODS.canonical(name), "no_pair_defaults": left_out}
    typed = {**typed, **{key: value for key, value in plain.items() if key in typed}}
    networks = {"model_t": teacher, "peer": student if method.mutual else ""}
    layers = [(f"recipe of {name}", {**vars(recipe), **networks}), data]
    layers += [start, optimizer_layer(typed), ("pair", pair)]
    layers += [(f"--{flag}", {key: value}) for key, (flag, value) in chosen.items()]
    set_by, view_of = {}, {}
    for view_name, view in choice.views.items():
        defaults = view_defaults(view, typed, pair, method)
        if twice := sorted(set_by.keys() & defaults.keys()):
            both = f"--{view_of[twice[0]]} and --{view_name} both set {twice[0]}"
            raise UserError(f"{both}: give one of them")
        layers.append((f"--{view_name}", {key: value for key, (_, value) in defaults.items()}))
        set_by.update({key: flag for key, (flag, _) in defaults.items()})
        view_of.update(dict.fromkeys(defaults, view_name))
    options = resolve(classes, *layers, ("typed", typed))
    set_by = {name: flag for name, flag in set_by.items() if flag not in {"", *choice.views}}
    idle = options.idle | choice.without_effect(options) | {*set_by.values()}
    return StudentResolved(**{**vars(options), "idle": idle, "set_by": set_by}, choice=choice)


def settings_of_papers(
    choice: Choice, networks: Sequence[str], dataset: str, typed: Typed
) -> tuple[Typed, dict[str, tuple[str, Any]]]:
    """What a method's paper set otherwise: for a pair of networks, option -> value; for any pair
    with the method's options, option -> the flag that does it, the value."""
    method, views = choice.method, choice.views
    pair = method.pair_defaults(*networks, views, dataset)
    own = known_of(method, {**pair, **typed})
    chosen = method.option_defaults(own, "", "", views)
    with_pair = method.option_defaults(own, *networks, views)
    of_pair = {k: value for k, (_, value) in with_pair.items() if with_pair[k] != chosen.get(k)}
    return {**pair, **of_pair}, {k: v for k, v in chosen.items() if k not in of_pair}


def view_defaults(
    view: type[View], typed: Typed, pair: Typed, method: type[Distiller]
) -> dict[str, tuple[str, Any]]:
    """What a view changes in the recipe: option -> its own flag, the value.

    UserError where the command line says two things.
    """
    defaults = view.defaults(known_of(view, {**pair, **typed}), method)
    for option_name, (flag, value) in defaults.items():
        if flag in typed and typed.get(option_name, value) != value:
            raise UserError(
                f"--{flag} {typed[flag]:g} and --{option_name} {typed[option_name]:g} set the same "
                "thing to different values: give one of them"
            )
    return defaults


def known_of(entry: type[View] | type[Distiller], known: Typed) -> Any:
    """Options of a method or a view, of which some values are known."""
    own = {f.name: known[f.name] for f in fields(entry.Options) if f.name in known}
    return resolve([entry.Options], ("typed", own)).read(entry.Options)


def with_usual(make: Callable[[Typed], Resolved], typed: Typed) -> Resolved:
    """Options, and for each typed one the value that the command line would give without it.

    UserError where one has no meaning beside others, or without another.
    """
    options, usual = make(typed), {}
    for name in NEEDS.keys() & typed.keys():
        if NEEDS[name] not in typed:
            raise UserError(f"--{name} has no meaning without --{NEEDS[name]}: leave it out")
    unused = without_meaning(options)
    for name in unused.keys() & typed.keys():
        raise UserError(f"--{name} has no meaning with {unused[name]}: leave it out")
    for name in typed:
        try:
            without = make({key: value for key, value in typed.items() if key != name})
            usual[name] = without.values.get(name, UNKNOWN)
        except UserError:
            usual[name] = UNKNOWN
    if "image_size" in usual and usual["image_size"] is None:
        usual["image_size"] = UNKNOWN  # the files decide
    of_set = {name: usual[flag] for name, flag in options.set_by.items() if flag in usual}
    idle = options.idle | unused.keys()
    return replace(options, usual={**of_set, **usual}, idle=idle)


def data_layer(typed: Typed, trained: str) -> Layer:
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


def start_layer(typed: Typed, trained: str) -> Layer:
    """What --init says of the network, where `trained`, the flag of its name, is not typed."""
    path, layer = typed.get("init", ""), {}
    if os.path.exists(path) and trained not in typed:
        name = checkpoint.network_of(path, f"--{trained}")
        with config.in_file(path):
            check_name(data_set(typed).networks.get(name, name))
        layer[trained] = name
    return "--init", layer


def optimizer_layer(typed: Typed) -> Layer:
    """What an optimizer has in the recipe's place, and fine-tuning with it."""
    name = typed.get("optimizer", RecipeOptions.optimizer)
    if typed.get("pretrained") or typed.get("init"):
        return f"fine-tuning by {name}", {**RECIPES[name], "learning_rate": FINE_TUNING_RATES[name]}
    return f"recipe of {name}", RECIPES[name]


def teacher_name(typed: Typed, network_of: Callable[[str, str], str]) -> str | tuple[str, ...]:
    """The teacher's network: the one typed, else the one its checkpoint is of, else the default.

    Of several teachers each.
    """
    if typed.get("model_t") or not typed.get("path_t"):
        return typed.get("model_t") or data_set(typed).teacher or teachers.DEFAULT
    names = tuple(network_of(path, "--model_t") for path in words_in(typed["path_t"]))
    return names[0] if len(names) == 1 else names
