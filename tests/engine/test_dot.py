"""--dot: two momenta, two backward passes of one forward."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from engine.dot import DISTILLATION, DOT, TASK
from engine.objective import Output
from engine.step import train_step
from models import MODELS
from runs import checkpoint
from tests.conftest import killed, only


def two(values=(1.0, -2.0, 3.0)):
    return [nn.Parameter(torch.tensor(values, dtype=torch.float64)) for _ in range(2)]


def step(optimizer, parameter, task, distillation):
    parameter.grad = None if task is None else task.clone()
    optimizer.take_task_gradients()
    parameter.grad = None if distillation is None else distillation.clone()
    optimizer.step()


@pytest.mark.parametrize("touched", ["both", "task", "distillation"])
def test_without_a_difference_it_is_sgd_of_the_sum(touched):
    one, other = two()
    sgd = torch.optim.SGD([one], 0.1, momentum=0.9, weight_decay=0.0)
    dot = DOT([other], 0.1, 0.9, 0.0, delta=0.0 if touched == "both" else 0.05)
    for _ in range(4):
        gradients = torch.randn(2, 3, dtype=torch.float64)
        task = None if touched == "distillation" else gradients[0]
        distillation = None if touched == "task" else gradients[1]
        one.grad = sum(g for g in (task, distillation) if g is not None)
        sgd.step()
        step(dot, other, task, distillation)
        torch.testing.assert_close(other, one)


def test_distillation_has_the_larger_momentum():
    """A gradient that stays the same is followed 1 / (1 - momentum) times as fast (section 3.3)."""
    _, parameter = two()
    dot = DOT([parameter], 0.1, 0.9, 0.0, delta=0.05)
    for _ in range(1000):
        step(dot, parameter, *torch.ones(2, 3, dtype=torch.float64))
    momenta = dot.state[parameter]
    torch.testing.assert_close(momenta[TASK], torch.full((3,), 1 / 0.15, dtype=torch.float64))
    torch.testing.assert_close(momenta[DISTILLATION], torch.full((3,), 20.0, dtype=torch.float64))


def test_both_gradients_are_clipped_by_the_norm_of_their_sum():
    one, other = two()
    dot = DOT([one, other], 0.1, 0.9, 0.0, delta=0.05)
    one.grad = torch.tensor([3.0, 0, 0], dtype=torch.float64)
    dot.take_task_gradients()
    one.grad, other.grad = torch.tensor([[0.0, 4, 0], [12.0, 0, 0]], dtype=torch.float64)
    dot.clip(6.5)  # the norm is 13
    found = [gradient.tolist() for gradient in dot.gradients()]
    assert found == [pytest.approx(v, rel=1e-6) for v in ([1.5, 0, 0], [0, 2, 0], [6, 0, 0])]
    dot.clip(100)
    assert [gradient.tolist() for gradient in dot.gradients()] == found


def test_a_step_of_huge_gradients_is_finite():
    parameter, _ = two()
    dot = DOT([parameter], 0.1, 0.9, 1e-4, delta=0.09)
    step(dot, parameter, *torch.full((2, 3), 1e150, dtype=torch.float64))
    assert parameter.isfinite().all()


class Losses(nn.Module):
    """A shared weight, one of the task and one of distillation."""

    def __init__(self, apart: bool = True):
        super().__init__()
        self.shared, self.task, self.distillation = (nn.Parameter(torch.ones(2)) for _ in range(3))
        self.passes, self.apart = 0, apart

    def forward(self, batch):
        self.passes += 1
        ce = (self.shared * self.task).sum() * 2
        kd = (self.shared * self.distillation).sum() * 3
        kd = kd if self.apart else torch.tensor(1.0)
        return Output(ce + kd, {}, None, {"ce": ce, "kd": kd})


def staged(model, clip_grad=0.0):
    optimizer = DOT(model.parameters(), 0.1, 0.9, 0.0, delta=0.05)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return SimpleNamespace(optimizer=optimizer, scaler=scaler, clip_grad=clip_grad)


def test_a_step_has_one_forward_pass_and_the_gradients_of_both():
    model = Losses()
    stage = staged(model)
    train_step(stage, model, None)
    state = stage.optimizer.state
    kept = {n: {k: v.tolist() for k, v in state[p].items()} for n, p in model.named_parameters()}
    assert kept == {
        "shared": {TASK: [2, 2], DISTILLATION: [3, 3]},
        "task": {TASK: [2, 2]},
        "distillation": {DISTILLATION: [3, 3]},
    }
    assert model.passes == 1


def test_a_term_that_reaches_nothing_is_no_distillation():
    model = Losses(apart=False)
    stage = staged(model, clip_grad=1.0)
    train_step(stage, model, None)
    assert {*stage.optimizer.state[model.shared]} == {TASK}


LINE = (
    "train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 --distill crd -a 1 "
    "--nce_k 8 --dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4 "
    "--epochs 3 --dot 0.05 --amp bf16"
)


@pytest.fixture
def teacher(tmp_path):
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "teacher.pth")


def test_a_resumed_run_has_both_momenta(run, tmp_path, teacher):
    run(f"{LINE} --save_dir whole")
    with killed():
        run(f"{LINE} --save_dir killed")
    run(f"{LINE} --save_dir killed --resume")
    folders = [only(tmp_path / name / "student_model") for name in ("whole", "killed")]
    one, other = (checkpoint.load(folder / "resume.pth") for folder in folders)
    assert all(torch.equal(value, other["task"][key]) for key, value in one["task"].items())
    momenta = one["optimizer"]["state"]
    assert {name for kept in momenta.values() for name in kept} == {TASK, DISTILLATION}
    for place, kept in momenta.items():
        assert all(torch.equal(v, other["optimizer"]["state"][place][k]) for k, v in kept.items())
    objective = json.loads((folders[0] / "run.json").read_text())["objective"]
    assert objective.endswith(", DOT 0.05")


def test_momenta_of_another_optimizer_are_refused(run, fails, tmp_path, teacher, monkeypatch):
    run(f"{LINE} --save_dir here")
    file = only(tmp_path / "here" / "student_model") / "resume.pth"
    state = checkpoint.load(file)
    state["optimizer"]["state"][0] = {"momentum_buffer": state["optimizer"]["state"][0][TASK]}
    checkpoint.save(file, state)
    summary = json.loads((file.parent / "run.json").read_text())
    (file.parent / "run.json").write_text(json.dumps({**summary, "status": "running"}))
    assert "another optimizer's state" in fails(f"{LINE} --save_dir here --resume")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("kd -r 0 --dot 0.05", "give both a weight, with -r and with -a or -b"),
        ("fsp --dot 0.05", "with -r and with -a; fsp distils in its first stage alone"),
        ("abound --dot 0.05", "with -r and with -a; abound distils in its first stage alone"),
        ("kd --dot 0.1", "makes the momenta 0.8 and 1 of --momentum 0.9"),
        ("kd --momentum 0.05 --dot 0.06", "makes the momenta -0.01 and 0.11"),
        ("kd --dot 0.05 --amp fp16", "--amp fp16 scales one: give --amp bf16"),
        ("kd --dot 2", "2 is not between 0 and 1"),
    ],
)
def test_what_is_refused(flags, says, fails):
    assert says in fails(f"train_student --distill {flags}")
