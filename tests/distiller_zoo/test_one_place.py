"""Maps of 1x1, of whose places nothing can be learned."""

import pytest
import torch

from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from models import MODELS


@pytest.fixture(scope="module")
def setup():
    networks = MODELS["vgg8"](4), MODELS["vgg13"](4)
    with torch.no_grad():
        shown = [network.eval().features(torch.zeros(2, 3, 8, 8)) for network in networks]
    assert shown[0].stages[-1].shape[2:] == (1, 1)
    return Setup(*shown, *networks, labels=torch.arange(8) % 4)


def test_factors_of_one_place_are_refused(setup):
    with pytest.raises(ValueError, match=r"\(1, 1\).*give larger images"):
        METHODS["factor"](METHODS["factor"].Options(), setup)


@pytest.mark.parametrize("name", ["attention", "nst"])
def test_a_stage_of_one_place_is_named(name, setup):
    with pytest.warns(UserWarning, match=f"stage .*{len(setup.student.stages)}.* of 1x1"):
        METHODS[name](METHODS[name].Options(), setup)


@pytest.mark.parametrize(
    ("name", "starts"),
    [("icd", {"tau": 1.0, "b": 0.0}), ("vid", {"likelihoods.0.log_scale": 4.99323})],
)
def test_what_a_method_trains_starts_as_published(name, starts):
    networks = MODELS["resnet8"](4), MODELS["resnet14"](4)
    shown = [network.eval().features(torch.zeros(2, 3, 16, 16)) for network in networks]
    setup = Setup(*shown, *networks, labels=torch.arange(8) % 4)
    state = dict(METHODS[name](METHODS[name].Options(), setup).named_parameters())
    for key, value in starts.items():
        assert state[key].flatten().tolist() == pytest.approx(
            [value] * state[key].numel(), rel=1e-5
        )
