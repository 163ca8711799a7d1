"""The teacher of a run: live, or out of a bank of what it says of each view of each image.

B batch, b a process's share of it, N samples, V views of each, C channels, K classes, R regions,
M rows of W numbers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as BatchNorm
from tqdm import tqdm

from dataset.base import Batch
from dataset.loader import Loader
from distiller_zoo.base import Distiller
from engine.bank import Bank
from engine.device import Numerics
from engine.distributed import (
    gather_batch,
    is_main_process,
    on_every_process,
    on_main_process,
    rank,
    share_sizes,
)
from engine.features import of_whole_batch
from helper.errors import UserError
from models.base import Classifier, Features, Regions
from models.ensemble import Ensemble

CHECKED_ROWS = 64  # of a bank, computed again at each start
FILLED_AT_ONCE = 8192  # rows of which the missing ones are computed, then written
# Largest deviation of a row from the live teacher's, as a share of its largest number. Kernels
# that another batch size brings round otherwise; wrong rows are off by much more.
TOLERANCE = {"float32": 1e-3, "float16": 4e-3, "tf32": 5e-3, "bf16": 5e-2, "fp16": 1e-2}
FOLDED = 1e-5  # the same of a network with BatchNorm folded; the zoo's stay below 2e-6


class Teacher(nn.Module):
    """A frozen network in training: its features of a batch."""

    bank: Bank | None = None  # where its rows are kept

    def __init__(self, network: Classifier, numerics: Numerics):
        super().__init__()
        self.network = numerics.place(network.eval(), "teacher").requires_grad_(False)
        self.numerics = numerics

    def train(self, mode: bool = True) -> "Teacher":
        return super().train(False)  # whatever is trained beside it

    def begin_epoch(self, place: int) -> dict[str, float]:
        """Get ready for the epoch that a loader calls `place` -> numbers to be logged of it."""
        return {}

    def live(self) -> "Teacher":
        """The same teacher for any images, whatever is kept of it."""
        return LiveTeacher(self.network, self.numerics)

    def features(self, batch: Batch) -> Features | None:
        """Features of the whole batch, in float32."""
        raise NotImplementedError

    def predictor(self, some: Tensor) -> Callable[[Tensor], Tensor]:
        """Images (b, 3, H, W) as the student sees them -> float32 logits (b, K), for evaluation.

        BatchNorm is folded where that gives the same on `some` of such images.
        """
        rows_of = folded(RowsOf(self.network.eval(), RowsRead()), self.seen(some))
        run = self.numerics.compiled(rows_of)

        def predict(images):
            with self.numerics.autocast():
                return run(self.seen(images))["logits"].float()

        return predict

    def seen(self, images: Tensor) -> Tensor:
        """Images (b, 3, H, W) as the student sees them -> as the teacher does."""
        return self.numerics.images(self.network.own_pixels(images), "teacher")


class NoTeacher(Teacher):
    """Stands in the place of a teacher for methods that have none."""

    network = None

    def __init__(self, numerics: Numerics):
        nn.Module.__init__(self)
        self.numerics = numerics

    def live(self):
        return self

    def features(self, batch):
        return None


class LiveTeacher(Teacher):
    """The network itself, in eval."""

    def __init__(self, network: Classifier, numerics: Numerics):
        super().__init__(network, numerics)
        self.norms: list[nn.Module] = []
        self.run = numerics.compiled(network.features)

    def normalise_by_batch(self) -> None:
        """Let its BatchNorm, and nothing else, be in train while the student is.

        What it has learned stays as it is.
        """
        self.norms = batch_norms(self.network)
        for norm in self.norms:
            norm.track_running_stats = False  # or a pass in train would move them

    def train(self, mode=True):
        super().train(mode)
        for norm in self.norms:
            norm.train(mode)
        return self

    @torch.no_grad()
    def features(self, batch):
        with self.numerics.autocast():
            own = self.run(self.seen(batch.images))
        return of_whole_batch(own, len(batch.labels), self.numerics)


def batch_norms(network: nn.Module) -> list[nn.Module]:
    """Modules that have statistics of batches."""
    return [module for module in network.modules() if isinstance(module, BatchNorm)]


@dataclass(frozen=True)
class RowsRead:
    """What an objective reads of a teacher, where that is one row of numbers an image."""

    pooled: bool = False
    regions: tuple[Regions, ...] = ()

    def widths(self, features: Features) -> dict[str, int]:
        """Numbers in a row of each kind: {'logits': 100, 'pooled': 256}"""
        return {kind: rows.shape[1] for kind, rows in self.rows(features).items()}

    def rows(self, features: Features) -> dict[str, Tensor]:
        """Features of M images -> each kind's rows, (M, W)"""
        rows = {"logits": features.logits}
        if self.pooled:
            rows["pooled"] = features.pooled
        for regions in self.regions:  # (R, M, K) each
            rows[kind_of(regions)] = features.region_logits(*regions).transpose(0, 1).flatten(1)
        return rows


