"""--dot: an optimizer with a momentum of the task and one of distillation."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

TASK, DISTILLATION = "momentum_task", "momentum_distillation"


class DOT(Optimizer):
    """Zhao et al., DOT: A Distillation-Oriented Trainer, ICCV 2023: SGD with two momenta.

    The task's is `momentum` - `delta`, distillation's `momentum` + `delta`; weight decay belongs to
    the task. What one of the two losses alone reaches has plain momentum, and the decay; as in the
    published code not in the first step where that is distillation.

    `take_task_gradients` takes those of the task off the parameters; the gradients that parameters
    have when it steps are distillation's.
    Reference: megvii-research/mdistiller, mdistiller/engine/dot.py.
    """

    def __init__(
        self, parameters: Iterable, lr: float, momentum: float, weight_decay: float, delta: float
    ):
        super().__init__(
            parameters,
            {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "delta": delta},
        )
        self.of_task: dict[nn.Parameter, Tensor] = {}

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def take_task_gradients(self) -> None:
        """The gradients that the parameters have are those of the task."""
        self.of_task = {p: p.grad for p in self.trained if p.grad is not None}
        self.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """All that the next step reads."""
        return [*self.of_task.values(), *(p.grad for p in self.trained if p.grad is not None)]

    @torch.no_grad()
    def clip(self, largest: float) -> None:
        """Scale all gradients alike so that the norm of their sums is at most so much."""
        of_task = self.of_task
        touched = [
            (of_task.get(p), p.grad) for p in self.trained if p in of_task or p.grad is not None
        ]
        sums = [b if a is None else a if b is None else a + b for a, b in touched]
        scale = (largest / (nn.utils.get_total_norm(sums) + 1e-6)).clamp(max=1)
        for gradient in self.gradients():
            gradient.mul_(scale)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            momentum, delta, decay = group["momentum"], group["delta"], group["weight_decay"]
            for p in group["params"]:
                task, distillation = self.of_task.get(p), p.grad
                if task is None and distillation is None:
                    continue
                apart = delta if task is not None and distillation is not None else 0.0
                step = torch.zeros_like(p)
                if task is not None:
                    own = self.buffer(p, TASK)
                    step += own.mul_(momentum - apart).add_(task).add_(p, alpha=decay)
                if distillation is not None:
                    own = self.buffer(p, DISTILLATION)
                    if task is None:
                        distillation = distillation + decay * p * own.any()  # none at first
                    step += own.mul_(momentum + apart).add_(distillation)
                p.sub_(group["lr"] * step)
        self.of_task = {}

    def buffer(self, p: nn.Parameter, name: str) -> Tensor:
        """A momentum of a parameter; 0 before its first step."""
        if name not in self.state[p]:
            self.state[p][name] = torch.zeros_like(p)
        return self.state[p][name]
