"""A plan: which runs a whole table needs, and the command of each.

python tools/plan.py plans/digits.yaml                     # how many runs, how many are finished
python tools/plan.py plans/digits.yaml --dry_run           # every command, in an order that works
python tools/plan.py plans/imagenet.yaml --flags "--data_dir /data/ILSVRC" --array imagenet.sh
sh imagenet.sh --gpus 1 --time 24:00:00                    # flags of sbatch

What a plan says is in the README. Everything is resolved first: what could not run is one line.
"""

import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
from cli.job import Job
from cli.main import main
from cli.plan import read_plan
from cli.words import read_tool
from helper.files import check_output, write_whole
from helper.options import Parser, option
from runs.code import CODE

KINDS = "of networks alone", "of a teacher", "by methods without a teacher", "linear probes"


@dataclass(frozen=True)
class PlanOptions:
    dry_run: bool = option(False, "print every command (default: how many runs there are)")
    array: str = option("", "sbatch script to write: an array job for each stage of the plan")
    flags: str = option("", 'more flags of every command: --flags "--data_dir DIR"')


def plan(argv: Sequence[str]) -> None:
    """Command line -> what the plan needs, or its commands."""
    parser = Parser(description=__doc__.split("\n")[0], usage="tools/plan.py PLAN [flags]")
    parser.add_argument("plan", metavar="PLAN", help="a file of plans/, or of your own")
    if (read := read_tool(parser, PlanOptions, argv)) is None:
        return
    bare, options = read
    path = bare["plan"]
    if options.array:
        check_output(Path(options.array), "--array")
    jobs = read_plan(path, options.flags)
    if options.dry_run:
        print("\n".join(job.command(script(job)) for job in jobs))
    if options.array:
        write_whole(Path(options.array), lambda file: file.write(array(path, jobs).encode()))
        print(
            f"{options.array}: {len(jobs)} runs; sh {options.array} submits them", file=sys.stderr
        )
    if not (options.dry_run or options.array):
        kinds = Counter(map(kind_of, jobs))
        parts = ", ".join(f"{kinds[kind]} {kind}" for kind in KINDS if kinds[kind])
        done = sum(job.finished() is not None for job in jobs)
        print(f"{path}: {len(jobs)} runs, {parts}; {done} are finished")


def kind_of(job: Job) -> str:
    """Which of KINDS a job is."""
    alone, taught, by_itself, probe = KINDS
    of_student = taught if job.teacher else by_itself
    return {"teacher": alone, "student": of_student, "probe": probe}[job.kind]


def script(job: Job) -> str:
    """Where the script of a job lies, seen from here."""
    return os.path.relpath(CODE / job.script)


def array(path: str, jobs: Sequence[Job]) -> str:
    """An sbatch script of all jobs that submits itself: an array a stage, one behind the other."""
    jobs = sorted(jobs, key=lambda job: job.stage)
    submit, first = [], 0
    for _, group in groupby(jobs, key=lambda job: job.stage):
        last = first + len(list(group)) - 1
        behind = ' --dependency="afterany:$id"' if submit else ""
        submit.append(
            f'    id=$(sbatch --parsable --array={first}-{last}{behind} "$@" "$0") || exit'
        )
        first = last + 1
    commands = (job.command(script(job)).removeprefix("python ") for job in jobs)
    cases = [f'{n}) exec "$python" {command} --resume ;;' for n, command in enumerate(commands)]
    return "\n".join([
        "#!/bin/sh",
        f"#SBATCH --job-name={shlex.quote(Path(path).stem)}",
        f"# The {len(jobs)} runs of {path}: sh THIS_FILE [flags of sbatch]",
        f"python=${{PYTHON:-{shlex.quote(sys.executable)}}}",
        'if [ -z "$SLURM_ARRAY_TASK_ID" ]; then',
        *submit,
        "    exit",
        "fi",
        f"cd {shlex.quote(os.getcwd())} || exit",
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        "esac",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main(plan)