def kind_of(regions: Regions) -> str:
    """'regions_1-2-4', 'regions_1-2-4_of_4x4'"""
    scales, pooled_to = regions
    square = f"_of_{pooled_to}x{pooled_to}" if pooled_to else ""
    return "regions_" + "-".join(map(str, scales)) + square


def rows_read(distillers: Sequence[Distiller]) -> RowsRead | str:
    """What the terms of an objective read of the teacher; in words why a bank cannot have it."""
    pooled, regions = False, []
    for distiller in distillers:
        if distiller.teacher_mode != "eval":
            return "the teacher normalises by the batch"
        if not distiller.reads:
            return f"{type(distiller).__name__} does not say what it reads"
        if maps := distiller.reads - {"logits", "pooled"}:
            return f"{type(distiller).__name__} reads {', '.join(sorted(maps))}"
        pooled |= "pooled" in distiller.reads
        regions += [view.regions for view in distiller.views if view.regions]
    return RowsRead(pooled, tuple(dict.fromkeys(regions)))


class BankedFeatures(Features):
    """Features of which a bank has some; reading another is an error in what a method `reads`."""

    def __init__(self, rows: dict[str, Tensor], head: nn.Module):
        self.__dict__.update(rows, head=head)

    def region_logits(self, scales, pooled_to=0):
        rows = self.__dict__[kind_of((scales, pooled_to))]  # (B, R * K)
        return rows.unflatten(1, (-1, self.logits.shape[1])).transpose(0, 1)

    def replace(self, **tensors: Any) -> "BankedFeatures":
        return BankedFeatures({**self.__dict__, **tensors}, self.head)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(
            f"{name} of the teacher is read, which the `reads` of the method does not name"
        )


