"""One step of training, by hand."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from cli.objective import kd_and_method
from cli.parse import parse_student
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from engine.device import Numerics
from engine.fit import explained, fit, train_epoch
from engine.graph import StageStep
from engine.objective import Distillation, Supervised, norm_of_one_value
from engine.recipe import RecipeOptions, Schedule
from engine.stage import first_stage, main_stage
from engine.teacher import LiveTeacher
from helper.errors import UserError
from models import MODELS

NUMERICS = Numerics(torch.device("cpu"), channels_last="off")
RECIPE = {"momentum": 0.0, "weight_decay": 0.0, "epochs": 1}


class OneBatch:
    """A training set of one batch."""

    seed, split = 0, "train"

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(8, 3, 16, 16, generator=generator)
        self.batch = Batch(images, torch.arange(8), torch.arange(8))
        self.labels = self.batch.labels

    def __len__(self):
        return 1

    def batches(self, epoch):
        return iter([self.batch])


def step(clip_grad: float, scale: float | None = None) -> torch.Tensor:
    """What one step at rate 1 takes from all weights, in one vector; `scale` of the loss."""
    torch.manual_seed(1)
    task = Supervised(MODELS["resnet8"](10), NUMERICS)
    recipe = RecipeOptions(clip_grad=clip_grad, **RECIPE)
    stage = main_stage(task, Schedule(1.0), recipe)
    if scale:
        stage.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return taken_by_a_step(stage, OneBatch())


def test_a_large_gradient_is_scaled_to_the_norm():
    gradient = step(0.0)
    norm = gradient.norm()
    torch.testing.assert_close(step(0.1).norm().item(), 0.1, rtol=1e-3, atol=0)
    torch.testing.assert_close(step(0.1), 0.1 * gradient / norm, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(step(0.1, scale=4096.0), step(0.1), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("clip_grad", [0.0, 1e3])
def test_a_small_gradient_stays(clip_grad):
    assert torch.equal(step(clip_grad), step(0.0))
    assert step(clip_grad).norm() > 0.2


def test_the_gradient_of_a_first_stage_is_clipped_too():
    recipe, clipped = (RecipeOptions(clip_grad=c, **RECIPE) for c in (0.0, 1e-3))
    free, held = (change_of_a_first_stage(r) for r in (recipe, clipped))
    torch.testing.assert_close(held, 1e-3 * free / free.norm(), rtol=1e-2, atol=1e-7)


def change_of_a_first_stage(recipe: RecipeOptions) -> torch.Tensor:
    """What one step of AB's first stage at rate 1 takes from what it trains."""
    torch.manual_seed(2)
    (student, teacher), data = (MODELS["resnet8"](10) for _ in range(2)), OneBatch()
    options = parse_student(["--distill", "abound"])
    losses = kd_and_method(options, setup_of(student, teacher, data))
    task = Distillation(student, LiveTeacher(teacher, NUMERICS), *losses, "abound", options)
    stage = first_stage(task, 1.0, recipe, epochs=1)
    return taken_by_a_step(stage, data)


def setup_of(student, teacher, data) -> Setup:
    """What a method may know of two networks and their data."""
    with torch.no_grad():
        shown = [net.eval().features(data.batch.images[:2]) for net in (student, teacher)]
    return Setup(*shown, student, teacher, data.batch.labels, generator=torch.Generator())


