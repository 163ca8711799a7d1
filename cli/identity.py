"""Which experiment a command line is: its options in force, its name."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from cli.parse import UNUSABLE, chosen_views, has_effect, wrappers
from cli.setting import Setting
from dataset import DATASETS
from dataset.augment import AUGMENTATION_VERSION
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller
from engine.distributed import world_size
from engine.objective import PROBE_VERSION
from engine.recipe import decays_in_force
from helper.options import Resolved
from models.any import source_of
from runs.code import own_code
from runs.experiment import Experiment, canonical, identity_of, plain, token

# Options that the title of a name has already, or its end.
IN_TITLE = frozenset(
    {"alpha", "beta", "dataset", "distill", "gamma", "model", "model_s", "model_t"}
)

LONGEST_SOURCE = 70  # characters


def make_experiment(kind: str, setting: Setting, title: str, source: str = "") -> Experiment:
    """The experiment of a command line; `source` is the sha256 of the checkpoint that it reads."""
    options = setting.options
    values = effective(options.values, setting)
    usual = effective({**options.values, **known_usual(options)}, setting) | {"processes": 1}
    identity = identity_of({name: values[name] for name in in_force(options) & values.keys()})
    titled = IN_TITLE | set(chosen_views(options.values))
    unusual = [
        name
        for name in (*options.values, "processes")
        if name in dict(identity)
        and name not in titled
        and canonical(values[name]) != canonical(usual[name])
    ]
    return Experiment(
        kind=kind,
        options=identity,
        data=setting.fingerprint,
        source=source,
        code=tuple(sorted(code_versions(kind, options).items())),
        title=title,
        unusual=tuple(unusual),
        trial=options.trial,
    )


def known_usual(options: Resolved) -> dict[str, Any]:
    """What typed options would be otherwise. An image size that the files decide is not known."""
    usual = dict(options.usual)
    if "image_size" in usual and usual["image_size"] is None:
        usual["image_size"] = UNUSABLE
    for target, flag in view_setters(options).items():
        if flag in usual and target not in usual:
            usual[target] = usual[flag]
    return usual


def view_setters(options: Resolved) -> dict[str, str]:
    """Options that a flag of a view sets, and that flag: {'kd_T': 'base_temp', ...}."""
    if "distill" not in options.values:
        return {}
    method, setters = METHODS[options.distill], {}
    for name in chosen_views(options.values):
        view = VIEWS[name]
        defaults = view.defaults(options.read(view.Options), method)
        setters.update({target: flag for target, (flag, _) in defaults.items()})
    return setters


def effective(values: Mapping[str, Any], setting: Setting) -> dict[str, Any]:
    """Options with the values that take effect, for those whose default depends on others."""
    options, values = setting.options, dict(values)
    if values["learning_rate"] is None:
        values["learning_rate"] = setting.network_rate
    if values["lr_decay_epochs"] is not UNUSABLE:
        values["lr_decay_epochs"] = decays_in_force(values["lr_decay_epochs"], options.epochs)
    if values["seed"] is None:
        values["seed"] = options.trial
    if "image_size" in values:
        values["image_size"] = values["image_size"] or setting.data.image_size
    # Without synchronised BatchNorm each process has statistics of its own share; and each draws
    # its own dropout.
    alike = values.pop("sync_bn") and not (world_size() > 1 and setting.draws_in_training)
    values["processes"] = 1 if alike else world_size()
    return values


def in_force(options: Resolved) -> set[str]:
    """Names of the options that can change a number of this run."""
    names = set(options.values) | {"processes"}
    names -= {name for name, default in options.added.items() if options.values[name] == default}
    if options.train_fraction == 1:
        names.discard("fraction_seed")
    if "distill" not in options.values:
        return names
    method = METHODS[options.distill]
    trains_first = method.first_stage is not Distiller.first_stage
    in_use = [DATASETS[options.dataset].Options]
    in_use += [METHODS["kd"].Options] if options.alpha else []
    in_use += [method.Options] if options.beta or trains_first else []
    for view in chosen_views(options.values):
        in_use += [VIEWS[view].Options] if has_effect(view, options) else []
    in_use += [w.Options for w in wrappers(method, options.values)] if options.beta else []
    of_parts = {f.name for part in every_part(options) for f in fields(part)}
    names -= of_parts - {f.name for part in in_use for f in fields(part)}
    names -= set(view_setters(options).values())  # what they set is in force
    names -= set() if options.beta else {"warmup"}
    return names - (set() if trains_first else {"init_epochs"})


def every_part(options: Resolved) -> list[type]:
    """Option classes of methods, views and what views put around a method."""
    method = METHODS[options.distill]
    around = [wrapper.Options for wrapper in wrappers(method, options.values)]
    views = [VIEWS[name].Options for name in chosen_views(options.values)]
    return [METHODS["kd"].Options, method.Options, *around, *views]


def code_versions(kind: str, options: Resolved) -> dict[str, str]:
    """Versions of code that changes numbers: of the augmentation and the probe, and of chosen files
    that are no part of a commit of this toolkit: methods, views and networks of one's own."""
    versions = {"augmentation": str(AUGMENTATION_VERSION)}
    if kind == "probe":
        versions["probe"] = str(PROBE_VERSION)
    chosen = {}
    if "distill" in options.values:
        chosen[f"method {options.distill}"] = METHODS[options.distill]
        for name in chosen_views(options.values):
            chosen[f"view {name}"] = VIEWS[name]
    for name in ("model", "model_s", "model_t"):
        if options.values.get(name):
            chosen[f"network {options.values[name]}"] = source_of(options.values[name])
    for name, entry in chosen.items():
        if digest := own_code(entry):
            versions[name] = digest
    return versions


def teacher_title(setting: Setting) -> str:
    """'resnet20_cifar100'"""
    return f"{plain(setting.options.model)}_{setting.data.name}"


def student_title(setting: Setting, teacher_tag: str) -> str:
    """'S_resnet8x4_T_resnet32x4_cifar100_kd_sdd-1-2_r_0.1_a_0.9_b_0'"""
    options = setting.options
    views = [token(name, options.values[name]) for name in chosen_views(options.values)]
    names = {"r": options.gamma, "a": options.alpha, "b": options.beta}
    weights = [token(letter, canonical(weight)) for letter, weight in names.items()]
    plain_pair = ["no_pair_defaults"] if options.no_pair_defaults else []
    return "_".join(
        [
            f"S_{plain(options.model_s)}_T_{plain(options.model_t)}{teacher_tag}",
            setting.data.name,
            options.distill,
            *views,
            *weights,
            *plain_pair,
        ]
    )


def probe_title(setting: Setting, path: Path, digest: str) -> str:
    """'S_resnet8x4_T_..._trial_1_best-1a2b3c4d_to_stl10': folder, which checkpoint, its sha256.

    Of the folder's name no more than LONGEST_SOURCE characters, so that the rest is never cut off.
    """
    run = plain(path.absolute().parent.name)[:LONGEST_SOURCE]
    which = path.stem if path.stem.startswith("ckpt") else path.stem.rpartition("_")[2]
    return f"{run}_{plain(which)}-{digest[:8]}_to_{setting.data.name}"
