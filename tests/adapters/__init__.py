"""How the reference cases of each method are run. One file a method, names as in golden's README.

An adapter turns a `Case` into a `Subject`: something that can be called, and whose gradients and
state can be looked at.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distiller_zoo.base import LogitDistiller, Rows, Setup
from helper.registry import Registry
from models.base import Features

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).resolve().parent.parent / "golden"))


@dataclass(frozen=True)
class Subject:
    call: Callable[[], dict[str, Tensor]]  # -> "loss", "out/..."; may be called again
    trained: dict[str, Tensor] = field(default_factory=dict)  # parameters, by their name in `state`
    state: Callable[[], dict[str, Tensor]] = dict  # what a call leaves, by its name in `state`


class Case:
    """One case of the index: `case["logit_s"]` is an input, `case.state(name)` a state."""

    def __init__(self, entry: dict[str, Any], dtype: torch.dtype = torch.float64):
        self.entry, self.hyper, self.dtype = entry, entry["hyper"], dtype
        self._arrays = np.load(GOLDEN / "losses" / entry["file"])
        self._inputs = {name: self._read(f"inputs/{name}") for name in entry["inputs"]}
        for name in entry["student_inputs"]:
            self._inputs[name].requires_grad_()

    def __getitem__(self, name: str) -> Tensor:
        return self._inputs[name]

    def state(self, name: str) -> Tensor:
        return self._read(f"state/{name}")

    def expected(self, name: str) -> np.ndarray:
        return self._arrays[self.entry["prefix"] + name]

    def _read(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.expected(name).copy())
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor


ADAPTERS = Registry("adapter")


def index() -> dict[str, Any]:
    return json.loads((GOLDEN / "losses" / "index.json").read_text())


def bare_setup(*views) -> Setup:
    """For methods that look at nothing before training."""
    return Setup(None, None, None, None, None, views)


def row_losses(method: LogitDistiller) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """A method's losses of single rows: (M, K), (M, K), labels (M,) -> (M,)"""

    def call(student, teacher, labels):
        rows = Rows(student[None], teacher[None], torch.ones(1, len(labels)))
        return method.row_losses(rows, labels)[0]

    return call


def only_logits(logits: Tensor) -> Features:
    """A pass of which nothing but the logits is known: (B, K)."""
    return Features(None, (), (), None, None, logits, None)


def two_views(case: Case, who: str) -> Features:
    """Logits of a weak and a strong view of the same images: `logit_s_weak`, `logit_s_strong`."""
    weak, strong = (only_logits(case[f"logit_{who}_{view}"]) for view in ("weak", "strong"))
    return weak.replace(strong=strong)


ADAPTERS.import_all(__name__, __path__)
assert not ADAPTERS.broken, ADAPTERS.broken
