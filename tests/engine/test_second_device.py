"""On a device beside the CPU no two devices meet, and between two looks at the meter the host
waits for nothing."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from cli.bank import terms_read
from cli.objective import kd_and_method, method_setup
from cli.parse import parse_student
from dataset import DATASETS
from dataset.loader import Loader, Loading
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import LogitDistiller
from distiller_zoo.noisy_teacher import NoisyTeacher
from engine.bank import Bank
from engine.device import Numerics
from engine.evaluate import evaluate
from engine.fit import train_epoch
from engine.graph import StageStep
from engine.objective import Distillation, FirstStage, LinearProbe, PooledOnce, Supervised, Task
from engine.recipe import Schedule
from engine.stage import Stage
from engine.teacher import BankedTeacher, LiveTeacher, rows_read
from models import MODELS
from models.base import region_means
from tests.distiller_zoo.test_every_method import is_refused
from tests.engine.pretended import DEVICE, PretendedDevice

LOOK = "engine/meter.py:read"
EIGEN = "distiller_zoo/kdsvd.py:__init__"  # a GPU's eigendecomposition reports errors to the host
EQUAL_WIDTHS = {"fsp", "kdsvd"}
ON = {"sdd": "--sdd 1,2", "tekap": "--tekap", "logit_stand": "--logit_stand",
      "ctkd": "--ctkd"}  # fmt: skip
OF_FOUR_CLASSES = {"ldrld": "--ldrld_k 2"}
ANOTHER_WAY = [
    "kd --aug", "kd --clip_grad 0.1", "crd --mode relax --nce_k 8",
    "crd --crd_memory queue --nce_k 8 --tekap",
    "rrd --rrd_memory momentum --nce_k 8 --tekap",
    "kd --divergence ab", "mlkd --mlkd_strong",
    "rrd --enqueue after", "icd --fixed_tau", "ofd --ofd_teacher eval", "nkd --nkd_keep_target",
    "reviewkd --review_preacts", "hint --hint_layer 0",
]  # fmt: skip
RECORDER = SimpleNamespace(log_step=lambda *_: None)


def command_lines():
    """Every method alone and behind all of its views, KD behind each of them, and some flags."""
    for name in METHODS:
        line = f"{name} {OF_FOUR_CLASSES.get(name, '')}".strip()
        yield line
        if issubclass(METHODS[name], LogitDistiller) and METHODS[name].has_teacher:
            views = [view for view in ON if view != "ctkd" and not is_refused(name, [view])]
            yield f"{line} {' '.join(ON[view] for view in views)}"
        elif not is_refused(name, ["tekap"]):
            yield f"{line} --tekap -a 1"
    yield from (f"kd {ON[view]}" for view in VIEWS)
    yield from ANOTHER_WAY


def reads_rows(line: str) -> bool:
    """Whether a bank can have what the method of a line reads."""
    method = METHODS[line.split()[0]]
    two_views = "crld" in line or "strong" in line
    return (
        "--aug" not in line
        and not two_views
        and method.has_teacher
        and method.reads <= NoisyTeacher.reads
    )


@pytest.fixture(scope="module")
def data():
    options = DATASETS["fake"].Options(fake_size=16, fake_classes=4, image_size=8)
    return DATASETS["fake"].load(options)


@pytest.fixture
def device(monkeypatch):
    """A pretended device; the loader augments each batch by itself."""
    monkeypatch.setattr("dataset.loader.CHUNK_BYTES", 1)
    region_means.cache_clear()  # plans build networks on the real `meta`
    with PretendedDevice() as device:
        yield device
    region_means.cache_clear()


def stage_of(task: Task, name: str = "main", clip_grad: float = 0.0) -> Stage:
    """A stage whose optimizer runs on tensors that are none of torch's own."""
    groups = [{"params": [p for p in task.parameters() if p.requires_grad], "share": 1.0}]
    optimizer = torch.optim.SGD(groups, 0.01, momentum=0.9, weight_decay=5e-4, foreach=False)
    return Stage(name, task, optimizer, task.numerics.scaler(), Schedule(0.01), 1, clip_grad)


