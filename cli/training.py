"""What every training command does with its stages: say what runs, hold the folder, train."""

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from cli.networks import Trained, count_parameters
from cli.parts import Parts
from cli.setting import AnyLoader, Loaders, Setting
from dataset import DATASETS
from dataset.base import StreamedSet
from dataset.loader import smallest_batch
from engine.bank import Bank, scores_in
from engine.distributed import is_main_process, on_main_process, world_size
from engine.evaluate import evaluate
from engine.fit import fit
from engine.meter import NotFinite
from engine.objective import Task, make_cross_entropy, norm_of_one_value
from engine.recipe import RecipeOptions
from engine.stage import Stage
from helper.errors import UserError
from helper.files import check_writable
from helper.options import Resolved
from models.base import Classifier
from runs import checkpoint
from runs.code import CODE
from runs.experiment import Experiment, rounding_of
from runs.folder import FINISHED, NEW, RunFolder
from runs.logs import import_wandb
from runs.provenance import provenance
from runs.recorder import Run

PROTOCOL = "best epoch on the held-out images; the test images are read at the end, once"
KINDS = {"teacher": "models", "student": "student_model", "probe": "linear_probe"}


def run_folder(setting: Setting, experiment: Experiment) -> RunFolder:
    """The folder of an experiment: save_dir/models/NAME, for a network by itself."""
    path = Path(setting.options.save_dir) / KINDS[experiment.kind] / experiment.name
    return RunFolder(path, experiment)


def is_finished(folder: RunFolder, setting: Setting) -> bool:
    """Whether the folder holds this very run, finished; says so.

    Raises UserError where it holds another, or one that only --resume goes on with.
    """
    options = setting.options
    if options.wandb:
        import_wandb()
    on_main_process(folder.check_free)
    found = on_main_process(lambda: folder.check(options.resume, options.overwrite))
    if found != FINISHED:
        on_main_process(lambda: check_writable(folder.path, "--save_dir"))
    if found == FINISHED and is_main_process():
        print(f"{folder.path} is finished: nothing to do{scores_of(folder)}")
    if (
        found == NEW
        and options.resume
        and is_main_process()
        and (other := folder.stopped_sibling())
    ):
        warnings.warn(f"nothing to resume in {folder.path}: it starts anew; {other}", stacklevel=2)
    return found == FINISHED


def scores_of(folder: RunFolder) -> str:
    """' (last 76.87 %, best 77.01 %)' of a finished run."""
    summary = folder.read_summary()
    scores = {name: (summary.get(name) or {}).get("test_acc") for name in ("last", "best")}
    known = ", ".join(f"{name} {acc:.2f} %" for name, acc in scores.items() if acc is not None)
    return f" ({known})" if known else ""


def train(
    setting: Setting,
    folder: RunFolder,
    stages: Sequence[Stage | None],
    loaders: Loaders,
    facts: Mapping[str, Any],
) -> None:
    """Train the stages one after another, and keep what they give in the folder.

    `facts` go into run.json: `objective`, `terms` with their weights, `teacher` ...
    """
    options = setting.options
    student = next(stage for stage in stages if stage).task.student
    for stage in filter(None, stages):
        check_last_batch(stage.task, setting)
    task = stages[-1].task
    if options.mixup:
        task.mix_images(options.mixup)
    task.cross_entropy = make_cross_entropy(
        loaders.train.labels,
        len(setting.data.classes),
        options.label_smoothing,
        options.balance == "loss",
    )
    with held(folder, setting) as state:
        everything = {**run_facts(setting, student), **facts}
        if others := facts_of_others(task):
            everything["others"] = others
        device, gpu = setting.numerics.describe(), setting.numerics.gpu
        began = provenance(device, gpu, rounding_of(options.values), world_size())
        run = Run(folder, setting.model, everything, state, is_main_process())
        run.start(began, options.wandb, options.tb_freq)
        if not state:
            task.prepare(setting.images_as_they_are())
        for stage in filter(None, stages):
            fit(stage, loaders.train, loaders.measured, run, options.print_freq)
        run.finish({} if loaders.val is None else test_kept(task, loaders.test, run))


