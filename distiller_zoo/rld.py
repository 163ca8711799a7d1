import re
from dataclasses import dataclass

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .dkd import OTHERS_WEIGHT_IMAGENET
from .rows import MASKED, binary_logits, kl


@METHODS.register("rld")
class RLD(LogitDistiller):
    """Sun et al., Knowledge Distillation with Refined Logits, ICCV 2025 (arXiv 2408.07703).

    Confidence term: KL between the student's binary probabilities (target, any other class) and the
    teacher's (its top class, any other class). Masked term: KL over the classes that the teacher
    ranks below the target. Both are times T^2, mean over the batch.

    The masked term is 0 where the teacher ranks the target last.
    Reference: zju-SWJ/RLD, mdistiller/distillers/RLD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)
    reads_samples = True

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of the masked term", parse=positive_number)
        rld_alpha_T: float | None = option(
            None, "temperature of the confidence term (default: that of the masked term)",
            parse=positive_number,
        )  # fmt: skip
        rld_alpha: float = option(1.0, "weight of the confidence term", parse=not_negative)
        rld_beta: float = option(8.0, "weight of the masked term", parse=not_negative)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """Published settings: ImageNet pairs; with logit standardization, pairs of one family."""
        on_imagenet = OTHERS_WEIGHT_IMAGENET.get((teacher, student)) if data == "imagenet" else None
        settings = {} if on_imagenet is None else {"rld_beta": on_imagenet}
        if "logit_stand" not in views:
            return settings if on_imagenet is None else {**settings, "kd_T": 1.0}
        within = family(student) == family(teacher)
        return {**settings, "base_temp": 5.0, "kd_weight": 6.0} if within else settings

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        o = self.options
        alpha_T = o.rld_alpha_T or o.kd_T
        s, t = student / alpha_T, teacher / alpha_T
        confidence = kl(binary_logits(s, labels), binary_logits(t, t.argmax(dim=1)), temperature=1)
        masked = teacher >= teacher.gather(1, labels[:, None])  # (M, K), also the target itself
        s, t = student / o.kd_T, teacher / o.kd_T
        others = kl(s.masked_fill(masked, MASKED), t.masked_fill(masked, MASKED), temperature=1)
        return o.rld_alpha * alpha_T**2 * confidence + o.rld_beta * o.kd_T**2 * others


def family(network: str) -> str:
    """'resnet32x4' -> 'resnet', 'wrn_40_2' -> 'wrn', 'torchvision:resnet18' -> 'resnet'"""
    return re.match(r"[A-Za-z]*", network.split(":")[-1])[0]
