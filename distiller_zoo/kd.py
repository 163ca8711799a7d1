from dataclasses import dataclass

import torch.nn.functional as F

from helper.options import option, positive_number

from . import METHODS
from .abkd import DivergenceOptions, divergence_of
from .base import LogitDistiller, Recipe
from .ctkd import CurriculumTemperature

# (teacher, student) -> base temperature and weight under logit standardization, where they are not
# 2 and 9 (Sun et al.,
# Logit Standardization in Knowledge Distillation, CVPR 2024, published configurations).
STANDARDIZED = {
    ("vgg13", "vgg8"): (3.0, 9.0),
    ("resnet110", "resnet20"): (4.0, 12.0),
    ("resnet32x4", "wrn_16_2"): (3.0, 9.0),
    ("resnet32x4", "wrn_40_2"): (3.0, 9.0),
    ("wrn_40_2", "MobileNetV2"): (3.0, 9.0),
    ("vgg13", "MobileNetV2"): (3.0, 9.0),
    ("ResNet50", "MobileNetV2"): (3.0, 1.0),
}
# ImageNet (logit standardization puts its own temperature and weight in the place of these).
ON_IMAGENET = {
    ("ResNet34", "ResNet18"): {"gamma": 1.0, "alpha": 0.5, "kd_T": 1.0},
    ("ResNet50", "MobileNetV1"): {"gamma": 0.5, "alpha": 0.5, "kd_T": 1.0},
}


@METHODS.register("kd")
class KD(LogitDistiller):
    """Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (eq. 1, section 2.1).

    KL(teacher || student) of the probabilities at temperature T, summed over the classes, mean over
    the batch, times T^2. It is the `-a` term of every other method as well.

    With `--divergence ab` it is ABKD: that divergence in the place of KL, not times T^2 but where
    logits are standardised, and the weights 1, 32.
    Reference: HobbitLong/RepDistiller, distiller_zoo/KD.py.
    """

    recipe = Recipe(gamma=0.1, alpha=0.9, beta=0.0)
    one_temperature = True

    @dataclass(frozen=True)
    class Options(DivergenceOptions):
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.divergence = divergence_of(options)
        if options.divergence == "ab" and any(
            isinstance(x, CurriculumTemperature) for x in self.views
        ):
            raise ValueError(
                "--ctkd learns the T of a loss that is times T^2, and with --divergence ab KD is "
                "not: give one of them"
            )

    @staticmethod
    def variant(options):
        return ", ".join(filter(None, (f"T={options.kd_T:g}", options.divergence_name)))

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        """Published settings: ImageNet's pairs; on CIFAR-100 with logit standardization."""
        pair = teacher, student
        if data == "imagenet":
            return ON_IMAGENET.get(pair, {})
        if "logit_stand" not in views or pair not in STANDARDIZED:
            return {}
        base_temp, kd_weight = STANDARDIZED[pair]
        return {"base_temp": base_temp, "kd_weight": kd_weight}

    @staticmethod
    def option_defaults(options, teacher, student, views):
        """ABKD's published settings; those of logit standardization have its weights."""
        if options.divergence == "kl":
            return {}
        settings = {} if "logit_stand" in views else {"gamma": 1.0, "alpha": 32.0}
        if (teacher, student) == ("resnet56", "resnet20"):
            settings |= {"ab_alpha": 0.9 if "logit_stand" in views else 0.8, "ab_beta": 0.3}
        return {name: ("divergence", value) for name, value in settings.items()}

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        T = self.options.kd_T
        log_p, log_q = (F.log_softmax(x / T, dim=1) for x in (student, teacher))
        return T**2 * self.divergence(log_p, log_q)

    def row_losses(self, rows, labels):
        losses = super().row_losses(rows, labels)
        standardised = rows.unscaled is not None
        if self.options.divergence == "kl" or standardised:
            return losses
        return losses / self.options.kd_T**2  # as published
