import torch
import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo.mlkd import EXTRA_TEMPERATURES, MLKD, gram_difference, share_below_median
from distiller_zoo.rows import kl
from distiller_zoo.views import z_score

from . import ADAPTERS, Subject, bare_setup, two_views
from .kd import STANDARDIZE


def samples(s, t, T):
    """(B, K), (B, K) -> (B,)"""
    return gram_difference(F.softmax(s / T, dim=1)[None], F.softmax(t / T, dim=1)[None])[0]


def classes(s, t, T):
    """(B, K), (B, K) -> (K,)"""
    return gram_difference(F.softmax(s / T, dim=1).T[None], F.softmax(t / T, dim=1).T[None])[0]


@ADAPTERS.register("mlkd")
def mlkd(case):
    if case.hyper["piece"] == "full":
        return full(case)
    piece = {"kd": kl, "cc": classes, "bc": samples}[case.hyper["piece"]]
    s, t = case["logit_s"], case["logit_t"]
    if case.hyper["logit_stand"]:
        s, t = z_score(s), z_score(t)

    def call():
        return {"loss": piece(s, t, case.hyper["temperature"]).mean()}

    return Subject(call)


def full(case):
    """Cross-entropy, which the reference sums over the views, and the method on both views."""
    h, labels = case.hyper, case["target"]
    views = [STANDARDIZE] if h["logit_stand"] else []
    method = MLKD(MLKD.Options(h["temperature"], mlkd_strong=True), bare_setup(*views))
    student, teacher = two_views(case, "s"), two_views(case, "t")

    def call():
        ce = sum(F.cross_entropy(view.logits, labels) for view in student.views)
        loss = method(student, teacher, Batch(None, labels, None))
        return {"loss": h["ce_weight"] * ce + h["kd_weight"] * loss, "loss_parts": parts(case)}

    return Subject(call)


def parts(case):
    """The parts that the reference gives by name, of our pieces."""
    h, T = case.hyper, case.hyper["temperature"]
    weak, strong = ((case[f"logit_s_{v}"], case[f"logit_t_{v}"]) for v in ("weak", "strong"))
    ce = F.cross_entropy(weak[0], case["target"]) + F.cross_entropy(strong[0], case["target"])
    q = F.softmax(weak[1], dim=1)
    sample_share = share_below_median(q.amax(dim=1)[None])[0]
    class_share = share_below_median(q.sum(dim=0)[None])[0]
    every = (T, *EXTRA_TEMPERATURES)
    cc = class_share * sum(classes(*weak, T).mean() for T in every)
    bc = sample_share * sum(samples(*weak, T).mean() for T in every)
    if h["logit_stand"]:
        weak, strong = (tuple(map(z_score, view)) for view in (weak, strong))
    kd = sample_share * sum(kl(*weak, T).mean() for T in every)
    kd += sum(kl(*strong, T).mean() for T in (T, 3, 5)) + sum(kl(*weak, T).mean() for T in (2, 6))
    kd, cc, bc = (h["kd_weight"] * part for part in (kd, cc, bc))
    return torch.stack([h["ce_weight"] * ce, kd, cc, bc])