def test_kept(task: Task, test: AnyLoader, run: Run) -> dict[str, dict[str, dict[str, float]]]:
    """Accuracies of the last and the best network on the test set, on which nothing was chosen.

    -> of each student {"last": {"test_acc": 76.87, ...}, "best": ...}
    """
    tested: dict[str, dict[str, dict[str, float]]] = {}
    for name, one in task.trained.items():
        ends, found = run.students[name], {}
        for which in ("last", "best"):
            if which == "best" and ends["best"]["epoch"] == ends["last"]["epoch"]:
                found["best"] = found["last"]
                break
            file = run.weights_file(which, name)
            weights = on_main_process(lambda file=file: checkpoint.weights_of(file))
            one.student.load_state_dict(weights)
            scores = evaluate(one.eval().predict, test)
            found[which] = {f"test_{metric}": value for metric, value in scores.items()}
        tested[name] = found
    return tested


def check_last_batch(task: Task, setting: Setting) -> None:
    """UserError where a process's share of it is one image that a BatchNorm cannot normalise."""
    batch_size, n = setting.options.batch_size, len(setting.data.train.labels)
    smallest = smallest_batch(n, batch_size)
    together = smallest if setting.numerics.sync_bn else smallest // world_size()
    if together == 1 and (norm := norm_of_one_value(task, setting.data.image_size)):
        share = "it" if smallest == 1 else "one image, all that a process has of it"
        raise UserError(
            f"batch size {batch_size} leaves a last batch of {smallest} of the {n} training "
            f"images, and BatchNorm {norm} sees a 1x1 map of {share}: choose another batch size"
        )


@contextmanager
def held(folder: RunFolder, setting: Setting):
    """Hold a run's folder on the main process; give every process the state to be resumed."""
    options = setting.options
    with ExitStack() as stack:
        opened = folder.open(options.resume, options.overwrite)
        yield on_main_process(lambda: stack.enter_context(opened))


def run_facts(setting: Setting, student: Classifier) -> dict[str, Any]:
    """What run.json has of every run."""
    options, schedule = setting.options, setting.schedule
    return {
        "parameters": count_parameters(student),
        "data": {**data_facts(setting), **deployed_as(setting, student)},
        "images": image_counts(setting),
        "best_on": "val" if setting.data.val else "test",
        "seed": setting.seed,
        **({"start": setting.start.source} if setting.start else {}),
        "learning_rate": schedule.start,
        "lr_decay_epochs": list(schedule.decay_epochs),
        "lr_decay_rate": schedule.decay_rate,
        "options": dict(options.values),
        "origin": dict(options.origin),
    }


def facts_of_others(task: Task) -> dict[str, dict[str, Any]]:
    """Of the students that are trained beside the first one, by name."""
    return {
        name: {"model": one.student.name, "parameters": count_parameters(one.student)}
        for name, one in task.trained.items()
        if name
    }


def deployed_as(setting: Setting, network: Classifier) -> dict[str, str]:
    """What a checkpoint is said to be of, where the method made another network of the student."""
    student = setting.data.networks.get(setting.model, setting.model)
    return {} if network.name == student else {"model_name": network.name}


def data_facts(setting: Setting) -> dict[str, Any]:
    """What a run and its checkpoints remember of the data."""
    options, data = setting.options, setting.data
    names = [f.name for f in fields(DATASETS[options.dataset].Options)]
    values = {name: plain_value(options.values[name]) for name in names}
    if options.origin.get("data_dir") == "typed":  # it is looked for from anywhere
        values["data_dir"] = os.path.abspath(values["data_dir"])
    return {
        "dataset": options.dataset,
        "data_options": values,
        "fingerprint": setting.fingerprint,
        "images_fingerprint": setting.images,
        "data": data.name,
        "classes": list(data.classes),
        "image_size": data.image_size,
        "crop_pct": data.crop_pct,
        "mean": list(data.mean),
        "std": list(data.std),
    }


