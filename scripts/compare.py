"""Compare runs: one table of the finished ones, below it what was left out and why.

python scripts/compare.py [RUN_FOLDER_OR_PARENT ...] [--sort last] [--format csv] [--out FILE]

Runs that differ in nothing but their seed share a row: mean and, behind +-, the sample standard
deviation. What scripts/published.yaml knows of a row stands beside it, and the gap: ours minus
published.
"""

import os
import shlex
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
from cli.choice import choose
from cli.flags import StartOptions, StudentOptions, TeacherOptions, TransferOptions
from cli.main import main
from cli.parse import COMMON
from cli.published import Published, published, read_published
from cli.words import explain_unknown, strip_help
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from engine.recipe import decays_in_force
from helper.errors import UserError
from helper.files import check_output, write_whole
from helper.options import Parser, added_defaults, option
from runs.collect import group_runs, read_runs, run_folders
from runs.results import Result
from runs.table import (
    Column,
    by_number,
    csv_table,
    escaped,
    filled,
    in_cell,
    markdown_table,
    spread,
    text_table,
)

PROTOCOL = (
    "Accuracy: epochs are in the table; last is the headline; best is the best epoch on the test "
    "set."
)
HELD_OUT = "val_fraction: best is the best epoch on held-out training images, not on the test set."
LOOK_ALIKE = (
    "experiment: rows with one differ in what no column shows (images of the data set, version of "
    "the code, release)."
)
# Columns that show an option already, where rows that are alike there are alike in the option.
SHOWN_BY = {
    "epochs": "epochs",
    **dict.fromkeys(("gamma", "alpha", "beta", "warmup", *VIEWS), "trained on"),
}
OF_KIND = {
    "teacher": (TeacherOptions, StartOptions),
    "student": (StudentOptions, StartOptions),
    "probe": (TransferOptions,),
}
NAMED = {"seed", "model", "model_s", "model_t", "dataset"}  # seed: it differs within a row
IN_OBJECTIVE = {"distill": "{}", "kd_T": "KD(T={}"}  # how an objective has an option, if it has


@dataclass(frozen=True)
class CompareOptions:
    sort: str = option(
        "given", "order of the rows, best accuracy first", choices=("last", "best", "name", "given")
    )
    format: str = option("text", "what the table is for", choices=("text", "markdown", "csv"))
    out: str = option("", "file to write to (default: standard output)")


def compare(argv: Sequence[str]) -> None:
    """Command line -> the table, on standard output or in a file."""
    arguments, options = parse(argv)
    if options.out:
        check_output(Path(options.out), "--out")
    notes: list[str] = []
    runs = read_runs(run_folders(arguments, notes), notes)
    if not runs:
        more = f", and {len(notes) - 1} more" if len(notes) > 1 else ""
        raise UserError(f"no finished run in {', '.join(arguments)}: {notes[0]}{more}")
    rows = sort_rows(group_runs(runs), options.sort)
    known = read_published()
    theirs = [published(runs[0], known) for runs in rows]
    columns = make_columns(rows, theirs)
    notes[:0] = dict.fromkeys(f"published: {entry.note}" for entry in theirs if entry)
    if options.format == "csv":  # a table and nothing else
        text = csv_table(columns)
        print("".join(f"{note}\n" for note in notes), end="", file=sys.stderr)
    elif options.format == "markdown":
        text = (
            "\n".join([markdown_table(columns), "", *as_list(footer(rows, columns, notes))]) + "\n"
        )
    else:
        below = [*footer(rows, columns, notes), *places(arguments)]
        text = "\n".join([text_table(columns), "", *below]) + "\n"
    if options.out:
        write_whole(Path(options.out), lambda file: file.write(text.encode()))
        print(f"{options.out}: {len(rows)} rows, {len(runs)} runs")
    else:
        print(text, end="")


def parse(argv: Sequence[str]) -> tuple[list[str], CompareOptions]:
    """Folders and options of a command line. Prints help and exits where it is asked for."""
    parser = Parser(description="Compare runs: those that differ in their seed alone share a row.")
    parser.add_argument(
        "folders",
        nargs="*",
        metavar="RUN_FOLDER_OR_PARENT",
        help="a run's folder, or one that is searched for runs (default save)",
    )
    parser.add(CompareOptions)
    words = strip_help(argv)
    if len(words) < len(argv):
        print(parser.format_help(), end="")
        raise SystemExit(0)
    known, unknown = parser.parse_known_intermixed_args(words)
    if unknown:
        raise UserError(explain_unknown(unknown[0], words, parser))
    typed = vars(known)
    names = {f.name for f in fields(CompareOptions)}
    options = CompareOptions(**{name: typed[name] for name in names & typed.keys()})
    folders = {os.path.realpath(folder): folder for folder in reversed(typed.get("folders", []))}
    return list(reversed(folders.values())) or ["save"], options


# ---- the order of rows


def sort_rows(rows: list[list[Result]], by: str) -> list[list[Result]]:
    """Rows in the order that --sort names; those that are equal stay as they were given."""
    if by == "given":
        return rows
    if by == "name":
        return sorted(rows, key=lambda runs: [by_number(text) for text in described(runs[0])])
    accuracy = {"last": lambda run: run.last, "best": lambda run: run.best}[by]
    return sorted(rows, key=lambda runs: -mean_accuracy(map(accuracy, runs)))


def described(run: Result) -> tuple[str, ...]:
    return run.model, run.data, run.teacher, run.objective


def mean_accuracy(numbers: Iterable[Mapping[str, float]]) -> float:
    return statistics.mean(epoch["test_acc"] for epoch in numbers)


# ---- from rows to columns


