"""The best of several values of a flag, chosen on held-out training images."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from cli.job import Job
from cli.parse import parse_student
from cli.plan import ALONE, Block, read_plan, words
from helper.errors import UserError
from runs.results import read_result
from runs.table import Column, spread, text_table
from sweeps.table import Status, Sweep

Accuracies = dict[str, dict[str, list[float]]]  # label -> pair -> of each trial
HELD_OUT = ("--val_fraction", "0.1")  # of students, where the plan says nothing


@dataclass
class Search:
    """`values` of `flag`, tried with each method of a plan that takes it."""

    flag: str
    values: tuple[str, ...]
    labels: dict[str, tuple[str, str]] = field(default_factory=dict)  # -> label of the plan, value

    @staticmethod
    def read(text: str) -> "Search":
        """'-b 0.1,0.3,1,3'"""
        parts = words(text)
        values = tuple(parts[1].split(",")) if len(parts) == 2 else ()
        if not all(values) or len(values) < 2 or not parts[0].startswith("-"):
            raise UserError(f'--search {text!r} is no flag with its values: "-b 0.1,0.3,1,3"')
        return Search(parts[0], values)

    def jobs(self, path: str, more: str) -> list[Job]:
        """The runs of the search: students by each method and value, and the teachers they need."""
        jobs = read_plan(path, more, self.change)
        needed = {need for job in jobs for need in job.needs}
        return [job for job in jobs if job.label != ALONE or job in needed]

    def change(self, block: Block) -> Block:
        """A block of the plan with a method for each value, and images held out."""
        typed = (*block.flags, *block.student_flags)
        said = any(word.replace("-", "_").startswith("__val_fraction") for word in typed)
        flags = block.student_flags if said else (*HELD_OUT, *block.student_flags)
        methods = {}
        for label, (name, *fragment) in block.methods.items():
            for value in self.values:
                more = (*fragment, self.flag, value)
                own = ["--distill", name, "--dataset", block.dataset]
                try:
                    parse_student([*own, *block.flags, *flags, *more])
                except UserError as error:
                    why = error
                    continue
                text = f"{label} {self.flag} {value}"
                methods[text] = (name, *more)
                self.labels[text] = label, value
        if not methods:
            raise UserError(f"--search: no method of the plan takes {self.flag}: {why}")
        return replace(block, methods=methods, student_flags=flags, transfer=())

    def result(self, table: Sweep) -> str:
        """A table of accuracies on the held-out images, and the best value of each method."""
        found = self.accuracies(table)
        if not found:
            return "no run of the search is finished"
        pairs = dict.fromkeys(pair for entry in found.values() for pair in entry)
        columns = [
            Column(pair, [spread(x[pair]) if pair in x else None for x in found.values()], ".2f")
            for pair in pairs
        ]
        text = text_table([Column("held-out %", list(found)), *columns])
        return "\n".join([text, "", *self.best(found)])

    def accuracies(self, table: Sweep) -> Accuracies:
        """Of the last epoch of each finished run."""
        found: Accuracies = {}
        for task in table.tasks.values():
            if task.job.label in self.labels and task.status is Status.FINISHED:
                pair = f"{task.job.teacher} {task.job.model}".strip()
                accuracy = read_result(task.job.finished()).last["val_acc"]
                found.setdefault(task.job.label, {}).setdefault(pair, []).append(accuracy)
        return found

    def best(self, found: Accuracies) -> Iterator[str]:
        """Of each method a line on its best value, by the mean over the pairs that all its values
        have finished, as many runs of each."""
        for method in dict.fromkeys(label for label, _ in self.labels.values()):
            own = {v: found.get(t, {}) for t, (label, v) in self.labels.items() if label == method}
            counts = {value: {pair: len(x) for pair, x in e.items()} for value, e in own.items()}
            first, *rest = counts.values()
            shared = [pair for pair in first if all(c.get(pair) == first[pair] for c in rest)]
            if not shared:
                yield f"{method}: no pair is finished for every value, so none is the best"
                continue
            means = {
                value: statistics.mean(statistics.mean(entry[pair]) for pair in shared)
                for value, entry in own.items()
            }
            value = max(means, key=means.get)
            some = "" if all(len(c) == len(shared) for c in counts.values()) else " so far"
            yield f"{method}: {self.flag} {value} ({means[value]:.2f} % held-out{some})"
