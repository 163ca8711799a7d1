"""The runs of folders: found, each read once, those of one table row together."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from helper.errors import UserError, one_line
from runs.results import Result, read_result
from runs.table import by_number


def run_folders(arguments: Sequence[str], notes: list[str]) -> list[Path]:
    """Folders of runs that the arguments name or hold, each once; others are noted."""
    found: dict[str, Path] = {}  # by its real path
    for argument in arguments:
        noted, inside = len(notes), list(search(Path(argument), notes))
        if not inside and len(notes) == noted:
            notes.append(
                f"not read: {argument} (no run.json in it or below; hidden folders were left out)"
            )
        for folder in inside:
            found.setdefault(os.path.realpath(folder), folder)
    return list(found.values())


def search(folder: Path, notes: list[str]) -> Iterator[Path]:
    """A folder with run.json, or all such folders below it; hidden ones are left out."""

    def note(error: OSError) -> None:
        notes.append(f"not read: {error.filename} ({error.strerror})")

    been = set()  # links may lead in circles
    for path, inside, files in os.walk(folder, onerror=note, followlinks=True):
        real = os.path.realpath(path)
        if real in been:
            inside.clear()
        elif "run.json" in files:
            inside.clear()
            yield Path(path)
        else:
            inside[:] = sorted((n for n in inside if not n.startswith(".")), key=by_number)
        been.add(real)


def read_runs(folders: Iterable[Path], notes: list[str]) -> list[Result]:
    """The finished runs, each experiment once; the others are noted."""
    runs: dict[str, Result] = {}  # by digest
    for folder in folders:
        try:
            run = read_result(folder)
        except UserError as error:
            notes.append(f"not read: {folder} ({one_line(error)})")
            continue
        if not run.finished:
            epoch = run.last.get("epoch", 0)
            notes.append(f"unfinished: {folder} (epoch {epoch} of {run.epochs})")
            continue
        first = runs.setdefault(run.digest, run)
        if first is not run:
            there, here = first.last["test_acc"], run.last["test_acc"]
            numbers = f", last {there:.2f} % there and {here:.2f} % here" if there != here else ""
            notes.append(f"counted once: {folder} (same experiment as {first.folder}{numbers})")
    return list(runs.values())


def group_runs(runs: Iterable[Result]) -> list[list[Result]]:
    """Runs that differ in their seed alone, in the order in which they were given."""
    rows: dict[str, list[Result]] = {}
    for run in runs:
        rows.setdefault(run.row, []).append(run)
    return list(rows.values())
