"""The weights that each method's paper, or the code that its numbers come from, trains with."""

import pytest

from distiller_zoo import METHODS

PUBLISHED = {  # of cross-entropy, KD and the method
    "kd": (0.1, 0.9, 0), "hint": (1, 0, 100), "attention": (1, 0, 1000), "similarity": (1, 0, 3000),
    "correlation": (1, 0, 0.02), "vid": (1, 0, 1), "rkd": (1, 0, 1), "pkt": (1, 0, 30000),
    "abound": (1, 0, 1), "factor": (1, 0, 200), "fsp": (1, 0, 50), "nst": (1, 0, 50),
    "kdsvd": (1, 0, 1), "crd": (1, 0, 0.8), "icd": (1, 0, 1), "dcd": (1, 0, 1), "rrd": (1, 0, 1),
    "dkd": (1, 0, 1), "rld": (1, 0, 1), "nkd": (1, 0, 1), "reviewkd": (1, 0, 1),
    "ofd": (1, 0, 0.001), "wsld": (1, 0, 2.5), "itrd": (1, 0, 1), "ega": (1, 0, 1),
    "tfkd": (0.9, 0, 0.1), "pskd": (0, 0, 1), "dml": (1, 0, 1), "dist": (1, 0, 1),
    "ttm": (1, 0, 45), "wttm": (1, 0, 4), "normkd": (0.1, 0, 0.9), "ldrld": (1, 0, 1),
    "skd": (0.1, 0, 0.9), "srd": (1, 0, 1), "catkd": (1, 0, 15), "simkd": (0, 0, 1),
    "wkd": (1, 0, 1), "wkd_logit": (1, 0, 1), "wkd_feature": (1, 0, 0.08),
    # Cross-entropy of two views is a sum there and a mean here.
    "mlkd": (0.2, 0, 0.9), "crld": (2, 0, 1),
}  # fmt: skip
WARMUP = {"dkd": 20, "rld": 20, "nkd": 20, "reviewkd": 20}


def test_every_method_has_a_row():
    assert PUBLISHED.keys() == set(METHODS)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_is_the_published_one(name):
    recipe = METHODS[name].recipe
    assert (recipe.gamma, recipe.alpha, recipe.beta) == PUBLISHED[name]
    assert recipe.warmup == WARMUP.get(name, 0)
