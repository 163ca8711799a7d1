import torch
from torch import nn

from dataset.base import Batch
from distiller_zoo.base import Setup
from distiller_zoo.crd import CRD
from models.base import Features

from . import ADAPTERS, Subject


def only_pooled(pooled) -> Features:
    """A pass of which nothing but the pooled vector is known: (B, C)."""
    return Features(None, (), (), None, pooled, None, None)


def setup_of(case) -> Setup:
    """Vectors of the case; the labels of two classes, as many as there are memories."""
    labels = torch.arange(case.hyper.get("n_data", 2)) % 2
    features = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    return Setup(*features, None, None, labels)


def fill_embeddings(case, method) -> dict[str, nn.Parameter]:
    """Give the embeddings the weights of the case -> their parameters by name."""
    trained = {}
    for who in ("embed_s", "embed_t"):
        for name, parameter in getattr(method, who).to(case.dtype).named_parameters():
            key = f"{who}.{name}"
            parameter.data.copy_(case.state(key))
            trained[key] = parameter
    return trained


def fill_memories(case, method):
    """Give the memories the state of the case -> a function that reads it."""
    of = {"1": (method.memory_s, "2"), "2": (method.memory_t, "1")}
    for v, (memory, z) in of.items():  # Z belongs to the vectors that are scored, not to the bank
        memory.to(case.dtype)
        memory.bank.copy_(case.state(f"memory_v{v}"))
        constant = case.state(f"z_v{z}")
        memory.log_z.copy_(constant.log() if constant > 0 else torch.tensor(torch.inf))

    def state():
        banks = {f"memory_v{v}": memory.bank for v, (memory, _) in of.items()}
        return banks | {f"z_v{z}": memory.log_z.exp() for memory, z in of.values()}

    return state


def batch_of(case) -> Batch:
    return Batch(None, torch.zeros(len(case["idx"]), dtype=torch.long), case["idx"])


def crd_of(case):
    """The method of a case, its batch, its trained parameters and its state."""
    h = case.hyper
    options = CRD.Options(h["feat_dim"], h["nce_k"], h["nce_t"], h["nce_m"])
    method = CRD(options, setup_of(case))
    method.candidates = lambda batch: case["contrast_idx"]
    return method, batch_of(case), fill_embeddings(case, method), fill_memories(case, method)


@ADAPTERS.register("crd")
def crd(case):
    method, batch, trained, state = crd_of(case)
    features = only_pooled(case["f_s"]), only_pooled(case["f_t"])
    return Subject(lambda: {"loss": method(*features, batch)}, trained, state)
