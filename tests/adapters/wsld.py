import torch.nn.functional as F

from dataset.base import Batch
from distiller_zoo.wsld import WSLD

from . import ADAPTERS, Subject, bare_setup, only_logits


@ADAPTERS.register("wsld")
def wsld(case):
    """The reference adds cross-entropy and weighs the method; here the recipe does."""
    h, labels = case.hyper, case["target"]
    method = WSLD(WSLD.Options(h["temperature"]), bare_setup())
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])

    def call():
        hard = F.cross_entropy(student.logits, labels, label_smoothing=h["label_smoothing"])
        return {"loss": hard + h["alpha"] * method(student, teacher, Batch(None, labels, None))}

    return Subject(call)
