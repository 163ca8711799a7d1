"""The interface of every network: its logits, or all features of one forward pass.

B batch, C channels, H x W map, K classes, R regions.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Statistics = tuple[Sequence[float], Sequence[float]]  # mean and std of 3 channels
Maps = tuple[Tensor, ...]  # (B, C, H, W) each
Regions = tuple[tuple[int, ...], int]  # arguments of `Features.region_logits`


@dataclass(frozen=True)
class Features:
    """What a network computes in one forward pass, by name.

    A network without feature maps (a transformer) has no stages, None for `stem` and `last_map`.
    """

    stem: Tensor | None  # (B, C, H, W), the input of the first stage
    stages: Maps  # the output of each stage
    preacts: Maps  # the same before the stage's last activation (and a channel shuffle behind it)
    last_map: Tensor | None  # (B, C, H, W), the map whose mean is `pooled`
    pooled: Tensor  # (B, C), the input of the classifier
    logits: Tensor  # (B, K)
    head: nn.Module  # the classifier, (..., C) -> (..., K)
    strong: "Features | None" = None  # of the strong view of the images, where there is one

    @property
    def views(self) -> tuple["Features", ...]:
        """Of each view of the images: the weak, which these are, and the strong, where it is."""
        return (self,) if self.strong is None else (self, self.strong)

    def region_logits(self, scales: tuple[int, ...], pooled_to: int = 0) -> Tensor:
        """Logits of every region of an s x s grid, row by row, for each s in `scales`: (R, B, K).

        A grid finer than the map repeats its pixels. With `pooled_to` the map is pooled to a square
        of that size first; the region that is the whole map is then the mean of the square.
        Raises ValueError without a map larger than 1x1.
        """
        if self.last_map is None:
            raise ValueError("regions need a network whose classifier reads the mean of a map")
        height, width = self.last_map.shape[2:]
        if max(scales) > 1 == min(height, width):
            raise ValueError(f"a {height}x{width} last map has no regions")
        x = self.last_map.flatten(2)  # (B, C, H * W)
        means = region_means((height, width), scales, pooled_to, x.dtype, x.device)
        regions = x @ means  # (B, C, R)
        return self.head(regions.permute(2, 0, 1))

    def replace(self, **tensors: Tensor) -> "Features":
        """New features with some tensors replaced, as by dataclasses.replace."""
        return replace(self, **tensors)


@cache
def region_means(
    size: tuple[int, int],
    scales: tuple[int | tuple[int, int], ...],
    pooled_to: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Matrix (H * W, R): a flattened map times it gives the mean of each region.

    One product takes a third of the time of pooling each scale.
    """
    one_hot = torch.eye(size[0] * size[1], dtype=torch.float64).view(-1, 1, *size)
    if pooled_to:
        one_hot = F.adaptive_avg_pool2d(one_hot, pooled_to)
    means = [F.adaptive_avg_pool2d(one_hot, s).flatten(1) for s in scales]
    return torch.cat(means, dim=1).to(device, dtype)


class Classifier(nn.Module):
    """Base of all networks: a subclass builds its layers and implements `features`."""

    name = ""  # what `models.any.build` made it of
    learning_rate = 0.05  # of the training recipe for this network
    head_name = "fc"  # attribute with the classifier; published checkpoints differ in it
    not_features: tuple[str, ...] = ()  # other modules after the last stage, see feature_parameters

    pixel_scale: Tensor | None  # (3, 1, 1), see `expect_statistics`
    pixel_shift: Tensor | None

    def __init__(self):
        super().__init__()
        self.declare_statistics()

    def declare_statistics(self) -> None:
        """The network's own statistics: as given, until `expect_statistics` says otherwise."""
        self.register_buffer("pixel_scale", None, persistent=False)
        self.register_buffer("pixel_shift", None, persistent=False)

    def expect_statistics(self, own: Statistics, given: Statistics) -> None:
        """Say that the network was trained on images normalised by other statistics than it will
        be given: mean and std of each channel, of images in [0, 1]."""
        own, given = (torch.tensor(s, dtype=torch.float64)[..., None, None] for s in (own, given))
        if not torch.allclose(own, given, rtol=0, atol=1e-6):
            (mean, std), (given_mean, given_std) = own, given  # (3, 1, 1) each
            scale, shift = given_std / std, (given_mean - mean) / std
            self.pixel_scale, self.pixel_shift = scale.float(), shift.float()

    def own_pixels(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) as given -> normalised as in the network's training."""
        if self.pixel_scale is None:
            return images
        return images * self.pixel_scale + self.pixel_shift

    @property
    def head(self) -> nn.Module:
        """The classifier: (..., C) -> (..., K)."""
        return getattr(self, self.head_name)

    def features(self, x: Tensor) -> Features:
        """Images (B, 3, H, W) -> all features of one forward pass."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> logits (B, K)."""
        return self.features(x).logits

    def feature_parameters(self) -> list[nn.Parameter]:
        """Parameters up to the last stage: those that AB and FSP train before the classifier."""
        excluded = {self.head_name, *self.not_features}
        return [p for name, p in self.named_parameters() if name.split(".")[0] not in excluded]

    def describe(self) -> str:
        """One line on the features found in a network from elsewhere; "" for a network of ours."""
        return ""

    def preact_norms(self) -> tuple[nn.BatchNorm2d, ...]:
        """The BatchNorm whose output is in each of `preacts`, for OFD's margins.

        Raises ValueError for a network whose pre-activations are not the output of a BatchNorm.
        """
        raise ValueError(
            f"{type(self).__name__} has no BatchNorm right before its stages' activation"
        )


def run_stages(
    layers: Iterable[nn.Sequential], x: Tensor, activate: Callable[[Tensor], Tensor] = F.relu
) -> tuple[Maps, Maps]:
    """Run stages of blocks that do not apply their last activation -> stages, preacts.

    `activate` applies it. x: (B, C, H, W). One map of each kind for each stage.
    """
    stages, preacts = [], []
    for layer in layers:
        for block in layer:
            before = block(x)
            x = activate(before)
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
