"""tools/sweep.py on Ray, with scripts in the place of trainings: they end, die and are refused."""

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from cli.parse import parse_student
from cli.plan import read_plan
from helper.errors import UserError
from runs.lock import FolderLock
from sweeps import pool
from sweeps.table import Sweep
from tools import sweep

PLAN = """\
dataset: fake
pairs: [resnet14 resnet8]
methods:
  KD: kd
  KD8: kd --kd_T 8
  DKD: dkd --warmup 1
  killed twice: pkt
  worker killed: rkd
  wrong: vid
flags: --epochs 3
"""
WEIGHTS = b"the teacher"
SCRIPT = """\
import json, os, pathlib, signal, sys, time

runs = {runs}
words = sys.argv[1:]
for flag in ("--teacher_bank", "--path_t"):
    if flag in words:
        place = words.index(flag)
        print(flag, os.path.exists(words[place + 1]))
        del words[place : place + 2]
print("resume" if words.pop() == "--resume" else "anew", "in", os.getcwd())
assert os.getsid(0) == os.getpid() and os.environ["OMP_NUM_THREADS"] == "1"
run = runs[" ".join(words)]
folder = pathlib.Path(run["folder"])
folder.mkdir(parents=True, exist_ok=True)
died = folder / "died"
deaths = len(died.read_text()) if died.exists() else 0
with died.open("a") as file:
    file.write("x")
if run["label"] == "killed twice" and deaths < 2:
    os.kill(os.getpid(), signal.SIGKILL)
if run["label"] == "worker killed" and not deaths:
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(60)
    pathlib.Path("outlived").touch()
if run["label"] == "wrong":
    sys.exit(print("error: nothing can be done", file=sys.stderr) or 2)
line = {{"epoch": 3, "test_acc": 50.0, "seconds": 1.0}}
(folder / "metrics.jsonl").write_text(json.dumps({{**line, "epoch": 1}}))
(folder / (run["model"] + "_last.pth")).write_bytes({weights})
(folder / "run.json").write_text(json.dumps(run["summary"]))
"""


def summary_of(job):
    """What run.json says of a finished run."""
    source = hashlib.sha256(WEIGHTS).hexdigest() if job.needs else ""
    done = replace(job.experiment, data="f" * 64, source=source)
    return {"schema": 2, "status": "finished", "experiment": done.to_dict()}


