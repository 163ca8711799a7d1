"""Finished runs -> a table of methods x pairs, whose cells have the same protocol throughout.

A column is a pair of networks on some data under one protocol: runs of another one (epochs,
augmentation, fraction of the images ...) are another column. A row is a method with its flags.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

from cli.flags import BankOptions, StudentOptions
from cli.job import Job, same_but_data
from cli.parse import COMMON
from cli.plan import ALONE
from cli.published import Published, published
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from engine.recipe import decays_in_force
from helper.errors import UserError
from helper.options import added_defaults
from reporting.statistics import Difference, half_interval, paired, ranks
from runs import checkpoint
from runs.collect import group_runs
from runs.experiment import NO_NUMBER, ROUNDING, Experiment, canonical
from runs.logs import read_lines
from runs.results import Result
from runs.stored import read_summary
from runs.table import Spread, in_cell, spread

SHORT = {"gamma": "-r", "alpha": "-a", "beta": "-b"}
# How images are augmented, which is said as one; and what of it is standard.
AUGMENTATION = ("aug", "randaugment", "crop", "flip")
STANDARD = {("aug", False), ("randaugment", False), ("crop", "padded"), ("flip", True)}
OF_SOME_RECIPES = {"lr_decay_epochs", "lr_decay_rate", "momentum"}  # see recipe.without_meaning
USUAL = {"train_fraction": 1, "fraction_seed": 0, "processes": 1, "lr_decay_rate": 0.1}
VIEWS_OFF = (None, False, (), [], 0)  # values of a view's switch where it is off


@dataclass(frozen=True, eq=False)
class Trial:
    """One finished run, with all that it wrote down."""

    run: Result

    @cached_property
    def summary(self) -> dict[str, Any]:
        return read_summary(self.run.folder / "run.json")

    @cached_property
    def history(self) -> list[dict[str, float]]:
        """Its epochs."""
        return read_lines(self.run.folder / "metrics.jsonl")

    @property
    def checkpoints(self) -> list[Path]:
        """The files of its network."""
        return [path for path in self.run.folder.glob("*.pth") if path.name != "resume.pth"]

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def data(self) -> str:
        """Fingerprint of the images; empty where the run does not say it."""
        return str(self.summary.get("experiment", {}).get("data", ""))

    @property
    def started(self) -> list[dict[str, Any]]:
        """What is known of each of its starts."""
        return self.summary.get("provenance", [])


class Column(NamedTuple):
    """A pair of networks on some data, and the protocol of its runs."""

    data: str
    images: str  # fingerprint
    teacher: str  # empty where there is none
    source: str  # sha256 of the teacher
    student: str
    protocol: tuple[tuple[str, Any], ...]

    @property
    def pair(self) -> str:
        return f"{self.teacher} → {self.student}" if self.teacher else self.student

    def has_student_of(self, other: "Column") -> bool:
        """Whether both are of the same student under the same protocol."""
        return self._replace(teacher="", source="") == other._replace(teacher="", source="")


@dataclass(frozen=True)
class Cell:
    """The trials of a method on a pair."""

    label: str
    column: Column
    trials: tuple[Trial, ...]  # by seed
    published: Published | None = None
    rank: float | None = None  # among the cells of the column that have several trials
    over_alone: Difference | None = None
    over_baseline: Difference | None = None

    @property
    def n(self) -> int:
        return len(self.trials)

    @property
    def taught(self) -> bool:
        return bool(self.trials[0].run.teacher)

    def by_seed(self) -> dict[int, float]:
        """Last accuracies in %."""
        return {trial.seed: trial.run.last["test_acc"] for trial in self.trials}

    @property
    def last(self) -> Spread:
        return spread(self.by_seed().values())

    @property
    def half(self) -> float | None:
        """Half of the 95 % interval of the mean; None of one trial."""
        return half_interval(list(self.by_seed().values()))

    @property
    def best(self) -> Spread:
        return spread(trial.run.best["test_acc"] for trial in self.trials)

    @property
    def seconds(self) -> Spread:
        return spread(trial.run.seconds for trial in self.trials)

    @property
    def parameters(self) -> int:
        return self.trials[0].run.parameters

    @property
    def gap(self) -> float | None:
        """Ours minus published; None where nothing is known."""
        return self.last.mean - self.published.accuracy if self.published else None


@dataclass
class Table:
    """All cells, and what stands around them."""

    labels: list[str]  # of the rows, in order
    columns: list[Column]
    cells: dict[tuple[str, Column], Cell]
    baseline: str = ""  # label of the KD row; empty where there is none
    teachers: list[Trial] = field(default_factory=list)  # runs that stand in no cell
    notes: list[str] = field(default_factory=list)

    def name(self, label: str) -> str:
        """How a row is called: a method that needs no teacher is marked."""
        taught = any(cell.taught for cell in self.cells.values() if cell.label == label)
        return label if taught or label == ALONE else f"{label} (no teacher)"

    def of(self, column: Column) -> list[Cell]:
        """The cells of a column, in the order of the rows."""
        found = (self.cells.get((label, column)) for label in self.labels)
        return [cell for cell in found if cell]

    @property
    def trials(self) -> list[Trial]:
        """Every run once."""
        every = [trial for cell in self.cells.values() for trial in cell.trials]
        return list({trial.run.folder: trial for trial in [*self.teachers, *every]}.values())

    def teacher_facts(self, column: Column) -> dict[str, Any]:
        """What its students' runs say of a column's teacher, as `acc` in %; empty where nothing."""
        for cell in self.of(column):
            teacher = cell.trials[0].summary.get("teacher") or {}
            if column.teacher and teacher.get("sha256") == column.source and "acc" in teacher:
                return teacher
        return {}

    def teacher_accuracy(self, column: Column) -> float | None:
        return self.teacher_facts(column).get("acc")

    @cached_property
    def shared(self) -> dict[str, Any]:
        """The protocol of a column whose head says nothing else: what more than half of all have,
        else what goes without saying."""
        protocols = list(map(self.protocol, self.columns))
        found = {}
        for name in sorted(set().union(*protocols)):
            values = [protocol[name] for protocol in protocols if name in protocol]
            value, times = Counter(values).most_common(1)[0]
            everywhere = len(values) == len(protocols) or name in OF_SOME_RECIPES
            if everywhere and 2 * times > len(protocols):
                found[name] = value
            elif name in usual_values():
                found[name] = usual_values()[name]
        return found

    def own(self, column: Column) -> dict[str, Any]:
        """What of a column's protocol is not shared."""
        protocol, nothing = self.protocol(column), object()
        return {n: v for n, v in protocol.items() if self.shared.get(n, nothing) != v}

    def protocol(self, column: Column) -> dict[str, Any]:
        """Of a column; where epochs differ, decays that lie where the recipe has them are None."""
        options = dict(column.protocol)
        several = len({dict(other.protocol).get("epochs") for other in self.columns}) > 1
        if several and "lr_decay_epochs" in options:
            decays = decays_in_force(options["lr_decay_epochs"], options["epochs"])
            usual = decays == decays_in_force(None, options["epochs"])
            options["lr_decay_epochs"] = None if usual else decays
        return options


