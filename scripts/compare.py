"""Compare runs: python scripts/compare.py RUN_FOLDER ...

Runs that differ in nothing but their trial and seed share a row: mean and, behind +-, the sample
standard deviation. What scripts/published.yaml knows of a row stands beside it, and the gap: ours
minus published.
"""

import json
import statistics
import sys
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.main import main as run_command
from helper.errors import UserError

COLUMNS = ("network", "trained on", "parameters", "epochs", "runs", "last %", "best %", "seconds")
PUBLISHED = Path(__file__).resolve().parent / "published.yaml"
NOT_COMPARED = {"trial", "seed", "path_t", "path_s"}  # options that may differ within a row


def read(folder: str) -> dict:
    """The summary of a finished run."""
    path = Path(folder) / "run.json"
    try:
        summary = json.loads(path.read_text())
    except OSError:
        raise UserError(f"no run in {folder}: there is no {path.name}") from None
    except ValueError:
        raise UserError(f"{path} is broken: run it again") from None
    if summary.get("status") != "finished":
        raise UserError(f"{folder} is not finished: go on with it with --resume")
    return summary


def groups(summaries: list[dict]) -> list[list[dict]]:
    """Runs with the same options but for the trial, in the order in which they were given."""
    found = {}
    for summary in summaries:
        options = {k: v for k, v in summary["options"].items() if k not in NOT_COMPARED}
        found.setdefault(json.dumps([summary["model"], options], sort_keys=True), []).append(
            summary
        )
    return list(found.values())


def spread(values: list[float], digits: int = 2) -> str:
    """'91.20', or '91.20 +- 0.31' of several values."""
    text = f"{statistics.mean(values):.{digits}f}"
    return f"{text} +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else text


def published(run: dict, known: list[dict]) -> float | None:
    """The published accuracy of such a run; None where none is known."""
    for entry in known:
        wanted = {k: v for k, v in entry.items() if k not in ("data", "model", "accuracy")}
        same = (entry["data"], entry["model"]) == (run["data"], run["model"])
        distilled = "distill" in wanted, "distill" in run["options"]
        if same and len(set(distilled)) == 1 and wanted.items() <= run["options"].items():
            return entry["accuracy"]
    return None


def with_published(rows: list[tuple[str, ...]], runs: list[list[dict]]) -> list[tuple[str, ...]]:
    """Two more columns behind "last", where anything is known of any of the rows."""
    known = yaml.safe_load(PUBLISHED.read_text())
    found = [published(group[0], known) for group in runs]
    if not any(found):
        return rows
    cells = [("published %", "gap")]
    for accuracy, group in zip(found, runs, strict=True):
        ours = statistics.mean(run["last"]["test_acc"] for run in group)
        cells.append((f"{accuracy:.2f}", f"{ours - accuracy:+.2f}") if accuracy else ("", ""))
    place = COLUMNS.index("last %") + 1
    return [(*row[:place], *extra, *row[place:]) for row, extra in zip(rows, cells, strict=True)]


def row(runs: list[dict]) -> tuple[str, ...]:
    first = runs[0]
    return (
        first["model"],
        first["objective"],
        f"{first['parameters']:,}",
        str(first["last"]["epoch"]),
        str(len(runs)),
        spread([run["last"]["test_acc"] for run in runs]),
        spread([run["best"]["test_acc"] for run in runs]),
        spread([run["seconds"] for run in runs], digits=0),
    )


def table(rows: list[tuple[str, ...]]) -> str:
    """Words to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells):
        return "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ).rstrip()

    head, *body = map(line, rows)
    return "\n".join([head, "-" * len(head), *body])


def main(folders: list[str]) -> None:
    if not folders:
        raise UserError("no run to compare: give the folders of runs")
    summaries = [read(folder) for folder in folders]
    runs = groups(summaries)
    print(table(with_published([COLUMNS, *map(row, runs)], runs)))
    print("\nlast is the headline; best is the best epoch on the test set.")
    print("Checkpoints and logs are in")
    for folder in folders:
        print(f"  {folder}")
    print("TensorBoard: .venv/bin/tensorboard --logdir save")


if __name__ == "__main__":
    run_command(main)
