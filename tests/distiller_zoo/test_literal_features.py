"""The slow forms of the methods on maps and vectors give the reference numbers too."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.literal import attention, correlation, hint, nst, pkt, rkd, similarity, vid
from distiller_zoo.nst import stage_loss
from distiller_zoo.vid import Likelihood
from models.adapters import Regressor
from tests.adapters import Case, index
from tests.adapters.features import load, maps, pairs


def on_hint(case, h):
    if not h["with_convreg"]:
        return hint.hint(case["f_s"], case["f_t"])
    regressor = Regressor(h["s_shape"], h["t_shape"], h["use_relu"])
    load(regressor, case, "regressor.")
    return hint.hint(regressor(case["f_s"]), case["f_t"])


def on_correlation(case, h):
    s, t = case["f_s"], case["f_t"]
    if h["with_embed"]:
        s, t = (
            F.linear(x, case.state(f"embed_{who}.weight"), case.state(f"embed_{who}.bias"))
            for who, x in (("s", s), ("t", t))
        )
    return correlation.correlation(s, t)


def on_vid(case, h):
    variance, eps = h["init_pred_var"], h["eps"]
    parts = [Likelihood(s.shape[1], t.shape[1], variance, eps) for s, t in pairs(case)]
    load(nn.ModuleList(parts), case, "vid.")
    regressors, scales = [p.regressor for p in parts], [p.log_scale for p in parts]
    return vid.vid(regressors, scales, maps(case, "f_s"), maps(case, "f_t"), eps)


def on_maps(form, *names):
    """A form of all maps and these numbers of the case."""
    return lambda case, h: form(maps(case, "f_s"), maps(case, "f_t"), *(h[n] for n in names))


def on_vectors(form, *names):
    return lambda case, h: form(case["f_s"], case["f_t"], *(h[n] for n in names))


FORMS = {
    "hint": on_hint,
    "attention": on_maps(attention.attention, "p"),
    "similarity": on_maps(similarity.similarity),
    "correlation": on_correlation,
    "vid": on_vid,
    "rkd": on_vectors(rkd.rkd, "w_d", "w_a"),
    "pkt": on_vectors(pkt.pkt),
    "nst": on_maps(nst.nst),
}
CASES = [entry for entry in index()["cases"] if entry["method"] in FORMS]


@pytest.mark.parametrize("entry", CASES, ids=lambda e: f"{e['method']}-{e['case']}")
def test_literal_form_equals_reference(entry):
    case = Case(entry)
    loss = FORMS[entry["method"]](case, case.hyper)
    assert loss.item() == pytest.approx(float(case.expected("loss")), rel=1e-9)


@pytest.mark.parametrize("shape", [(5, 6, 6), (9, 2, 2)])  # by pairs of channels, of positions
def test_nst_has_the_gradient_of_its_literal_form(shape):
    s, t = torch.randn(3, *shape).double(), torch.randn(3, 7, *shape[1:]).double()
    s[0, 2] = 0  # a channel that is off
    leaves = [s.clone().requires_grad_() for _ in range(2)]
    (3 * stage_loss(leaves[0], t)).backward()
    (3 * nst.nst([leaves[1]], [t])).backward()
    torch.testing.assert_close(*(x.grad for x in leaves))
