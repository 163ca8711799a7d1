"""Means over an epoch, read from the device as seldom as possible."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from helper.errors import UserError


class NotFinite(UserError):
    """A loss became NaN or infinite: the run cannot go on."""

    def __init__(self, name: str, value: float, step: int):
        super().__init__(f"{name} is {value} in step {step}")
        self.name, self.step = name, step


class Meter:
    """Means over the samples of an epoch.

    What a step measured stays on the device until `read`: asking for it in each step would make
    the step wait for the GPU.
    """

    def __init__(self, prefix: str = ""):
        """`prefix` goes before a value's name when the value is not finite."""
        self.prefix, self.totals, self.samples, self.steps = prefix, {}, 0, 0
        self._unread: list[tuple[tuple[str, ...], Tensor, int]] = []

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Means over `samples` samples, each a scalar."""
        stacked = torch.stack([value.detach() for value in values.values()])
        self._unread.append((tuple(values), stacked, samples))

    def read(self) -> dict[str, float]:
        """Means so far. Waits for the device; NotFinite for the first value that is not finite."""
        if self._unread:
            rows = torch.stack([row for _, row, _ in self._unread]).cpu()
            for (names, _, samples), row in zip(self._unread, rows.tolist(), strict=True):
                self.steps += 1
                self.samples += samples
                for name, value in zip(names, row, strict=True):
                    if not math.isfinite(value):
                        raise NotFinite(self.prefix + name, value, self.steps)
                    self.totals[name] = self.totals.get(name, 0.0) + value * samples
            self._unread.clear()
        return {name: total / self.samples for name, total in self.totals.items()}
