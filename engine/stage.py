"""A stage of a run: what is trained, by which optimizer, at which rate, how long."""

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from engine.average import Average
from engine.distributed import data_parallel
from engine.dot import DISTILLATION, DOT, TASK
from engine.objective import Distillation, FirstStage, Task
from engine.recipe import RecipeOptions, Schedule
from helper.errors import UserError


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
    average: Average | None = None  # of the student's weights, which is evaluated and kept then

    @property
    def is_main(self) -> bool:
        """Whether the student itself is trained, evaluated and kept."""
        return self.name == "main"

    @property
    def rates(self) -> list[float | Tensor]:
        """The learning rates that the optimizer's next step reads, of each group of parameters."""
        return [group["lr"] for group in self.optimizer.param_groups]

    @rates.setter
    def rates(self, rates: Iterable[float | Tensor]) -> None:
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def begin_epoch(self, epoch: int) -> None:
        """Set the rates to those of an epoch."""
        rate = self.schedule(epoch)
        self.rates = [rate * group["share"] for group in self.optimizer.param_groups]

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

    def averaged(self) -> AbstractContextManager:
        """Inside, the student has what is evaluated and kept of it."""
        return self.average.in_place() if self.average else nullcontext()

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """What is evaluated and kept of each student, by its name."""
        kept = {name: one.student.state_dict() for name, one in self.task.trained.items()}
        if self.average:
            kept[""].update(self.average.values)
        return kept

    def state(self) -> dict[str, Any]:
        """Everything that the stage changes."""
        return {
            "average": self.average.values if self.average else {},
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
        if self.average:
            self.average.load(state["average"])
        if state["scaler"].keys() == self.scaler.state_dict().keys():  # none of --amp off
            self.scaler.load_state_dict(state["scaler"])


def main_stage(task: Task, schedule: Schedule, recipe: RecipeOptions, delta: float = 0.0) -> Stage:
    """Train all parameters of a task that have a gradient, by the recipe; where `delta` is not 0
    by DOT.

    UserError where --backbone_rate has no classifier, or nothing else, to tell apart.
    """
    groups = parameter_groups(task.parameters(), task, recipe, schedule.start)
    if recipe.backbone_rate and len(groups) < 2:
        raise UserError(
            "--backbone_rate tells a network from its classifier, and here one of them is not "
            "trained: leave it out"
        )
    optimizer = make_optimizer(groups, schedule(1), recipe, delta)
    scaler = task.numerics.scaler()
    average = Average(task.student, recipe.ema) if recipe.ema else None
    return Stage(
        "main", task, optimizer, scaler, schedule, recipe.epochs, recipe.clip_grad, average
    )


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
    groups = parameter_groups(stage.parameters_trained, task, recipe, rate)
    optimizer = make_optimizer(groups, schedule.start, recipe)
    scaler = task.numerics.scaler()
    return Stage("first", stage, optimizer, scaler, schedule, epochs, recipe.clip_grad)


def parameter_groups(
    parameters: Iterable[nn.Parameter], task: Task, recipe: RecipeOptions, rate: float
) -> list[dict[str, Any]]:
    """Parameters that are trained -> groups of an optimizer, each with its `share` of the rate.

    It is one group, or another one beside it of those that have a rate of their own. `rate` is what
    a run starts at.
    """
    trained = [p for p in parameters if p.requires_grad]
    apart, own = parameters_apart(task, recipe)
    groups = [
        {"params": [p for p in trained if p not in apart], "share": 1.0},
        {"params": [p for p in trained if p in apart], "share": own / rate},
    ]
    return [group for group in groups if group["params"]]


def parameters_apart(task: Task, recipe: RecipeOptions) -> tuple[set[nn.Parameter], float]:
    """Those that have a rate of their own, and what it starts at: with --backbone_rate the student
    without its classifier, else a second student."""
    if recipe.backbone_rate is not None:
        student = task.student
        return {*student.parameters()} - {*student.head.parameters()}, recipe.backbone_rate
    with_rate = (one for one in task.trained.values() if one.rate is not None)
    if second := next(with_rate, None):
        return {*second.student.parameters()}, second.rate
    return set(), 0.0


def make_optimizer(
    groups: list[dict[str, Any]], rate: float, recipe: RecipeOptions, delta: float = 0.0
) -> Optimizer:
    """SGD, AdamW, or DOT where `delta` is not 0, at the rate of the first step."""
    groups = [{**group, "lr": rate * group["share"]} for group in groups]
    if delta:
        return DOT(groups, rate, recipe.momentum, recipe.weight_decay, delta)
    if recipe.optimizer == "adamw":
        capturable = groups[0]["params"][0].is_cuda  # else no step can be captured
        return torch.optim.AdamW(
            groups, rate, weight_decay=recipe.weight_decay, fused=True, capturable=capturable
        )
    return torch.optim.SGD(
        groups, rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=True
    )
