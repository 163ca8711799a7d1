from dataclasses import dataclass, replace

from helper.options import not_negative, option, positive_number

from . import METHODS
from .base import Distiller, Recipe
from .wkd_feature import WKDFeature, describe_decay
from .wkd_logit import WKDLogit

# (teacher, student) -> weight and temperature of the transport, weight of the feature loss, of its
# means, and the grid (published configurations of both in one run).
SETTINGS = {
    ("resnet32x4", "resnet8x4"): (200.0, 8.0, 0.08, 8.0, 1),
    ("wrn_40_2", "ShuffleV1"): (60.0, 4.0, 0.5, 3.0, 4),
}
SETTINGS_IMAGENET = {
    ("ResNet34", "ResNet18"): (10.0, 2.0, 1.0, 2.0, 4),
    ("ResNet50", "MobileNetV1"): (25.0, 2.0, 0.005, 2.0, 4),
}


@METHODS.register("wkd")
class WKD(Distiller):
    """Lv et al., Wasserstein Distance Rivals Kullback-Leibler Divergence, NeurIPS 2024 (WKD-L+F).

    The losses of `wkd_logit` and `wkd_feature` in one run, the latter times `wkd_feature_weight`.

    Settings of pairs that the paper does not name are those of resnet32x4 -> resnet8x4, on ImageNet
    those of ResNet34 -> ResNet18.
    Raises ValueError where either of the two does.
    """

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=1.0)
    reads = WKDLogit.reads | WKDFeature.reads
    reads_samples = WKDLogit.reads_samples

    @dataclass(frozen=True)
    class Options(WKDFeature.Options, WKDLogit.Options):
        wkd_T: float = option(8.0, "temperature among the other classes", parse=positive_number)
        wkd_mean: float = option(8.0, "weight of the means", parse=not_negative)
        wkd_feature_weight: float = option(0.08, "weight of the feature loss", parse=not_negative)

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.logit = WKDLogit(options, replace(setup, views=()))
        self.feature = WKDFeature(options, setup)

    @staticmethod
    def variant(options):
        return describe_decay("transport and features fall", options.wkd_decay_from)

    @staticmethod
    def pair_defaults(teacher, student, views, data):
        pair, found = (teacher, student), SETTINGS.get((teacher, student), ())
        if data == "imagenet":
            found = SETTINGS_IMAGENET.get(pair, SETTINGS_IMAGENET["ResNet34", "ResNet18"])
        names = "wkd_transport", "wkd_T", "wkd_feature_weight", "wkd_mean", "wkd_grid"
        return WKDLogit.pair_defaults(*pair, views, data) | dict(zip(names, found))

    def prepare(self, teacher, images):
        self.logit.prepare(teacher, images)

    def begin(self, epoch, epochs):
        self.logit.begin(epoch, epochs)
        self.feature.begin(epoch, epochs)

    def forward(self, student, teacher, batch):
        logit = self.logit(student, teacher, batch)
        feature = self.feature(student, teacher, batch)
        self.parts = {"logit": logit.detach(), "feature": feature.detach(), **self.feature.parts}
        return logit + self.options.wkd_feature_weight * feature
