from distiller_zoo.base import Setup
from distiller_zoo.srd import SRD
from models.base import Features

from . import ADAPTERS, Subject


@ADAPTERS.register("srd")
def srd(case):
    student, teacher = (
        Features(None, (), (), None, case[f"f_{who}"], case[f"logit_{who}"], None) for who in "st"
    )
    method = SRD(
        SRD.Options(round(case.hyper["exponent"])), Setup(student, teacher, None, None, None)
    ).to(case.dtype)
    method.load_state_dict({name: case.state(name) for name in case.entry["state"]})
    method.train(case.hyper["training"])

    def call():
        loss = method(student, teacher, None)
        return {"loss": loss, **{f"out/{name}": part for name, part in method.parts.items()}}

    return Subject(call, dict(method.named_parameters()), lambda: dict(method.named_buffers()))
