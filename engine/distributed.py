"""The process group: several processes, one run.

Every process runs the networks on its own share of a batch. What the losses read is gathered, so
that each process computes the same losses of the whole batch and keeps the same memories; the
gradients are averaged. A run is therefore the same run on any number of processes, as long as the
student's BatchNorm sees the whole batch too (`--sync_bn`). B batch, b a process's share of it.
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


def rank() -> int:
    """Number of this process; 0 is the main one, which writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes the run has."""
    return int(os.environ.get("WORLD_SIZE", 1))


def local_rank() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def is_main_process() -> bool:
    return rank() == 0


def join(device: torch.device) -> None:
    """Join the process group, where torchrun started several processes."""
    if world_size() == 1 or dist.is_initialized():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, dist.DistError) as error:
        raise UserError(
            f"WORLD_SIZE is {world_size()}, but the processes cannot be joined ({error}): start "
            "them with torchrun, or unset WORLD_SIZE to run one"
        ) from None
    signal.signal(signal.SIGTERM, raise_process_lost)


class ProcessLost(RuntimeError):
    """The run cannot go on, because a process of it is gone."""


def raise_process_lost(*_: Any) -> None:
    raise ProcessLost("this process was told to end")


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an exception means that another process does not answer any more."""
    if not dist.is_initialized():
        return False
    words = ("gloo", "connection closed", "connection reset", "broken pipe", "nccl", "store")
    about_peers = any(word in str(error).lower() for word in words)
    return isinstance(error, (ProcessLost, dist.DistError)) or (
        isinstance(error, RuntimeError) and about_peers
    )


def reports_errors() -> bool:
    """Whether this process is the first to ask: of a mistake that all of them meet, one tells."""
    if not dist.is_initialized():
        return is_main_process()
    try:
        return dist.distributed_c10d._get_default_store().add("error reported", 1) == 1
    except RuntimeError:  # the store is gone with the process that kept it
        return is_main_process()


def on_main_process(function: Callable[[], Any]) -> Any:
    """Call it on the main process alone -> its result, on all; a UserError too is everybody's."""
    if world_size() == 1:
        return function()
    answer = [None, None]
    if is_main_process():
        try:
            answer[0] = function()
        except UserError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


@contextlib.contextmanager
def local_main_process_first():
    """What is inside runs on one process of a machine, then on the others, which find its files."""
    if world_size() > 1 and local_rank():
        dist.barrier()
    yield
    if world_size() > 1 and not local_rank():
        dist.barrier()


def share_sizes(n: int) -> list[int]:
    """How many of n samples each process has; as the loaders deal them out."""
    ranks = world_size()
    return [n * (r + 1) // ranks - n * r // ranks for r in range(ranks)]


def gather_batch(x: Tensor, n: int) -> Tensor:
    """Every process's share (b, ...) of n samples -> (n, ...), with a gradient."""
    return x if world_size() == 1 else GatherBatch.apply(x, share_sizes(n))


class GatherBatch(torch.autograd.Function):
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


def data_parallel(task: nn.Module) -> nn.Module:
    """The task, its gradients averaged over the processes; buffers are what each computes."""
    if world_size() == 1:
        return task
    # Of no use to the user: an argument that newer versions call otherwise, a hint about layouts.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers|Grad strides do not match")
    return DistributedDataParallel(task, static_graph=True, broadcast_buffers=False)


@torch.no_grad()
def broadcast_buffers(network: nn.Module) -> None:
    """Give every process the main one's BatchNorm statistics: those are saved and evaluated."""
    if world_size() > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, 0)


@contextlib.contextmanager
def process_group():
    """The life of a process of a run: only the main one writes to the console; all end together."""
    with contextlib.ExitStack() as stack:
        if not is_main_process():
            nowhere = stack.enter_context(open(os.devnull, "w", errors="replace"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
        if dist.is_initialized():
            dist.barrier()
            dist.destroy_process_group()
