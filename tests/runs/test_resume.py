"""A run that is killed and resumed ends with the bits of the run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from models import MODELS
from runs import checkpoint
from tests.conftest import only

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = "--dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4"
LINE = (
    f"train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 {DATA} "
    "--epochs 3 --save_freq 2 --distill kd --tekap"
)


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


def teacher_in(folder: Path) -> None:
    torch.manual_seed(5)
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, folder / "teacher.pth")


def numbers(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if k not in ("seconds", "images_per_s")}
        for line in lines
    ]


def assert_same_run(one: Path, other: Path) -> None:
    assert numbers(one) == numbers(other)
    names = {path.name for path in one.glob("*.pth")}
    assert names == {path.name for path in other.glob("*.pth")}
    assert {"ckpt_epoch_2.pth", "ckpt_epoch_3.pth", "resnet8_best.pth", "resnet8_last.pth"} < names
    for name in names:
        a, b = checkpoint.load(one / name), checkpoint.load(other / name)
        for key in ("model", "task"):
            for entry, value in a.get(key, {}).items():
                assert torch.equal(value, b[key][entry]), f"{name}: {entry}"
    a, b = (checkpoint.load(f / "resume.pth")["optimizer"]["state"] for f in (one, other))
    assert all(torch.equal(a[i]["momentum_buffer"], b[i]["momentum_buffer"]) for i in a)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nobody stopped."""
    folder = tmp_path_factory.mktemp("whole")
    teacher_in(folder)
    assert command(folder, LINE).wait() == 0
    return only(folder / "save" / "student_model")


def command(folder: Path, line: str) -> subprocess.Popen:
    script, *words = line.split()
    return subprocess.Popen(
        [sys.executable, ROOT / f"{script}.py", *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_stopped_at_any_write(whole, run, tmp_path, monkeypatch):
    """Killed right before, and right after, each rename that a run does."""
    teacher_in(tmp_path)
    real, writes = os.replace, 0

    def dying_at(moment, after):
        count = 0

        def replace(source, target):
            nonlocal count
            count += 1
            if count == moment and not after:
                raise Killed
            real(source, target)
            if count == moment:
                raise Killed

        return replace

    for moment in range(1, 100):
        for after in (False, True):
            folder = tmp_path / f"{moment}{after}"
            monkeypatch.setattr("os.replace", dying_at(moment, after))
            try:
                run(f"{LINE} --save_dir {folder}")
            except Killed:
                writes += 1
            else:
                assert writes > 10, "the run hardly wrote anything"
                return
            monkeypatch.setattr("os.replace", real)
            run(f"{LINE} --save_dir {folder} --resume")
            assert_same_run(whole, only(folder / "student_model"))


def test_killed_with_signal_9_again_and_again(whole, tmp_path):
    teacher_in(tmp_path)
    chance = random.Random(4)
    kills = 0
    for attempt in range(30):
        process = command(tmp_path, LINE if attempt == 0 else f"{LINE} --resume")
        deadline = time.monotonic() + 60
        progress = tmp_path / "save" / "student_model" / whole.name / "metrics.jsonl"
        seen = progress.stat().st_mtime_ns if progress.exists() else 0
        while kills < 3 and process.poll() is None and time.monotonic() < deadline:
            if progress.exists() and progress.stat().st_mtime_ns != seen:
                time.sleep(chance.random() * 0.15)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        error = process.communicate()[1].decode()
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, error
    assert kills > 0, "the run was over before it could be killed"
    assert_same_run(whole, only(tmp_path / "save" / "student_model"))


def test_a_finished_run_is_left_alone(whole, capfd):
    folder = whole.parents[2]
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*") if path.is_file()}
    process = command(folder, f"{LINE} --resume")
    assert process.wait() == 0
    assert before == {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}


def test_stopped_by_ctrl_c(tmp_path):
    teacher_in(tmp_path)
    process = command(tmp_path, LINE.replace("--epochs 3", "--epochs 500"))
    runs = tmp_path / "save" / "student_model"
    while process.poll() is None and not any(
        p.stat().st_size for p in runs.glob("*/metrics.jsonl")
    ):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1].decode()
    assert process.returncode == 130, error
    assert error.splitlines()[-1].startswith("stopped; --resume goes on")
    assert "Traceback" not in error
