from dataclasses import replace

import torch

from dataset.base import Batch
from distiller_zoo.dkd import DKD
from distiller_zoo.kd import KD
from distiller_zoo.ttm import TTM

from . import ADAPTERS, Subject, bare_setup, only_logits
from .kd import STANDARDIZE


@ADAPTERS.register("abkd")
def abkd(case):
    h, student, teacher = case.hyper, only_logits(case["logit_s"]), only_logits(case["logit_t"])
    powers = {"divergence": "ab", "ab_alpha": h["alpha"], "ab_beta": h["beta"]}
    views = [STANDARDIZE] if h.get("logit_stand") else []
    setup = replace(bare_setup(*views), student=student)
    if h["base"] == "ttm":
        method = TTM(TTM.Options(h["power"], **powers), setup)
    elif h["base"] == "dkd":
        weights = h["dkd_alpha"], h["dkd_beta"]
        method = DKD(DKD.Options(h["temperature"], *weights, **powers), setup)
    else:
        method = KD(KD.Options(h["temperature"], **powers), setup)
    # The published limit at alpha 0 is divided by beta, where the limit is by its square.
    factor = h["beta"] if h.get("published_limits") else 1
    labels = torch.zeros(len(student.logits), dtype=torch.long)
    labels = case["target"] if "target" in case.entry["inputs"] else labels
    return Subject(lambda: {"loss": factor * method(student, teacher, Batch(None, labels, None))})
