"""Every method with a small ViT, as the README's table says: it trains, or refuses in words."""

import re
from pathlib import Path

import pytest
import torch

from cli import objective, parse
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from helper.errors import UserError
from models.any import build
from tests.distiller_zoo.test_every_method import passes

README = Path(__file__).resolve().parents[2] / "README.md"
SIZE = 32  # pixels: four tokens
FLAGS = {
    "crd": "--nce_k 8",
    "crld": "--crld_weak 0 --crld_strong 0",  # an untrained teacher is sure of nothing
    "rrd": "--nce_k 8",
    "wkd_logit": "--wkd_cost classifier",
}


def on_tokens() -> dict[str, bool]:
    """Whether the README says that a method works on a network of tokens."""
    table = README.read_text().split("| token network (ViT) |")[1].split("\n\n")[0]
    rows = [line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `")]
    return {
        name: cells[-1].strip() == "yes"
        for cells in rows
        for name in re.findall(r"`(\w+)`", cells[0])
    }


def test_the_table_has_every_method():
    assert on_tokens().keys() == set(METHODS)


@pytest.fixture(scope="module")
def networks():
    pytest.importorskip("helper.vision")  # before timm, which imports torchvision
    pytest.importorskip("timm")
    torch.manual_seed(0)
    return {name: build(name, 10, SIZE) for name in ("timm:test_vit", "resnet8")}


@pytest.mark.parametrize("pair", ["timm:test_vit resnet8", "resnet8 timm:test_vit"])
@pytest.mark.parametrize("name", list(METHODS))
def test_trains_or_says_why_not(name, pair, networks):
    student, teacher = (networks[network] for network in pair.split())
    student.zero_grad()
    labels = torch.arange(40) % 10
    images = torch.randn(4, 3, SIZE, SIZE)
    with torch.no_grad():
        shown = [network.eval().features(images[:2]) for network in (student, teacher)]
    setup = Setup(*shown, student, teacher, labels)
    line = f"--distill {name} --dataset fake {FLAGS.get(name, '')}"
    if not on_tokens()[name]:
        with pytest.raises(UserError, match="map|BatchNorm"):
            objective.kd_and_method(parse.parse_student(line.split()), setup)
        return
    method = objective.kd_and_method(parse.parse_student(line.split()), setup)[1]
    teacher.requires_grad_(False)
    student.requires_grad_(True)
    batch = Batch(images, labels[:4], torch.arange(4))
    loss = method(*passes(name, (student, teacher), images), batch)
    loss.backward()
    assert loss.isfinite()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)
    assert any(g.abs().sum() > 0 for g in gradients)
