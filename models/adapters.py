"""Modules and functions that bring a student's map to the shape of a teacher's.

B batch, C channels, H x W map.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from .base import region_means


class Regressor(nn.Module):
    """One convolution and BatchNorm that take a student's map to the shape of a teacher's.

    student, teacher: shapes (..., C, H, W). The convolution, where the teacher's map is half as
    large: 3x3 with stride 2; twice as large: 4x4, transposed, with stride 2; as large: 1x1; smaller
    by d: (1 + d) x (1 + d) without padding. Raises ValueError for any other pair of shapes.
    """

    def __init__(self, student: tuple[int, ...], teacher: tuple[int, ...], relu: bool = True):
        super().__init__()
        (c_s, h_s, w_s), (c_t, h_t, w_t) = student[-3:], teacher[-3:]
        if (h_s, w_s) == (2 * h_t, 2 * w_t):
            self.conv = nn.Conv2d(c_s, c_t, 3, stride=2, padding=1)
        elif (2 * h_s, 2 * w_s) == (h_t, w_t):
            self.conv = nn.ConvTranspose2d(c_s, c_t, 4, stride=2, padding=1)
        elif h_s >= h_t and w_s >= w_t:
            self.conv = nn.Conv2d(c_s, c_t, (1 + h_s - h_t, 1 + w_s - w_t))
        else:
            raise ValueError(
                f"no convolution leads from the student's map {(c_s, h_s, w_s)} to the teacher's "
                f"{(c_t, h_t, w_t)}: it may be as large, half as large, or larger"
            )
        self.bn = nn.BatchNorm2d(c_t)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')"""
        y = self.bn(self.conv(x))
        return F.relu(y) if self.relu else y


def to_smaller(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger average-pooled to the size of the smaller."""
    size = min(a.shape[2], b.shape[2]), min(a.shape[3], b.shape[3])
    return tuple(x if x.shape[2:] == size else pool_to(x, size) for x in (a, b))


def pool_to(x: Tensor, size: tuple[int, int]) -> Tensor:
    """`F.adaptive_avg_pool2d`, whose gradient has no deterministic kernel on a GPU.

    (B, C, H, W) -> (B, C, *size)
    """
    (height, width), (h, w) = x.shape[2:], size
    if height % h == 0 == width % w:
        return F.avg_pool2d(x, (height // h, width // w))
    means = region_means((height, width), (size,), 0, x.dtype, x.device)  # (H * W, h * w)
    return (x.flatten(2) @ means).unflatten(2, size)
