"""What tools/sweep.py is worth: a table by it, against its commands one after another in a shell.

python benchmarks/sweep.py [--rounds 3] [--epochs 60]

plans/digits.yaml with 2 trials: a teacher, 2 students alone and 4 methods x 2 trials, with one
--teacher_bank, from nothing. A is `sh` with the commands of `tools/plan.py --dry_run`, each with
all cores; B is tools/sweep.py with a core a run. They take turns; seconds of each and the ratio
A / B as median (minimum-maximum).
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def plan_in(folder: Path, epochs: int) -> Path:
    """The shipped plan with two trials, for runs of so many epochs."""
    text = (ROOT / "plans" / "digits.yaml").read_text()
    text = text.replace("trials: 3", "trials: 2").replace("--epochs 60", f"--epochs {epochs}")
    path = folder / "plan.yaml"
    path.write_text(text)
    return path


def one_after_another(plan: Path, folder: Path) -> None:
    words = [sys.executable, ROOT / "tools" / "plan.py", plan, "--dry_run"]
    found = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=True).stdout
    bank = " --teacher_bank save/digits/bank"
    lines = [line + bank * ("train_student" in line) for line in found.splitlines()]
    script = "set -e\n" + "\n".join(
        line.replace("python ", f"'{sys.executable}' ", 1) for line in lines
    )
    subprocess.run(["sh", "-c", script], cwd=folder, stdout=subprocess.DEVNULL, check=True)


def by_sweep(plan: Path, folder: Path) -> None:
    words = [sys.executable, ROOT / "tools" / "sweep.py", plan]
    subprocess.run(words, cwd=folder, stdout=subprocess.DEVNULL, check=True)


def seconds(way, epochs: int) -> float:
    """How long a way to run the plan takes, in a folder of its own."""
    with tempfile.TemporaryDirectory() as name:
        plan = plan_in(Path(name), epochs)
        started = time.perf_counter()
        way(plan, Path(name))
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60, help="of students")
    options = parser.parse_args()
    ratios = []
    for _ in range(options.rounds):
        shell, swept = (seconds(way, options.epochs) for way in (one_after_another, by_sweep))
        ratios.append(shell / swept)
        print(f"sh {shell:.0f} s, sweep {swept:.0f} s, ratio {ratios[-1]:.2f}", flush=True)
    print(f"ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