def taken_by_a_step(stage, data) -> torch.Tensor:
    """What one step takes from all that a stage trains, in one vector."""
    trained = stage.optimizer.param_groups[0]["params"]
    before = torch.cat([p.detach().flatten() for p in trained])
    recorder = SimpleNamespace(log_step=lambda *_: None)
    train_epoch(stage, StageStep(stage, stage.task), data, 1, recorder, print_freq=1)
    return before - torch.cat([p.detach().flatten() for p in trained])


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_backbone_has_a_rate_of_its_own(optimizer):
    def moved(backbone_rate):
        torch.manual_seed(1)
        task = Supervised(MODELS["resnet8"](10), NUMERICS)
        recipe = RecipeOptions(backbone_rate=backbone_rate, optimizer=optimizer, **RECIPE)
        stage = main_stage(task, Schedule(0.01), recipe)
        before = copy.deepcopy(task.student.state_dict())
        recorder = SimpleNamespace(log_step=lambda *_: None)
        train_epoch(stage, StageStep(stage, task), OneBatch(), 1, recorder, print_freq=1)
        after = task.student.state_dict()
        return {name: after[name] - before[name] for name in ("fc.weight", "conv1.weight")}

    alike, apart = moved(None), moved(0.001)
    torch.testing.assert_close(apart["fc.weight"], alike["fc.weight"])
    torch.testing.assert_close(
        apart["conv1.weight"], 0.1 * alike["conv1.weight"], atol=1e-6, rtol=1e-3
    )


def test_the_schedule_scales_both_rates_alike():
    task = Supervised(MODELS["resnet8"](10), NUMERICS)
    recipe = RecipeOptions(backbone_rate=0.02, **RECIPE)
    stage = main_stage(task, Schedule(0.1, (1,), 0.5), recipe)
    assert stage.rates == pytest.approx([0.1, 0.02])
    stage.begin_epoch(2)
    assert stage.rates == pytest.approx([0.05, 0.01])


def test_the_average_is_evaluated_and_kept_and_training_goes_on_without_it():
    torch.manual_seed(1)
    task = Supervised(MODELS["resnet8"](10), NUMERICS)
    stage = main_stage(task, Schedule(0.1), RecipeOptions(ema=0.75, epochs=3))
    data, measured, live, kept, losses = OneBatch(), OneBatch(), [], [], []
    measured.split = "val"

    def finish_epoch(stage, epoch, numbers):
        live.append(copy.deepcopy(task.student.state_dict()))
        kept.append(copy.deepcopy(stage.weights()[""]))
        losses.append(numbers["val_loss"])

    recorder = SimpleNamespace(
        restore=lambda _: 0, log_step=lambda *_: None, finish_epoch=finish_epoch
    )
    fit(stage, data, measured, recorder, print_freq=1)
    average = live[0]
    for epoch in (1, 2):
        average = {name: 0.75 * x + 0.25 * live[epoch][name] for name, x in average.items()}
    for name in ("fc.weight", "bn1.running_mean"):
        torch.testing.assert_close(kept[2][name], average[name])
        assert not torch.allclose(kept[2][name], live[2][name])
    network = MODELS["resnet8"](10).eval()
    network.load_state_dict(kept[2])
    loss = F.cross_entropy(network(data.batch.images), data.batch.labels)
    assert losses[2] == pytest.approx(loss.item())


@pytest.mark.parametrize(
    ("name", "size", "found"), [("MobileNetV1", 8, True), ("resnet8", 8, False)]
)
def test_a_batchnorm_before_a_1x1_map_is_found_and_nothing_is_changed(name, size, found):
    task = Supervised(MODELS[name](3), NUMERICS)
    before = {key: value.clone() for key, value in task.state_dict().items()}
    norm = norm_of_one_value(task, size)
    assert (norm in dict(task.named_modules())) == found
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())
    assert norm_of_one_value(task, 64) is None


