"""The two things a method can be: a loss on features, or a loss on rows of logits.

B batch, C channels, K classes, N training samples, V views, M rows.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Generator, Tensor, nn

from dataset.base import Batch
from models.base import Classifier, Features, Regions


class Rows(NamedTuple):
    """Logits as a loss sees them: V views of each of B samples."""

    student: Tensor  # (V, B, K)
    teacher: Tensor  # (V, B, K)
    weight: Tensor  # (V, B), share of each row in the loss of its sample
    # Student's and teacher's without noise and not standardised, (V, B, K) each; None: they are so.
    unchanged: tuple[Tensor, Tensor] | None = None
    unscaled: tuple[Tensor, Tensor] | None = None  # with noise and not standardised, likewise

    @property
    def plain(self) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits of each row as the networks gave them, (V, B, K) each."""
        return self.unchanged or (self.student, self.teacher)

    @property
    def raw(self) -> tuple[Tensor, Tensor]:
        """Student's and teacher's logits of each row before they are standardised, (V, B, K)."""
        return self.unscaled or (self.student, self.teacher)


class View(nn.Module):
    """Base of the views, which turn rows into rows; any number of them chain in front of a method.

    The first field of its `Options` has the view's name and switches it on; `order` is its place in
    the chain. It is constructed from (options, setup). Parameters are trained beside the student,
    and parameters and buffers are saved and resumed with the run.
    """

    order: ClassVar[int] = 0
    # Made of (options, setup, method) in place of a method that reads features, and refused around
    # one that reads others than `wrapper.reads`; has `Options`.
    wrapper: ClassVar["type[Distiller] | None"] = None
    # What it reads of the features beside logits, as arguments of `Features.region_logits`.
    regions: Regions | None = None
    reads_samples: ClassVar[bool] = False  # as `Distiller.reads_samples`

    @dataclass(frozen=True)
    class Options:
        """Flags of the view."""

    def __init__(self, options: Any, setup: "Setup"):
        super().__init__()
        self.options, self.generator = options, setup.generator
        self.parts: dict[str, Tensor] = {}  # of the last rows, to be logged; detached scalars

    def begin(self, epoch: int, epochs: int) -> None:
        """As `Distiller.begin`."""

    def __call__(self, rows: Rows, student: Features, teacher: Features, labels: Tensor) -> Rows:
        """Rows of B samples -> rows of the same samples; labels (B,)."""
        raise NotImplementedError

    @staticmethod
    def defaults(options: Any, method: "type[Distiller]") -> dict[str, tuple[str, float]]:
        """The settings that its paper changes when it is on: option -> (its own flag, value).

        Without a flag, "", the option may be typed all the same.
        """
        return {}

    @staticmethod
    def refuses(method: "type[Distiller]") -> str:
        """Why the view has no meaning in front of a method; "" where it has."""
        return ""


@dataclass(frozen=True)
class Recipe:
    """gamma * CE + alpha * KD + beta * method, as the method's paper weighs it."""

    gamma: float = 1.0
    alpha: float = 0.0
    beta: float = 1.0
    warmup: int = 0  # epochs over which beta grows linearly to its value


@dataclass(frozen=True)
class Setup:
    """What a method may know before training starts."""

    student: Features  # of one dummy batch: read channels and sizes here
    teacher: Features | None  # None for a method that has none
    student_net: Classifier
    teacher_net: Classifier | None
    labels: Tensor  # (N,) of the training set
    views: tuple[View, ...] = field(default=())
    # What losses draw from: seeded anew in each epoch, alike on all processes. None: torch's own.
    generator: Generator | None = None