def distillation(line, data, train, folder=None) -> Distillation:
    """The task of a command line, its teacher out of a bank in a folder, or else live."""
    options = parse_student(["--dataset", "fake", "--distill", *line.split()])
    wide = "resnet14" if options.distill in EQUAL_WIDTHS else "resnet8x4"
    student, network = (MODELS[name](len(data.classes)) for name in ("resnet8", wide))
    setup = method_setup(
        student, network, data.image_size, SimpleNamespace(labels=data.train.labels)
    )
    kd, method = kd_and_method(options, setup)
    numerics = Numerics(DEVICE)
    if folder:
        reads = rows_read(terms_read(options, kd, method, student))
        key = {"samples": len(train.labels), "views": train.views, "type": "float32"}
        bank = Bank(folder, key, reads.widths(setup.teacher))
        teacher = BankedTeacher(network, numerics, train, reads, bank, 8)
    else:
        teacher = LiveTeacher(network, numerics)
    return Distillation(student, teacher, kd, method, options.distill, options)


def waits_between_looks(device, stage, train) -> set[str]:
    """Train an epoch -> where the host waited from its first look at the meter on."""
    stage.task.begin_epoch(1, 1, 1)
    device.waits.clear()
    means = train_epoch(stage, StageStep(stage, stage.task), train, 1, RECORDER, print_freq=100)
    assert means["loss"] > 0
    places = [place for _, place in device.waits]
    assert places.count(LOOK) == 2
    return set(places[places.index(LOOK) :]) - {LOOK}


@pytest.mark.parametrize("line", list(command_lines()))
def test_a_step(line, device, data):
    strong = "crld" in line or "strong" in line
    train = Loader(data, "train", 8, Loading(1, DEVICE, aug="--aug" in line, strong=strong))
    task = distillation(line, data, train)
    stage = stage_of(task, clip_grad=task.recipe.clip_grad)
    assert waits_between_looks(device, stage, train) == ({EIGEN} if line == "kdsvd" else set())


@pytest.mark.parametrize("line", list(filter(reads_rows, command_lines())))
def test_a_step_with_a_bank(line, device, data, tmp_path):
    train = Loader(data, "train", 8, Loading(1, DEVICE))
    task = distillation(line, data, train, tmp_path)
    rows = torch.arange(len(train.labels)) * train.views + train.epoch_views(1)
    task.teacher.add(rows[::2])  # they are there
    assert waits_between_looks(device, stage_of(task), train) == set()


@pytest.mark.parametrize("name", ["abound", "factor", "fsp"])
def test_a_step_of_a_first_stage(name, device, data):
    train = Loader(data, "train", 8, Loading(1, DEVICE))
    stage = stage_of(FirstStage(distillation(name, data, train)), "first")
    assert waits_between_looks(device, stage, train) == set()


def test_a_step_on_mixtures_of_resized_images(device, data):
    how = Loading(1, DEVICE, balanced=True)
    train = Loader(replace(data, resized=True), "train", 8, how)
    task = Supervised(MODELS["resnet8"](len(data.classes)), Numerics(DEVICE))
    task.mixup = 0.4
    assert waits_between_looks(device, stage_of(task), train) == set()


@pytest.mark.parametrize("kind", [Supervised, LinearProbe])
def test_a_step_without_a_teacher(kind, device, data):
    train, test = (Loader(data, split, 8, Loading(1, DEVICE)) for split in ("train", "test"))
    task = kind(MODELS["resnet8"](len(data.classes)), Numerics(DEVICE))
    assert waits_between_looks(device, stage_of(task), train) == set()
    if kind is LinearProbe:
        evaluate(task.eval().predict, PooledOnce(task, test))


def test_images_that_stay_in_host_memory(device, data, monkeypatch):
    monkeypatch.setattr("dataset.loader.free_bytes", lambda device: 0)
    train = Loader(data, "train", 8, Loading(1, DEVICE))
    assert train.images.device.type == "cpu"
    stage = stage_of(distillation("kd", data, train))
    assert waits_between_looks(device, stage, train) == set()


def test_rows_of_a_large_memory_are_gathered_there(device, data, monkeypatch):
    monkeypatch.setattr("crd.memory.BUDGET", 0)
    train = Loader(data, "train", 8, Loading(1, DEVICE))
    stage = stage_of(distillation("crd", data, train))
    assert waits_between_looks(device, stage, train) == set()


