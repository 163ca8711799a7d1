"""Where a tensor of the published code is here, and how it is read and filled."""

import re

import numpy as np
import torch
from torch import Tensor, nn

from crd.memory import Memory
from distiller_zoo.base import Distiller
from distiller_zoo.noisy_teacher import NoisyTeacher
from engine.objective import Distillation
from tests.trajectories.cases import Case, Rows, names_of, recipe

OURS = {  # published name -> name in the method; every pattern is replaced once, in this order
    r"^criterion_kd\.params\.": "",  # icd
    r"^criterion_kd\.(memory\.)?contrast\.memory_v1$": "memory_s.bank",  # crd, rrd
    r"^criterion_kd\.(memory\.)?contrast\.memory_v2$": "memory_t.bank",
    r"^criterion_kd\.(memory\.)?queue$": "queue.bank",
    r"^criterion_kd\.(memory\.)?queue_ptr$": "queue.next",
    r"^criterion_kd\.(?=\d)": "likelihoods.",  # vid
    r"^(criterion_kd\.)?(memory\.)?(embed|embed_s|embed_t)(\.linear)?\.": r"\3.",
    r"^regress_s\.": "regressor.",  # hint
    r"^connectors?\.connectors\.": "connectors.",  # abound, ofd
    r"^abfs\.": "fusions.",  # reviewkd
}


def fill_network(network: nn.Module, entries: list, role: str) -> nn.Module:
    """Give a network the weights of the recipe; role is "teacher" or "student"."""
    state = network.state_dict()
    assert list(state) == [name for name, *_ in entries]
    for i, (name, shape, kind) in enumerate(entries):
        put(state[name], recipe.values(f"{role}/{i}", kind, shape))
    return network


def fill_method(method: Distiller, extra: list[dict]) -> None:
    """Give what a method keeps the start of the recipe."""
    for entry in extra:
        start = recipe.values(entry["fill"], entry["kind"], entry["shape"], entry.get("value", 0))
        if entry["name"].endswith("contrast.params"):
            put_params(bare(method), start)
        else:
            put(tensor_of(method, entry["name"]), start)


def rows(task: Distillation, case: Case, when: str) -> Rows:
    """Summaries of all tensors that are stored for a moment, by their published names."""
    networks = {"student": task.student.state_dict(), "teacher": task.teacher.network.state_dict()}

    def read(name: str):
        role, _, rest = name.partition(".")
        if role in networks:
            return networks[role][rest]
        if name.endswith("contrast.params"):
            return params_of(bare(task.method))
        return tensor_of(task.method, name)

    return {name: recipe.summary(read(name)) for name in names_of(case, when)}


def bare(method: Distiller) -> Distiller:
    """A method without what a view put around it."""
    return method.method if isinstance(method, NoisyTeacher) else method


def tensor_of(method: Distiller, name: str) -> Tensor:
    for pattern, ours in OURS.items():
        name = re.sub(pattern, ours, name)
    return bare(method).state_dict()[name]


def put(tensor: Tensor, values: np.ndarray) -> None:
    """Copy into a tensor in place; it may lack the axis of a single number."""
    tensor.copy_(torch.from_numpy(np.asarray(values)).view(tensor.shape))


def put_params(method: Distiller, params: np.ndarray) -> None:
    """Z_v1, Z_v2 of a contrastive memory's [K, T, Z_v1, Z_v2, momentum]; the others are options.

    Z_v1 belongs to the student's vectors, which are scored against the teacher's memory.
    """
    for memory, z in zip((method.memory_t, method.memory_s), params[2:4], strict=True):
        memory.log_z.fill_(np.log(z) if z > 0 else np.inf)


def params_of(method: Distiller) -> np.ndarray:
    """The options in force and the normalisers, in the order of `put_params`."""
    memory: Memory = method.memory_t
    z = [m.log_z.exp().item() for m in (method.memory_t, method.memory_s)]
    z = [value if np.isfinite(value) else -1.0 for value in z]
    return np.array([method.negatives.k, memory.temperature, *z, memory.momentum])
