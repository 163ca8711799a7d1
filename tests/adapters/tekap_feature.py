from unittest import mock

from distiller_zoo.noisy_teacher import NoisyTeacher

from . import ADAPTERS, Subject
from .crd import crd_of, only_pooled, setup_of


@ADAPTERS.register("tekap_feature")
def tekap_feature(case):
    h = case.hyper
    assert h["keep_weight"] + h["noise_weight"] == 1
    crd, batch, trained, state = crd_of(case)
    options = NoisyTeacher.Options(1, h["noise_weight"], h["noise_std"])
    method = NoisyTeacher(options, setup_of(case), crd)
    features = only_pooled(case["f_s"]), only_pooled(case["f_t"])

    def call():
        with mock.patch("torch.randn_like", return_value=case["noise_1"]):
            return {"loss": method(*features, batch)}

    return Subject(call, trained, state)
