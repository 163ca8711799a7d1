"""Which runs of a table may start, and what is done when one ends."""

from pathlib import Path

import pytest

from cli.plan import read_plan
from sweeps.screen import Lines, Live, cells
from sweeps.table import Progress, Status, Sweep

PLAN = """\
dataset: fake
pairs: [resnet14 resnet8]
methods: {KD: kd}
transfer: [digits]
flags: --epochs 4
"""


@pytest.fixture
def table(tmp_path, monkeypatch):
    """The runs of a plan; none is finished."""
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(PLAN)
    return Sweep(read_plan("a.yaml"), retries=2)


@pytest.fixture
def first(table):
    """One that has begun."""
    task = table.ready()[0]
    table.start(task)
    task.log.parent.mkdir(parents=True)
    task.log.write_text("---- begun\nerror: too little memory; more\n\n")
    return task


def test_names_and_order(table):
    names = [task.name for task in table.ready()]
    assert names == ["teacher resnet14, trial 1", "alone resnet8, trial 1"]
    probes = [task.name for task in table.tasks.values() if task.job.kind == "probe"]
    assert probes == ["alone resnet8 to digits, trial 1", "KD resnet8 to digits, trial 1"]


def test_students_wait_for_their_teacher(table, monkeypatch):
    teacher, alone = table.ready()
    table.start(teacher)
    assert table.ready() == [alone]
    monkeypatch.setattr(type(teacher.job), "finished", lambda job: Path())
    table.end(teacher, 0)
    assert [task.name for task in table.ready()][1] == "KD resnet14 -> resnet8, trial 1"


def test_what_needs_a_run_that_failed_fails(table, first):
    table.end(first, 2)
    assert (first.status, first.why) == (Status.FAILED, "error: too little memory; more")
    table.ready()
    assert [task.job.kind for task in table.ready()] == ["teacher"]
    why = [task.why for task in table.tasks.values() if task.status is Status.FAILED]
    assert why[1:] == [
        "it needs teacher resnet14, trial 1, which failed",
        "it needs KD resnet14 -> resnet8, trial 1, which failed",
    ]


@pytest.mark.parametrize(
    ("code", "why", "whole_gpu"),
    [
        (1, "error: too little memory; more", True),
        (-9, "killed by signal 9", False),
        (None, "its worker was lost", False),
    ],
)
def test_it_is_tried_again(table, first, code, why, whole_gpu):
    for attempt in (1, 2):
        table.end(first, code)
        assert (first.status, first.why, first.whole_gpu) == (Status.WAITING, why, whole_gpu)
        assert first in table.ready()
        table.start(first)
        assert first.attempts == attempt + 1
    table.end(first, code)
    assert (first.status, first.why) == (Status.FAILED, f"{why} (3 attempts)")


def test_a_run_that_ends_well_and_leaves_nothing_failed(table, first):
    table.end(first, 0)
    assert first.why == "it ended well, and its run is not in ./save"


def test_progress_is_read_from_what_a_run_writes(table, first):
    assert first.progress() == Progress(0, 4, None, None)
    folder = Path(first.job.root, first.job.place)
    folder.mkdir(parents=True)
    lines = (
        '{"epoch": 1, "test_acc": 9.0, "seconds": 2.0}\n{"epoch": 2, "val_acc": 7, "seconds": 4}'
    )
    (folder / "metrics.jsonl").write_text(lines)
    assert first.progress() == Progress(2, 4, 7, 6.0)
    assert cells(first.progress()) == ("2/4", "7.00 %", "0:00:06")


def test_lines_tell_each_change_once(table, first, capsys):
    screen = Lines()
    screen.update(table)
    screen.update(table)
    table.end(first, -9)
    screen.update(table)
    table.start(first)
    table.fail(first, "no")
    screen.update(table)
    said = [line[9:] for line in capsys.readouterr().out.splitlines()]
    assert said == [
        "running: teacher resnet14, trial 1, epoch 0/4 "
        "(0 of 5 runs finished, 1 running, 4 waiting)",
        "again: teacher resnet14, trial 1: killed by signal 9 (0 of 5 runs finished, 5 waiting)",
        "failed: teacher resnet14, trial 1: no (0 of 5 runs finished, 1 failed, 4 waiting)",
    ]


def test_the_live_table_has_what_runs_and_what_failed(table, first, capsys):
    console = pytest.importorskip("rich.console").Console(width=120)
    other = table.ready()[0]
    table.fail(other, "error: [no] such thing")
    console.print(Live().table(table))
    said = capsys.readouterr().out
    assert "0 of 5 runs finished, 1 running, 1 failed, 3 waiting" in said
    for row in ("teacher resnet14, trial 1", "error: [no] such thing"):
        assert row in said
