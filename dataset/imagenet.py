"""ImageNet, and any folder laid out like it, read from disk as a run trains."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch

from dataset import DATASETS
from dataset.base import DataSource, StreamedSet, check_image_size
from dataset.folder import HASH_CONTENT, without_corrupt
from dataset.layout import SPLITS, SplitOptions, find_files, name_of
from helper.errors import UserError
from helper.options import option, positive

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH_SIZE, LEARNING_RATE = 512, 0.2  # the rate is proportional to the batch size


@DATASETS.register("imagenet")
class ImageNet(DataSource):
    """ImageNet (Russakovsky et al., IJCV 2015): train/CLASS/IMAGE and val/CLASS/IMAGE, of any size.

    The networks are torchvision's, and so are their published weights: ResNet34 as a teacher needs
    no --path_t.
    """

    networks = {
        "ResNet18": "torchvision:resnet18",
        "ResNet34": "torchvision:resnet34",
        "ResNet50": "torchvision:resnet50",
        "ResNet101": "torchvision:resnet101",
        "MobileNetV2": "torchvision:mobilenet_v2",
    }
    teacher, student = "ResNet34", "ResNet18"  # where none is named
    warmup = 1  # epochs, for methods that have one

    @dataclass(frozen=True)
    class Options(SplitOptions):
        data_dir: str = option("./data/imagenet", "folder that holds train/ and val/")
        image_size: int = option(224, "side of the crops", parse=positive)
        crop: str = option(
            "resized", "crops to train on: of 8 to 100 % of an image, resized; or of the scaled "
            "image with a black border", choices=("resized", "padded"), added=True,
        )  # fmt: skip
        flip: bool = option(True, "flip half of the training images", added=True)
        skip_corrupt: bool = option(False, "leave out files that are no images, and name them")
        hash_content: bool = option(False, HASH_CONTENT, added=True)
        cache_dir: str = option("./data/cache", "folder for what is found out of the files")

    @staticmethod
    def recipe(typed: Mapping[str, Any]) -> dict[str, Any]:
        """The usual ImageNet recipe; the learning rate is for the batch size typed by the user."""
        return {
            "epochs": 100,
            "batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE * typed.get("batch_size", BATCH_SIZE) / BATCH_SIZE,
            "lr_decay_epochs": (30, 60, 90),
            "weight_decay": 1e-4,
            "save_freq": 10,
        }

    @staticmethod
    def load(options: Options) -> StreamedSet:
        check_image_size(options.image_size)
        layout = find_files(options.data_dir, options)
        # Reading the training files takes as long as an epoch does, which finds them anyway.
        layout, _ = without_corrupt(layout, options, SPLITS if options.skip_corrupt else SPLITS[1:])
        return StreamedSet(
            name=ImageNet.called(options),
            **layout._asdict(),
            mean=MEAN,
            std=STD,
            image_size=options.image_size,
            networks=ImageNet.networks,
            padding=options.image_size // 8 if options.crop == "padded" else 0,
            flip=options.flip,
            hash_content=options.hash_content,
        )

    @staticmethod
    def called(options: Options) -> str:
        return name_of(options.data_dir)

    @staticmethod
    def has_pretrained(name: str) -> bool:
        from helper.vision import torchvision  # takes seconds to import

        source, _, rest = ImageNet.networks.get(name, name).partition(":")
        return source == "torchvision" and rest in torchvision.models.list_models()

    @staticmethod
    def pretrained(name: str) -> Path:
        """The published weights of a network, fetched when they are not in torch's cache.

        Raises UserError where there are none, or they cannot be fetched.
        """
        from helper.vision import torchvision  # takes seconds to import

        if not ImageNet.has_pretrained(name):
            raise UserError(f"there are no published weights of {name}: give them with --path_t")
        rest = ImageNet.networks.get(name, name).partition(":")[2]
        url = torchvision.models.get_model_weights(rest)["IMAGENET1K_V1"].url
        path = Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                digest = torch.hub.HASH_REGEX.search(path.name)[1]  # ends the file's name
                torch.hub.download_url_to_file(url, str(path), hash_prefix=digest)
            except (URLError, OSError, RuntimeError) as error:
                raise UserError(
                    f"the weights of {name} cannot be fetched ({error}): put {url} where it is "
                    f"reachable into {path.parent}, or give a checkpoint with --path_t"
                ) from None
        return path