def drawn(process: int, epoch: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """What a process of several draws in a step: for the student, and CRD's negatives."""
    torch.manual_seed(1)
    networks, data, draws = (MODELS["resnet8"](10), MODELS["resnet14"](10)), OneBatch(), []
    setup = setup_of(*networks, data)
    options = parse_student(["--distill", "crd", "--nce_k", "3", "--tekap"])
    teacher, losses = LiveTeacher(networks[1], NUMERICS), kd_and_method(options, setup)
    task = Distillation(networks[0], teacher, *losses, "crd", options)

    def with_dropout(images):
        draws.append(torch.rand(3 + process)[:3])  # of shares of different sizes
        return networks[0].features(images)

    task.run_student = with_dropout
    task.method.method.negatives.register_forward_hook(lambda *call: draws.append(call[2]))
    recorder = SimpleNamespace(log_step=lambda *_: None)
    stage = main_stage(task, Schedule(0.1), RecipeOptions(**RECIPE))
    train_epoch(stage, StageStep(stage, task), data, epoch, recorder, print_freq=1)
    return tuple(draws)


def test_networks_draw_for_themselves_and_losses_alike_on_all_processes(monkeypatch):
    of_student, of_losses = [], []
    for process, epoch in ((0, 1), (1, 1), (0, 1), (0, 2)):
        monkeypatch.setenv("RANK", str(process))
        for found, kind in zip(drawn(process, epoch), (of_student, of_losses), strict=True):
            kind.append(found)
    first, other_process, again, other_epoch = of_student
    assert torch.equal(first, again)
    assert not torch.equal(first, other_process)
    assert not torch.equal(first, other_epoch)
    first, other_process, again, other_epoch = of_losses
    assert torch.equal(first, again)
    assert torch.equal(first, other_process)
    assert not torch.equal(first, other_epoch)


@pytest.mark.parametrize("tekap", ["", "--tekap"])
def test_a_method_is_told_of_each_epoch_that_is_left(tekap, monkeypatch):
    networks, data, told = (MODELS["resnet8"](10), MODELS["resnet14"](10)), OneBatch(), []
    data.labels = data.batch.labels
    setup = Setup(*(network.eval().features(data.batch.images) for network in networks), *networks,
                  data.labels)  # fmt: skip
    options = parse_student(f"--distill pkt -a 1 --epochs 3 {tekap}".split())
    monkeypatch.setattr(METHODS["pkt"], "begin", lambda self, *epoch: told.append(epoch))
    teacher, losses = LiveTeacher(networks[1], NUMERICS), kd_and_method(options, setup)
    stage = main_stage(Distillation(networks[0], teacher, *losses, "pkt", options), Schedule(0.1),
                       options)  # fmt: skip
    recorder = SimpleNamespace(restore=lambda _: 1, log_step=lambda *_: None,
                               finish_epoch=lambda *_: None)  # fmt: skip
    fit(stage, data, data, recorder, print_freq=1)
    assert told == [(2, 3), (3, 3)]


def test_an_operation_without_a_deterministic_kernel_is_said():
    stage = SimpleNamespace(schedule=Schedule(0.1))
    recorder = SimpleNamespace(describe_kept=lambda: "nothing is kept")
    torch.use_deterministic_algorithms(True)
    try:
        with (
            pytest.raises(UserError, match="--deterministic: put_ has no deterministic kernel; ch"),
            explained(stage, 1, recorder),
        ):
            torch.zeros(3).put_(torch.tensor([1]), torch.ones(1))
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(RuntimeError, match="another mistake"), explained(stage, 1, recorder):
        raise RuntimeError("another mistake")


@pytest.mark.parametrize("layout", ["off", "all"])
def test_momentum_is_resumed_in_any_layout(layout):
    """A fused step takes the numbers of parameter and momentum as they lie in memory."""

    def stage_in(layout):
        torch.manual_seed(1)
        numerics = Numerics(torch.device("cpu"), channels_last=layout)
        task = Supervised(MODELS["resnet8"](10), numerics)
        return main_stage(task, Schedule(0.1), RecipeOptions(epochs=2))

    def train(stage, epoch):
        recorder = SimpleNamespace(log_step=lambda *_: None)
        train_epoch(stage, StageStep(stage, stage.task), OneBatch(), epoch, recorder, print_freq=1)
        return torch.cat([p.detach().flatten() for p in stage.task.parameters()])

    whole = stage_in("all")
    train(whole, 1)
    resumed = stage_in(layout)
    resumed.load_state(copy.deepcopy(whole.state()))
    torch.testing.assert_close(train(resumed, 2), train(whole, 2), rtol=1e-4, atol=1e-5)
