"""The flags that belong to commands; those of a method, view or data set are in its own file."""

from dataclasses import dataclass

from dataset import DATASETS
from distiller_zoo import METHODS
from engine.bank import TYPES
from helper.options import (
    count,
    not_negative,
    of_each_color,
    option,
    positive,
    positive_number,
    positive_share,
    seed,
    share,
    share_below_1,
    shares,
)
from models import MODELS

ELSEWHERE = "torchvision:NAME, timm:NAME or package.module:function"


@dataclass(frozen=True)
class ConfigOptions:
    cfg: str = option("", "YAML file of flags; those on the command line win over it")


@dataclass(frozen=True)
class DataOptions:
    dataset: str = option("cifar100", f"one of {', '.join(DATASETS)}", "-d")


@dataclass(frozen=True)
class FractionOptions:
    train_fraction: float = option(
        1.0, "share of the training images to train on, of each class alike", parse=positive_share
    )
    fraction_seed: int = option(0, "which of them, where it is not all", parse=seed)
    val_fraction: float = option(
        0.0, "share of the training images to hold out: the best epoch is chosen on them, and the "
        "test set is read at the end, once", parse=share_below_1, added=True,
    )  # fmt: skip
    val_seed: int = option(0, "which of them are held out", parse=seed, added=True)


@dataclass(frozen=True)
class RunOptions:
    trial: int = option(1, "number of the run; ends the name of its folder", parse=seed)
    save_dir: str = option("./save", "where runs are kept")
    resume: bool = option(False, "go on with a run that was stopped; start it if it never ran")
    overwrite: bool = option(False, "start anew where a run already is")
    wandb: bool = option(False, "log to Weights & Biases as well")


@dataclass(frozen=True)
class BankOptions:
    teacher_bank: str = option(
        "", "folder that keeps what the teacher says of each crop and flip, for all runs with it",
        added=True,
    )  # fmt: skip
    bank_type: str = option(
        "float32", "type of the numbers there", choices=tuple(TYPES), added=True
    )
    bank_batch: int | None = option(
        None, "images a pass that fills it (default 64 on a CPU, 1024 on a GPU)", parse=positive,
        added=True,
    )  # fmt: skip
    bank_limit: float = option(
        20.0, "largest size of a teacher's whole bank in GB; beyond it the teacher runs live",
        parse=positive_number, added=True,
    )  # fmt: skip


@dataclass(frozen=True)
class StartOptions:
    pretrained: bool = option(
        False, "start from the weights that torchvision or timm publishes of the network",
        added=True,
    )  # fmt: skip
    init: str = option(
        "",
        "start from the weights of a checkpoint, an exported folder, a state dict or safetensors",
        added=True,
    )


@dataclass(frozen=True)
class TeacherOptions:
    model: str = option("resnet110", f"network to train: a name, {ELSEWHERE}", "-m")


@dataclass(frozen=True)
class TransferOptions:
    path_s: str = option("", "checkpoint whose features are probed")
    model_s: str = option("", "its network (default: what the file says)")


@dataclass(frozen=True)
class EvalOptions:
    ckpt: str = option(
        "", "checkpoint to evaluate; may stand first, without its flag", "-c", "--checkpoint"
    )
    model: str = option("", "its network (default: what the file says)", "-m")
    per_class: bool = option(False, "the accuracy of each class as well")
    json: str = option("", "file to write the numbers to")
    batch_size: int = option(500, "images a step", parse=positive)
    num_workers: int = option(
        8, "processes that read image files; data sets in memory need none", parse=count
    )


@dataclass(frozen=True)
class StudentOptions:
    distill: str = option("kd", f"method, one of {', '.join(METHODS)}")
    model_s: str = option("resnet8", f"student: a name, {ELSEWHERE}")
    model_t: str | tuple[str, ...] = option(
        "", "teacher, or several (default: what --path_t says, else resnet32x4)", several=True
    )
    path_t: str | tuple[str, ...] = option(
        "", "its checkpoint, or one of each (default: the published ones, fetched)", several=True
    )
    teacher_weights: tuple[float, ...] = option(
        (), "weight of each of several teachers in their mean (default: all alike)",
        parse=shares, added=True,
    )  # fmt: skip
    any_teacher: bool = option(False, "take a teacher of other data or of another image size")
    mean_t: tuple[float, ...] = option(
        (),
        "mean of the pixels that the teacher was trained on, R,G,B from 0 to 1 (default: what its "
        "checkpoint says, else that of the data)",
        parse=of_each_color(share),
        added=True,
    )
    std_t: tuple[float, ...] = option(
        (),
        "their standard deviation, with --mean_t",
        parse=of_each_color(positive_share),
        added=True,
    )
    peer: str = option(
        "", "second student of a method that trains two (default: the network of the first)",
        added=True,
    )  # fmt: skip
    peer_rate: float | None = option(
        None, "start of its rate (default: --lr, else what its network asks for)",
        parse=positive_number, added=True,
    )  # fmt: skip
    # Without a value of their own: the method's recipe has it.
    gamma: float | None = option(
        None, "weight of cross-entropy (default: the method's)", "-r", parse=not_negative
    )
    alpha: float | None = option(
        None, "weight of KD (default: the method's)", "-a", parse=not_negative
    )
    beta: float | None = option(
        None, "weight of the method (default: its own)", "-b", parse=not_negative
    )
    warmup: int | None = option(
        None, "epochs over which the method's weight grows to its value", parse=count
    )
    init_epochs: int = option(30, "epochs of the first stage of methods that have one", parse=count)
    dot: float = option(
        0.0, "DOT: distillation's momentum is larger by this, the task's smaller; 0: they are one",
        parse=share, added=True,
    )  # fmt: skip
    no_pair_defaults: bool = option(False, "leave out what papers set for single pairs of networks")
    methods_dir: str = option("", "folder of files, or package.module, with methods of your own")


def networks() -> str:
    """What --help says of networks."""
    return f"networks: {', '.join(MODELS)}; or {ELSEWHERE}"
