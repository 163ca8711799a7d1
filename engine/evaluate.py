"""How good a network is on a whole split. B batch, b a process's share, K classes."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset.loader import Loader
from engine.distributed import gather_batch, is_main_process
from engine.meter import Meter


@torch.no_grad()
def evaluate(
    predict: Callable[[Tensor], Tensor],
    loader: Loader,
    look: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
    title: str = "evaluating",
) -> dict[str, float]:
    """How good a function from images (b, 3, H, W) to logits (b, K) is: mean cross-entropy `loss`;
    in % top-1 `acc`, its mean over classes `acc_balanced`, and top-5 `acc_top5`.

    `look` is shown logits (B, K) and labels (B,) of each batch; `title` is the progress bar's.
    """
    meter = Meter(f"{loader.split} ")
    predicted, labels = [], []  # (B,) of each batch
    hidden = None if is_main_process() else True  # None: quiet when stderr is no terminal
    bar = tqdm(loader.batches(0), title, len(loader), leave=False, disable=hidden, delay=1)
    for batch in bar:
        logits = gather_batch(predict(batch.images), len(batch.labels))
        look(logits, batch.labels)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        predicted.append(ranked[:, 0])
        labels.append(batch.labels)
        hits = (ranked == batch.labels[:, None]).double()
        meter.add(
            {
                "loss": F.cross_entropy(logits, batch.labels),
                "acc": 100 * hits[:, 0].mean(),
                "acc_top5": 100 * hits.sum(dim=1).mean(),
            },
            len(batch.labels),
        )
    balanced = balanced_accuracy(torch.cat(predicted), torch.cat(labels))
    return {**meter.read(), "acc_balanced": balanced}


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that have images of the accuracy of each, in %: (N,), (N,) -> %"""
    hits, images = count_by_class(predicted.cpu(), labels.cpu())
    return 100 * (hits[images > 0] / images[images > 0].double()).mean().item()


def count_by_class(predicted: Tensor, labels: Tensor, classes: int = 0) -> tuple[Tensor, Tensor]:
    """Images of each class that are predicted right, and all of them: (N,), (N,) -> (K,), (K,)

    K is `classes`, or more where labels say so.
    """
    images = labels.bincount(minlength=classes)
    return labels[predicted == labels].bincount(minlength=len(images)), images
