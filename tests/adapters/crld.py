import torch
import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo.crld import CRLD

from . import ADAPTERS, Subject, bare_setup, two_views


@ADAPTERS.register("crld")
def crld(case):
    """The reference adds cross-entropy on both views; here the objective does."""
    h, labels = case.hyper, case["target"]
    options = CRLD.Options(
        h["temperature"],
        h["within_weight"],
        h["cross_weight"],
        h["threshold_weak"],
        h["threshold_strong"],
    )
    method = CRLD(options, bare_setup())
    student, teacher = two_views(case, "s"), two_views(case, "t")

    def call():
        ce = sum(F.cross_entropy(view.logits, labels) for view in student.views)
        parts = torch.stack(
            [h["ce_weight"] * ce, method(student, teacher, Batch(None, labels, None))]
        )
        return {"loss": parts.sum(), "loss_parts": parts}

    return Subject(call)
