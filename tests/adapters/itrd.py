from dataclasses import replace

import torch

from distiller_zoo.itrd import ITRD

from . import ADAPTERS, Subject, bare_setup
from .ega import only_pooled


@ADAPTERS.register("itrd")
def itrd(case):
    student, teacher = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    setup = replace(bare_setup(), student=student, teacher=teacher)
    method = ITRD(ITRD.Options(case.hyper["alpha_it"], 1.0, 1.0), setup).to(case.dtype)
    method.load_state_dict({name: case.state(name) for name in case.entry["state"]})

    def call():
        return {
            "loss": method(student, teacher, None),
            "loss_parts": torch.stack(method.losses(student.pooled, teacher.pooled)),
        }

    return Subject(call, dict(method.named_parameters()))
