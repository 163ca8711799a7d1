from types import SimpleNamespace

import pytest

from cli.choice import choose
from distiller_zoo import METHODS, option_names
from distiller_zoo.noisy_teacher import NoisyTeacher

ON = {"logit_stand": True, "tekap": True, "sdd": (1, 2)}


def test_views_are_in_the_order_in_which_they_apply():
    assert list(choose({"distill": "kd", **ON}).views) == ["sdd", "tekap", "logit_stand"]
    assert list(choose({"distill": "kd", "sdd": (), "tekap": False}).views) == []


def test_views_go_in_front_of_a_method_on_logits_and_around_one_on_features():
    assert choose({"distill": "dkd", **ON}).wrappers == {}
    choice = choose({"distill": "rkd", **ON})
    assert choice.wrappers == {"tekap": NoisyTeacher}
    assert choice.parts[:2] == [METHODS["rkd"], METHODS["kd"]]


@pytest.mark.parametrize(
    ("method", "alpha", "beta", "views"),
    [
        ("rkd", 1, 1, ["sdd", "tekap", "logit_stand"]),
        ("rkd", 0, 1, ["tekap"]),
        ("dkd", 0, 1, ["sdd", "tekap", "logit_stand"]),
        ("dkd", 0, 0, []),
    ],
)
def test_which_views_have_effect(method, alpha, beta, views):
    choice = choose({"distill": method, **ON})
    assert choice.views_with_effect(SimpleNamespace(alpha=alpha, beta=beta)) == views


def test_which_options_have_no_effect():
    def idle(method, alpha, beta):
        typed = {"distill": method, "tekap": True}
        return choose(typed).without_effect(SimpleNamespace(alpha=alpha, beta=beta))

    assert idle("nkd", 1, 1) == {"init_epochs", "peer", "peer_rate"}
    of_kd = option_names(METHODS["kd"])
    assert idle("nkd", 0, 1) == {"init_epochs", "peer", "peer_rate", *of_kd}
    views = {"tekap", "tekap_copies", "tekap_noise", "tekap_weight"}
    assert idle("rkd", 0, 1) & {*views, "warmup", "kd_T"} == {"kd_T"}
    assert {"nkd_T", "warmup"} <= idle("nkd", 1, 0)
    assert not views & idle("nkd", 1, 0)  # they are in front of KD
    around = option_names(NoisyTeacher)
    # The first stage of factor runs, whatever its weight is.
    assert idle("factor", 0, 0) == {*views, *around, *of_kd, "warmup", "peer", "peer_rate"}