def plain_value(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def image_counts(setting: Setting) -> dict[str, int]:
    """Training, held-out and test images."""
    data = setting.data
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {name: len(split.labels) for name, split in splits.items() if split}


def print_heading(
    setting: Setting,
    folder: RunFolder,
    student: Classifier,
    objective: str,
    notes: Sequence[str] = (),
) -> None:
    """What will run, before the first epoch; below it each note that is not empty."""
    options, data, schedule = setting.options, setting.data, setting.schedule
    counts = image_counts(setting)
    size = f"{data.image_size}x{data.image_size}"
    kept = "read from disk" if isinstance(data, StreamedSet) else "in memory"
    whole = "the others" if data.val else "all"
    share = f" ({options.train_fraction:g} of {whole})" if options.train_fraction < 1 else ""
    held_out = f", {counts['val']:,} held-out" if data.val else ""
    mean, std = (", ".join(f"{x:.4f}" for x in values) for values in (data.mean, data.std))
    lines = {
        "data": f"{data.name}: {counts['train']:,} training{share}{held_out} "
        f"and {counts['test']:,} test images of {size} in {len(data.classes)} classes, {kept}",
        "pixels": f"mean ({mean}), std ({std})",
        "network": describe_network(setting.model, student),
        "objective": objective,
        "training": f"{options.epochs} epochs, batch {options.batch_size}, "
        f"rate {schedule.describe()}, {describe_optimizer(options)}, "
        f"weight decay {options.weight_decay:g}{describe_labels(options)}, seed {setting.seed}",
        **({"protocol": PROTOCOL} if data.val else {}),
        "device": setting.numerics.describe(),
        "folder": str(folder.path),
        "code": str(CODE),
    }
    for name, text in lines.items():
        print(f"{name + ':':<11}{text}", flush=True)
    for note in filter(None, notes):
        print(note, flush=True)


def describe_optimizer(options: RecipeOptions) -> str:
    """'momentum 0.9', which is SGD's, or 'AdamW', and what else is done with the weights."""
    own = "AdamW" if options.optimizer == "adamw" else f"momentum {options.momentum:g}"
    backbone = f", backbone's rate {options.backbone_rate:g}" if options.backbone_rate else ""
    average = f", average of weights {options.ema:g}" if options.ema else ""
    return own + backbone + average


def describe_labels(options: Resolved) -> str:
    """What is made of labels, behind a comma; empty where they are as they are."""
    smoothing = f", label smoothing {options.label_smoothing:g}" if options.label_smoothing else ""
    classes = {"off": "", "loss": ", classes weigh alike", "sampler": ", classes drawn alike"}
    mixup = f", mixup {options.mixup:g}" if options.mixup else ""
    return smoothing + classes[options.balance] + mixup


def describe_network(name: str, network: Classifier) -> str:
    """Name and size; of a network from elsewhere the stages that were found as well."""
    found = f" ({found})" if (found := network.describe()) else ""
    return f"{name}, {count_parameters(network):,} parameters{found}"


def describe_peer(network: Classifier | None, setting: Setting) -> str:
    """A line on the second student; empty where there is none."""
    if network is None:
        return ""
    return f"{'peer:':<11}{describe_network(network.name, network)}, rate {setting.peer_rate:g}"


def measure_teacher(
    trained: Trained | None, setting: Setting, parts: Parts, folder: RunFolder
) -> dict[str, Any]:
    """Say how good the teacher is on the test split -> what the run remembers of it, if anything.

    It is measured once, for the bank of its rows or else for the run.
    """
    if trained is None:
        return {}
    bank = parts.teacher.bank
    scores = on_main_process(lambda: known_scores(trained, setting, folder, bank))
    if scores is None:
        noise = torch.Generator().manual_seed(0)  # of its own: the run's draws stay what they are
        some = torch.randn(2, 3, *2 * [setting.data.image_size], generator=noise)
        predict = parts.teacher.predictor(some.to(setting.numerics.device))
        try:
            scores = evaluate(predict, parts.loaders.test, title="teacher")
        except NotFinite:
            raise UserError(
                f"the teacher {trained.path} gives numbers that are not finite: train it again, "
                "or give another"
            ) from None
        if bank and is_main_process():
            bank.keep_scores(scores)
    own = "" if trained.network.pixel_scale is None else ", with its own mean and std"
    print(
        f"{'teacher:':<11}{describe_network(trained.name, trained.network)}{own}, "
        f"{scores['acc']:.2f} % (top-5 {scores['acc_top5']:.2f}), {trained.path}",
        flush=True,
    )
    return {"teacher": {**trained.facts, **scores}}


def known_scores(
    trained: Trained, setting: Setting, folder: RunFolder, bank: Bank | None
) -> dict[str, float] | None:
    """The teacher's scores where they were measured before on the same data, else None."""
    if bank and (scores := bank.scores()):
        return scores
    try:
        summary = folder.read_summary() if folder.summary_file.exists() else {}
    except UserError:
        return None  # a broken file, which is about to be replaced
    known, data = summary.get("teacher"), summary.get("fingerprint")
    same = isinstance(known, dict) and known.get("sha256") == trained.sha256
    return scores_in(known) if same and data == setting.fingerprint else None
