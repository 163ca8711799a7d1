"""--ema: an exponential moving average of the weights that training goes through."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from engine.distributed import broadcast_buffers


class Average:
    """The average of a network's weights and of its BatchNorm statistics.

    It begins with those behind the first step; each later one moves it by 1 - `decay` of the way.
    """

    def __init__(self, network: nn.Module, decay: float):
        """`network` is where it will be trained: its tensors stay where they are."""
        self.network, self.move = network, get_ema_multi_avg_fn(decay)
        self.live = {n: x for n, x in network.state_dict().items() if x.is_floating_point()}
        self.values: dict[str, Tensor] = {}

    def update(self) -> None:
        """Take in the weights behind another step."""
        if self.values:
            self.move([*self.values.values()], [*self.live.values()], None)
        else:
            self.values = {name: x.clone() for name, x in self.live.items()}

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Put back the `values` of an interrupted run."""
        self.values = {n: torch.empty_like(x).copy_(values[n]) for n, x in self.live.items()}

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside, the network has the average in the place of its weights."""
        self._swap()
        broadcast_buffers(self.network)
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, live in self.live.items():
            kept = live.clone()
            live.copy_(self.values[name])
            self.values[name].copy_(kept)
