"""The teacher of a run: out of a bank, where --teacher_bank asks for one and it can be."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli.networks import Trained
from cli.setting import Setting
from dataset.loader import Loader
from dataset.stream import StreamLoader
from distiller_zoo.base import Distiller
from engine.bank import Bank, bank_folder, complete_size
from engine.teacher import BankedMean, BankedTeacher, LiveTeacher, RowsRead, Teacher, rows_read
from helper.errors import UserError
from helper.options import Resolved
from models.base import Classifier, Features
from runs.experiment import plain

FILL_BATCH = {"cpu": 64, "cuda": 1024}  # images a pass of a teacher that fills its bank


def make_teacher(
    trained: Trained,
    shown: Features,
    terms: Sequence[Distiller],
    setting: Setting,
    train: Loader | StreamLoader,
) -> tuple[Teacher, str]:
    """The teacher of an objective whose terms read it, and what is said of its bank.

    `shown` are its features of a few images. Of several teachers each has a bank.
    """
    options, numerics = setting.options, setting.numerics
    if not options.teacher_bank:
        return LiveTeacher(trained.network, numerics), ""
    if Path(options.teacher_bank).is_file():
        raise UserError(f"--teacher_bank {options.teacher_bank} is no folder: give another")
    if trained.members:
        each = [make_teacher(one, shown, terms, setting, train) for one in trained.members]
        teachers, said = zip(*each, strict=True)
        lines = "\n".join(dict.fromkeys(said))
        if all(isinstance(one, BankedTeacher) for one in teachers):
            return BankedMean(trained.network, teachers, numerics), lines
        return LiveTeacher(trained.network, numerics), lines
    reads = rows_read(terms)
    if isinstance(train, StreamLoader):
        reads = "images that are read from disk have views without number"
    if options.mixup:
        reads = "mixtures of --mixup are without number"
    if train.strong:
        reads = "strongly augmented views are without number"
    if isinstance(reads, RowsRead) and not train.aug:
        key, widths = bank_key(trained, setting, train), reads.widths(shown)
        size = complete_size(key, widths)
        if size > 1e9 * options.bank_limit:
            kinds = " and ".join(widths)
            reads = f"{kinds} of all views take {size / 1e9:,.1f} GB (--bank_limit)"
    if isinstance(reads, str):
        live = LiveTeacher(trained.network, numerics)
        return live, f"bank:      not used, the teacher runs in every step: {reads}"
    batch = options.bank_batch or FILL_BATCH[numerics.device.type]
    if train.aug:
        teacher = BankedTeacher(trained.network, numerics, train, reads, None, batch)
        return (
            teacher,
            "bank:      none with --aug, --randaugment or --crop resized; rows are computed before "
            "each epoch",
        )
    name = f"{plain(trained.name)}_{setting.data.name}"
    bank = Bank(bank_folder(Path(options.teacher_bank), name, key), key, widths)
    teacher = BankedTeacher(trained.network, numerics, train, reads, bank, batch)
    return teacher, f"bank:      {bank.describe()}, {size / 1e6:,.2f} MB when complete"


def bank_key(trained: Trained, setting: Setting, train: Loader) -> dict[str, Any]:
    """Everything that a row of the bank depends on."""
    options, data = setting.options, setting.data
    fraction = options.train_fraction
    held_out = {name: options.values[name] for name in ("val_fraction", "val_seed")}
    return {
        "teacher": trained.sha256,
        "network": trained.name,
        "data": setting.fingerprint,
        "train_fraction": fraction,
        "fraction_seed": options.fraction_seed if fraction < 1 else 0,
        **(held_out if options.val_fraction else {}),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "teacher_pixels": [list(options.mean_t), list(options.std_t)],
        "padding": data.padding,
        "flip": data.flip,
        "type": options.bank_type,
        "amp": options.amp,
        **({"tf32": True} if setting.numerics.in_tf32 else {}),
        "samples": len(train.labels),
        "views": train.views,
    }


def terms_read(
    options: Resolved, kd: Distiller, method: Distiller, student: Classifier
) -> list[Distiller]:
    """The terms of an objective that read the teacher, in the main stage or in a first one."""
    trains_first = any(True for _ in method.first_stage(student))
    return [kd] * bool(options.alpha) + [method] * bool(options.beta or trains_first)
