"""Several trained networks as one: their mean prediction. B batch, K classes."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Classifier, Features


class Ensemble(Classifier):
    """The weighted mean of the members' softmaxes at temperature T, as logits.

    You et al., Learning from Multiple Teacher Networks, KDD 2017 (eq. 6). softmax(logits / T) is
    that mean. It has no maps and no pooled vector: members differ in them.
    """

    def __init__(
        self, members: Sequence[Classifier], weights: Sequence[float] = (), temperature: float = 1.0
    ):
        """`weights` add up to 1; none: all alike."""
        super().__init__()
        self.members, self.temperature = nn.ModuleList(members), temperature
        self.fc = nn.Identity()  # each member has a classifier of its own
        self.weights = tuple(weights) or (1 / len(members),) * len(members)

    def features(self, x: Tensor) -> Features:
        logits = self.mean([member(member.own_pixels(x)) for member in self.members])
        return Features(None, (), (), None, None, logits, None)

    def mean(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits of each member, (B, K) -> those of the mean, (B, K)"""
        parts = [
            F.log_softmax(x / self.temperature, dim=1) + math.log(weight)
            for x, weight in zip(logits, self.weights, strict=True)
        ]
        return self.temperature * torch.stack(parts).logsumexp(dim=0)

    def describe(self) -> str:
        """How the members are weighed."""
        share = ", ".join(f"{weight:.3g}" for weight in self.weights)
        return f"mean of softmaxes at T={self.temperature:g}, weights {share}"
