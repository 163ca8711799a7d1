"""Training: one step, one epoch, one run. Read it from top to bottom."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from dataset.base import Batch
from dataset.loader import Loader
from helper import distributed
from helper.device import seed_everything
from helper.errors import UserError
from helper.options import (
    count,
    not_negative,
    option,
    positive,
    positive_number,
    share,
    whole_numbers,
)
from helper.run import Run
from helper.tasks import Distillation, FirstStage, Task

FIRST_STAGE = 1_000_000  # what the number of an epoch of the first stage is raised by
DECAY_AT, OF = (150, 180, 210), 240  # epochs after which the recipe lowers the rate, of all


@dataclass(frozen=True)
class RecipeOptions:
    epochs: int = option(240, "passes over the training set", parse=positive)
    batch_size: int = option(64, "images a step", parse=positive)
    learning_rate: float | None = option(
        None, "start of the rate (default 0.05; what the network asks for where it is another)",
        parse=positive_number,
    )  # fmt: skip
    lr_decay_epochs: tuple[int, ...] | None = option(
        None, "epochs after which the rate falls (default 150,180,210 of 240, in proportion)",
        parse=whole_numbers,
    )  # fmt: skip
    lr_decay_rate: float = option(
        0.1, "what the rate is multiplied with then", parse=positive_number
    )
    momentum: float = option(0.9, "SGD momentum", parse=share)
    weight_decay: float = option(5e-4, "of everything that is trained", parse=not_negative)
    aug: bool = option(False, "AutoAugment behind crop and flip (Cubuk et al., CVPR 2019)")
    print_freq: int = option(100, "steps between two looks at the losses", parse=positive)
    tb_freq: int = option(
        500, "steps between two TensorBoard points within an epoch", parse=positive
    )
    save_freq: int = option(40, "epochs between two kept checkpoints", parse=positive)
    num_workers: int = option(
        8, "processes that read image files; data sets in memory need none", parse=count
    )


@dataclass(frozen=True)
class Schedule:
    """The learning rate of each epoch, counted from 1."""

    start: float
    decay_epochs: tuple[int, ...]
    decay_rate: float

    def __call__(self, epoch: int) -> float:
        return self.start * self.decay_rate ** sum(epoch > at for at in self.decay_epochs)


def schedule(recipe: RecipeOptions, network_rate: float) -> Schedule:
    """The recipe's schedule; decays move in proportion when only the number of epochs is given."""
    decay_epochs = recipe.lr_decay_epochs
    if decay_epochs is None:
        decay_epochs = in_proportion(DECAY_AT, OF, recipe.epochs)
    start = network_rate if recipe.learning_rate is None else recipe.learning_rate
    return Schedule(start, decay_epochs, recipe.lr_decay_rate)


def in_proportion(decay_epochs: tuple[int, ...], of: int, epochs: int) -> tuple[int, ...]:
    """Where decays that belong to a run of `of` epochs lie in one of `epochs`."""
    return tuple(max(1, math.floor(at * epochs / of + 0.5)) for at in decay_epochs)


class Meter:
    """Means over the samples of an epoch.

    What a step measured stays on the device until `read`: asking for it in each step would make
    the step wait for the GPU.
    """

    def __init__(self, of: str = ""):
        """`of` goes before a value's name when the value is not finite."""
        self.of, self.totals, self.seen, self.steps, self._unread = of, {}, 0, 0, []

    def add(self, values: Mapping[str, Tensor], samples: int) -> None:
        """Means over `samples` samples, each a scalar."""
        stacked = torch.stack([value.detach().double() for value in values.values()])
        self._unread.append((tuple(values), stacked, samples))

    def read(self) -> dict[str, float]:
        """Means so far. Waits for the device; UserError for the first value that is not finite."""
        if self._unread:
            rows = torch.stack([row for _, row, _ in self._unread]).cpu()
            for (names, _, samples), row in zip(self._unread, rows.tolist(), strict=True):
                self.steps += 1
                self.seen += samples
                for name, value in zip(names, row, strict=True):
                    if not math.isfinite(value):
                        raise NotFinite(self.of + name, value, self.steps)
                    self.totals[name] = self.totals.get(name, 0.0) + value * samples
            self._unread.clear()
        return {name: total / self.seen for name, total in self.totals.items()}


class NotFinite(UserError):
    """A loss became NaN or infinite: the run cannot go on."""

    def __init__(self, name: str, value: float, step: int):
        super().__init__(f"{name} is {value} in step {step}")
        self.name, self.step = name, step


def train_epoch(
    task: torch.nn.Module,
    batches: Iterator[Batch],
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    epoch: int,
    look,
    look_every: int,
) -> dict[str, float]:
    """One pass over the training set -> mean of each term, their sum `loss`, accuracy `acc` in %.

    `look(step, means)` is called every `look_every` steps, and only then the device is waited for.
    """
    task.train()
    meter = Meter()
    for step, batch in enumerate(batches, start=1):
        logits, losses = task(batch, epoch)
        loss = torch.stack(list(losses.values())).sum()
        if not loss.requires_grad:
            raise UserError(
                "no term of the objective depends on the student: give -r or -a a weight"
            )
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        measured = {**losses, "loss": loss}
        if logits is not None:
            measured["acc"] = 100 * (logits.argmax(dim=1) == batch.labels).double().mean()
        meter.add(measured, len(batch.labels))
        if step % look_every == 0:
            look(step, meter.read())
    return meter.read()


