"""Short trainings by published code, replayed from their command lines: every loss of every step,
and all tensors afterwards.

GOLDEN_DIR names another folder of the same form.
"""

import os
import runpy

import numpy as np
import pytest
import torch

from distiller_zoo import METHODS
from tests.trajectories import cases, replay

# Methods that no case trains: proven by golden losses and by tests of their own alone.
WITHOUT_CASE = {
    "catkd", "crld", "dist", "dml", "ldrld", "normkd", "pskd", "simkd", "skd", "srd", "tfkd", "ttm",
    "wkd", "wkd_feature", "wkd_logit", "wsld", "wttm",
}  # fmt: skip
CASES = cases.INDEX["cases"]
OWN_FOLDER = "GOLDEN_DIR" not in os.environ

pytestmark = [
    pytest.mark.filterwarnings("ignore:the weight of .* grows over"),
    pytest.mark.filterwarnings("ignore:--nce_k 64 is more than"),
]


def name_of(case) -> str:
    return case["name"]


def too_far(found: dict[str, float]) -> dict[str, float]:
    """What is out of its tolerance, the worst first."""
    worst = sorted((name for name in found if found[name] > 1), key=found.get, reverse=True)
    return {name: found[name] for name in worst}


def method_of(case):
    words = case["flags"].split()
    return METHODS[words[words.index("--distill") + 1]]


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_trains_like_the_published_code(case):
    far = too_far(cases.deviations(case, replay.replay(case)))
    worst = [f"{name} by {share:.3g} tolerances" for name, share in far.items()]
    assert not far, f"{len(far)} numbers differ, such as {'; '.join(worst[:4])}"


@pytest.mark.parametrize("name", list(METHODS))
def test_every_method_has_a_case_or_is_listed(name):
    if name in WITHOUT_CASE:
        pytest.skip(f"no golden trajectory of {name}")
    assert METHODS[name] in map(method_of, CASES), f"no golden trajectory of {name}, and not listed"


@pytest.mark.skipif(not OWN_FOLDER, reason="the list is for the cases kept here")
def test_methods_listed_as_without_a_case_have_none():
    assert not {name for name in WITHOUT_CASE if METHODS[name] in map(method_of, CASES)}


@pytest.mark.parametrize(
    ("method", "flags"),
    [
        ("kd", "--weight_decay 0.0005005"),
        ("kd", "--momentum 0.9001"),
        ("kd", "--lr_decay_rate 0.1001"),
        ("kd", "--kd_T 4.004"),
        ("dkd", "--warmup 19"),
        ("crd", "--nce_m 0.5005"),
        ("factor", "--weight_decay 0.0005005"),
    ],
)
def test_a_slightly_wrong_setting_is_noticed(method, flags):
    case = next(case for case in CASES if case["method"] == method)
    assert too_far(cases.deviations(case, replay.replay(case, flags)))


@pytest.mark.parametrize("case", CASES, ids=name_of)
@pytest.mark.parametrize("place", [0, -1], ids=["first", "last"])
def test_a_deviation_of_any_number_is_noticed(case, place):
    published, tolerance = cases.stored(case), case["tolerance"]
    compared = cases.deviations(case, published)
    assert not too_far(compared)
    for losses in published.losses.values():
        assert len(losses) > 1
        losses[place] += 2 * tolerance["loss"] * (abs(losses[place]) or 1)
    for rows in published.rows.values():
        for row in rows.values():
            row[place] += 2 * tolerance["weights"] * max(row[10], cases.LEAST_LARGEST)
    assert too_far(cases.deviations(case, published)).keys() == compared.keys()


def test_the_recipe_gives_the_numbers_of_the_index(capsys):
    runpy.run_path(str(cases.FOLDER / "recipe.py"), run_name="__main__")
    assert capsys.readouterr().out == "as stored\n"


@pytest.mark.parametrize("name", sorted({case["teacher"] for case in CASES}))
def test_teachers_give_the_logits_of_the_index(name):
    images = cases.recipe.Data(29).batches(0)[0][0]
    with replay.double_precision(), torch.no_grad():
        logits = replay.filled_network(name, "teacher").eval()(torch.from_numpy(images))
    wanted = cases.CHECKS[f"logits of teacher {name} in eval mode, pass 0, batch 0"]
    np.testing.assert_allclose(cases.recipe.summary(logits), wanted, rtol=1e-10)
