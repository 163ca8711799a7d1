from dataclasses import replace

import torch

from dataset.base import Batch
from distiller_zoo.ctkd import CurriculumTemperature
from distiller_zoo.dkd import DKD
from distiller_zoo.kd import KD

from . import ADAPTERS, Subject, bare_setup, only_logits


@ADAPTERS.register("ctkd")
def ctkd(case):
    h = case.hyper
    assert (h["decay_max"], h["decay_min"]) == (0, -1)
    student, teacher = only_logits(case["logit_s"]), only_logits(case["logit_t"])
    options = CurriculumTemperature.Options(True, h["t_start"], h["t_end"], h["decay_loops"])
    view = CurriculumTemperature(options, bare_setup()).to(case.dtype)
    view.theta.data.fill_(case.state("theta").item())
    view.begin(h["epoch"], 240)
    setup = replace(bare_setup(view), student=student)
    if h["base"] == "dkd":
        options = DKD.Options(kd_T=1.0, dkd_target=h["dkd_alpha"], dkd_others=h["dkd_beta"])
        method, labels = DKD(options, setup), case["target"]
    else:
        method, labels = KD(KD.Options(kd_T=1.0), setup), torch.zeros(len(student.logits))

    def call():
        loss = method(student, teacher, Batch(None, labels, None))
        return {"loss": loss, "out/temperature": view.temperature, "out/factor": view.factor}

    return Subject(call, {"theta": view.theta})