@torch.no_grad()
def evaluate(task: Task, loader: Loader) -> dict[str, float]:
    """Mean cross-entropy `loss`, top-1 `acc` and top-5 `acc_top5` in %, over a whole split."""
    return measure(task.eval().predict, loader)


@torch.no_grad()
def measure(
    predict: Callable[[Tensor], Tensor],
    loader: Loader,
    look: Callable[[Tensor, Tensor], None] = lambda logits, labels: None,
) -> dict[str, float]:
    """The same of any function from images (b, 3, H, W) to logits (b, K).

    `look` is shown logits (B, K) and labels (B,) of each batch.
    """
    meter = Meter("test ")
    for batch in loader.batches(0):
        logits = distributed.whole(predict(batch.images), len(batch.labels))
        look(logits, batch.labels)
        ranked = logits.topk(min(5, logits.shape[1]), dim=1).indices  # (B, 5)
        hits = (ranked == batch.labels[:, None]).double()
        meter.add(
            {
                "loss": F.cross_entropy(logits, batch.labels),
                "acc": 100 * hits[:, 0].mean(),
                "acc_top5": 100 * hits.sum(dim=1).mean(),
            },
            len(batch.labels),
        )
    return meter.read()


def sgd(parameters, rate: float, recipe: RecipeOptions) -> torch.optim.SGD:
    trained = [p for p in parameters if p.requires_grad]
    return torch.optim.SGD(
        trained, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )


def fit(
    task: Task, train: Loader, test: Loader, rate: Schedule, recipe: RecipeOptions, run: Run
) -> dict:
    """Train for the recipe's epochs, or what is left of them -> the run's summary."""
    run.open(task)
    optimizer = sgd(task.parameters(), rate(1), recipe)
    scaler = task.numerics.scaler()
    done = run.restore("main", task, optimizer, scaler)
    model = distributed.parallel(task)
    for epoch in range(done + 1, recipe.epochs + 1):
        started = time.perf_counter()
        means = one_epoch("main", epoch, model, train, optimizer, scaler, rate(epoch), recipe, run)
        seconds = time.perf_counter() - started
        distributed.same_buffers(task.student)
        with explained(epoch, rate(epoch), run):
            tested = evaluate(task, test)
        numbers = {
            "lr": rate(epoch),
            **{f"train_{name}": value for name, value in means.items()},
            **{f"test_{name}": value for name, value in tested.items()},
            "seconds": seconds,
            "images_per_s": len(train.labels) / seconds,
        }
        keep = epoch % recipe.save_freq == 0 or epoch == recipe.epochs
        run.finish_epoch(epoch, numbers, task, optimizer, scaler, keep)
    return run.finish()


def fit_first_stage(
    task: Distillation, train: Loader, rate: float, recipe: RecipeOptions, epochs: int, run: Run
) -> None:
    """Train what the method trains before the student's own turn, or what is left of it."""
    parameters = list(task.method.first_stage(task.student))
    if not parameters:
        return
    run.open(task)
    stage, rate = FirstStage(task), task.method.first_stage_rate(rate)
    optimizer, scaler = sgd(parameters, rate, recipe), task.numerics.scaler()
    done = run.restore("first", stage, optimizer, scaler)
    model = distributed.parallel(stage)
    for epoch in range(done + 1, epochs + 1):
        means = one_epoch("first", epoch, model, train, optimizer, scaler, rate, recipe, run)
        distributed.same_buffers(task.student)
        run.finish_first(epoch, epochs, means["loss"], stage, optimizer, scaler)


def one_epoch(
    name: str,
    epoch: int,
    task: torch.nn.Module,
    train: Loader,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    rate: float,
    recipe: RecipeOptions,
    run: Run,
) -> dict[str, float]:
    """Train an epoch of the stage called `name` with a progress bar -> its means.

    Everything random in it follows from the seed, the stage and the epoch's number, so that a
    resumed run repeats the run that was never stopped.
    """
    place = epoch + FIRST_STAGE * (name == "first")  # of the epoch among all of a run
    seed_everything(epoch_seed(run.seed, place))
    for group in optimizer.param_groups:
        group["lr"] = rate
    progress = tqdm(
        train.batches(place),
        total=len(train),
        desc=f"epoch {epoch}/{recipe.epochs}" if name == "main" else f"first stage, epoch {epoch}",
        disable=True if distributed.rank() else None,  # None: quiet when stderr is no terminal
        leave=False,
    )

    def look(step, means):
        progress.set_postfix({key: f"{value:.3g}" for key, value in means.items()})
        if name == "main":
            run.log_step((epoch - 1) * len(train) + step, means, recipe.tb_freq)

    with explained(epoch, rate, run), contextlib.closing(progress):
        return train_epoch(task, progress, optimizer, scaler, epoch, look, recipe.print_freq)


@contextlib.contextmanager
def explained(epoch: int, rate: float, run: Run):
    """Turn a value that is not finite into what the user can do about it."""
    try:
        yield
    except NotFinite as error:
        raise UserError(
            f"{error.name} is not finite in epoch {epoch}, step {error.step}: try a lower "
            f"--learning_rate (here {rate:g}) or weight of that term, or --amp off or bf16; "
            f"{run.kept()}"
        ) from None
    except torch.linalg.LinAlgError as error:
        raise UserError(
            f"what the networks show is not finite in epoch {epoch} ({error}): try a lower "
            f"--learning_rate (here {rate:g}), or --amp off or bf16; {run.kept()}"
        ) from None


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed of its own for each epoch of each run."""
    return (seed * 1_000_003 + epoch) % 2**63
