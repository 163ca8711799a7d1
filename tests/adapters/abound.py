from distiller_zoo import abound
from distiller_zoo.base import Setup

from . import ADAPTERS, Subject
from .features import buffers, load, maps, of_parts
from .fsp import only_maps


@ADAPTERS.register("abound")
def of_abound(case):
    student, teacher = only_maps(None, maps(case, "f_s")), only_maps(None, maps(case, "f_t"))
    options = abound.ActivationBoundary.Options(case.hyper["margin"])
    setup = Setup(student, teacher, None, None, None)
    connectors = abound.ActivationBoundary(options, setup).connectors
    trained = load(connectors, case, "connectors.")

    def call():
        connected = [f(s) for f, s in zip(connectors, student.preacts, strict=True)]
        losses = of_parts(abound.stage_losses(connected, teacher.preacts, options.ab_margin))
        return losses | {f"out/connected.{i}": c for i, c in enumerate(connected)}

    return Subject(call, trained, buffers(connectors, "connectors."))
