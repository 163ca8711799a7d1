"""The process group: several processes, one run.

Every process runs the networks on its own share of a batch. What the losses read is gathered, so
that each process computes the same losses of the whole batch and keeps the same memories; the
gradients are averaged. A run is therefore the same run on any number of processes, as long as the
student's BatchNorm sees the whole batch too (`--sync_bn`). B batch, b a process's share of it.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from helper.errors import UserError

TO_COME = timedelta(minutes=30)  # that processes may take until all of them have started
TO_PREPARE = timedelta(days=1)  # that one process may take for what it does for all
START_THEM = "start processes with torchrun, or unset RANK, WORLD_SIZE and LOCAL_RANK to run one"
SILENCE = 10.0  # seconds of waiting for another process before it is said
# What gloo raises is a plain RuntimeError that cites its source: "[.../gloo/.../pair.cc:553] ...".
GLOO = re.compile(r"\[\S*/gloo/\S+:\d+\] ")
ADVICE = re.compile(r" This is typically caused .*", re.DOTALL)  # which gloo adds

_patient: dist.ProcessGroup | None = None  # waits TO_PREPARE; what computes fails much earlier


def whole_number(name: str, default: int) -> int:
    """A variable of the environment; the default where it is no whole number from 0 on."""
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default


def rank() -> int:
    """Number of this process; 0 is the main one, which writes."""
    return whole_number("RANK", 0)


def world_size() -> int:
    """How many processes the run has."""
    return whole_number("WORLD_SIZE", 1)


def local_rank() -> int:
    """Number of this process on its machine, which is that of its GPU."""
    return whole_number("LOCAL_RANK", 0)


def is_main_process() -> bool:
    return rank() == 0


class NotJoined(UserError):
    """The processes of a run do not find one another, and cannot agree on who tells of it."""


def check_environment() -> None:
    """UserError unless RANK, WORLD_SIZE and LOCAL_RANK are those of a process of a run."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not (text := os.environ.get(name, "0")).isdecimal():
            raise UserError(f"{name} is {text!r}, no whole number: {START_THEM}")
    if rank() >= world_size():
        found = os.environ.get("WORLD_SIZE", "not set")
        raise UserError(f"RANK is {rank()}, but WORLD_SIZE is {found}: {START_THEM}")


def join(device: torch.device) -> None:
    """Join the process group, where torchrun started several processes."""
    global _patient
    if world_size() == 1 or dist.is_initialized():
        return
    try:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=meet(), rank=rank(), world_size=world_size())
        _patient = dist.new_group(backend="gloo", timeout=TO_PREPARE)
    except (KeyError, ValueError, RuntimeError) as error:
        raise NotJoined(
            f"WORLD_SIZE is {world_size()}, but the processes cannot be joined "
            f"({cause(error)}): {START_THEM}"
        ) from None
    signal.signal(signal.SIGTERM, raise_process_lost)


def meet() -> dist.Store:
    """The store through which the processes find one another, once all of them have come.

    Says for whom it waits. Raises DistError where somebody does not come.
    """
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    serves = is_main_process() and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    with said_when_long(f"waiting for process 0 of {world_size()} at {host}:{port}"):
        store = dist.TCPStore(
            host, port, is_master=serves, timeout=TO_COME, wait_for_workers=False, multi_tenant=True
        )
    store.set(f"came/{rank()}", "")
    for other in range(world_size()) if is_main_process() else ():
        with said_when_long(f"waiting for process {other} of {world_size()} at {host}:{port}"):
            store.wait([f"came/{other}"])
    return store


@contextlib.contextmanager
def said_when_long(text: str) -> Iterator[None]:
    """Say on stderr what is waited for where it takes longer than SILENCE."""
    timer = threading.Timer(SILENCE, print, [text], {"file": sys.stderr, "flush": True})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class ProcessLost(RuntimeError):
    """The run cannot go on, because a process of it is gone."""


def raise_process_lost(*_: Any) -> None:
    raise ProcessLost("this process was told to end")


def is_loss_of_a_process(error: BaseException) -> bool:
    """Whether an exception means that another process does not answer any more."""
    if isinstance(error, (ProcessLost, dist.DistError)):
        return True
    return type(error) is RuntimeError and GLOO.search(str(error)) is not None


def cause(error: BaseException) -> str:
    """What an exception of a process group says, without places in its source and advice."""
    text = f"{error.args[0]} is not set" if isinstance(error, KeyError) else str(error)
    return ADVICE.sub("", GLOO.sub("", text)).rstrip(". \n")


def reports_errors() -> bool:
    """Whether this process is the first to ask: of a mistake that all of them meet, one tells."""
    if not dist.is_initialized():
        return is_main_process() or rank() >= world_size()
    try:
        return dist.distributed_c10d._get_default_store().add("error reported", 1) == 1
    except dist.DistError:  # the store is gone with the process that kept it: nobody can be asked
        return True


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
    dist.broadcast_object_list(answer, group=_patient)
    if answer[1] is not None:
        raise UserError(answer[1])
    return answer[0]


@contextlib.contextmanager
def local_main_process_first():
    """What is inside runs on one process of a machine, then on the others, which find its files."""
    if world_size() > 1 and local_rank():
        dist.barrier(_patient)
    yield
    if world_size() > 1 and not local_rank():
        dist.barrier(_patient)


def share_sizes(n: int) -> list[int]:
    """How many of n samples each process has; as the loaders deal them out."""
    ranks = world_size()
    return [n * (r + 1) // ranks - n * r // ranks for r in range(ranks)]


def gather_batch(x: Tensor, n: int) -> Tensor:
    """Every process's share (b, ...) of n samples -> (n, ...), with a gradient."""
    return x if world_size() == 1 else GatherBatch.apply(x, share_sizes(n))


def on_every_process(mask: Tensor, device: torch.device) -> Tensor:
    """Where a mask is True in all processes: bool, of any shape, on the CPU."""
    if world_size() == 1:
        return mask
    both = mask.to(device, torch.uint8)
    dist.all_reduce(both, dist.ReduceOp.MIN)
    return both.bool().cpu()


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
def average(tensors: Sequence[Tensor]) -> None:
    """Make each the mean of what all processes have."""
    if world_size() == 1:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = (flat / world_size()).split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view_as(tensor))


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
            dist.barrier(_patient)
            dist.destroy_process_group()