# ---- from runs to a table


def make_table(
    runs: Sequence[Result],
    jobs: Sequence[Job],
    known: Sequence[Published],
    baseline: str = "",
) -> Table:
    """The table of finished runs; those of a plan's `jobs` alone, under its labels, if there are.

    UserError where no row is called like the `baseline`.
    """
    groups = [
        tuple(sorted(map(Trial, group), key=lambda trial: trial.seed))
        for group in group_runs(runs)
        if group[0].kind != "probe"
    ]
    probes = sum(run.kind == "probe" for run in runs)
    notes = [f"left out: {probes} linear probes, see scripts/compare.py"] * bool(probes)
    labels = labels_of_plan(groups, jobs, notes) if jobs else labels_of_runs(groups)
    groups = [group for group in groups if group[0] in labels]
    columns = pairs_of(column_of(g[0]) for g in groups if g[0].run.kind == "student")
    cells, teachers = [], []
    sources = {(column.teacher, column.source) for column in columns}
    for group in groups:
        homes = places(group[0], columns)
        if not homes and not all(teaches(trial, sources) for trial in group):
            homes = [column_of(group[0])]
        cells += [Cell(labels[group[0]], column, group, published(group[0].run, known))
                  for column in homes]  # fmt: skip
        teachers += [] if homes else group
    own = [cell.column for cell in cells if cell.column not in columns]
    cells = told_apart(cells, notes)
    order = [job.label for job in jobs] + [cell.label for cell in cells]
    rows = [label for label in dict.fromkeys([ALONE, *order]) if label in {c.label for c in cells}]
    table = Table(
        rows,
        [*columns, *dict.fromkeys(own)],
        {(cell.label, cell.column): cell for cell in cells},
        find_baseline(cells, baseline),
        teachers,
        notes,
    )
    compare_cells(table)
    return table