class Distiller(nn.Module):
    """A method: scalar loss of what the student shows against what the teacher shows.

    What a subclass keeps as a module or parameter is trained beside the student; what it keeps as
    a buffer is saved and resumed with the run. Features come in float32, outside autocast.
    """

    recipe: ClassVar[Recipe] = Recipe()
    # Names of the features that its losses read of either network; empty: unknown, maybe all.
    reads: ClassVar[frozenset[str]] = frozenset()
    # Whether a teacher is loaded and run. Without one its losses are given None in the place of its
    # features.
    has_teacher: ClassVar[bool] = True
    # Whether a second student is trained with the first, each with this objective, and the other's
    # features in the place of a teacher's. Both are evaluated and kept.
    mutual: ClassVar[bool] = False
    # Whether its losses read labels or numbers of samples. A mixture of --mixup has two of each.
    reads_samples: ClassVar[bool] = False
    only_first_stage: ClassVar[bool] = False  # whether its loss behind that is zero
    # Whether its losses read nothing on the host, so that a step with them can be captured.
    capturable: ClassVar[bool] = True
    views: tuple[View, ...] = ()  # in front of it

    @dataclass(frozen=True)
    class Options:
        """Flags of the method. None by default."""

    def __init__(self, options: Any, setup: Setup):
        super().__init__()
        self.options, self.generator = options, setup.generator
        self.parts: dict[str, Tensor] = {}  # of the last loss, to be logged; detached scalars

    @staticmethod
    def variant(options: Any) -> str:
        """What an objective says of its options behind its name: 'T=4'. Nothing by default."""
        return ""

    @staticmethod
    def views_per_image(options: Any) -> int:
        """Augmented views of an image that its losses read: 1, or 2 for a weak and a strong one.

        The features of the strong one are `student.strong` and `teacher.strong`; cross-entropy and
        the KD term are then means of both. `options` are the method's.
        """
        return 1

    @property
    def teacher_mode(self) -> str:
        """Mode of the teacher's BatchNorm while the student trains: "eval" or "train".

        In train they normalise by the batch; what they have learned stays as it is.
        """
        return "eval"

    def prepare(self, teacher: Callable[[Batch], Features], images: Iterable[Batch]) -> None:
        """Learn once, before training, what has to be known of the teacher and all training images.

        `images` are batches of them as they are, in the data set's order: to be read once, and
        loaded only where they are. What is learned is kept in buffers, which a resumed run reads.
        """

    def begin(self, epoch: int, epochs: int) -> None:
        """Get ready for an epoch of the student's training, counted from 1, of so many.

        What a loss reads of it is kept in a buffer, so that a captured step sees it change.
        """

    def deployed(self, student: Classifier, teacher: Classifier) -> Classifier:
        """The network that is trained, evaluated and kept: the student, or what is made of it.

        Its features are those that losses are given. `models.any.build` makes it of its `name`.
        """
        return student

    def forward(self, student: Features, teacher: Features | None, batch: Batch) -> Tensor:
        """Features of one batch -> scalar."""
        raise NotImplementedError

    def of_teachers(self, student: Features, teachers: Sequence[Features], batch: Batch) -> Tensor:
        """Sum of the losses on versions of one teacher -> scalar."""
        return sum(self(student, teacher, batch) for teacher in teachers)

    @staticmethod
    def pair_defaults(
        teacher: str, student: str, views: Collection[str], data: str
    ) -> dict[str, Any]:
        """What the paper set otherwise for this pair of networks, with these views on.

        Option -> value; applied where the flag is not given. Nothing by default.
        """
        return {}

    @staticmethod
    def option_defaults(
        options: Any, teacher: str, student: str, views: Collection[str]
    ) -> dict[str, tuple[str, Any]]:
        """What the paper set otherwise with these options of the method, likewise.

        Option -> the flag that sets it, the value. Networks without a name are any pair.
        """
        return {}

    def first_stage(self, student: Classifier) -> Iterable[nn.Parameter]:
        """What a stage before the student's own would train. Nothing: there is no such stage."""
        return ()

    def first_stage_rate(self, rate: float) -> float:
        """The first stage's learning rate, given that of the run."""
        return rate

    def first_stage_loss(self, student: Features, teacher: Features, batch: Batch) -> Tensor:
        """Features of one batch -> scalar, minimised over `first_stage` parameters."""
        raise NotImplementedError


