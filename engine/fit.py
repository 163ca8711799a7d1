"""Training: one epoch, one stage. Read it from top to bottom."""

import contextlib
import hashlib
import time
from collections.abc import Mapping
from typing import Protocol

import torch
from tqdm import tqdm

from dataset.loader import Loader
from engine import distributed
from engine.device import seed_everything
from engine.evaluate import evaluate
from engine.graph import StageStep, make_step
from engine.meter import Meter, NotFinite
from engine.objective import Task
from engine.stage import Stage
from helper.errors import UserError

DROPOUT_VERSION = 2  # of the seeds of networks that draw; raise it when their numbers change
ORDER_OF_FIRST_STAGE = 1_000_000  # added to an epoch's number, so that its order is another


class Recorder(Protocol):
    """Who keeps what a run gives."""

    def restore(self, stage: Stage) -> int:
        """Put a stage where an interrupted run left it -> how many of its epochs are done."""

    def log_step(self, stage: Stage, step: int, means: Mapping[str, float]) -> None:
        """Means so far of an epoch, after that many steps of the stage."""

    def finish_epoch(self, stage: Stage, epoch: int, numbers: Mapping[str, float]) -> None:
        """Log and save an epoch."""

    def describe_kept(self) -> str:
        """What a stopped run leaves, for an error message."""


def fit(stage: Stage, train: Loader, measured: Loader, recorder: Recorder, print_freq: int) -> None:
    """Train a stage, or what is left of it; each epoch is measured on another split."""
    done = recorder.restore(stage)
    if done >= stage.epochs:
        return
    step = make_step(stage, stage.data_parallel())
    for epoch in range(done + 1, stage.epochs + 1):
        started, replayed = time.perf_counter(), step.replays
        with explained(stage, epoch, recorder):
            facts = stage.task.begin_epoch(epoch, stage.epochs, place_of(stage, epoch))
            means = train_epoch(stage, step, train, epoch, recorder, print_freq)
            seconds = time.perf_counter() - started
            if stage.task.numerics.cuda_graph:
                facts["graph_replays"] = step.replays - replayed
            for one in stage.task.trained.values():
                distributed.broadcast_buffers(one.student)
            with stage.averaged():
                scores = scores_of(stage.task, measured) if stage.is_main else {}
        numbers = {
            "lr": stage.schedule(epoch),
            **facts,
            **{f"train_{name}": value for name, value in means.items()},
            **scores,
            "seconds": seconds,
            "images_per_s": len(train.labels) / seconds,
        }
        recorder.finish_epoch(stage, epoch, numbers)


def train_epoch(
    stage: Stage, step: StageStep, train: Loader, epoch: int, recorder: Recorder, print_freq: int
) -> dict[str, float]:
    """One pass over the training set -> means of the terms, the total `loss`, accuracy `acc` in %.

    Everything random follows from the seed, the stage and the epoch's number, so that a resumed run
    repeats the run that was never stopped.
    The device is waited for in the first step and in every `print_freq` of them, and only then.
    """
    stage.task.seed_losses(epoch_seed(train.seed, stage.name, epoch))
    seed_everything(epoch_seed(train.seed, stage.name, epoch, distributed.rank()))
    stage.begin_epoch(epoch)
    stage.task.train()
    meter = Meter()
    with contextlib.closing(
        progress_bar(stage, train.batches(place_of(stage, epoch)), len(train), epoch)
    ) as bar:
        for number, batch in enumerate(bar, start=1):
            meter.add(step(batch), len(batch.labels))
            if stage.average:
                stage.average.update()
            if number == 1 or number % print_freq == 0:
                means = meter.read()
                bar.set_postfix({name: f"{value:.3g}" for name, value in means.items()})
                recorder.log_step(stage, (epoch - 1) * len(train) + number, means)
    return meter.read()


def scores_of(task: Task, loader: Loader) -> dict[str, float]:
    """What each student gives on a split: test_acc, test_peer_acc ..."""
    found = {}
    for name, one in task.trained.items():
        start = f"{loader.split}_{name}_" if name else f"{loader.split}_"
        scores = evaluate(one.eval().predict, loader)
        found |= {start + metric: value for metric, value in scores.items()}
    return found


def place_of(stage: Stage, epoch: int) -> int:
    """What the loader calls an epoch of a stage, so that its order and augmentation are its own."""
    return epoch if stage.is_main else epoch + ORDER_OF_FIRST_STAGE


def progress_bar(stage: Stage, batches, steps: int, epoch: int) -> tqdm:
    of = f"epoch {epoch}/{stage.epochs}"
    return tqdm(
        batches,
        total=steps,
        desc=of if stage.is_main else f"first stage, {of}",
        disable=None if distributed.is_main_process() else True,  # None: quiet without a terminal
        leave=False,
    )


@contextlib.contextmanager
def explained(stage: Stage, epoch: int, recorder: Recorder):
    """Turn a value that is not finite into what the user can do about it."""
    rate = f"--learning_rate (here {stage.schedule(epoch):g})"
    try:
        yield
    except NotFinite as error:
        raise UserError(
            f"{error.name} is not finite in epoch {epoch}, step {error.step}: try a lower "
            f"{rate} or weight of that term, or --amp off or bf16; {recorder.describe_kept()}"
        ) from None
    except torch.linalg.LinAlgError as error:
        raise UserError(
            f"features are not finite in epoch {epoch} ({error}): try a lower {rate}, "
            f"or --amp off or bf16; {recorder.describe_kept()}"
        ) from None
    except RuntimeError as error:
        operation, missing, _ = str(error).partition(" does not have a deterministic")
        if not missing:
            raise
        raise UserError(
            f"--deterministic: {operation} has no deterministic kernel; choose another network or "
            f"method, or leave the flag out; {recorder.describe_kept()}"
        ) from None


def epoch_seed(seed: int, stage: str, epoch: int, process: int | None = None) -> int:
    """A seed of its own for each epoch of each stage of each run: for what all processes draw
    alike, and for what each draws for its own images (dropout)."""
    text = f"{seed} {stage} {epoch}" + ("" if process is None else f" of process {process}")
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
