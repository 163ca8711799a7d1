"""Two students in one run: `Mutual`, and the hook by which a task names what it trains."""

import pytest
import torch

from benchmarks.literal import dml as literal
from cli.objective import kd_and_method
from cli.parse import parse_student
from dataset.base import Batch
from distiller_zoo.base import Setup
from engine.device import Numerics
from engine.objective import Mutual, Supervised
from engine.recipe import Schedule
from engine.stage import main_stage
from engine.step import train_step
from engine.teacher import NoTeacher
from models import MODELS

NUMERICS = Numerics(torch.device("cpu"))
BATCH = Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 4, torch.arange(8))


def made(line=""):
    """The task of a command line, and its options."""
    options = parse_student(f"--distill dml --peer resnet14 {line}".split())
    networks = MODELS["resnet8"](4), MODELS["resnet14"](4)
    with torch.no_grad():
        shown = networks[0].eval().features(BATCH.images[:2])
    losses = kd_and_method(options, Setup(shown, None, networks[0], None, BATCH.labels))
    losses = NoTeacher(NUMERICS), *losses, "dml", options
    return Mutual(networks, options.peer_rate or 0.01, *losses).train(), options


def test_a_task_trains_its_student_alone_by_default():
    task = Supervised(MODELS["resnet8"](4), NUMERICS)
    assert task.trained == {"": task}


def test_the_loss_is_the_sum_of_both():
    task, _ = made("-r 0.5 -b 3")
    output = task(BATCH)
    one, other = (x.student.features(BATCH.images).logits for x in task.trained.values())
    ce_1, ce_2 = (torch.nn.functional.cross_entropy(x, BATCH.labels) for x in (one, other))
    kl_1, kl_2 = literal.dml(one, other), literal.dml(other, one)
    expected = {"ce": ce_1, "dml": kl_1, "peer_ce": ce_2, "peer_dml": kl_2}
    torch.testing.assert_close(output.terms, expected)
    torch.testing.assert_close(output.loss, 0.5 * (ce_1 + ce_2) + 3 * (kl_1 + kl_2))
    torch.testing.assert_close(output.logits, one)


@pytest.mark.parametrize("line", ["", "--dot 0.05", "--peer_rate 0.03"])
def test_each_learns_as_the_formula_of_its_own_loss_says(line):
    """Before either has moved."""
    task, options = made(line)
    before = [x.student.features(BATCH.images).logits for x in task.trained.values()]
    own = literal.both(*before, BATCH.labels)
    wanted = [
        torch.autograd.grad(loss, list(x.student.parameters()), retain_graph=True)
        for loss, x in zip(own, task.trained.values(), strict=True)
    ]
    old = [[p.detach().clone() for p in x.student.parameters()] for x in task.trained.values()]
    stage = main_stage(task, Schedule(0.01), options, options.dot)
    train_step(stage, task, BATCH)
    rates = 0.01, options.peer_rate or 0.01
    for x, gradients, values, rate in zip(task.trained.values(), wanted, old, rates, strict=True):
        for p, gradient, value in zip(x.student.parameters(), gradients, values, strict=True):
            step = gradient + 5e-4 * value
            torch.testing.assert_close(p, value - rate * step, rtol=1e-4, atol=1e-6)


def test_what_is_trained_is_kept():
    task, _ = made()
    before = {key: value.clone() for key, value in task.training_state().items()}
    names = {key.split(".")[0] for key in before}
    assert names == {"student", "peer"}
    other, _ = made()
    other.load_training_state(before)
    torch.testing.assert_close(dict(other.training_state()), before, rtol=0, atol=0)
