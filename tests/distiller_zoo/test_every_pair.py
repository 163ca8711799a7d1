"""Every method on every pair of networks in the field's tables: it works, or refuses in words."""

import copy

import pytest
import torch

from cli import objective, parse
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from engine.features import LazyFeatures
from helper.errors import UserError
from models import MODELS

PAIRS = [
    ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"), ("wrn_40_2", "wrn_40_1"),
    ("wrn_40_2", "wrn_16_2"), ("resnet56", "resnet20"), ("resnet110", "resnet32"),
    ("resnet110", "resnet20"), ("wrn_40_2", "resnet20"), ("resnet32x4", "ShuffleV1"),
    ("resnet32x4", "ShuffleV2"), ("resnet32x4", "wrn_16_2"), ("resnet32x4", "wrn_40_2"),
    ("wrn_40_2", "resnet8x4"), ("wrn_40_2", "ShuffleV1"), ("wrn_40_2", "MobileNetV2"),
    ("vgg13", "MobileNetV2"), ("ResNet50", "MobileNetV2"), ("ResNet50", "vgg8"),
]  # fmt: skip


def leaves(shown):
    """The same pass, every tensor of it a leaf that keeps a gradient."""
    return LazyFeatures(shown, lambda tensor: tensor.detach().clone().requires_grad_())


@pytest.fixture(scope="module", params=PAIRS, ids="->".join)
def pair(request):
    """Networks of a pair and what they show of a batch."""
    torch.manual_seed(0)
    teacher, student = (MODELS[name](10).eval() for name in request.param)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        return request.param, student, teacher, student.features(images), teacher.features(images)


@pytest.mark.filterwarnings("ignore:.*has no partner:UserWarning", "ignore:.*nce_k:UserWarning")
@pytest.mark.parametrize("name", list(METHODS))
def test_works_or_says_why_not(name, pair):
    (name_t, name_s), student, teacher, shown_s, shown_t = pair
    labels = torch.arange(40) % 10
    setup = Setup(shown_s, shown_t, student, teacher, labels)
    line = f"--distill {name} --model_s {name_s}"
    line += f" --model_t {name_t}" if METHODS[name].has_teacher else ""
    line += " --crld_weak 0 --crld_strong 0" * (name == "crld")  # or nothing may be left
    refusal = ""
    try:
        method = objective.kd_and_method(parse.parse_student(line.split()), setup)[1]
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert refusal.count("(") >= 2, f"both shapes are to be shown: {refusal}"
        return
    batch = Batch(None, labels[:4], torch.arange(4))
    own = copy.deepcopy(student)
    if (deployed := method.deployed(own, teacher)) is not own:
        shown_s = deployed.eval().features(torch.randn(4, 3, 32, 32))
    shown = leaves(shown_s)
    if METHODS[name].views_per_image(METHODS[name].Options()) > 1:  # the same view twice
        shown, shown_t = shown.replace(strong=shown), shown_t.replace(strong=shown_t)
    loss = method(shown, shown_t, batch)
    if list(method.first_stage(student)):
        loss = loss + method.first_stage_loss(shown, shown_t, batch)
    assert loss.isfinite()
    loss.backward()
    read = [shown.stem, *shown.stages, *shown.preacts, shown.last_map, shown.pooled, shown.logits]
    gradients = [tensor.grad for tensor in read if tensor.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients)
    assert all(g.isfinite().all() for g in gradients)
