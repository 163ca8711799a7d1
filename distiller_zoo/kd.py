from dataclasses import dataclass

from helper.options import option, positive_number

from . import METHODS
from .base import LogitDistiller, Recipe
from .rows import kl

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

    Reference: HobbitLong/RepDistiller, distiller_zoo/KD.py.
    """

    recipe = Recipe(gamma=0.1, alpha=0.9, beta=0.0)
    one_temperature = True

    @dataclass(frozen=True)
    class Options:
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)

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

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        return kl(student, teacher, self.options.kd_T)
