"""Evaluate a checkpoint on the test split of a data set.

python tools/eval.py -m resnet8x4 -c save/student_model/RUN/resnet8x4_best.pth -d cifar100
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper import assemble, checkpoint, cli, files
from helper.device import numerics, prepare
from helper.distributed import rank
from helper.errors import UserError
from helper.files import write_json
from helper.loop import measure


def evaluate(argv: Sequence[str]) -> dict[str, Any]:
    """Command line -> what is printed."""
    options = cli.parse_eval(argv)
    if not options.ckpt:
        raise UserError("no -c: give the checkpoint to evaluate")
    where = numerics(options)
    name = options.model or checkpoint.network_of(options.ckpt, "-m")
    data = assemble.load_data(options)
    prepare(options.deterministic, seed=0)
    network = assemble.load_frozen(name, Path(options.ckpt), data)
    how = {"workers": options.num_workers, "seed": 0, "device": where.device}
    test = assemble.loader(data, "test", options.batch_size, **how)
    seen: list[tuple[Tensor, Tensor]] = []  # predictions and labels (B,) of each batch
    started = time.perf_counter()
    scores = measure(
        where.predictor(network, "student"),
        test,
        lambda logits, labels: seen.append((logits.argmax(dim=1), labels)),
    )
    seconds = time.perf_counter() - started
    predicted, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    numbers = {
        "model": name,
        "checkpoint": options.ckpt,
        "sha256": files.sha256(options.ckpt),
        "data": data.name,
        "images": len(labels),
        **scores,
        "images_per_s": len(labels) / seconds,
    }
    print(
        f"{name} on {data.name}: {scores['acc']:.2f} % (top-5 {scores['acc_top5']:.2f}), "
        f"loss {scores['loss']:.4f}, {numbers['images_per_s']:,.0f} images/s"
    )
    if options.per_class:
        numbers["per_class"] = per_class(predicted, labels, data.classes)
        width = max(map(len, data.classes))
        for label, accuracy in numbers["per_class"].items():
            print(
                f"{label:<{width}}  " + ("no image" if accuracy is None else f"{accuracy:6.2f} %")
            )
    if options.json and not rank():
        write_json(Path(options.json), numbers)
    return numbers


def per_class(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Predictions and labels (N,) -> accuracy in % of each class; None where it has no image."""
    right = labels[predicted == labels].bincount(minlength=len(classes))
    shares = zip(classes, right.tolist(), labels.bincount(minlength=len(classes)).tolist())
    return {name: 100 * hits / n if n else None for name, hits, n in shares}


if __name__ == "__main__":
    cli.main(evaluate)
