"""From options to the parts of a run: data, networks, the folder's name."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from dataset import DATASETS
from dataset.base import DataSet
from dataset.loader import Loader
from dataset.stream import StreamedSet, StreamLoader
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller, Setup
from helper import checkpoint, cli, files, teachers
from helper.device import Numerics
from helper.distributed import in_turn, rank, ranks
from helper.errors import UserError
from helper.loop import NotFinite, measure
from helper.options import Resolved
from helper.run import Run, plain
from models.any import build as build_network
from models.base import Classifier

TEST_BATCH = 500  # images a step where nothing is trained
AnySet = DataSet | StreamedSet


def load_data(options: Resolved) -> AnySet:
    """The data set that --dataset names."""
    entry = DATASETS[options.dataset]
    return in_turn(lambda: entry.load(options.read(entry.Options)))


def loaders(data: AnySet, options: Resolved, seed: int, device: torch.device):
    """Training and test loader."""
    size = options.batch_size
    test_size = size if isinstance(data, StreamedSet) else TEST_BATCH
    how = {"workers": options.num_workers, "seed": seed, "device": device}
    train = loader(data, "train", size, aug=options.aug, **how)
    return train, loader(data, "test", test_size, **how)


def loader(data: AnySet, split: str, batch_size: int, workers: int, **how):
    """The batches of one split that this process has; `how` is for the loader."""
    mine = {**how, "rank": rank(), "ranks": ranks()}
    if isinstance(data, StreamedSet):
        return StreamLoader(data, split, batch_size, workers=workers, **mine)
    return Loader(data, split, batch_size, **mine)


def facts_of(data: AnySet) -> dict[str, Any]:
    """What a run remembers of its data."""
    return {
        "data": data.name,
        "classes": data.classes,
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
    }


def network(name: str, data: AnySet) -> Classifier:
    """A new network for the classes and the image size of a data set."""
    return build_network(data.networks.get(name, name), len(data.classes), data.image_size)


def teacher_path(options: Resolved) -> Path:
    """Checkpoint of the teacher: the given one, else the published one, fetched."""
    if options.path_t:
        return Path(options.path_t)
    published = in_turn(lambda: DATASETS[options.dataset].pretrained(options.model_t))
    if published:
        return published
    if options.dataset != teachers.DATASET:
        raise UserError(
            f"the published teachers know {teachers.DATASET}, not {options.dataset}: train one "
            f"with train_teacher.py --dataset {options.dataset} and give it with --path_t"
        )
    return in_turn(lambda: teachers.find_or_fetch(options.model_t, Path(options.save_dir)))


def load_frozen(name: str, path: Path, data: AnySet) -> Classifier:
    """A network with the weights of a checkpoint, in eval and never trained."""
    trained = network(name, data)
    checkpoint.load_weights(trained, path, f"{name} with {len(data.classes)} classes")
    return trained.eval().requires_grad_(False)


def probed(options: Resolved) -> tuple[str, Path]:
    """Name and checkpoint of the network whose features are probed."""
    if not options.path_s:
        raise UserError("no --path_s: give the checkpoint whose features are to be probed")
    name = options.model_s or checkpoint.network_of(options.path_s, "--model_s")
    return name, Path(options.path_s)


def load_backbone(fresh: Classifier, path: Path, name: str) -> None:
    """Load all of a checkpoint but its classifier, which was for other classes."""
    own, weights = fresh.state_dict(), checkpoint.weights_of(path)
    head = {key for key in own if key.startswith(f"{fresh.head_name}.")}
    weights = {key: value for key, value in weights.items() if key not in head}
    weights.update((key, own[key]) for key in head)
    checkpoint.load_into(fresh, weights, path, name)


def check_teacher(
    name: str, path: Path, teacher: Classifier, test: Loader, numerics: Numerics
) -> dict[str, Any]:
    """Say how good the teacher is -> what the run remembers of it."""

    try:
        scores = measure(numerics.predictor(teacher, "teacher"), test)
    except NotFinite:
        raise UserError(
            f"the teacher {path} gives numbers that are not finite: train it again, or give another"
        ) from None
    print(f"teacher {name}: {scores['acc']:.2f} % (top-5 {scores['acc_top5']:.2f}), {path}")
    return {"model": name, "path": str(path), "sha256": files.sha256(path), **scores}


@torch.no_grad()
def method_setup(student: Classifier, teacher: Classifier, image_size: int, train: Loader) -> Setup:
    """What a method may read before training: the features of two images, the labels."""
    images = torch.zeros(2, 3, image_size, image_size)
    return Setup(
        student.cpu().eval().features(images),
        teacher.cpu().eval().features(images),
        student,
        teacher,
        train.labels.cpu(),
    )


def kd_and_method(options: Resolved, setup: Setup) -> tuple[Distiller, Distiller]:
    """The KD term and the method of the objective, behind the views that are on."""
    views = cli.chosen_views(options.values)
    chain = tuple(cli.build(f"--{name}", VIEWS[name], options, setup) for name in views)
    setup = replace(setup, views=chain)
    kd = cli.build("--distill kd", METHODS["kd"], options, setup)
    chosen = METHODS[options.distill]
    method = cli.build(f"--distill {options.distill}", chosen, options, setup)
    for wrapper in cli.wrappers(chosen, options.values):
        method = cli.build(f"--distill {options.distill}", wrapper, options, setup, method)
    return kd, method


def teacher_folder(options: Resolved, data: AnySet) -> Path:
    name = f"{plain(options.model)}_{data.name}{aug_of(options)}_trial_{options.trial}"
    return Path(options.save_dir) / "models" / name


def student_folder(options: Resolved, data: AnySet) -> Path:
    views = [
        "-".join([name, *map(str, value)]) if isinstance(value, tuple) else name
        for name in cli.chosen_views(options.values)
        for value in [options.values[name]]
    ]
    method = "_".join([options.distill, *views])
    weights = f"r_{options.gamma:g}_a_{options.alpha:g}_b_{options.beta:g}"
    name = (
        f"S_{plain(options.model_s)}_T_{plain(options.model_t)}_{data.name}_{method}_{weights}"
        f"{aug_of(options)}_trial_{options.trial}"
    )
    return Path(options.save_dir) / "student_model" / name


def probe_folder(options: Resolved, data: AnySet) -> Path:
    source = plain(Path(options.path_s).absolute().parent.name)
    name = f"{source}_to_{data.name}{aug_of(options)}_trial_{options.trial}"
    return Path(options.save_dir) / "linear_probe" / name


def aug_of(options: Resolved) -> str:
    """What the name of a run says of its augmentation."""
    return "_aug" if options.aug else ""


def already_done(run: Run) -> bool:
    """Whether the run is finished; says so."""
    if run.finished():
        print(f"{run.folder} is finished: nothing to do")
    return run.finished()