class LogitDistiller(Distiller):
    """A method on logits: says what one row costs; views say which rows there are.

    A subclass implements `per_row`, or `row_losses` where it reads plain logits as well, or `loss`
    where rows are compared with one another.
    """

    reads = frozenset({"logits"})
    temperature: ClassVar[str] = "kd_T"  # name of the option that is the method's temperature
    # Whether a row costs T^2 times a function of its logits over T, T being --kd_T.
    one_temperature: ClassVar[bool] = False

    def __init__(self, options, setup):
        super().__init__(options, setup)
        self.views = setup.views

    def per_row(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """(M, K), (M, K), (M,) -> (M,)"""
        raise NotImplementedError

    def row_losses(self, rows: Rows, labels: Tensor) -> Tensor:
        """Rows of B samples, labels (B,) -> (V, B)"""
        labels = labels.expand_as(rows.weight)  # (V, B)
        loss = self.per_row(*(x.flatten(0, 1) for x in rows[:2]), labels.flatten())
        return loss.view_as(rows.weight)

    def loss(self, rows: Rows, labels: Tensor) -> Tensor:
        """Rows of B samples, labels (B,) -> scalar: the weighted sum of a sample's rows, mean over
        the samples."""
        losses = self.row_losses(rows, labels)
        return rows.weight.flatten().dot(losses.flatten()) / len(labels)

    def rows(self, student: Features, teacher: Features, labels: Tensor) -> Rows:
        """The rows of one view of the images, behind the chain of views."""
        return apply_views(self.views, logit_rows(student, teacher), student, teacher, labels)

    def forward(self, student, teacher, batch):
        return self.loss(self.rows(student, teacher, batch.labels), batch.labels)


def logit_rows(student: Features, teacher: Features) -> Rows:
    """One view: the logits of the whole images."""
    weight = student.logits.new_ones(1, len(student.logits))
    return Rows(student.logits[None], teacher.logits[None], weight)


def apply_views(
    views: Iterable[View], rows: Rows, student: Features, teacher: Features, labels: Tensor
) -> Rows:
    """Rows as they are after a chain of views."""
    for view in views:
        rows = view(rows, student, teacher, labels)
    return rows


def pair_stages(
    student: Sequence[Tensor], teacher: Sequence[Tensor], from_last: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """Stages paired from the first, or the last, on; a warning names those without a partner."""
    n = min(len(student), len(teacher))
    if len(student) != len(teacher):
        longer, who = (student, "student") if len(student) > n else (teacher, "teacher")
        alone = range(len(longer) - n) if from_last else range(n, len(longer))
        left_out = ", ".join(f"{i + 1} {tuple(longer[i].shape[1:])}" for i in alone)
        warnings.warn(
            f"student has {len(student)} stages, teacher {len(teacher)}: "
            f"the {who}'s stage {left_out} has no partner and is left out",
            stacklevel=2,
        )
    if from_last:
        student, teacher = student[len(student) - n :], teacher[len(teacher) - n :]
    return list(zip(student, teacher, strict=False))


def warn_of_one_place(setup: Setup, stages: int) -> None:
    """Say which of the first `stages` pairs are of 1x1 maps, for losses that compare places."""
    pairs = zip(setup.student.stages[:stages], setup.teacher.stages[:stages], strict=True)
    sizes = [tuple(x.shape[2:]) for pair in pairs for x in pair]
    if numbers := [str(i // 2 + 1) for i, size in enumerate(sizes) if size == (1, 1)]:
        warnings.warn(
            f"stage {', '.join(dict.fromkeys(numbers))} has a map of 1x1: a loss that compares the "
            "places of a map learns nothing there; larger images give larger maps",
            stacklevel=2,
        )


def count_stage_pairs(setup: Setup, from_last: bool = False) -> int:
    """How many stages can be paired; warns of those that cannot.

    Raises ValueError where a network has no maps.
    """
    for who, shown in (("student", setup.student), ("teacher", setup.teacher)):
        if not shown.stages:
            raise ValueError(
                f"the {who} has no feature maps, only a vector of {tuple(shown.pooled.shape[1:])} "
                "and logits: choose a method that reads those"
            )
    return len(pair_stages(setup.student.stages, setup.teacher.stages, from_last))
