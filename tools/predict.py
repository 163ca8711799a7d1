"""Say what is in images: a trained network's most likely classes.

python tools/predict.py save/student_model/RUN/resnet8_best.pth photo.jpg photos/ --top 3
python tools/predict.py exported photos/ --json        # a folder that tools/export.py wrote

An image is resized and cut to the size that the network was trained on, as test images are. Files
that cannot be read are named, the others answered, and the exit code is 2.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
import numpy as np
import torch
from torch import Tensor

from cli.main import main
from cli.words import read_tool
from dataset.folder import open_image
from dataset.layout import image_files, reading
from dataset.stream import cut_for_test
from deploy.network import Deployed, read_deployed
from helper.errors import UserError, printable
from helper.options import Parser, option, positive

BATCH = 64


@dataclass(frozen=True)
class PredictOptions:
    model: str = option("", "the network (default: what the file says)", "-m")
    top: int = option(5, "classes to name", parse=positive)
    json: bool = option(False, "a line of JSON for each image")


def predict(argv: Sequence[str]) -> None:
    """Command line -> a line for each image."""
    parser = Parser(description=__doc__.split("\n")[0], usage="tools/predict.py NETWORK IMAGE...")
    parser.add_argument("network", metavar="NETWORK", help="checkpoint, or exported folder")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="files, or folders of them")
    if (read := read_tool(parser, PredictOptions, argv)) is None:
        return
    bare, options = read
    network, images = Path(bare["network"]), bare["images"]
    deployed = read_deployed(network, options.model)
    paths, broken = list(paths_of(images)), []
    for path, answers in answered(deployed, paths, options.top, broken):
        print(line_of(path, answers, options.json), flush=True)
    if broken:
        raise UserError(f"{len(broken)} of {len(paths)} cannot be read: {'; '.join(broken)}")


def paths_of(images: Sequence[str]) -> Iterator[str]:
    """The files that are named, and those in the folders that are."""
    for name in images:
        if not Path(name).is_dir():
            yield name
            continue
        with reading(name):
            found = sorted(image_files(Path(name)))
        if not found:
            raise UserError(f"no images in {name}")
        yield from found


@torch.inference_mode()
def answered(
    deployed: Deployed, paths: Sequence[str], top: int, broken: list[str]
) -> Iterator[tuple[str, list[tuple[str, float]]]]:
    """Each image's path, and its most likely classes with their probabilities.

    What is wrong with a file that cannot be read is added to `broken`.
    """
    top = min(top, len(deployed.classes))
    for start in range(0, len(paths), BATCH):
        some, pixels = [], []
        for path in paths[start : start + BATCH]:
            try:
                pixels.append(pixels_of(path, deployed))
                some.append(path)
            except UserError as error:
                broken.append(str(error))
        if not some:
            continue
        images = deployed.normalise(torch.stack(pixels))
        likely = deployed.network(images).softmax(dim=1).topk(top, dim=1)  # of (B, K)
        for path, values, indices in zip(some, likely.values, likely.indices, strict=True):
            names = [deployed.classes[i] for i in indices.tolist()]
            yield path, list(zip(names, values.tolist(), strict=True))


def pixels_of(path: str, deployed: Deployed) -> Tensor:
    """An image file -> pixels from 0 to 1, (3, S, S)"""
    size, crop_pct = deployed.image_size, deployed.crop_pct
    image = cut_for_test(open_image(path, round(size / crop_pct)), size, crop_pct)
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1) / np.float32(255))


def line_of(path: str, answers: Sequence[tuple[str, float]], as_json: bool) -> str:
    """'photo.jpg  cat 93.1 %, dog 5.0 %', or the same as JSON."""
    if as_json:
        classes = [{"class": name, "probability": share} for name, share in answers]
        return json.dumps({"image": path, "classes": classes})
    found = ", ".join(f"{name} {100 * share:.1f} %" for name, share in answers)
    return printable(f"{path}  {found}")


if __name__ == "__main__":
    main(predict)
