"""The workers of a sweep: Ray tasks, on this machine or on a cluster."""

import importlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.extras import import_extra
from sweeps import child
from sweeps.table import Task

STORE = 80 << 20  # bytes of Ray's object store, in which nothing is kept here
FRACTION = 10_000  # parts of a GPU that Ray tells apart


def import_needed(name: str) -> Any:
    """A package of requirements-sweep.txt."""
    return import_extra(name, "requirements-sweep.txt", "a sweep")


class Pool:
    """Runs of a sweep on the workers of Ray; entered, Ray is there, and left, every run has ended.

    A run gets `cpus` cores and, where there are GPUs, one `per_gpu`-th of one.
    """

    def __init__(self, address: str, cpus: int, per_gpu: int):
        """`address` of a cluster that is there; "" starts Ray on this machine."""
        self.ray, self.cpus, self.per_gpu = import_needed("ray"), cpus, per_gpu
        self.address, self.tasks = address, {}  # reference of Ray -> the run
        self.homes: dict[str, int] = {}  # teacher -> number of the node for its students

    def __enter__(self) -> "Pool":
        here = {"address": "local", "include_dashboard": False, "object_store_memory": STORE}
        how = {"address": self.address} if self.address else here
        try:
            self.ray.init(**how, log_to_driver=False, logging_level="error")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise UserError(f"Ray does not start at {how['address']}: {error}") from None
        nodes = [node for node in self.ray.nodes() if node["Alive"]]
        if max(node["Resources"].get("CPU", 0) for node in nodes) < self.cpus:
            self.ray.shutdown()
            raise UserError(f"no machine has {self.cpus} CPU cores: give fewer --cpus")
        self.nodes = sorted(node["NodeID"] for node in nodes)
        self.has_gpus = any(node["Resources"].get("GPU") for node in nodes)
        self.ray.cloudpickle.register_pickle_by_value(child)  # later edits change no run
        self.run_child = self.ray.remote(child.run_child)
        return self

    def __exit__(self, *_: Any) -> None:
        for reference in self.tasks:
            self.ray.cancel(reference)
        if self.tasks:
            ended = len(self.tasks)
            self.ray.wait(list(self.tasks), num_returns=ended, timeout=2 * child.GRACE)
        self.ray.shutdown()

    def submit(self, task: Task, command: Sequence[str]) -> None:
        """Run a command when there is a worker for it."""
        task.log.parent.mkdir(parents=True, exist_ok=True)
        gpus = 1 if task.whole_gpu else math.floor(FRACTION / self.per_gpu) / FRACTION
        run = self.run_child.options(
            num_cpus=self.cpus,
            num_gpus=gpus if self.has_gpus else 0,
            max_retries=0,  # what is done depends on how it ended
            scheduling_strategy=self.strategy(task),
        )
        reference = run.remote(list(command), str(Path.cwd()), str(task.log.absolute()), self.cpus)
        self.tasks[reference] = task

    def strategy(self, task: Task) -> Any:
        """Students of one teacher go to one node, whose memory then has its bank, while that has
        room; else to any."""
        teacher = task.job.teacher and (task.job.source or task.job.teacher)
        if len(self.nodes) == 1 or not teacher:
            return "DEFAULT"
        home = self.homes.setdefault(teacher, len(self.homes))
        strategies = importlib.import_module("ray.util.scheduling_strategies")
        return strategies.NodeAffinitySchedulingStrategy(
            self.nodes[home % len(self.nodes)], soft=True, _spill_on_unavailable=True
        )

    def ended(self, timeout: float) -> list[tuple[Task, int | None]]:
        """Runs that have ended, at least one unless it takes longer than `timeout` seconds, with
        their exit codes: None where the worker or its node was lost."""
        if not self.tasks:
            return []
        found, _ = self.ray.wait(list(self.tasks), timeout=timeout)
        return [(self.tasks.pop(reference), self.code_of(reference)) for reference in found]

    def code_of(self, reference: Any) -> int | None:
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.RayError:
            return None