def words_of(job):
    """Its command without what names the teacher."""
    words = list(job.argv)
    if "--path_t" in words:
        place = words.index("--path_t")
        del words[place : place + 2]
    return " ".join(words)


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """A plan, and code whose scripts do what the labels say."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text(PLAN)
    jobs = read_plan("a.yaml")
    runs = {
        words_of(job): {
            "label": job.label,
            "model": job.model,
            "folder": f"{job.root}/{job.place}".replace("?", "0"),
            "summary": summary_of(job),
        }
        for job in jobs
    }

    def scripts(to):
        to.mkdir(parents=True, exist_ok=True)
        for job in jobs:
            (to / job.script).write_text(SCRIPT.format(runs=runs, weights=WEIGHTS))

    monkeypatch.setattr(sweep, "copy_code", scripts)
    return jobs


def failing(words):
    with pytest.raises(SystemExit) as stop:
        sweep.sweep(words)
    return stop.value.code


def test_what_is_killed_goes_on_and_nothing_is_run_twice(plan, tmp_path, capsys):
    pytest.importorskip("ray")
    assert failing(["a.yaml", "--retries", "2"]) == 1
    said = capsys.readouterr()
    assert "7 of 8 runs finished, 1 failed)" in said.out
    assert "again: killed twice resnet14 -> resnet8, trial 1: killed by signal 9" in said.out
    assert "again: worker killed resnet14 -> resnet8, trial 1: its worker was lost" in said.out
    assert (
        "1 of 8 runs failed:\n  wrong resnet14 -> resnet8, trial 1: error: nothing can be done"
        in (said.err)
    )
    assert [job.label for job in plan if not job.finished()] == ["wrong"]
    assert not (tmp_path / "outlived").exists()
    logs = {log: log.read_text() for log in Path("save/.sweep/logs").iterdir()}
    assert sorted(text.count("resume in") for text in logs.values()) == [1, 1, 1, 1, 1, 1, 2, 3]
    assert all(f"resume in {tmp_path}" in text for text in logs.values())
    students = [text for log, text in logs.items() if "student" in log.name]
    assert all("--teacher_bank False\n--path_t True\n" in text for text in students)

    assert failing(["a.yaml"]) == 1
    assert sorted(log.read_text() != text for log, text in logs.items()) == [False] * 7 + [True]


def finish(jobs):
    for job in jobs:
        folder = Path(f"{job.root}/{job.place}".replace("?", "0"))
        folder.mkdir(parents=True)
        (folder / f"{job.model}_last.pth").write_bytes(WEIGHTS)
        (folder / "run.json").write_text(json.dumps(summary_of(job)))


def test_a_finished_table_says_so_and_needs_no_ray(plan, capsys, monkeypatch):
    finish(plan)
    monkeypatch.setattr(pool.Pool, "__enter__", lambda _: pytest.fail("Ray is started"))
    sweep.sweep(["a.yaml"])
    said = capsys.readouterr().out
    assert said == (
        "a.yaml: all 8 runs are finished; python scripts/compare.py ./save tables them, "
        "python tools/report.py ./save --plan a.yaml is a page of them\n"
    )


def test_without_ray_a_line_says_what_to_install(plan, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"needs the ray package: .* -r requirements-sweep\.txt"):
        sweep.sweep(["a.yaml"])


def test_two_sweeps_of_one_folder_do_not_meet(plan):
    Path("save/.sweep").mkdir(parents=True)
    lock = FolderLock(Path("save/.sweep"))
    lock.acquire()
    with pytest.raises(UserError, match=f"sweep is being written by process {os.getpid()} on"):
        sweep.sweep(["a.yaml"])
    lock.release()


def test_the_folder_of_the_command_line_is_that_of_the_runs(plan, capsys, monkeypatch):
    with pytest.raises(UserError, match="--save_dir"):
        sweep.sweep(["a.yaml", "--save_dir", "/proc/here"])
    assert not Path("save").exists()
    Path("a b/.sweep").mkdir(parents=True)
    monkeypatch.setattr(Sweep, "is_over", True)
    sweep.sweep(["a.yaml", "--save_dir", "a b", "--flags", "--epochs 4"])
    assert "finished; python scripts/compare.py 'a b' tables" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "required: PLAN"),
        ("a.yaml --retry 1", "unknown argument --retry: did you mean --retries"),
        ("a.yaml --per_gpu 0", "--per-gpu: 0 is not at least 1"),
        ("b.yaml", "no plan b.yaml"),
        ("a.yaml --search=-b", "'-b' is no flag with its values"),
        ("a.yaml --search=-b=1", "is no flag with its values"),
        ("a.yaml --search='", "No closing quotation"),
    ],
)
def test_bad_words(plan, line, words):
    with pytest.raises(UserError, match=words):
        sweep.sweep(line.split())


def test_the_command_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("t.pth").touch()
    text = PLAN.replace("wrong: vid", "own bank: vid --teacher_bank mine\n  no teacher: tfkd")
    Path("a.yaml").write_text(f"{text}teachers: {{resnet14: t.pth}}\n")
    words = {job.label: sweep.command_of(job, Path("/c"), True) for job in read_plan("a.yaml")}
    python, script, *bank = words["KD"][:4]
    assert (python, script) == (sys.executable, "/c/train_student.py")
    assert bank == ["--teacher_bank", "./save/bank"]
    assert all(found[-1] == "--resume" for found in words.values())
    assert not any("--teacher_bank" in words[label] for label in ("alone", "no teacher"))
    for found in words.values():
        if "train_student" in found[1]:
            parse_student(found[2:])
    assert parse_student(words["own bank"][2:]).teacher_bank == "mine"


def test_help(capsys):
    sweep.sweep(["--help"])
    assert "--per_gpu" in capsys.readouterr().out
