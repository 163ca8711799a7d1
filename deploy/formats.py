"""The files that other programs read: safetensors, torch.export, ONNX.

B batch, S x S images, K classes.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deploy.network import Deployed, Normalised
from helper.errors import UserError
from helper.extras import import_extra
from helper.files import write_whole
from runs.exported import WEIGHTS

FORMATS = {  # and the packages that each needs
    "safetensors": ("safetensors.torch",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "torch_export": (),
}
ONNX, PROGRAM = "model.onnx", "model.pt2"

Predict = Callable[[Tensor], Tensor]  # images (B, 3, S, S) -> logits (B, K), of any B


def needed(name: str) -> Any:
    """A package of requirements-export.txt."""
    return import_extra(name, "requirements-export.txt", "an export")


def check_packages(formats: Iterable[str]) -> None:
    """UserError that names a package that one of the formats needs and that is not there."""
    for name in formats:
        for package in FORMATS[name]:
            needed(package)


def write_safetensors(deployed: Deployed, folder: Path) -> None:
    """The weights alone, by the names that they have in the network."""
    safetensors = needed("safetensors.torch")
    weights = {name: x.clone().contiguous() for name, x in deployed.network.state_dict().items()}
    content = safetensors.save(weights, {"format": "pt"})
    write_whole(folder / WEIGHTS, lambda file: file.write(content))


def write_program(deployed: Deployed, normalised: bool, folder: Path) -> Predict:
    """A program of torch.export, to be loaded without this code -> what reads the file back."""
    program = exported(deployed, normalised)
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    write_whole(folder / PROGRAM, lambda file: file.write(buffer.getvalue()))
    return torch.export.load(folder / PROGRAM).module()


def write_onnx(deployed: Deployed, normalised: bool, folder: Path) -> Predict:
    """An ONNX file with its weights inside -> onnxruntime with that file."""
    runtime = needed("onnxruntime")
    module, images = graph(deployed, normalised), example(deployed)
    with quietly(), refused(deployed, "ONNX"):
        program = torch.onnx.export(
            module, (images,), dynamo=True, dynamic_shapes=any_batch(), verbose=False,
            input_names=["images"], output_names=["logits"],
        )  # fmt: skip
    content = program.model_proto.SerializeToString()  # whole, weights and all
    write_whole(folder / ONNX, lambda file: file.write(content))
    session = runtime.InferenceSession(str(folder / ONNX), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def exported(deployed: Deployed, normalised: bool) -> torch.export.ExportedProgram:
    """The network as a graph of operations, for batches of any size."""
    module, images = graph(deployed, normalised), example(deployed)
    with quietly(), refused(deployed, "torch.export"):
        return torch.export.export(module, (images,), dynamic_shapes=any_batch())


def graph(deployed: Deployed, normalised: bool) -> nn.Module:
    """What is exported: the network, behind the normalisation of its images if that is wanted."""
    return Normalised(deployed) if normalised else deployed.module


def example(deployed: Deployed) -> Tensor:
    """A batch of two; one might be taken for a constant."""
    return torch.zeros(2, 3, deployed.image_size, deployed.image_size)


def any_batch() -> tuple[dict[int, torch.export.Dim]]:
    """That the number of images is free, of the one argument that there is."""
    return ({0: torch.export.Dim("batch", min=1)},)


@contextlib.contextmanager
def quietly():
    """Leave out what the exporters tell of their own work."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


@contextlib.contextmanager
def refused(deployed: Deployed, what: str):
    """Turn whatever an exporter raises into a line for the user."""
    try:
        yield
    except Exception as error:  # hundreds of kinds, of three packages
        reason, *_ = str(error).splitlines() or [type(error).__name__]
        raise UserError(
            f"{deployed.name} cannot be written for {what} ({reason}): choose another --format"
        ) from error