def make_columns(rows: list[list[Result]], theirs: Sequence[Published | None]) -> list[Column]:
    """Every column of the table; `theirs` is what was published of each row."""
    firsts = [runs[0] for runs in rows]
    names = [
        Column("network", [run.model for run in firsts]),
        Column("data", [run.data for run in firsts]),
        *filled(Column("teacher", teachers(firsts))),
        Column("trained on", [run.objective for run in firsts]),
    ]
    epochs = Column("epochs", [run.epochs for run in firsts], ",")
    names += option_columns(firsts, {column.name: column.values for column in (*names, epochs)})
    names += look_alike([*names, epochs], firsts)
    return [
        *names,
        Column("parameters", [run.parameters for run in firsts], ","),
        epochs,
        Column("runs", [len(runs) for runs in rows], ","),
        Column("last %", [spread(run.last["test_acc"] for run in runs) for runs in rows], ".2f"),
        *published_columns(rows, theirs),
        Column("best %", [spread(run.best["test_acc"] for run in runs) for runs in rows], ".2f"),
        Column("seconds", [spread(run.seconds for run in runs) for runs in rows], ",.0f"),
    ]


def teachers(runs: Sequence[Result]) -> list[str]:
    """Their networks, with the checkpoint's sha256 where one network has several."""
    files = Counter(name for name, _ in {(run.teacher, run.source) for run in runs})
    return [
        f"{run.teacher}-{run.source[:8]}" if run.teacher and files[run.teacher] > 1 else run.teacher
        for run in runs
    ]


def option_columns(runs: Sequence[Result], shown: Mapping[str, Sequence]) -> list[Column]:
    """The options in which runs differ, but for those that the columns `shown` tell already."""
    columns, every = [], [{**newer_defaults(run), **run.options} for run in runs]
    for name in sorted({name for run in runs for name in run.options} - NAMED):
        values = [in_cell(options, name) for options in every]
        told = (
            follows(values, shown.get(SHOWN_BY.get(name)))
            or in_objectives(name, values, runs)
            or (name == "lr_decay_epochs" and usual_decays(runs))
        )
        if len(set(values) - {""}) > 1 and not told:
            columns.append(Column(name, values, "s"))
    return columns


def newer_defaults(run: Result) -> dict[str, Any]:
    """Defaults of newer options in force: at these they are no part of an experiment."""
    options, idle = run.options, set()
    classes = [*COMMON, *OF_KIND[run.kind]]
    if options.get("dataset") in DATASETS:
        classes.append(DATASETS[options["dataset"]].Options)
    if run.kind == "student" and options.get("distill") in METHODS:
        choice = choose(options)
        classes += [part.Options for part in choice.parts]
        weights = SimpleNamespace(alpha=options.get("alpha"), beta=options.get("beta"))
        idle = choice.without_effect(weights)
    return {name: x for name, x in added_defaults(classes).items() if name not in idle}


def follows(values: Sequence[str], others: Sequence | None) -> bool:
    """Whether rows that are alike in another column are alike in this one."""
    if others is None:
        return False
    first: dict[Any, str] = {}
    return all(first.setdefault(b, a) == a for a, b in zip(values, others, strict=True))


def in_objectives(name: str, values: Sequence[str], runs: Sequence[Result]) -> bool:
    """Whether the objective of each run that has an option says its value."""
    if name not in IN_OBJECTIVE:
        return False
    words = [IN_OBJECTIVE[name].format(value).lower() if value else "" for value in values]
    return all(word in run.objective.lower() for word, run in zip(words, runs, strict=True))


def usual_decays(runs: Sequence[Result]) -> bool:
    """Whether the learning rates of all runs decay where the recipe has it for so many epochs."""
    return all(
        decays_in_force(run.options.get("lr_decay_epochs"), run.epochs)
        == decays_in_force(None, run.epochs)
        for run in runs
    )


def look_alike(columns: Sequence[Column], runs: Sequence[Result]) -> list[Column]:
    """What tells rows apart that are alike in all of these columns."""
    cells = list(zip(*(column.values for column in columns), strict=True))
    times = Counter(cells)
    digests = [run.row[:8] if times[row] > 1 else "" for run, row in zip(runs, cells, strict=True)]
    return filled(Column("experiment", digests))


def published_columns(rows: list[list[Result]], theirs: Sequence[Published | None]) -> list[Column]:
    """Published accuracies and the gap, where anything is known of any of the rows."""
    accuracies = [entry and entry.accuracy for entry in theirs]
    gaps = [
        None if accuracy is None else mean_accuracy(run.last for run in runs) - accuracy
        for accuracy, runs in zip(accuracies, rows, strict=True)
    ]
    return filled(Column("published %", accuracies, ".2f"), Column("gap", gaps, "+.2f"))


# ---- around the table


def footer(
    rows: Sequence[Sequence[Result]], columns: Sequence[Column], notes: Sequence[str]
) -> list[str]:
    """What stands below the table."""
    about = [LOOK_ALIKE] if any(column.name == "experiment" for column in columns) else []
    held_out = ["val_fraction" in runs[0].options for runs in rows]
    protocol = [PROTOCOL] * (not all(held_out)) + [HELD_OUT] * any(held_out)
    return [*protocol, *about, *notes]


def as_list(lines: Iterable[str]) -> list[str]:
    return [f"- {escaped(line)}" for line in lines]


def places(arguments: Sequence[str]) -> list[str]:
    """Where checkpoints and logs are."""
    common = os.path.commonpath([os.path.abspath(argument) for argument in arguments])
    logs = shlex.quote(arguments[0] if len(arguments) == 1 else os.path.relpath(common))
    return [
        "Checkpoints and logs are in",
        *(f"  {argument}" for argument in arguments),
        f"TensorBoard: .venv/bin/tensorboard --logdir {logs}",
    ]


if __name__ == "__main__":
    main(compare)
