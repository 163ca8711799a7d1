"""Whether an exported file says what the network says. B batch, N images, S x S, K classes."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from deploy.formats import Predict

TOLERANCE = 1e-3  # of the largest difference, as a share of the largest logit


class Agreement(NamedTuple):
    """A file against the network, over the same images."""

    images: int
    difference: float  # the largest, between two logits
    largest: float  # logit
    same: int  # images whose most likely class is the same

    @property
    def holds(self) -> bool:
        """Whether both say the same but for rounding."""
        return self.difference <= TOLERANCE * self.largest and self.same == self.images

    def __str__(self) -> str:
        return (
            f"largest difference of a logit {self.difference:.1e} (of {self.largest:.1f}), same "
            f"class for {self.same:,} of {self.images:,} images"
        )


@torch.no_grad()
def compare(network: Predict, file: Predict, batches: Iterable[Tensor]) -> Agreement:
    """The network and a file on batches of images (B, 3, S, S)."""
    images, difference, largest, same = 0, 0.0, 0.0, 0
    for batch in batches:
        own, others = network(batch), file(batch)  # (B, K)
        images += len(batch)
        difference = max(difference, (own - others).abs().max().item())
        largest = max(largest, own.abs().max().item())
        same += int((own.argmax(dim=1) == others.argmax(dim=1)).sum())
    return Agreement(images, difference, largest, same)
