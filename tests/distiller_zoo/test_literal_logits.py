"""The slow forms that the benchmarks time give the reference numbers too."""

import pytest
import torch.nn.functional as F

from benchmarks.literal import (
    abkd,
    catkd,
    crld,
    dist,
    dkd,
    ega,
    itrd,
    ldrld,
    mlkd,
    nkd,
    normkd,
    rld,
    skd,
    srd,
    ttm,
    wsld,
)
from distiller_zoo.views import z_score
from tests.adapters import Case, index


def on_dkd(case, h):
    s, t = logits(case)
    return dkd.dkd(s, t, case["target"], h["alpha"], h["beta"], h["temperature"])


def on_rld(case, h):
    s, t = logits(case)
    temperatures = h["temperature"], h["alpha_temperature"]
    return rld.rld(s, t, case["target"], h["alpha"], h["beta"], *temperatures)


def on_nkd(case, h):
    s, t = logits(case)
    return nkd.nkd(s, t, case["target"], h["gamma"], h["temperature"], h["drop_target"])


def on_wsld(case, h):
    s, t = logits(case)
    soft = wsld.wsld(s, t, case["target"], h["temperature"])
    return F.cross_entropy(s, case["target"]) + h["alpha"] * soft


def on_mlkd(case, h):
    if h["piece"] != "full":
        piece = {"kd": mlkd.kd, "cc": mlkd.classes, "bc": mlkd.samples}[h["piece"]]
        return piece(*logits(case), h["temperature"])
    views = [case[f"logit_{who}_{view}"] for view in ("weak", "strong") for who in "st"]
    loss = h["kd_weight"] * mlkd.mlkd(
        *views, h["temperature"], z_score if h["logit_stand"] else lambda x: x
    )
    hard = [F.cross_entropy(case[f"logit_s_{v}"], case["target"]) for v in ("weak", "strong")]
    return h["ce_weight"] * sum(hard) + loss


def on_ega(case, h):
    return ega.ega(case["f_s"], case["f_t"], h["node_weight"], h["edge_weight"])


def on_itrd(case, h):
    s, t = case["f_s"], case["f_t"]
    mapped = F.linear(s, case.state("embed.weight"), case.state("embed.bias"))
    shared = itrd.mutual(s if s.shape == t.shape else mapped, t)
    return shared + itrd.correlation(mapped, t, h["alpha_it"])


def on_abkd(case, h):
    factor = h["temperature"] ** 2 if h["logit_stand"] else 1
    return factor * abkd.abkd(*logits(case), None, h["alpha"], h["beta"], h["temperature"])


def on_dist(case, h):
    return dist.dist(*logits(case), None, h["beta"], h["gamma"], h["temperature"])


def on_ttm(case, h):
    return ttm.ttm(*logits(case), None, h["power"])


def on_wttm(case, h):
    return ttm.wttm(*logits(case), None, h["power"])


def on_normkd(case, h):
    return normkd.normkd(*logits(case), None, h["temperature_norm"])


def on_ldrld(case, h):
    return ldrld.ldrld(*logits(case), None, h["k"], h["alpha"], h["beta"], h["temperature"])


def on_skd(case, h):
    if h["piece"] == "direction":
        return skd.direction(*logits(case), h["tik"], divide=h["divide_by_classes"])
    if h["piece"] == "instance":
        return skd.kd(*logits(case), h["temperature"]) / h["temperature"] ** 2
    soft = skd.skd(*logits(case), None, h["temperature"], h["tik"])
    return h["ce_weight"] * F.cross_entropy(case["logit_s"], case["target"]) + h["kd_weight"] * soft


def on_srd(case, h):
    mapped = F.linear(case["f_s"], case.state("embed_s.weight"), case.state("embed_s.bias"))
    return srd.srd(mapped, case["f_t"], *logits(case), exponent=h["exponent"])


def on_catkd(case, h):
    heads = case.state("classifier_s.weight"), case.state("classifier_t.weight")
    return catkd.catkd(case["f_s"], case["f_t"], *heads, h["grid"], h["normalize"])


def on_crld(case, h):
    views = [case[f"logit_{who}_{view}"] for view in ("weak", "strong") for who in "st"]
    how = ("temperature", "within_weight", "cross_weight", "threshold_weak", "threshold_strong")
    loss = crld.crld(*views, *(h[name] for name in how))
    hard = [F.cross_entropy(case[f"logit_s_{v}"], case["target"]) for v in ("weak", "strong")]
    return h["ce_weight"] * sum(hard) + loss


def logits(case):
    s, t = case["logit_s"], case["logit_t"]
    return (z_score(s), z_score(t)) if case.hyper.get("logit_stand") else (s, t)


def has_plain_form(h):
    """Of the alpha-beta divergence: no limit, and no other method around it."""
    return h["base"] == "kd" and h["alpha"] * h["beta"] > 0


FORMS = {
    "crld": on_crld,
    "dkd": on_dkd,
    "rld": on_rld,
    "nkd": on_nkd,
    "wsld": on_wsld,
    "mlkd": on_mlkd,
    "ega": on_ega,
    "itrd": on_itrd,
    "abkd": on_abkd,
    "dist": on_dist,
    "ttm": on_ttm,
    "wttm": on_wttm,
    "normkd": on_normkd,
    "ldrld": on_ldrld,
    "skd": on_skd,
    "srd": on_srd,
    "catkd": on_catkd,
}
CASES = [e for e in index()["cases"] if e["method"] in FORMS and e["hyper"].get("reduce", True)]
CASES = [e for e in CASES if e["method"] != "abkd" or has_plain_form(e["hyper"])]


@pytest.mark.parametrize("entry", CASES, ids=lambda e: f"{e['method']}-{e['case']}")
def test_literal_form_equals_reference(entry):
    case = Case(entry)
    loss = FORMS[entry["method"]](case, case.hyper)
    assert loss.item() == pytest.approx(float(case.expected("loss")), rel=1e-9)
