"""Embedding of pooled features in a space where two networks are compared."""

import torch.nn.functional as F
from torch import Tensor, nn


class Embedding(nn.Linear):
    """Linear layer, then L2 normalisation: (B, C) -> (B, D)

    A row shorter than 1e-6 is divided by 1e-6 instead, which keeps its gradient finite.
    """

    def forward(self, pooled: Tensor) -> Tensor:
        """(B, C) -> (B, D)"""
        return F.normalize(super().forward(pooled), dim=1, eps=1e-6)
