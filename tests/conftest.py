import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import train_student
import train_teacher
import transfer_student
from cli import main
from models import MODELS
from runs import checkpoint
from runs.recorder import Run

# Small networks gain nothing from threads; as many processes as cores gain all there is.
os.environ["OMP_NUM_THREADS"] = "1"  # for scripts that tests start
torch.set_num_threads(1)
# What a shell starts in the background ignores Ctrl-C, and so would the commands that tests stop.
signal.signal(signal.SIGINT, signal.default_int_handler)

COMMANDS = {
    "train_teacher": train_teacher.train_teacher,
    "train_student": train_student.train_student,
    "transfer_student": transfer_student.transfer_student,
}


def only(folder: Path, pattern: str = "*") -> Path:
    """The one run in a folder of runs."""
    (found,) = (path for path in folder.glob(pattern) if path.is_dir())
    return found


def stopped(folder: Path) -> dict:
    """Make a finished run one that was killed right before it said so -> what its run.json said."""
    summary = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**summary, "status": "running"}))
    return summary


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


@contextlib.contextmanager
def killed(after: int = 1) -> Iterator[list[str]]:
    """The run inside is killed behind so many writes of resume.pth -> the stages that wrote one."""
    save, saved = Run._save_resume_file, []

    def dying(*args):
        save(*args)
        saved.append(args[1].name)
        if len(saved) == after:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "_save_resume_file", dying)
        with pytest.raises(Killed):
            yield saved


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run a script's command line in this process, with tmp_path as the working folder."""
    monkeypatch.chdir(tmp_path)

    def run(line: str):
        script, *words = line.split()
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *words])
        return main.main(COMMANDS[script])

    return run


@pytest.fixture
def fails(run, capsys):
    """Run a command line that must end in one clear line -> that line."""

    def fails(line: str) -> str:
        with pytest.raises(SystemExit) as stop:
            run(line)
        err = capsys.readouterr().err
        assert stop.value.code == 2, err
        errors = [text for text in err.splitlines() if text.startswith("error: ")]
        assert len(errors) == 1, err
        assert "Traceback" not in err
        return errors[0]

    return fails


@pytest.fixture
def probed(run, tmp_path):
    """Probe the features of a network for one epoch -> the accuracy in % that run.json has."""

    def probed(line: str) -> float:
        path = tmp_path / "wrn_16_2_vanilla" / "ckpt_epoch_240.pth"
        checkpoint.save(path, {"model": MODELS["wrn_16_2"](100).state_dict()})
        run(f"transfer_student --path_s {path} --model_s wrn_16_2 --epochs 1 {line}")
        (summary,) = tmp_path.glob("save/linear_probe/*/run.json")
        return json.loads(summary.read_text())["last"]["test_acc"]

    return probed
