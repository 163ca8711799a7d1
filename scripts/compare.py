"""Compare runs: python scripts/compare.py RUN_FOLDER ..."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper import cli
from helper.errors import UserError

COLUMNS = ("network", "objective", "parameters", "epochs", "last %", "best %", "seconds")


def read(folder: str) -> dict:
    """The summary of a finished run."""
    path = Path(folder) / "run.json"
    try:
        summary = json.loads(path.read_text())
    except OSError:
        raise UserError(f"no run in {folder}: {path.name} is not there") from None
    except ValueError:
        raise UserError(f"{path} is broken") from None
    if summary.get("status") != "finished":
        raise UserError(f"{folder} is not finished: go on with it with --resume")
    return summary


def row(summary: dict) -> tuple[str, ...]:
    last, best = summary["last"], summary["best"]
    return (
        summary["model"],
        summary["objective"],
        f"{summary['parameters']:,}",
        str(last["epoch"]),
        f"{last['test_acc']:.2f}",
        f"{best['test_acc']:.2f}",
        f"{summary['seconds']:.0f}",
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


def main(folders):
    if not folders:
        raise UserError("no run to compare: give the folders of runs")
    summaries = [read(folder) for folder in folders]
    print()
    print(table([COLUMNS, *map(row, summaries)]))
    print("\nlast is the headline; best is the best epoch on the test set. Checkpoints and logs:")
    for folder in folders:
        print(f"  {folder}")
    print(f"TensorBoard: {sys.executable} -m tensorboard.main --logdir save")


if __name__ == "__main__":
    cli.main(main)
