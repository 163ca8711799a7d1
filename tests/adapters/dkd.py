"""DKD, RLD and NKD: alone, and behind scale decoupling."""

from dataclasses import replace
from functools import partial

import torch

from dataset.base import Batch
from distiller_zoo.dkd import DKD
from distiller_zoo.nkd import NKD
from distiller_zoo.rld import RLD

from . import ADAPTERS, Subject, bare_setup, only_logits
from .kd import STANDARDIZE, sdd


def setup_of(*views):
    """For methods that look at the number of classes."""
    return replace(bare_setup(*views), student=only_logits(torch.zeros(2, 10)))


def dkd_of(h, *views):
    options = DKD.Options(kd_T=h["temperature"], dkd_target=h["alpha"], dkd_others=h["beta"])
    return DKD(options, setup_of(*views))


def rld_of(h, *views):
    options = RLD.Options(h["temperature"], h["alpha_temperature"], h["alpha"], h["beta"])
    return RLD(options, setup_of(*views))


def nkd_of(h, *views):
    options = NKD.Options(h["temperature"], h["gamma"], nkd_keep_target=not h["drop_target"])
    return NKD(options, setup_of(*views))


def on_logits(case, make_method) -> Subject:
    method = make_method(case.hyper, *([STANDARDIZE] if case.hyper.get("logit_stand") else []))
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    return Subject(lambda: {"loss": method(student, teacher, Batch(None, case["target"], None))})


for name, make in (("dkd", dkd_of), ("rld", rld_of), ("nkd", nkd_of)):
    ADAPTERS.register(name)(partial(on_logits, make_method=make))
    ADAPTERS.register(f"sdd_{name}")(partial(sdd, make_method=make))