def column_of(trial: Trial) -> Column:
    run = trial.run
    options = {name: canonical(run.options[name]) for name in protocol_names(run.options)}
    options = {**newer_defaults(protocol_classes(run.options)), **options}
    found = {(name, options.pop(name)) for name in AUGMENTATION if name in options}
    options["augmentation"] = tuple(sorted(found - STANDARD))
    if views_per_image(run.options) > 1:
        options["strong_views"] = True
    return Column(
        run.data, trial.data, run.teacher, run.source, run.model, tuple(sorted(options.items()))
    )


@cache
def usual_values() -> dict[str, Any]:
    """Values of a protocol that go without saying."""
    sources = [DATASETS[name].Options for name in DATASETS]
    return {**newer_defaults([*COMMON, *sources]), **USUAL}


def newer_defaults(classes: Iterable[type]) -> dict[str, Any]:
    """Defaults of newer options that change a number: a run has them where it does not say it."""
    added = added_defaults(classes)
    return {n: canonical(value) for n, value in added.items() if n not in NO_NUMBER | ROUNDING}


def unusual(protocol: Mapping[str, Any]) -> dict[str, Any]:
    """What of a protocol does not go without saying."""
    usual = usual_values()
    return {n: value for n, value in protocol.items() if n not in usual or usual[n] != value}


def views_per_image(options: Mapping[str, Any]) -> int:
    """Augmented views of an image that a student saw; its recipe is another one with two."""
    if options.get("distill") not in METHODS:
        return 1
    method = METHODS[options["distill"]]
    own = {f.name: options[f.name] for f in fields(method.Options) if f.name in options}
    return method.views_per_image(method.Options(**own)) if options.get("beta") else 1


def protocol_names(options: Mapping[str, Any]) -> list[str]:
    """Those of a run's options that are no part of the method: data, recipe, processes."""
    names = {f.name for cls in protocol_classes(options) for f in fields(cls)} | {"processes"}
    return sorted(names.intersection(options) - {"seed", "dataset"})


def protocol_classes(options: Mapping[str, Any]) -> list[type]:
    """What declares them."""
    data = DATASETS[options["dataset"]] if options.get("dataset") in DATASETS else None
    return [*COMMON, *([data.Options] if data else [])]


def pairs_of(columns: Iterable[Column]) -> list[Column]:
    """Each column once; one without a teacher only where its student is in no pair."""
    columns = list(dict.fromkeys(columns))
    pairs = [column for column in columns if column.teacher]
    return [c for c in columns if c in pairs or not any(map(c.has_student_of, pairs))]


def places(trial: Trial, columns: Sequence[Column]) -> list[Column]:
    """The columns that a run stands in: its own; without a teacher those of the same student."""
    own = column_of(trial)
    return [own] if own.teacher else [c for c in columns if c.has_student_of(own)]


def teaches(trial: Trial, sources: Collection[tuple[str, str]]) -> bool:
    """Whether a checkpoint of a run is among these: network and sha256 of teachers."""
    model = trial.run.model
    return any(name == model for name, _ in sources) and any(
        (model, checkpoint.digest(path)) in sources for path in trial.checkpoints
    )


