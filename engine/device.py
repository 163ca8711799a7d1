"""Where and how precisely a run computes: device, precision, memory layout, seeds."""

import contextlib
import os
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from engine import distributed, sync_batchnorm
from helper.errors import UserError
from helper.options import option, seed

HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class DeviceOptions:
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
    amp: str = option(
        "off", "precision of the networks; losses stay float32", choices=("off", *HALF)
    )
    channels_last: str = option(
        "all", "which networks run in channels-last layout", choices=("all", "teacher", "off")
    )
    compile: bool = option(False, "torch.compile the networks: slow to start, then faster")
    seed: int | None = option(None, "seed of everything random (default: the trial)", parse=seed)
    sync_bn: bool = option(False, "BatchNorm over the images of all processes, as on one device")
    tf32: bool = option(
        True, "convolutions in float32 round to TF32 on a GPU, as is PyTorch's default; matrix "
        "products never do", added=True,
    )  # fmt: skip
    cuda_graph: bool = option(
        False, "capture a step once and replay it, on one GPU: no time between kernels", added=True
    )
    deterministic: bool = option(False, "only deterministic kernels: slower, equal from run to run")


def pick_device(name: str) -> torch.device:
    """'auto' -> the GPU when there is one, to each process its own.

    Raises UserError for a device that is not there.
    """
    gpus = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if gpus else "cpu"
    if name == "cuda":
        name = f"cuda:{distributed.local_rank() if distributed.world_size() > 1 else 0}"
    elif name.startswith("cuda:") and distributed.world_size() > 1:
        raise UserError(f"--device {name} would put every process there: give --device cuda")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"--device {name} is none of auto, cpu, cuda, cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device {name} is none of auto, cpu, cuda, cuda:N")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        found = f"sees {gpus} GPU{'s' * (gpus != 1)}" if gpus else "sees no GPU"
        raise UserError(
            f"--device {name}: torch {torch.__version__} {found} here; try --device cpu"
        )
    return device


def seed_everything(seed: int) -> None:
    """Seed the generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - for what users' own modules draw
    torch.manual_seed(seed)


def prepare(deterministic: bool, seed: int) -> None:
    """Set up this process for a run: kernels that repeat or are fastest, seeds."""
    set_determinism(deterministic)
    seed_everything(seed)


def set_determinism(deterministic: bool) -> None:
    """Choose between kernels that repeat bit for bit and the fastest ones."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


@dataclass(frozen=True)
class Numerics:
    """How a network is run: autocast type and memory layout."""

    device: torch.device
    amp: str = "off"
    channels_last: str = "all"
    compile: bool = False
    sync_bn: bool = False
    tf32: bool = True
    cuda_graph: bool = False

    @property
    def gpu(self) -> str | None:
        """The name of the GPU that is used; None on a CPU."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else None

    @property
    def in_tf32(self) -> bool:
        """Whether convolutions in float32 round to TF32 on this device."""
        on_gpu = self.tf32 and self.amp == "off" and self.gpu is not None
        return on_gpu and torch.cuda.is_tf32_supported()

    @property
    def precision(self) -> str:
        """What the networks compute in."""
        if self.amp != "off":
            return f"{self.amp} autocast"
        return "float32 (convolutions in TF32)" if self.in_tf32 else "float32"

    def autocast(self) -> contextlib.AbstractContextManager:
        if self.amp == "off":
            return contextlib.nullcontext()
        # A captured step casts the weights itself: none may be left from before the capture.
        return torch.autocast(self.device.type, HALF[self.amp], cache_enabled=not self.cuda_graph)

    def place(self, network: nn.Module, role: str) -> nn.Module:
        """Move a network ("student" or "teacher") to the device, in the layout of its role."""
        if self.sync_bn:  # without effect in eval
            network = sync_batchnorm.synchronise(network, self.device)
        return network.to(self.device, memory_format=self._layout(role))

    def images(self, images: Tensor, role: str) -> Tensor:
        """The batch (B, 3, H, W) in the layout of that network."""
        return images.contiguous(memory_format=self._layout(role))

    def predictor(self, network: nn.Module, role: str) -> Callable[[Tensor], Tensor]:
        """A network in eval as a function from images (B, 3, H, W) to float32 logits (B, K)."""
        network = self.place(network.eval(), role)
        run = self.compiled(network)

        def predict(images):
            with self.autocast():
                return run(self.images(network.own_pixels(images), role)).float()

        return predict

    def compiled(self, function: Callable) -> Callable:
        return torch.compile(function) if self.compile else function

    def describe(self) -> str:
        """The device and how the networks run there, in a few words."""
        name = f"{self.device} ({self.gpu or f'{torch.get_num_threads()} threads'})"
        processes = distributed.world_size()
        parts = [
            name if processes == 1 else f"{processes} processes on {name}",
            self.precision,
            {"all": "channels last", "teacher": "teacher channels last", "off": ""}[
                self.channels_last
            ],
            "compiled" if self.compile else "",
            "synchronised BatchNorm" if self.sync_bn and processes > 1 else "",
        ]
        return ", ".join(part for part in parts if part)

    def scaler(self) -> torch.amp.GradScaler:
        """Scales the loss so that float16 gradients do not vanish; does nothing otherwise."""
        return torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")

    def _layout(self, role: str) -> torch.memory_format:
        chosen = self.channels_last in ("all", role)
        return torch.channels_last if chosen else torch.contiguous_format


def start(options: DeviceOptions) -> Numerics:
    """Pick the device and join the other processes, where there are several.

    Raises UserError for a device that is not there.
    """
    device = pick_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cuda.matmul.allow_tf32 = False  # of losses and classifiers
    distributed.join(device)
    names = ("amp", "channels_last", "compile", "sync_bn", "tf32", "cuda_graph")
    return Numerics(device, **{name: getattr(options, name) for name in names})
