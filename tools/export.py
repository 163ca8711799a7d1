"""Write a trained network for other programs, and compare the files with it.

python tools/export.py save/student_model/RUN/resnet8_best.pth --format all --out exported

The folder gets model.safetensors, model.onnx, model.pt2 (a program of torch.export), config.json in
the layout of timm's folders on the hub, and README.md, a model card. Graphs take batches of any
size. They are compared with the network on the test images that the checkpoint names, or with
--random_images on as many random ones; exit code 1 where they differ.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
import torch
from torch import Tensor

from cli.main import main
from cli.parse import parse_trained
from cli.setting import load_data, make_loader
from dataset.loader import Loading
from dataset.subset import AnySet
from deploy.card import card_of, config_of
from deploy.check import compare
from deploy.formats import (
    FORMATS,
    ONNX,
    PROGRAM,
    check_packages,
    write_onnx,
    write_program,
    write_safetensors,
)
from deploy.network import Deployed, Normalised, read_deployed
from helper.errors import UserError
from helper.files import check_writable, write_json, write_whole
from helper.options import Resolved, count, option
from runs import checkpoint
from runs.exported import CONFIG, WEIGHTS, read_config
from runs.stored import read_summary

BATCH = 64
CARD = "README.md"
GRAPHS = {"onnx": (ONNX, write_onnx), "torch_export": (PROGRAM, write_program)}


@dataclass(frozen=True)
class ExportOptions:
    ckpt: str = option("", "checkpoint to export; may stand first, without its flag", "-c")
    model: str = option("", "its network (default: what the file says)", "-m")
    format: str = option("all", "what to write", choices=("all", *FORMATS))
    out: str = option("", "folder for the files (default: beside the checkpoint, exported/)")
    normalize: bool = option(False, "graphs take pixels from 0 to 1 and normalise them themselves")
    overwrite: bool = option(False, "replace files of another network, or of no export")
    random_images: int = option(
        0, "compare on so many random images, not on the test images", parse=count
    )


def export(argv: Sequence[str]) -> None:
    """Command line -> a folder of files that agree with the network."""
    about = "Write a trained network for other programs, and compare the files with it."
    options = parse_trained(argv, ExportOptions, about)
    if not options.ckpt:
        raise UserError("no checkpoint: python tools/export.py CKPT")
    path = Path(options.ckpt)
    kinds = FORMATS if options.format == "all" else (options.format,)
    check_packages(kinds)
    deployed, run = read_deployed(path, options.model), run_of(path)
    folder = Path(options.out) if options.out else path.parent / "exported"
    check_writable(folder, "--out")
    graphs = [kind for kind in GRAPHS if kind in kinds]
    data = test_data(deployed, options) if graphs and not options.random_images else None
    config = config_of(deployed, options.normalize, checkpoint.digest(path))
    clear_of_others(folder, config, options.overwrite)
    write_json(folder / CONFIG, config)  # first: it says whose the files are if this is stopped
    if "safetensors" in kinds:
        write_safetensors(deployed, folder)
    network, agree = Normalised(deployed) if options.normalize else deployed.network, True
    for name, write in map(GRAPHS.get, graphs):
        file = write(deployed, options.normalize, folder)
        found = compare(network, file, images_of(deployed, options, data))
        print(f"{folder / name}: {found}")
        agree &= found.holds
    files = [name for name in (WEIGHTS, ONNX, PROGRAM) if (folder / name).exists()]
    source = f"{path.name}, sha256 {config['checkpoint_sha256']}"
    card = card_of(deployed, run, source, files, options.normalize)
    write_whole(folder / CARD, lambda file: file.write(card.encode()))
    print(f"{deployed.name}: {', '.join(files)}, {CONFIG} and {CARD} in {folder}")
    if not agree:
        print("error: a file says something else than the network: do not use it", file=sys.stderr)
        raise SystemExit(1)


def clear_of_others(folder: Path, config: Mapping[str, Any], overwrite: bool) -> None:
    """Remove what is of no export, of another checkpoint's, or with other pixels, where that is
    allowed.

    What is of this one stays: formats may come one after another.
    """
    names = [name for name in (CARD, CONFIG, WEIGHTS, ONNX, PROGRAM) if (folder / name).exists()]
    same, known = ("checkpoint_sha256", "normalisation_inside"), export_in(folder)
    if not names or [known.get(key) for key in same] == [config[key] for key in same]:
        return
    if not overwrite:
        other = "the export of another network, or with other pixels"
        what = other if known else f"a {names[0]} of no export"
        raise UserError(f"{folder} holds {what}: another --out, or --overwrite to replace it")
    for name in names:
        (folder / name).unlink()


def export_in(folder: Path) -> dict[str, Any]:
    """The config.json of the export in a folder; empty where there is none."""
    try:
        known = read_config(folder / CONFIG)
    except UserError:
        return {}
    return known if "checkpoint_sha256" in known else {}


def images_of(deployed: Deployed, options: Resolved, data: AnySet | None) -> Iterator[Tensor]:
    """Batches of images, as a graph reads them: test images of `data`, or random ones."""
    size = deployed.image_size
    if data is None:
        generator = torch.Generator().manual_seed(0)
        pixels = torch.rand(options.random_images, 3, size, size, generator=generator)
        batches = pixels.split(BATCH)
    else:
        batches = test_pixels(data)
    for pixels in batches:
        yield pixels if options.normalize else deployed.normalise(pixels)


def test_data(deployed: Deployed, options: Resolved) -> AnySet:
    """The data set whose test images the network is compared on."""
    try:
        data = load_data(options)
    except UserError as error:
        raise UserError(f"{error}; or --random_images 100 to compare on random ones") from None
    if data.image_size != deployed.image_size:
        raise UserError(
            f"images of {data.name} have size {data.image_size}, the network's "
            f"{deployed.image_size}: give its data set with -d, or --random_images 100"
        )
    return data


def test_pixels(data: AnySet) -> Iterator[Tensor]:
    """Batches (B, 3, S, S) of the test images, from 0 to 1."""
    mean, std = (torch.tensor(x)[:, None, None] for x in (data.mean, data.std))
    for batch in make_loader(data, "test", BATCH, Loading()).batches():
        yield batch.images * std + mean


def run_of(path: Path) -> dict[str, Any]:
    """The run.json of a checkpoint, with the numbers of the student that it is of; empty where it
    lies by itself."""
    file = path.parent / "run.json"
    summary = read_summary(file) if file.exists() else {}
    others = summary.get("others", {}).items()
    own = next((other for name, other in others if path.name.startswith(f"{name}_")), {})
    return {**summary, **own}


if __name__ == "__main__":
    main(export)
