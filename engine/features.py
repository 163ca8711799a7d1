"""Features that are converted when a loss reads them, and not before."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from engine.device import Numerics
from engine.distributed import gather_batch, world_size
from models.base import Features


class LazyMaps(Sequence):
    """Maps of which each is converted when it is first read."""

    def __init__(self, maps: Sequence[Tensor], convert: Callable[[Tensor], Tensor]):
        self._maps, self._convert = maps, convert
        self._converted: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._maps)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return tuple(self[i] for i in range(*index.indices(len(self))))
        place = range(len(self))[index]  # IndexError where there is none
        if place not in self._converted:
            self._converted[place] = self._convert(self._maps[place])
        return self._converted[place]


class LazyFeatures(Features):
    """Features of which each tensor is passed through a function when it is first read.

    So under autocast only what a loss reads is cast to float32, and across processes only that is
    gathered.
    """

    def __init__(self, own: Features, convert: Callable[[Tensor], Tensor]):
        self.__dict__.update(_own=own, _convert=convert, head=own.head)

    def replace(self, **tensors: Any) -> "LazyFeatures":
        other = LazyFeatures(self._own, self._convert)
        other.__dict__.update(self.__dict__, **tensors)
        return other

    def __getattr__(self, name: str) -> Any:
        own = getattr(self._own, name)  # a map, a tuple of maps, or None where there is none
        if isinstance(own, tuple):
            converted = LazyMaps(own, self._convert)
        else:
            converted = own if own is None else self._convert(own)
        self.__dict__[name] = converted
        return converted


def of_whole_batch(features: Features, n: int, numerics: Numerics) -> Features:
    """Features of this process's share -> those of all n samples, in float32; as they are read,
    where that takes any work."""
    if numerics.amp == "off" and world_size() == 1:
        return features
    half = numerics.amp != "off"
    return LazyFeatures(features, lambda x: gather_batch(x.float() if half else x, n))
