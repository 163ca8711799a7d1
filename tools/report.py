"""A report of finished runs: one page, tables for papers, figures.

python tools/report.py save/                          # into report/index.html
python tools/report.py save/ --plan plans/digits.yaml # the plan's runs alone, under its labels
python tools/report.py save/ --quick                  # what needs no network to be run

Beside the page: table.tex (booktabs), table.csv, table.md, figures/*.svg and *.pdf. What follows
from checkpoints is kept in .cache/ beside it.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
from cli.main import main
from cli.plan import read_plan
from cli.published import read_published
from cli.words import read_tool
from helper.errors import UserError
from helper.files import check_writable
from helper.options import Parser, option
from runs.collect import read_runs, run_folders


@dataclass(frozen=True)
class ReportOptions:
    plan: str = option("", "plan whose runs are reported, under its labels and in its order")
    flags: str = option("", 'more flags of every command of the plan: --flags "--data_dir DIR"')
    out: str = option("report", "folder of the page, the tables and the figures")
    baseline: str = option("", "row that others are compared with (default: KD without a view)")
    quick: bool = option(False, "leave out that for which networks have to be run")
    data_dir: str = option("", "where the images lie now (default: where they lay in training)")
    device: str = option("auto", "auto, cpu, cuda or cuda:N")


def report(argv: Sequence[str]) -> None:
    """Command line -> the page and what stands beside it."""
    parser = Parser(description=__doc__.split("\n")[0], usage="tools/report.py [FOLDER ...]")
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="searched for runs (save)")
    if (read := read_tool(parser, ReportOptions, argv)) is None:
        return
    bare, options = read
    folders = bare.get("folders") or ["save"]
    write_report = import_report()
    check_writable(Path(options.out), "--out")
    jobs = read_plan(options.plan, options.flags) if options.plan else []
    notes: list[str] = []
    runs = read_runs(run_folders(folders, notes), notes)
    if not runs:
        raise UserError(f"no finished run in {', '.join(folders)}: {notes[0]}")
    print(write_report(runs, jobs, read_published(), options, notes))


def import_report():
    """What writes a report; UserError where a package of it is missing."""
    try:
        from reporting.report import write_report
    except ModuleNotFoundError as error:
        raise UserError(
            f"a report needs {error.name}: sh scripts/setup.sh requirements-report.txt installs it"
        ) from None
    return write_report


if __name__ == "__main__":
    main(report)
