"""What every network offers: plain logits, or all the features of one pass.

B batch, C channels, H x W map, K classes, R regions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Maps = tuple[Tensor, ...]  # (B, C, H, W) each


@dataclass(frozen=True)
class Features:
    """One forward pass, in the words of the papers rather than by index.

    A network without feature maps (a transformer) has no stages, None for `stem` and `last_map`.
    """

    stem: Tensor | None  # (B, C, H, W), what the first stage reads
    stages: Maps  # as each stage hands it on
    preacts: Maps  # before each stage's activation
    last_map: Tensor | None  # (B, C, H, W), the map whose mean is `pooled`
    pooled: Tensor  # (B, C), what the classifier reads
    logits: Tensor  # (B, K)
    head: nn.Module  # (..., C) -> (..., K)

    def region_logits(self, scales: tuple[int, ...]) -> Tensor:
        """Logits of every cell of an s x s grid, row by row, for each s in `scales`: (R, B, K).

        A grid finer than the map repeats its places. ValueError where there is no map to cut.
        """
        if self.last_map is None:
            raise ValueError("regions need a network whose classifier reads the mean of a map")
        height, width = self.last_map.shape[2:]
        if max(scales) > 1 == min(height, width):
            raise ValueError(f"a {height}x{width} last map has no regions")
        x = self.last_map.flatten(2)  # (B, C, H * W)
        cells = x @ region_means(height, width, scales, x.dtype, x.device)  # (B, C, R)
        return self.head(cells.permute(2, 0, 1))

    def each(self, function: Callable[[Tensor], Tensor]) -> "Features":
        """The same pass with a function applied to every tensor of it."""

        def one(x):
            return x if x is None else function(x)

        return replace(
            self,
            stem=one(self.stem),
            stages=tuple(map(function, self.stages)),
            preacts=tuple(map(function, self.preacts)),
            last_map=one(self.last_map),
            pooled=function(self.pooled),
            logits=function(self.logits),
        )

    def changed(self, **tensors: Tensor) -> "Features":
        """The same pass with other tensors in some places."""
        return replace(self, **tensors)

    def float(self) -> "Features":
        """The same pass in float32: losses are never computed in half precision."""
        return self.each(Tensor.float)


@cache
def region_means(
    height: int, width: int, scales: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The matrix that takes a flat map to the means of its regions: (H * W, R).

    One product with it costs a third of pooling each scale.
    """
    places = torch.eye(height * width, dtype=torch.float64).view(-1, 1, height, width)
    means = [F.adaptive_avg_pool2d(places, s).flatten(1) for s in scales]
    return torch.cat(means, dim=1).to(device, dtype)


class Classifier(nn.Module):
    """Base of the zoo: a subclass builds its layers and implements `features`.

    `head_name` is the attribute that holds the classifier: published checkpoints do not agree on
    it. `not_features` names the other modules that come after the last stage: first stages of AB
    and FSP train neither. `learning_rate` is the recipe's for this network.
    """

    learning_rate = 0.05
    head_name = "fc"
    not_features: tuple[str, ...] = ()

    @property
    def head(self) -> nn.Module:
        """The classifier: (..., C) -> (..., K)."""
        return getattr(self, self.head_name)

    def features(self, x: Tensor) -> Features:
        """Images (B, 3, H, W) -> everything that a distillation method may read."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, K)."""
        return self.features(x).logits

    def feature_parameters(self) -> list[nn.Parameter]:
        """Parameters up to the last stage: what the first stages of AB and FSP train."""
        after = {self.head_name, *self.not_features}
        return [p for name, p in self.named_parameters() if name.split(".")[0] not in after]

    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BatchNorm that ends each of `preacts`, as OFD's margins read it.

        Raises ValueError for a network whose pre-activations are no BatchNorm's output.
        """
        raise ValueError(
            f"{type(self).__name__} has no BatchNorm right before its stages' activation"
        )


def run_stages(layers: Iterable[nn.Sequential], x: Tensor) -> tuple[Maps, Maps]:
    """Run stages of blocks that end right before their activation -> stages, pre-activations.

    x (B, C, H, W); one map of each kind a stage.
    """
    stages, preacts = [], []
    for layer in layers:
        for block in layer:
            before = block(x)
            x = F.relu(before)
        stages.append(x)
        preacts.append(before)
    return tuple(stages), tuple(preacts)


def he_init(network: nn.Module, linear_std: float | None = None) -> None:
    """Convolutions N(0, 2 / fan out), BatchNorm 1 and 0; classifiers N(0, linear_std^2) if given.

    He et al., Delving Deep into Rectifiers, ICCV 2015 (eq. 14).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
