"""A run that is killed and resumed ends with the bits of the run that was never killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models import MODELS
from runs import checkpoint
from runs.folder import RunFolder
from runs.recorder import Run
from tests.conftest import Killed, only

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = "--dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4"
LINE = (
    f"train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 {DATA} "
    "--epochs 3 --save_freq 2 --distill kd --tekap"
)


MEMORIES = LINE.replace("kd --tekap", "crd --nce_k 8 --feat_dim 32").replace(
    "--epochs 3 --save_freq 2", "--epochs 5 --save_freq 3"
)


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
    """Curves, weights, memories and what a run would be resumed with."""
    assert numbers(one) == numbers(other)
    names = {path.name for path in one.glob("*.pth")}
    assert names == {path.name for path in other.glob("*.pth")}
    assert {"ckpt_epoch_3.pth", "resnet8_best.pth", "resnet8_last.pth", "resume.pth"} <= names
    for name in names:
        a, b = checkpoint.load(one / name), checkpoint.load(other / name)
        for key in ("model", "task"):
            for entry, value in a.get(key, {}).items():
                assert torch.equal(value, b[key][entry]), f"{name}: {entry}"
    a, b = (checkpoint.load(f / "resume.pth")["average"] for f in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a.keys() | b.keys())
    a, b = (checkpoint.load(f / "resume.pth")["optimizer"]["state"] for f in (one, other))
    assert all(torch.equal(a[i][name], b[i][name]) for i in a for name in a[i])


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


def test_large_memories_and_what_else_is_resumed_are_of_one_epoch(run, tmp_path, monkeypatch):
    """Killed right before, and right after, each change of either file."""
    teacher_in(tmp_path)
    monkeypatch.setattr("engine.objective.LARGE", 4000)  # bytes; a memory of 40 samples has 5120
    run(f"{MEMORIES} --save_dir whole")
    whole = only(tmp_path / "whole" / "student_model")
    assert checkpoint.load(whole / "memories_main_5.pth")["task"].keys() == {
        "method.memory_s.bank", "method.memory_t.bank"
    }  # fmt: skip
    written, changes = [], {name: getattr(os, name) for name in ("replace", "unlink")}

    def dying_at(moment, after, change):
        def dying(*paths, **how):
            name = Path(paths[-1]).name
            ours = name.startswith(("memories_", "resume."))
            written.extend([name] * ours)
            dies = ours and len(written) == moment
            if dies and not after:
                raise Killed
            change(*paths, **how)
            if dies:
                raise Killed

        return dying

    for moment in range(1, 100):
        for after in (False, True):
            folder = tmp_path / f"{moment}{after}"
            written.clear()
            for name, change in changes.items():
                monkeypatch.setattr(os, name, dying_at(moment, after, change))
            try:
                run(f"{MEMORIES} --save_dir {folder}")
            except Killed:
                for name, change in changes.items():
                    monkeypatch.setattr(os, name, change)
                run(f"{MEMORIES} --save_dir {folder} --resume")
                assert_same_run(whole, only(folder / "student_model"))
            else:
                assert written == [
                    "memories_main_1.pth", "resume.pth",
                    "memories_main_3.pth", "resume.pth", "memories_main_1.pth",
                    "memories_main_5.pth", "resume.pth", "memories_main_3.pth",
                ]  # fmt: skip
                return


@pytest.mark.parametrize(
    "recipe",
    [
        "--optimizer adamw --schedule cosine",
        "--init teacher.pth --ema 0.9 --backbone_rate 0.01",
        "--balance sampler --train_fraction 0.9 --distill crd --nce_k 8 -b 0.8",
        "--mixup 0.4 --label_smoothing 0.1",
    ],
)
def test_every_recipe_is_resumed_with_the_same_bits(recipe, run, tmp_path, monkeypatch):
    teacher_in(tmp_path)
    run(f"{LINE} {recipe} --save_dir whole")
    real, written = os.replace, []

    def dying(source, target):
        real(source, target)
        written.append(Path(target).name)
        if written.count("resume.pth") == 2:
            raise Killed

    monkeypatch.setattr("os.replace", dying)
    with pytest.raises(Killed):
        run(f"{LINE} {recipe}")
    monkeypatch.setattr("os.replace", real)
    run(f"{LINE} {recipe} --resume")
    whole, resumed = (only(tmp_path / name / "student_model") for name in ("whole", "save"))
    assert_same_run(whole, resumed)
    assert [line["epoch"] for line in numbers(resumed)] == [1, 2, 3]


def test_which_epoch_a_run_with_large_memories_can_go_on_after():
    run = Run(RunFolder(Path("here"), None), "net", {"options": {"save_freq": 3}}, {}, writes=False)
    stage = SimpleNamespace(is_main=True, epochs=5, task=SimpleNamespace(memories=lambda: ["bank"]))
    kept = []
    for epoch in range(1, 6):
        run.finish_epoch(stage, epoch, {"test_acc": 0.0, "seconds": 0.0})
        kept.append(run.describe_kept())
    assert kept == [f"the checkpoint of epoch {n} is kept in here" for n in (1, 1, 3, 3, 5)]


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
