"""--deterministic on a GPU, without one: no loss issues an operation that would raise there."""

import pytest
import torch
import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import LogitDistiller, Setup
from models import MODELS
from tests.distiller_zoo.test_every_method import SWITCHES, is_refused, made
from tests.issued import Issued


@pytest.mark.parametrize("sizes", [(32, 16), (24, 16)], ids=["twice", "one_and_a_half"])
@pytest.mark.parametrize("name", list(METHODS))
def test_every_loss_has_deterministic_kernels(name, sizes):
    """Behind all views, and where the student's maps are larger than the teacher's."""
    networks = MODELS["resnet8"](10), MODELS["resnet14"](10).eval().requires_grad_(False)
    labels = torch.arange(4) % 2
    images = [torch.randn(4, 3, size, size) for size in sizes]
    with torch.no_grad():
        shown = [network.eval().features(x[:2]) for network, x in zip(networks, images)]
    setup = Setup(*shown, *networks, labels=labels, generator=torch.Generator())
    views = [view for view in SWITCHES if view != "ctkd" and not is_refused(name, [view])]
    rows = "" if issubclass(METHODS[name], LogitDistiller) or not views else "-a 1"
    method = made(f"--distill {name} {rows} {' '.join(SWITCHES[v] for v in views)}", setup)
    networks[0].train()
    with Issued() as issued:
        features = [network.features(x) for network, x in zip(networks, images)]
        if METHODS[name].views_per_image(METHODS[name].Options()) > 1:
            features = [x.replace(strong=x) for x in features]
        batch = Batch(images[0], labels, torch.arange(4))
        loss = method(*features, batch)
        if list(method.first_stage(networks[0])):
            loss = loss + method.first_stage_loss(*features, batch)
        loss.backward()
    assert issued.seen
    assert not issued.refused


def test_operations_that_would_raise_are_found():
    x = torch.rand(1, 1, 6, 6, requires_grad=True)
    with Issued() as issued:
        sum(
            y.sum()
            for y in (
                F.adaptive_avg_pool2d(x, 4),
                F.adaptive_max_pool2d(x, 4),
                F.interpolate(x, 4, mode="bilinear"),
                F.pad(x, (1, 1, 1, 1), mode="reflect"),
                x.median(dim=3).values,
                x.cumsum(dim=2),
                F.avg_pool2d(x, 2),
                F.interpolate(x, 4),
                x.detach().long().cumsum(dim=2),
            )
        ).backward()
    assert sorted(issued.refused) == [
        "_adaptive_avg_pool2d_backward.default",
        "adaptive_max_pool2d_backward.default",
        "cumsum.default",
        "median.dim",
        "reflection_pad2d_backward.default",
        "upsample_bilinear2d_backward.default",
    ]
