"""Several processes, one run: what they share, and who speaks.

Every process runs the networks on its own share of a batch. What the losses read is gathered, so
that each process computes the same losses of the whole batch and keeps the same memories; the
gradients are averaged. A run is therefore the same run on any number of processes, as long as the
student's BatchNorm sees the whole batch too (`--sync_bn`). R processes, B batch, b a share of it.
"""

import contextlib
import os
import signal
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helper.errors import UserError
from models.base import Features


def rank() -> int:
    """Number of this process; 0 is the one that writes."""
    return int(os.environ.get("RANK", 0))


def ranks() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def start(device: torch.device) -> None:
    """Join the other processes, where torchrun started several."""
    if ranks() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, dist.DistError) as error:
        raise UserError(
            f"WORLD_SIZE is {ranks()}, but the processes cannot be joined ({error}): start them "
            "with torchrun, or unset WORLD_SIZE to run one"
        ) from None
    signal.signal(signal.SIGTERM, lambda *_: _ended())


def _ended() -> None:
    raise ProcessLost("this process was told to end")


class ProcessLost(RuntimeError):
    """The run cannot go on, because a process of it is gone."""


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an exception means that another process does not answer any more."""
    if not dist.is_initialized():
        return False
    words = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "store")
    said = any(word in str(error).lower() for word in words)
    return isinstance(error, (ProcessLost, dist.DistError)) or (
        isinstance(error, RuntimeError) and said
    )


def speaks_first() -> bool:
    """Whether this is the first process to ask: of one mistake on all of them, one tells."""
    if not dist.is_initialized():
        return rank() == 0
    try:
        return dist.distributed_c10d._get_default_store().add("spoken", 1) == 1
    except RuntimeError:  # the store is gone with the process that kept it
        return rank() == 0


def on_first(function: Callable[[], Any]) -> Any:
    """Call it on the first process alone -> its result, on all; a UserError too is everybody's."""
    if ranks() == 1:
        return function()
    answer = [None, None]
    if rank() == 0:
        try:
            answer[0] = function()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


def in_turn(function: Callable[[], Any]) -> Any:
    """Call it on one process of a machine, then on the others, which find its files on disk."""
    if ranks() == 1:
        return function()
    if local_rank():
        dist.barrier()
    result = function()
    if not local_rank():
        dist.barrier()
    return result


def share_sizes(n: int) -> list[int]:
    """How many of n samples each process has; as the loaders deal them out."""
    return [n * (r + 1) // ranks() - n * r // ranks() for r in range(ranks())]


def whole(x: Tensor, n: int) -> Tensor:
    """Every process's share (b, ...) of n samples -> (n, ...), with a gradient."""
    return x if ranks() == 1 else _Whole.apply(x, share_sizes(n))


class _Whole(torch.autograd.Function):
    """All processes compute the same loss of the result, and gradients are averaged: each share's
    gradient is therefore multiplied by the number of processes."""

    @staticmethod
    def forward(ctx, x, sizes):
        ctx.sizes = sizes
        padded = x.new_zeros(max(sizes), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])

    @staticmethod
    def backward(ctx, gradient):
        before, own = sum(ctx.sizes[: rank()]), ctx.sizes[rank()]
        return len(ctx.sizes) * gradient[before : before + own], None


def whole_features(shown: Features, n: int) -> Features:
    """What all processes show of a batch of n samples."""
    return shown if ranks() == 1 else WholeFeatures(shown, n)


class WholeFeatures(Features):
    """Features of the whole batch, each gathered when a loss first reads it."""

    def __init__(self, shown: Features, n: int):
        self.__dict__.update(_shown=shown, _n=n, head=shown.head)

    def changed(self, **tensors: Any) -> "WholeFeatures":
        other = WholeFeatures(self._shown, self._n)
        other.__dict__.update(self.__dict__, **tensors)
        return other

    def __getattr__(self, name: str) -> Any:
        shown = getattr(self._shown, name)  # a map, a tuple of maps, or None where there is none
        if isinstance(shown, tuple):
            gathered = tuple(whole(x, self._n) for x in shown)
        else:
            gathered = shown if shown is None else whole(shown, self._n)
        self.__dict__[name] = gathered
        return gathered


def parallel(task: nn.Module) -> nn.Module:
    """The task, its gradients averaged over the processes; buffers are what each computes."""
    if ranks() == 1:
        return task
    # Of no use to the user: an argument that newer versions call otherwise, a hint about layouts.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers|Grad strides do not match")
    return DistributedDataParallel(task, static_graph=True, broadcast_buffers=False)


@torch.no_grad()
def same_buffers(network: nn.Module) -> None:
    """Give every process the first one's BatchNorm statistics: those are saved and evaluated."""
    if ranks() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


def sync_batch_norms(network: nn.Module) -> nn.Module:
    """Let every BatchNorm2d of a network see the whole batch; names and weights stay."""
    for module in network.modules():
        if type(module) is nn.BatchNorm2d and ranks() > 1:
            module.__class__ = SyncBatchNorm2d
    return network


class SyncBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm over the shares of all processes, on any device: torch's own needs a GPU."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        wide = x.to(self.running_mean.dtype)  # float32 under autocast too
        count = _Sum.apply(wide.new_tensor([wide[:, 0].numel()]))
        mean = _Sum.apply(wide.sum(dim=(0, 2, 3))) / count  # (C,)
        centred = wide - mean[:, None, None]
        var = _Sum.apply(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            share = self.momentum
            if share is None:
                share = 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(var * count / (count - 1), share)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _Sum(torch.autograd.Function):
    """Sum over the processes, in either direction."""

    @staticmethod
    def forward(ctx, x):
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx, gradient):
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


@contextlib.contextmanager
def membership():
    """The life of a process of a run: only the first writes to the console; all leave together."""
    with contextlib.ExitStack() as stack:
        if rank():
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