def labels_of_runs(groups: Iterable[Sequence[Trial]]) -> dict[Trial, str]:
    """Label of each group, by its first trial: the method and the flags that were typed."""
    return {group[0]: fragment(group[0]) for group in groups}


def fragment(trial: Trial) -> str:
    """'crd -a 1': the method of a run as a plan has it."""
    run = trial.run
    if run.kind == "teacher":
        return ALONE
    origin = trial.summary.get("origin")
    if not isinstance(origin, dict):
        return run.objective
    general = {*protocol_names(run.options), "seed", "distill", "model_s", "model_t", "dataset"}
    general |= NO_NUMBER | ROUNDING | {f.name for f in fields(BankOptions)}
    words = [str(run.options.get("distill", StudentOptions.distill))]
    for name in sorted(run.options.keys() - general):
        if origin.get(name) == "typed":
            value = in_cell(run.options, name)
            words += [SHORT.get(name, f"--{name}"), *([value] if value != "on" else [])]
    return " ".join(words)


def labels_of_plan(
    groups: Iterable[Sequence[Trial]], jobs: Sequence[Job], notes: list[str]
) -> dict[Trial, str]:
    """The same from a plan; what is not in it is noted, and what of it is not finished."""
    labels, found = {}, set()
    for group in groups:
        for trial in group:
            here = [job for job in jobs if is_of(job, trial)]
            found.update(here)
            if here:
                labels.setdefault(group[0], here[0].label)
        if group[0] not in labels:
            notes += [f"not in the plan: {trial.run.folder}" for trial in group]
    missing = [job for job in jobs if job not in found and job.kind != "probe"]
    notes += [f"not finished: {job.command()}" for job in missing]
    return labels


def is_of(job: Job, trial: Trial) -> bool:
    """Whether a run is a job of a plan, wherever it is kept."""
    try:
        run = Experiment.from_dict(trial.summary.get("experiment"))
    except UserError:  # of the first release
        return False
    return same_but_data(job.experiment, run)


def told_apart(cells: Sequence[Cell], notes: list[str]) -> list[Cell]:
    """Cells whose labels and columns are not alike: a digest is added to the labels of those."""
    times = Counter((cell.label, cell.column) for cell in cells)
    apart = []
    for cell in cells:
        if times[cell.label, cell.column] > 1:
            label = f"{cell.label} #{cell.trials[0].run.row[:6]}"
            cell = replace(cell, label=label)
            run = cell.trials[0].run
            notes.append(f"{label}: one of several that are called {cell.label}: {run.folder}")
        apart.append(cell)
    return apart


def find_baseline(cells: Sequence[Cell], named: str) -> str:
    """The label of the row that others are compared with: plain KD, or the one that is named."""
    labels = list(dict.fromkeys(cell.label for cell in cells))
    if named:
        if named not in labels:
            raise UserError(f"--baseline {named} is none of the rows: {', '.join(labels)}")
        return named
    plain = [cell for cell in cells if is_plain_kd(cell.trials[0].run)]
    plain.sort(key=lambda cell: len(fragment(cell.trials[0])))  # the fewest flags first
    return plain[0].label if plain else ""


def is_plain_kd(run: Result) -> bool:
    """Whether a run is KD of one teacher without a view, another divergence or optimizer."""
    options = run.options
    return (
        options.get("distill") == "kd"
        and options.get("divergence", "kl") == "kl"
        and " " not in run.teacher
        and all(options.get(name) in VIEWS_OFF for name in (*VIEWS, "dot"))
    )


def compare_cells(table: Table) -> None:
    """Ranks, and differences to the student alone and to the baseline."""
    for column in table.columns:
        cells = table.of(column)
        places = ranks([cell.last.mean if cell.n > 1 else None for cell in cells])
        for cell, place in zip(cells, places, strict=True):
            over = {
                name: paired(cell.by_seed(), other.by_seed())
                for name, label in (("over_alone", ALONE), ("over_baseline", table.baseline))
                if (other := table.cells.get((label, column))) and other.label != cell.label
            }
            table.cells[cell.label, column] = replace(cell, rank=place, **over)
