"""A stage of a run: what is trained, by which optimizer, at which rate, how long."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.distributed import data_parallel
from engine.dot import DISTILLATION, DOT, TASK
from engine.objective import Distillation, FirstStage, Task
from engine.recipe import RecipeOptions, Schedule


@dataclass
class Stage:
    """One stage of a run: what is trained, by which optimizer, at which rate, how long."""

    name: str  # "first" or "main"
    task: Task
    optimizer: Optimizer
    scaler: torch.amp.GradScaler
    schedule: Schedule
    epochs: int
    clip_grad: float = 0.0  # largest norm of the gradient; 0 for any

    @property
    def is_main(self) -> bool:
        """Whether the student itself is trained, evaluated and kept."""
        return self.name == "main"

    @property
    def rate(self) -> float | Tensor:
        """The learning rate that the optimizer's next step reads."""
        return self.optimizer.param_groups[0]["lr"]

    @rate.setter
    def rate(self, rate: float | Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    @property
    def momentum_names(self) -> tuple[str, ...]:
        """What the optimizer calls what it keeps of a parameter."""
        if isinstance(self.optimizer, DOT):
            return TASK, DISTILLATION
        if isinstance(self.optimizer, torch.optim.AdamW):
            return "step", "exp_avg", "exp_avg_sq"
        return ("momentum_buffer",) if self.optimizer.defaults["momentum"] else ()

    def data_parallel(self) -> nn.Module:
        """The task as its steps call it: with gradients averaged over the processes, where one
        backward pass gives all of them."""
        return self.task if isinstance(self.optimizer, DOT) else data_parallel(self.task)

    def momenta(self) -> dict[tuple[nn.Parameter, str], Tensor]:
        """The optimizer's momenta, by parameter and name; none before its first step."""
        return {
            (p, name): state[name]
            for p, state in self.optimizer.state.items()
            for name in self.momentum_names
            if state.get(name) is not None
        }

    def state(self) -> dict[str, Any]:
        """Everything that the stage changes."""
        return {
            "task": self.task.training_state(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.task.load_training_state(state["task"])
        groups = self.optimizer.state_dict()["param_groups"]  # rates are the schedule's
        stored = state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": stored, "param_groups": groups})
        for parameter, buffers in self.optimizer.state.items():
            for name, value in buffers.items():  # fused steps need the layout of the parameter
                if value.shape == parameter.shape:  # AdamW's `step` is a number
                    buffers[name] = torch.empty_like(parameter).copy_(value)
        if state["scaler"].keys() == self.scaler.state_dict().keys():  # none of --amp off
            self.scaler.load_state_dict(state["scaler"])


def main_stage(task: Task, schedule: Schedule, recipe: RecipeOptions, delta: float = 0.0) -> Stage:
    """Train all parameters of a task that have a gradient, by the recipe; where `delta` is not 0
    by DOT."""
    optimizer = make_optimizer(task.parameters(), schedule(1), recipe, delta)
    scaler = task.numerics.scaler()
    return Stage("main", task, optimizer, scaler, schedule, recipe.epochs, recipe.clip_grad)


def first_stage(
    task: Distillation, rate: float, recipe: RecipeOptions, epochs: int
) -> Stage | None:
    """What the method trains before the student's own turn, at a constant rate; None for most.

    `rate` is that of the run; a method may have a rate of its own.
    """
    stage = FirstStage(task)
    if not stage.parameters_trained:
        return None
    schedule = Schedule(task.method.first_stage_rate(rate))
    optimizer = make_optimizer(stage.parameters_trained, schedule.start, recipe)
    scaler = task.numerics.scaler()
    return Stage("first", stage, optimizer, scaler, schedule, epochs, recipe.clip_grad)


def make_optimizer(
    parameters: Iterable[nn.Parameter], rate: float, recipe: RecipeOptions, delta: float = 0.0
) -> Optimizer:
    """SGD, AdamW, or DOT where `delta` is not 0."""
    trained = [p for p in parameters if p.requires_grad]
    if delta:
        return DOT(trained, rate, recipe.momentum, recipe.weight_decay, delta)
    if recipe.optimizer == "adamw":
        capturable = trained[0].is_cuda  # else no step can be captured
        return torch.optim.AdamW(
            trained, lr=rate, weight_decay=recipe.weight_decay, fused=True, capturable=capturable
        )
    return torch.optim.SGD(
        trained, lr=rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
