from torch import nn

from distiller_zoo.base import Setup
from distiller_zoo.simkd import SimKD
from models.adapters import to_smaller
from models.base import Classifier, Features

from . import ADAPTERS, Subject
from .features import buffers, load


class Given(Classifier):
    """A network of which the last map is given."""

    def __init__(self, last_map, classes: int):
        super().__init__()
        self.given = last_map
        self.fc = nn.Linear(last_map.shape[1], classes).to(last_map.dtype)

    def features(self, x):
        pooled = self.given.mean(dim=(2, 3))
        return Features(None, (), (), self.given, pooled, self.fc(pooled), self.head)


@ADAPTERS.register("simkd")
def simkd(case):
    h, weight = case.hyper, case.state("classifier_t.weight")
    student, teacher = (Given(case[f"f_{who}"], len(weight)) for who in "st")
    load(teacher.fc, case, "classifier_t.")
    shown = student.features(None), teacher.features(None)
    method = SimKD(SimKD.Options(h["factor"]), Setup(*shown, student, teacher, None))
    deployed = method.deployed(student, teacher)
    trained = load(deployed.projector, case, "transfer.")

    def call():
        features = deployed.features(None)
        s, t = to_smaller(features.last_map, case["f_t"])
        loss = method(features, teacher.features(None), None)
        return {"loss": loss, "out/f_s": s, "out/f_t": t, "out/logits": features.logits}

    return Subject(call, trained, buffers(deployed.projector, "transfer."))