class BankedTeacher(Teacher):
    """Rows of the teacher, gathered by the number of the sample; no network runs in a step.

    Before an epoch, rows that the bank has not are computed, each process its share, and the rows
    of the epoch go to the device. Without a bank, or with AutoAugment, whose views are without
    number, all of them are computed and none is kept.
    """

    def __init__(
        self,
        network: Classifier,
        numerics: Numerics,
        train: Loader,
        reads: RowsRead,
        bank: Bank | None,
        batch_size: int,
    ):
        """`batch_size` images at a time go through the teacher.

        UserError where the bank's rows are not this teacher's.
        """
        super().__init__(network, numerics)
        self.loader, self.reads, self.batch_size = train, reads, batch_size
        self.bank = None if train.aug else bank
        self.table: dict[str, Tensor] = {}  # (N, W) each, rows of this epoch's views
        some = self.seen(self.images(torch.arange(2)))
        self.rows_of = folded(RowsOf(self.network, reads), some)
        with torch.no_grad():
            self.widths = reads.widths(self.network.features(some))
        if self.bank:
            on_main_process(self.check_bank)

    def begin_epoch(self, place):
        n = len(self.loader.labels)
        rows = torch.arange(n) * self.loader.views + self.loader.epoch_views(place)
        there = self.there(rows)
        computed = self.add(rows[~there], place)
        stored = self.bank.read(rows[there]) if self.bank else {}
        for kind, own in computed.items():
            new = gather_batch(own, n - int(there.sum()))
            if kind not in self.table:
                self.table[kind] = new.new_empty(n, new.shape[1])
            table, known = self.table[kind], there.to(new.device)
            table[~known] = new
            if stored:
                table[known] = stored[kind].to(table.device)
        return {"bank_missing": 1 - there.double().mean().item()}

    def there(self, rows: Tensor) -> Tensor:
        """Which rows every process finds in the bank: (M,) int64 -> (M,) bool"""
        if self.bank is None:
            return torch.zeros(len(rows), dtype=torch.bool)
        return on_every_process(self.bank.has(rows), self.numerics.device)

    def add(self, rows: Tensor, place: int = 0) -> dict[str, Tensor]:
        """Compute this process's share of rows (M,) that are missing, and keep them in the bank.

        -> each kind's rows, (m, W) on the device.
        """
        own = rows.split(share_sizes(len(rows)))[rank()]
        computed = self.compute(own, place)
        if self.bank:
            self.bank.write(own, computed)
            computed = {kind: self.bank.rounded(values) for kind, values in computed.items()}
        return computed

    @torch.no_grad()
    def compute(self, rows: Tensor, place: int = 0) -> dict[str, Tensor]:
        """What the teacher says of rows (M,), with the augmentation of an epoch: (M, W) each."""
        if not len(rows):
            device = self.numerics.device
            return {
                kind: torch.zeros(0, width, device=device) for kind, width in self.widths.items()
            }
        parts = []
        hidden = None if is_main_process() else True  # None: quiet when stderr is no terminal
        with tqdm(
            total=len(rows), desc="teacher", unit=" images", leave=False, disable=hidden, delay=1
        ) as bar:
            for some in rows.split(self.batch_size):
                with self.numerics.autocast():
                    parts.append(self.rows_of(self.seen(self.images(some, place))))
                bar.update(len(some))
        return {kind: torch.cat([part[kind].float() for part in parts]) for kind in parts[0]}

    def images(self, rows: Tensor, place: int = 0) -> Tensor:
        """The images of rows (M,), (M, 3, H, W) normalised as the student's."""
        views = self.loader.views
        return self.loader.show(rows // views, rows % views, place)

    def fill(self) -> int:
        """Compute and keep every row that is missing -> how many those were.

        OSError where the bank cannot be written.
        """
        total, computed = len(self.loader.labels) * self.loader.views, 0
        hidden = None if is_main_process() else True
        with tqdm(total=total, desc="rows", unit_scale=True, disable=hidden) as bar:
            for rows in torch.arange(total).split(FILLED_AT_ONCE):
                missing = rows[~self.there(rows)]
                if len(missing) and not self.bank.refused:
                    self.add(missing)
                    computed += len(missing)
                if len(missing) and self.bank.refused:
                    raise self.bank.refused
                bar.update(len(rows))
        return computed

    def check_bank(self, most: int = CHECKED_ROWS) -> int:
        """Compare at most so many rows with the network, chosen at random -> how many.

        UserError where one is not what it says.
        """
        rows = self.bank.sample(most)
        if len(rows):
            for some in rows.split(self.batch_size):
                self._check_rows(some)
        return len(rows)

    def _check_rows(self, rows: Tensor) -> None:
        stored, images = self.bank.read(rows), self.images(rows)
        with torch.no_grad(), self.numerics.autocast():
            live = self.reads.rows(self.network.features(self.seen(images)))
        for kind, wanted in live.items():
            wanted = wanted.float().cpu()
            deviation = (stored[kind] - wanted).abs().amax(dim=1)  # (M,)
            allowed = self.tolerance() * wanted.abs().amax(dim=1)
            for row, by, most in zip(rows.tolist(), deviation.tolist(), allowed.tolist()):
                if not by <= most:
                    sample, view = divmod(row, self.loader.views)
                    raise UserError(
                        f"{self.bank.folder}: the {kind} of sample {sample} in view {view} differ "
                        f"from the teacher's by {by:.3g}, where {most:.3g} is rounding: the bank "
                        "is damaged; drop it with tools/bank.py, or delete it"
                    )

    def tolerance(self) -> float:
        """Of a row, as a share of its largest number."""
        computed_in = "tf32" if self.numerics.in_tf32 else self.numerics.amp
        return max(TOLERANCE[self.bank.key["type"]], TOLERANCE.get(computed_in, 0))

    def features(self, batch):
        rows = {kind: table[batch.index] for kind, table in self.table.items()}
        return BankedFeatures(rows, self.network.head)


class BankedMean(Teacher):
    """Several teachers, each with a bank of its own, as one: the mean of what they predict."""

    def __init__(self, network: Ensemble, members: Sequence[BankedTeacher], numerics: Numerics):
        super().__init__(network, numerics)
        self.members = nn.ModuleList(members)

    def begin_epoch(self, place):
        missing = [member.begin_epoch(place)["bank_missing"] for member in self.members]
        return {"bank_missing": sum(missing) / len(missing)}

    def features(self, batch):
        logits = [member.features(batch).logits for member in self.members]
        return BankedFeatures({"logits": self.network.mean(logits)}, self.network.head)


class RowsOf(nn.Module):
    """Images (M, 3, H, W) as the teacher sees them -> each kind's rows, (M, W)."""

    def __init__(self, network: Classifier, reads: RowsRead):
        super().__init__()
        self.network, self.reads = network, reads

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.reads.rows(self.network.features(images))


@torch.no_grad()
def folded(module: RowsOf, images: Tensor) -> nn.Module:
    """The same function with each BatchNorm folded into the convolution before it.

    The module itself where that cannot be traced, or does not give the same on `images` in float32.
    """
    from torch.fx.experimental.optimization import fuse  # slow to import

    try:
        faster = fuse(module)
        with torch.backends.cudnn.flags(allow_tf32=False):  # whose rounding is larger
            rows, same = module(images), faster(images)
    except Exception:  # whatever tracing makes of somebody's network
        return module
    close = all((a - same[kind]).abs().max() <= FOLDED * a.abs().max() for kind, a in rows.items())
    return faster if close else module
