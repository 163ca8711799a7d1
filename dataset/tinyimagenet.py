"""Tiny ImageNet: 110,000 colour images of 64 x 64, from data/get_tinyimagenet.sh.

Y. Le and X. Yang, "Tiny ImageNet Visual Recognition Challenge", Stanford CS 231N, 2015.
"""

import shlex
from dataclasses import dataclass, replace
from pathlib import Path

from dataset import DATASETS
from dataset.base import DataSet, DataSource
from dataset.folder import Folder
from dataset.layout import reading
from helper.errors import UserError
from helper.options import option, positive

FOLDER = "tiny-imagenet-200"
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)


@DATASETS.register("tinyimagenet")
class TinyImageNet(DataSource):
    """110,000 photographs of 64x64 in 200 classes (Le & Yang 2015): sh data/get_tinyimagenet.sh.

    The labelled val/ tests; the published test/ has no labels and is not looked at.
    """

    @dataclass(frozen=True)
    class Options:
        data_dir: str = option("./data", f"folder that holds {FOLDER}/")
        image_size: int = option(32, "width and height the images are scaled to", parse=positive)
        cache_dir: str = option("./data/cache", "folder for decoded images")

    @staticmethod
    def load(options: Options) -> DataSet:
        root = Path(options.data_dir) / FOLDER
        with reading(root):
            check_folder(root)
        folder = Folder.Options(str(root), options.image_size, options.cache_dir, in_memory="on")
        return replace(Folder.load(folder), name="tinyimagenet", mean=MEAN, std=STD)


def check_folder(root: Path) -> None:
    """UserError where a folder of images would be complete, but not this one."""
    command = f"sh data/get_tinyimagenet.sh --to {shlex.quote(str(root.parent))}"
    if not root.is_dir():
        raise UserError(
            f"no folder {root}: run `{command}`, or name the folder that holds {FOLDER}/ with "
            "--data_dir"
        )
    val = root / "val"
    if not val.is_dir():  # and where test/ is, it has no labels
        raise UserError(f"no val/ in {root}: move what is there away and run `{command}`")
    if (val / "images").is_dir() and (val / "val_annotations.txt").is_file():
        here, aside = shlex.quote(str(root)), shlex.quote(f"{root}.published")
        raise UserError(
            f"{val} is as published, not one folder a class: run `mv {here} {aside} && {command} "
            f"--from {aside}`"
        )
