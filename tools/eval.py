"""Evaluate a checkpoint on the test split of a data set: that which it was trained on, or -d.

python tools/eval.py save/student_model/RUN/resnet8x4_best.pth
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
import torch
from torch import Tensor

from cli.main import main
from cli.networks import as_trained, load_frozen
from cli.parse import parse_eval
from cli.setting import load_data, make_loader
from dataset.loader import Loading
from engine.device import prepare, start
from engine.distributed import is_main_process, rank, world_size
from engine.evaluate import count_by_class, evaluate
from helper.errors import UserError
from helper.files import check_output, write_json
from runs import checkpoint
from runs.logs import balanced_beside


def evaluate_checkpoint(argv: Sequence[str]) -> dict[str, Any]:
    """Command line -> what is printed."""
    options = parse_eval(argv)
    if not options.ckpt:
        raise UserError("no checkpoint: python tools/eval.py CKPT")
    if checkpoint.is_exported(options.ckpt) and options.origin["dataset"] == "default":
        raise UserError(f"{options.ckpt} does not say its data set: give it with -d")
    if options.json:
        check_output(Path(options.json), "--json")
    numerics = start(options)
    name = options.model or checkpoint.network_of(options.ckpt, "-m")
    data = as_trained(load_data(options), options.ckpt)
    prepare(options.deterministic, seed=0)
    network = load_frozen(name, Path(options.ckpt), data)
    how = Loading(0, numerics.device, rank(), world_size(), options.num_workers)
    test = make_loader(data, "test", options.batch_size, how)
    batches: list[tuple[Tensor, Tensor]] = []  # predictions and labels (B,) of each
    started = time.perf_counter()
    scores = evaluate(
        numerics.predictor(network, "student"),
        test,
        lambda logits, labels: batches.append((logits.argmax(dim=1), labels)),
    )
    seconds = time.perf_counter() - started
    predicted, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    numbers = {
        "model": name,
        "checkpoint": options.ckpt,
        "sha256": checkpoint.digest(options.ckpt),
        "data": data.name,
        "image_size": data.image_size,
        "mean": data.mean,
        "std": data.std,
        "images": len(labels),
        **scores,
        "images_per_s": len(labels) / seconds,
    }
    size = f"{data.image_size}x{data.image_size}"
    beside = balanced_beside(scores["acc"], scores["acc_balanced"])
    print(
        f"{name} on {data.name} ({len(labels):,} images of {size}): {scores['acc']:.2f} % "
        f"({beside}top-5 {scores['acc_top5']:.2f}), loss {scores['loss']:.4f}, "
        f"{numbers['images_per_s']:,.0f} images/s"
    )
    if options.per_class:
        numbers["per_class"] = per_class(predicted, labels, data.classes)
        width = max(map(len, data.classes))
        for label, accuracy in numbers["per_class"].items():
            print(
                f"{label:<{width}}  " + ("no image" if accuracy is None else f"{accuracy:6.2f} %")
            )
    if options.json and is_main_process():
        write_json(Path(options.json), numbers)
    return numbers


def per_class(predicted: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, float | None]:
    """Predictions and labels (N,) -> accuracy in % of each class; None where it has no image."""
    counts = (x.tolist() for x in count_by_class(predicted, labels, len(classes)))
    shares = zip(classes, *counts)
    return {name: 100 * hits / n if n else None for name, hits, n in shares}


if __name__ == "__main__":
    main(evaluate_checkpoint)
