from dataclasses import replace

from distiller_zoo.ega import EGA
from models.base import Features

from . import ADAPTERS, Subject, bare_setup


def only_pooled(pooled) -> Features:
    """A pass of which nothing but the pooled vector is known: (B, C)."""
    return Features(None, (), (), None, pooled, None, None)


@ADAPTERS.register("ega")
def ega(case):
    h = case.hyper
    student, teacher = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    setup = replace(bare_setup(), student=student, teacher=teacher)
    method = EGA(EGA.Options(h["node_weight"], h["edge_weight"]), setup)
    return Subject(lambda: {"loss": method(student, teacher, None)})
