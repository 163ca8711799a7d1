from torch import nn

from distiller_zoo.base import Setup
from distiller_zoo.catkd import CATKD
from models.base import Features

from . import ADAPTERS, Subject


def ending_in(case, who: str) -> Features:
    """A network that ends in the case's map and a classifier without bias."""
    last_map, weight = case[f"f_{who}"], case.state(f"classifier_{who}.weight")
    head = nn.Linear(weight.shape[1], weight.shape[0], bias=False).to(case.dtype)
    head.load_state_dict({"weight": weight})
    pooled = last_map.mean(dim=(2, 3))
    return Features(None, (last_map,), (last_map,), last_map, pooled, head(pooled), head)


@ADAPTERS.register("catkd")
def catkd(case):
    student, teacher = ending_in(case, "s"), ending_in(case, "t")
    options = CATKD.Options(case.hyper["grid"], case.hyper["normalize"])
    method = CATKD(options, Setup(student, teacher, None, None, None))
    trained = {"classifier_s.weight": student.head.weight}
    return Subject(lambda: {"loss": method(student, teacher, None)}, trained)
