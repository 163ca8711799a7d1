from distiller_zoo.icd import ICD

from . import ADAPTERS, Subject
from .crd import fill_embeddings, only_pooled, setup_of


def icd_of(case):
    """The method of a case and its trained parameters."""
    h = case.hyper
    fixed = not h.get("trainable", True)
    # The published code multiplies by nce_t where it should divide.
    nce_t = 1 / h["nce_t"] if fixed else 1.0
    options = ICD.Options(h["feat_dim"], h["alpha"], h["max_tau"], fixed, nce_t)
    method = ICD(options, setup_of(case))
    trained = fill_embeddings(case, method)
    method.to(case.dtype)
    for name in () if fixed else ("tau", "b"):
        trained[name] = getattr(method, name)
        trained[name].data.copy_(case.state(name))
    return method, trained


@ADAPTERS.register("icd", "dcd")
def icd(case):
    method, trained = icd_of(case)
    features = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    return Subject(lambda: {"loss": method(*features, None)}, trained)
