"""What the machine refuses ends in one line that names the file, and keeps what is whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helper.errors import UserError
from runs import checkpoint
from tests.conftest import only

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = "--dataset fake --fake_size 24 --image_size 8 --fake_classes 4 --batch_size 8"
LINE = f"train_teacher --model resnet8 {FAKE} --epochs 2"


@pytest.fixture
def refused(run, capsys):
    """Run a command line that the machine ends -> the line that says so."""

    def refused(line: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run(line)
        (error,) = capsys.readouterr().err.splitlines()
        assert stop.value.code == 1
        return error

    return refused


def full(monkeypatch, pattern):
    """Let the disk be full for the second file of such a name."""
    real, count = os.fsync, 0

    def fsync(handle):
        nonlocal count
        count += Path(os.readlink(f"/proc/self/fd/{handle}")).match(pattern)
        if count == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr("os.fsync", fsync)


@pytest.mark.parametrize("name", ["resume.pth", "run.json", "metrics.jsonl"])
def test_a_full_disk(name, refused, run, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        full(patch, f"*{name}*")
        error = refused(LINE)
    folder = only(tmp_path / "save" / "models")
    path = folder.relative_to(tmp_path) / name
    assert error == (
        f"error: {path}: No space left on device; once that is mended --resume goes on after the "
        "last whole epoch"
    )
    run(f"{LINE} --resume")
    assert checkpoint.load(folder / "resnet8_last.pth")["epoch"] == 2


def test_a_file_that_may_not_grow(tmp_path):
    """torch.save answers the error with one of its own, which says nothing of the disk."""
    code = (
        "import resource, sys; from cli.main import main; from train_teacher import train_teacher\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main(train_teacher)"
    )
    words = [*LINE.split()[1:], "--save_dir", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 1
    (error,) = done.stderr.splitlines()
    assert "resnet8_best.pth: File too large; once that is mended" in error
    assert not list(only(tmp_path / "models").glob("*.pth"))


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
def test_output_that_cannot_be_printed(tmp_path):
    words = [*LINE.split()[1:], "--save_dir", str(tmp_path)]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "train_teacher.py", *words],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: reading or writing: No space left on device; once")
    assert len(done.stderr.splitlines()) == 1


def test_a_place_for_runs_is_looked_at_before_the_data(fails, tmp_path):
    (tmp_path / "file").write_text("")
    message = fails("train_teacher --dataset folder --data_dir nowhere --save_dir file")
    assert "cannot write to file (Not a directory): give another --save_dir" in message


def test_a_run_s_folder_is_tried_before_anything_is_computed(run, fails, monkeypatch, capsys):
    run(f"{LINE} --epochs 1")
    capsys.readouterr()

    def refuse(folder, flag):
        if folder.name.endswith("trial_1"):
            raise UserError("no")

    monkeypatch.setattr("cli.training.check_writable", refuse)
    run(f"{LINE} --epochs 1")  # nothing to do, nothing to write
    assert "is finished" in capsys.readouterr().out
    assert fails(f"{LINE} --epochs 1 --overwrite") == "error: no"


def test_the_working_folder_is_gone(tmp_path):
    code = f"import os, sys; sys.path.insert(0, {str(ROOT)!r}); os.rmdir(os.getcwd()); import cli"
    (tmp_path / "a").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "a", capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the folder that this was started in is gone: change to one that is there\n"
    )


def test_a_folder_that_is_taken_away(refused, monkeypatch, tmp_path):
    """It is not made anew, with half a run in it."""
    real = checkpoint.save

    def save(path, content):
        real(path, content)
        if path.name == "resume.pth":
            path.parent.rename(tmp_path / "away")

    monkeypatch.setattr("runs.checkpoint.save", save)
    assert "trial_1: No such file or directory; once that" in refused(LINE)
    assert not list((tmp_path / "save" / "models").iterdir())
