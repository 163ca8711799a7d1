"""One step of training: tensors in, tensors out.

The host waits for nothing in it, and what changes from step to step comes in as a tensor. B batch,
b a process's share of it.
"""

from torch import Tensor, nn

from dataset.base import Batch
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
    stage.scaler.scale(output.loss).backward()
    if stage.clip_grad:
        clip_gradients(stage)
    stage.scaler.step(stage.optimizer)
    stage.scaler.update()
    measured = {**output.terms, "loss": output.loss}
    if output.logits is not None:
        hits = output.logits.argmax(dim=1) == batch.labels  # (B,)
        measured["acc"] = 100 * hits.double().mean()
    return {name: value.detach() for name, value in measured.items()}


def clip_gradients(stage: Stage) -> None:
    """Scale what the optimizer is about to read to a norm of `clip_grad`, where it is larger."""
    stage.scaler.unscale_(stage.optimizer)
    trained = [p for group in stage.optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, stage.clip_grad)