def test_an_evaluation_waits_for_its_result_alone(device, data):
    test = Loader(data, "test", 2, Loading(1, DEVICE))
    predict = Numerics(DEVICE).predictor(MODELS["resnet8"](len(data.classes)), "teacher")
    seen = []
    device.waits.clear()
    evaluate(predict, test, lambda *batch: seen.append(list(device.waits)))
    assert len(seen) == len(test) > 1
    assert seen[-1] == seen[0]
    assert {place for _, place in device.waits[len(seen[0]) :]} == {
        LOOK, "engine/evaluate.py:balanced_accuracy",
    }  # fmt: skip


# The device itself.


def test_numbers_are_those_of_the_cpu(device):
    x = torch.arange(6.0).view(2, 3)
    there = x.to(DEVICE).requires_grad_()
    (there @ there.T).exp().mean().backward()
    x.requires_grad_()
    (x @ x.T).exp().mean().backward()
    assert there.grad.device == DEVICE
    assert torch.equal(there.grad.cpu(), x.grad)
    assert torch.equal(torch.tensor([1, 2], device=DEVICE).cpu(), torch.tensor([1, 2]))


MEETING = {
    "cat": lambda here, there: torch.cat([here, there]),
    "add": lambda here, there: here + there,
    "index": lambda here, there: there[here.long()],
    "add_": lambda here, there: here.add_(there),
    "out": lambda here, there: torch.add(there, there, out=here),
}


@pytest.mark.parametrize("name", MEETING)
def test_two_devices_that_meet_are_an_error(name, device):
    with pytest.raises(RuntimeError, match="the device meets CPU tensors"):
        MEETING[name](torch.zeros(3), torch.zeros(3, device=DEVICE))


WAITING = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x[0]),
    "if": lambda x: bool((x > 1).any()),
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "to the host without waiting": lambda x: x.to("cpu", non_blocking=True),
    "nonzero": lambda x: x.nonzero(),
    "masked_select": lambda x: x.masked_select(x > 1),
    "a mask": lambda x: x[x > 1],
    "a mask that is written": lambda x: x.__setitem__(x > 1, 0.0),
    "where": lambda x: torch.where(x > 1),
    "unique": lambda x: x.unique(),
    "bincount": lambda x: x.long().bincount(),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: x.repeat_interleave(x.long()),
    "a copy from the host": lambda x: x.copy_(torch.zeros(3)),
    "a copy of what is not pinned": lambda x: torch.zeros(3).to(DEVICE, non_blocking=True),
    "a literal": lambda x: torch.tensor(1.0, device=DEVICE),
    "eigh": lambda x: torch.linalg.eigh(x[:, None] @ x[None]),
    "svd": lambda x: torch.linalg.svd(x[:, None] @ x[None]),
}  # fmt: skip
NOT_WAITING = {
    "arithmetic": lambda x: (x * 2 + 1).clamp(0, 3).sum(),
    "made there": lambda x: (
        torch.rand(3, device=DEVICE) + x.new_zeros(3) + torch.arange(3, device=DEVICE)
    ),
    "filled": lambda x: x.fill_(2.0),
    "chosen": lambda x: x.where(x > 1, x.new_zeros(())).masked_fill(x > 1, 0),
    "rows by number": lambda x: x[x.long()] + x.index_select(0, x.long()),
    "from pinned memory": lambda x: torch.zeros(3).pin_memory().to(DEVICE, non_blocking=True),
    "copied from pinned memory": lambda x: x.copy_(torch.zeros(3).pin_memory(), non_blocking=True),
}


@pytest.mark.parametrize("name", WAITING)
def test_the_host_is_seen_waiting(name, device):
    x = torch.arange(3.0).to(DEVICE)
    device.waits.clear()
    WAITING[name](x)
    assert device.waits


@pytest.mark.parametrize("name", NOT_WAITING)
def test_the_host_is_not_said_to_wait(name, device):
    x = torch.arange(3.0).to(DEVICE)
    device.waits.clear()
    NOT_WAITING[name](x)
    assert device.waits == []
