"""--cuda_graph: a step of training is captured once, and replayed on each batch.

A replay issues forward, backward and the optimizer's step in one call, from and to tensors that
stay where they are. B batch.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from dataset.base import Batch
from engine.distributed import world_size
from engine.stage import Stage
from engine.step import train_step
from helper.errors import UserError

WARM_UP = 3  # steps before the capture, in which kernels are chosen and memory is set aside

# A step and its stage -> what replays it. The step runs several times, or is only looked at.
Capture = Callable[[Callable[[], Tensor], Stage], Callable[[], Tensor]]


class StageStep:
    """The training step of a stage: replayed where `capture` is given, else `train_step` itself.

    It is captured with its first batch; a batch of another size, such as the last one of an epoch,
    is trained on by `train_step`. A stage that is loaded anew needs a new one.
    """

    replay: Callable[[], Tensor]  # -> (M,) what was measured, in the order of `names`

    def __init__(self, stage: Stage, model: nn.Module, capture: Capture | None = None):
        """`model` is the stage's task, possibly data parallel."""
        self.stage, self.model, self.capture = stage, model, capture
        self.inputs: Batch | None = None  # what a replay reads
        self.names: tuple[str, ...] = ()
        self.replays = 0
        device = stage.task.numerics.device
        # The optimizer's kernel wants float32 on a GPU and computes with Python's numbers elsewhere
        kind = torch.float32 if device.type == "cuda" else torch.float64
        self.rates = [torch.zeros((), dtype=kind, device=device) for _ in stage.rates]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Train on a batch -> what was measured, a scalar each."""
        if self.capture and self.inputs is None:
            self._capture(batch)
        if self.inputs is None or batch.images.shape != self.inputs.images.shape:
            return train_step(self.stage, self.model, batch)
        for static, given in zip(self.inputs, batch):
            static.copy_(given)
        for static, rate in zip(self.rates, self.stage.rates):
            static.fill_(rate)
        measured = self.replay().clone()
        self.replays += 1
        return dict(zip(self.names, measured.unbind(), strict=True))

    def _capture(self, batch: Batch) -> None:
        self.inputs = Batch(*(x.clone() for x in batch))
        with undone(self.stage):
            self.stage.rates = self.rates
            self.replay = self.capture(self._measure, self.stage)

    def _measure(self) -> Tensor:
        """`train_step` on the static inputs -> (M,) float64"""
        measured = train_step(self.stage, self.model, self.inputs)
        self.names = tuple(measured)
        return torch.stack([value.double() for value in measured.values()])


@contextmanager
def undone(stage: Stage) -> Iterator[None]:
    """Undo the steps that are taken inside: their tensors stay where they are, with old values."""
    task, device, rates = stage.task, stage.task.numerics.device, stage.rates
    tensors = [*task.parameters(), *task.buffers()]
    before = [tensor.detach().clone() for tensor in tensors]
    old_momenta = {p: momentum.clone() for p, momentum in stage.momenta().items()}
    drawn = task.generator and task.generator.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield
    with torch.no_grad():
        for tensor, value in zip(tensors, before, strict=True):
            tensor.copy_(value)
        for p, momentum in stage.momenta().items():  # zeros are as good as none in the next step
            momentum.copy_(old_momenta[p]) if p in old_momenta else momentum.zero_()
    if task.generator:
        task.generator.set_state(drawn)
    stage.rates = rates


def cuda_capture(step: Callable[[], Tensor], stage: Stage) -> Callable[[], Tensor]:
    """Capture a step as a CUDA graph. UserError where it reads a value on the host."""
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    if stage.task.generator:
        graph.register_generator_state(stage.task.generator)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    stage.optimizer.zero_grad(set_to_none=True)  # so that gradients lie in the graph's memory
    try:
        # Threads that read image files may pin memory meanwhile.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            measured = step()
    except RuntimeError as error:
        cause, _, _ = str(error.__context__ or error).partition("\n")  # the end fails as well then
        raise UserError(
            f"--cuda_graph: the step cannot be captured ({cause}); leave the flag out"
        ) from error

    def replay() -> Tensor:
        graph.replay()
        return measured

    return replay


def make_step(stage: Stage, model: nn.Module) -> StageStep:
    """The step of a stage, captured where --cuda_graph asks for it and nothing is in the way."""
    if not stage.task.numerics.cuda_graph:
        return StageStep(stage, model)
    if reason := why_not(stage):
        warnings.warn(f"--cuda_graph: no step is captured: {reason}", stacklevel=2)
        return StageStep(stage, model)
    return StageStep(stage, model, cuda_capture)


def why_not(stage: Stage) -> str:
    """What keeps the steps of a stage from being captured; '' where nothing does."""
    device = stage.task.numerics.device
    if device.type != "cuda":
        return f"{device} is no GPU"
    if world_size() > 1:
        return "there are several processes"
    if stage.scaler.is_enabled():
        return "--amp fp16 scales the loss by what the host reads; bf16 does not"
    if not stage.task.capturable:
        return "the method reads values on the host"
    return ""
