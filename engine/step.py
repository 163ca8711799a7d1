"""One step of training: tensors in, tensors out.

The host waits for nothing in it, and what changes from step to step comes in as a tensor. B batch,
b a process's share of it.
"""

from collections.abc import Mapping

from torch import Tensor, nn

from dataset.base import Batch
from engine.distributed import average
from engine.dot import DOT
from engine.objective import sum_of
from engine.stage import Stage
from helper.errors import UserError


def train_step(stage: Stage, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Forward, backward and the optimizer's step -> what was measured, a scalar each.

    `model` is the stage's task, possibly data parallel. Measured are the terms, the total `loss`
    and, where a classifier is trained, its accuracy `acc` in %.
    """
    output = model(batch)
    if not output.loss.requires_grad:
        raise UserError("no term of the objective depends on the student: give -r or -a a weight")
    stage.optimizer.zero_grad(set_to_none=True)
    if isinstance(stage.optimizer, DOT):
        backward_apart(stage.optimizer, output.weighted)
    else:
        stage.scaler.scale(output.loss).backward()
    if stage.clip_grad:
        clip_gradients(stage)
    stage.scaler.step(stage.optimizer)
    stage.scaler.update()
    measured = {**output.terms, "loss": output.loss}
    if output.logits is not None:
        hits = output.logits.argmax(dim=1) == batch.labels  # (B,)
        measured["acc"] = hits.sum() * (100 / len(hits))
    return {name: value.detach() for name, value in measured.items()}


def backward_apart(optimizer: DOT, losses: Mapping[str, Tensor]) -> None:
    """Gradients of cross-entropy, and by themselves those of the other terms.

    They are averaged over the processes here: DistributedDataParallel knows one pass a step.
    """
    others = [loss for name, loss in losses.items() if name != "ce" and loss.requires_grad]
    losses["ce"].backward(retain_graph=True)
    optimizer.take_task_gradients()
    if others:  # what has a first stage alone has none
        sum_of(others).backward()
    average(optimizer.gradients())


def clip_gradients(stage: Stage) -> None:
    """Scale what the optimizer is about to read to a norm of `clip_grad`, where it is larger."""
    if isinstance(stage.optimizer, DOT):
        stage.optimizer.clip(stage.clip_grad)
        return
    stage.scaler.unscale_(stage.optimizer)
    trained = [p for group in stage.optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, stage.clip_grad)
