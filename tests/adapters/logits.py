"""Newer methods on logits: the whole method, as a run calls it."""

from dataclasses import replace
from functools import partial

import torch
import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo.base import LogitDistiller
from distiller_zoo.dist import DIST
from distiller_zoo.ldrld import LDRLD
from distiller_zoo.normkd import NormKD
from distiller_zoo.rows import kl
from distiller_zoo.skd import SKD, direction_losses
from distiller_zoo.ttm import TTM
from distiller_zoo.wttm import WTTM

from . import ADAPTERS, Case, Subject, bare_setup, only_logits


def on_logits(case: Case, cls: type[LogitDistiller], **options) -> Subject:
    """A method with these options on a case's logits."""
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    method = cls(cls.Options(**options), replace(bare_setup(), student=student)).to(case.dtype)
    batch = Batch(None, torch.zeros(len(student.logits), dtype=torch.long), None)
    return Subject(lambda: {"loss": method(student, teacher, batch)})


@ADAPTERS.register("ttm")
def ttm(case):
    return on_logits(case, TTM, ttm_l=case.hyper["power"])


@ADAPTERS.register("wttm")
def wttm(case):
    return on_logits(case, WTTM, ttm_l=case.hyper["power"])


@ADAPTERS.register("dist")
def dist(case):
    h = case.hyper
    weights = {"dist_beta": h["beta"], "dist_gamma": h["gamma"]}
    return on_logits(case, DIST, **weights, dist_tau=h["temperature"])


@ADAPTERS.register("normkd")
def normkd(case):
    return on_logits(case, NormKD, normkd_T_norm=case.hyper["temperature_norm"])


@ADAPTERS.register("ldrld")
def ldrld(case):
    h = case.hyper
    weights = {"ldrld_alpha": h["alpha"], "ldrld_beta": h["beta"]}
    options = LDRLD.Options(kd_T=h["temperature"], ldrld_k=h["k"], **weights)
    whole = on_logits(case, LDRLD, **vars(options))
    method = LDRLD(options, replace(bare_setup(), student=only_logits(case["logit_s"])))

    def call():
        parts = (part.mean() for part in method.losses(case["logit_s"], case["logit_t"]))
        return whole.call() | dict(zip(("out/local", "out/rest"), parts, strict=True))

    return Subject(call)


@ADAPTERS.register("skd")
def skd(case):
    h, s, t = case.hyper, case["logit_s"], case["logit_t"]
    if h["piece"] == "direction":
        divisor = s.shape[1] if h["divide_by_classes"] else 1
        lengths = partial(direction_losses, s[None], t[None], h["tik"], divisor)
        return Subject(lambda: {"loss": lengths().mean()})
    if h["piece"] == "instance":  # without T^2
        return Subject(lambda: {"loss": kl(s, t, h["temperature"]).mean() / h["temperature"] ** 2})
    method = SKD(SKD.Options(h["temperature"], h["tik"]), bare_setup())
    batch = Batch(None, case["target"], None)

    def call():
        hard = h["ce_weight"] * F.cross_entropy(s, case["target"])
        soft = h["kd_weight"] * method(only_logits(s), only_logits(t), batch)
        parts = [hard, *(h["kd_weight"] * method.parts[name] for name in ("kl", "direction"))]
        return {"loss": hard + soft, "loss_parts": torch.stack(parts)}

    return Subject(call)
