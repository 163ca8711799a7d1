from dataclasses import dataclass

from helper.options import not_negative, option, positive_number

from . import METHODS
from .abkd import DivergenceOptions, divergence_of
from .base import LogitDistiller, Recipe
from .ctkd import CurriculumTemperature
from .normkd import over_std
from .rows import check_class_count, decoupled_log_probs, kl_from_log_probs, mask_class

# Tables are keyed by (teacher, student). Weight of the other-classes term where it is not 8
# (published configurations).
OTHERS_WEIGHT = {
    ("resnet56", "resnet20"): 2.0,
    ("resnet110", "resnet32"): 2.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
    ("vgg13", "vgg8"): 6.0,
    ("vgg13", "MobileNetV2"): 6.0,
}
# The same on ImageNet, where the temperature is 1; RLD has it too.
OTHERS_WEIGHT_IMAGENET = {("ResNet34", "ResNet18"): 0.5, ("ResNet50", "MobileNetV1"): 2.0}
# The same on CIFAR-100 with scale decoupling (Wei et al., CVPR 2024, published configurations);
# a teacher alone as the key stands for all its students.
OTHERS_WEIGHT_SDD = {
    "vgg13": 6.0,
    "resnet56": 2.0,
    "resnet110": 2.0,
    ("wrn_40_2", "MobileNetV2"): 6.0,
    ("wrn_40_2", "wrn_16_2"): 6.0,
    ("wrn_40_2", "wrn_40_1"): 6.0,
}
# Base temperature, weight of the loss, weight of the other-classes term with logit
# standardization (Sun et al., Logit Standardization, CVPR 2024, published configurations).
STANDARDIZED = {
    ("vgg13", "vgg8"): (2.0, 15.0, 2.0),
    ("resnet110", "resnet20"): (2.0, 15.0, 2.0),
    ("resnet110", "resnet32"): (2.0, 15.0, 2.0),
    ("resnet56", "resnet20"): (3.0, 18.0, 2.0),
    ("wrn_40_2", "wrn_40_1"): (2.0, 12.0, 2.0),
    ("wrn_40_2", "wrn_16_2"): (2.0, 12.0, 2.0),
    ("resnet32x4", "wrn_16_2"): (2.0, 9.0, 2.0),
    ("resnet32x4", "wrn_40_2"): (2.0, 9.0, 8.0),
    ("wrn_40_2", "resnet8x4"): (2.0, 18.0, 2.0),
    ("wrn_40_2", "MobileNetV2"): (2.0, 15.0, 2.0),
    ("vgg13", "MobileNetV2"): (3.0, 9.0, 2.0),
    ("ResNet50", "MobileNetV2"): (2.0, 15.0, 2.0),
}
# Weights of both terms and temperature with normalised logits (Chi et al., NormKD, 2023, published
# configurations).
NORMALIZED = {
    ("resnet32x4", "resnet8x4"): (4.0, 5.0, 2.0),
    ("wrn_40_2", "wrn_16_2"): (4.0, 5.0, 2.0),
    ("wrn_40_2", "wrn_40_1"): (3.0, 6.0, 2.0),
    ("resnet56", "resnet20"): (7.0, 2.0, 2.0),
    ("resnet110", "resnet32"): (5.0, 4.0, 2.0),
    ("vgg13", "vgg8"): (2.0, 7.0, 2.0),
    ("resnet32x4", "ShuffleV1"): (0.5, 8.5, 2.0),
    ("resnet32x4", "ShuffleV2"): (4.0, 5.0, 2.0),
    ("wrn_40_2", "ShuffleV1"): (4.0, 5.0, 2.0),
    ("ResNet50", "MobileNetV2"): (2.0, 7.0, 2.0),
    ("vgg13", "MobileNetV2"): (3.0, 6.0, 2.0),
    ("ResNet34", "ResNet18"): (1.0, 1.0, 0.5),
    ("ResNet50", "MobileNetV1"): (1.0, 1.0, 0.75),
}


@METHODS.register("dkd")
class DKD(LogitDistiller):
    """Zhao et al., Decoupled Knowledge Distillation, CVPR 2022 (eq. 7).

    KD is the sum of a target term (TCKD), on the probabilities of the target against all other
    classes, and an other-classes term (NCKD), on the probabilities among the others. DKD weighs
    each by itself. Both are KL(teacher || student) at temperature T, times T^2, mean over the
    batch. `--divergence ab` changes that of the other classes (ABKD). With `--dkd_norm` (NormKD and
    DKD) the temperature is T times the standard deviation of a row of logits, each network's own,
    and the factor the square of the teacher's.

    Raises ValueError where there are fewer than three classes.
    Reference: megvii-research/mdistiller, mdistiller/distillers/DKD.py.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0, warmup=20)
    reads_samples = True
    one_temperature = True

    @dataclass(frozen=True)
    class Options(DivergenceOptions):
        kd_T: float = option(4.0, "temperature of both softmaxes", parse=positive_number)
        dkd_target: float = option(1.0, "weight of the target term", parse=not_negative)
        dkd_others: float = option(8.0, "weight of the other-classes term", parse=not_negative)
        dkd_norm: bool = option(
            False, "T is that of logits whose standard deviation is 1, as in NormKD", added=True
        )

    def __init__(self, options, setup):
        super().__init__(options, setup)
        check_class_count(setup.student.logits.shape[1])
        self.divergence = divergence_of(options)
        if options.dkd_norm and any(isinstance(x, CurriculumTemperature) for x in self.views):
            raise ValueError(
                "--ctkd learns a temperature, and with --dkd_norm logits are over their standard "
                "deviation, whatever the temperature was: give one of them"
            )

    @staticmethod
    def variant(options):
        norm = f"T={options.kd_T:g} * std" if options.dkd_norm else ""
        return ", ".join(filter(None, (norm, options.divergence_name)))

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        pair = teacher, student
        if "logit_stand" in views and pair in STANDARDIZED:
            base_temp, kd_weight, others = STANDARDIZED[pair]
            return {"base_temp": base_temp, "kd_weight": kd_weight, "dkd_others": others}
        if data == "imagenet" and pair in OTHERS_WEIGHT_IMAGENET:
            settings = {"dkd_others": OTHERS_WEIGHT_IMAGENET[pair]}
            return settings if "logit_stand" in views else {**settings, "kd_T": 1.0}
        table = OTHERS_WEIGHT_SDD if "sdd" in views else OTHERS_WEIGHT
        others = table.get(pair, table.get(teacher))
        return {} if others is None else {"dkd_others": others}

    @staticmethod
    def option_defaults(options, teacher, student, views):
        """The published settings of NormKD and DKD."""
        if not options.dkd_norm:
            return {}
        found = NORMALIZED.get((teacher, student))
        names = "dkd_target", "dkd_others", "kd_T"
        settings = dict(zip(names, found)) if found else {"kd_T": 2.0}
        return {name: ("dkd_norm", value) for name, value in settings.items()}

    def per_row(self, student, teacher, labels):
        """(M, K), (M, K), (M,) -> (M,)"""
        o, variance = self.options, 1.0
        if o.dkd_norm:
            variance = teacher.var(dim=1)
            student, teacher = over_std(student), over_std(teacher)
        s, t = student / o.kd_T, teacher / o.kd_T  # split after the temperature, as published
        log_p, log_q = decoupled_log_probs(s, labels), decoupled_log_probs(t, labels)
        target = kl_from_log_probs(log_p[0], log_q[0])
        others = self.divergence(*(mask_class(x[1], labels) for x in (log_p, log_q)))
        return variance * o.kd_T**2 * (o.dkd_target * target + o.dkd_others * others)
