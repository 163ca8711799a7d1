"""Run a plan: all of its runs that are not finished, several at once, on one machine or a cluster.

python tools/sweep.py plans/digits.yaml
python tools/sweep.py plans/cifar100_same.yaml --per_gpu 4 --cpus 2
python tools/sweep.py plans/imagenet.yaml --address 10.0.0.1:6379 --flags "--data_dir /data/ILSVRC"
python tools/sweep.py plans/contrastive.yaml --search "-b 0.1,0.3,1,3"

A run that is killed, or that the machine refuses, is tried again and goes on where it was; one that
the user got wrong is not. Stopped with Ctrl-C, the same command goes on.
"""

import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
from cli.job import Job
from cli.main import main
from cli.plan import read_plan
from cli.words import read_tool
from helper.errors import UserError
from helper.files import check_writable
from helper.options import Parser, count, option, positive
from runs.lock import FolderLock
from sweeps.code import copy_code
from sweeps.pool import Pool
from sweeps.screen import Lines, Live
from sweeps.search import Search
from sweeps.table import Status, Sweep, Task, hidden

LOOK = 1.0  # seconds between two looks at the runs


@dataclass(frozen=True)
class SweepOptions:
    save_dir: str = option("", "where runs are kept (default: where the plan says)")
    flags: str = option("", 'more flags of every command: --flags "--data_dir DIR"')
    address: str = option("", "Ray cluster whose nodes see the same files (default: this machine)")
    per_gpu: int = option(1, "runs that share a GPU, where there are any", parse=positive)
    cpus: int = option(1, "CPU cores of a run", parse=positive)
    retries: int = option(3, "times that a run is tried again", parse=count)
    teacher_bank: bool = option(
        True, "students share what a teacher says of each view, in bank/ of the --save_dir"
    )
    search: str = option(
        "", 'values of a flag, of which the best on held-out images is told: "-b 0.1,0.3,1,3"'
    )


def sweep(argv: Sequence[str]) -> None:
    """Command line -> every run of the plan, finished; exit code 1 where one of them failed."""
    parser = Parser(description=__doc__.split("\n")[0], usage="tools/sweep.py PLAN [flags]")
    parser.add_argument("plan", metavar="PLAN", help="a file of plans/, or of your own")
    if (read := read_tool(parser, SweepOptions, argv)) is None:
        return
    bare, options = read
    path = bare["plan"]
    folder = f" --save_dir {shlex.quote(options.save_dir)}" if options.save_dir else ""
    search = Search.read(options.search) if options.search else None
    jobs = (search.jobs if search else read_plan)(path, options.flags + folder)
    table = run_all(path, jobs, options)
    if search:
        print(search.result(table))
    if failed := [task for task in table.tasks.values() if task.status is Status.FAILED]:
        print(f"{len(failed)} of {len(table.tasks)} runs failed:", file=sys.stderr)
        for task in failed:
            print(f"  {task.name}: {task.why}; {task.log}", file=sys.stderr)
        raise SystemExit(1)
    if not search:
        print(f"{path}: all {len(jobs)} runs are finished; {shown_by(path, jobs)}")


def shown_by(path: str, jobs: Sequence[Job]) -> str:
    """The commands that show what has come of the runs of a plan."""
    folders = shlex.join(dict.fromkeys(job.root for job in jobs))
    return (
        f"python scripts/compare.py {folders} tables them, python tools/report.py {folders} "
        f"--plan {shlex.quote(path)} is a page of them"
    )


def run_all(path: str, jobs: Sequence[Job], options: SweepOptions) -> Sweep:
    """Run what is not finished; no other sweep works in the same folders meanwhile."""
    roots = list(dict.fromkeys(job.root for job in jobs))
    with ExitStack() as stack:
        for root in roots:
            check_writable(Path(root), "--save_dir")
            hidden(root).mkdir(parents=True, exist_ok=True)
            lock = FolderLock(hidden(root))
            lock.acquire()
            stack.callback(lock.release)
        table = Sweep(jobs, options.retries)
        if table.is_over:
            return table
        code = hidden(roots[0]).absolute() / "code"
        pool = stack.enter_context(Pool(options.address, options.cpus, options.per_gpu))
        copy_code(code)
        screen = stack.enter_context(Live() if sys.stdout.isatty() else Lines())

        def command(task: Task) -> list[str]:
            return command_of(task.job, code, options.teacher_bank)

        with suppress(KeyboardInterrupt):
            drive(table, pool, screen, command)
    if not table.is_over:
        print("stopped; the same command goes on", file=sys.stderr)
        raise SystemExit(130)
    return table


def drive(
    table: Sweep, pool: Pool, screen: Live | Lines, command: Callable[[Task], list[str]]
) -> None:
    """Start what can start and take note of what ends, until nothing is left."""
    while not table.is_over:
        for task in table.ready():
            try:
                words = command(task)
            except UserError as error:  # what it needs is gone again
                table.fail(task, str(error))
                continue
            table.start(task)
            pool.submit(task, words)
        for task, code in pool.ended(LOOK):
            table.end(task, code)
        screen.update(table)


def command_of(job: Job, code: Path, teacher_bank: bool) -> list[str]:
    """The words of a run's process; what the plan says of a bank wins."""
    bank = ["--teacher_bank", f"{job.root}/bank"] if teacher_bank and job.teacher else []
    return [sys.executable, str(code / job.script), *bank, *job.argv_now(), "--resume"]


if __name__ == "__main__":
    main(sweep)
