"""A folder belongs to one experiment, and one process at a time writes there."""

import json
import os
import platform
import subprocess
import sys

import pytest
import torch

from helper.errors import UserError
from runs import checkpoint
from runs.experiment import Experiment
from runs.folder import FINISHED, NEW, SCHEMA, STOPPED, RunFolder

ONE = Experiment("teacher", (("epochs", 3), ("seed", 1)), data="abc", title="net_set")
OTHER = Experiment("teacher", (("epochs", 50), ("seed", 1)), data="abc", title="net_set")


def holds(path, status, experiment=ONE, resume=True, schema=SCHEMA):
    """A folder as a run leaves it."""
    path.mkdir(exist_ok=True)
    summary = {"schema": schema, "status": status, "experiment": experiment.to_dict()}
    if status == FINISHED:
        (path / "net_last.pth").write_bytes(b"weights")
    (path / "run.json").write_text(json.dumps(summary))
    if resume:
        names = ("stage", "epoch", "task", "optimizer", "scaler", "last", "best", "seconds")
        state = {**dict.fromkeys(names, 1), "experiment": experiment.to_dict()}
        torch.save(state, path / "resume.pth")
    return RunFolder(path, ONE)


def test_what_a_folder_holds(tmp_path):
    folder = RunFolder(tmp_path / "absent", ONE)
    assert folder.check(resume=True, overwrite=False) == NEW
    folder = holds(tmp_path / "done", FINISHED)
    for resume in (True, False):
        assert folder.check(resume, overwrite=False) == FINISHED
    assert folder.check(resume=False, overwrite=True) == NEW
    folder = holds(tmp_path / "half", STOPPED)
    assert folder.check(resume=True, overwrite=False) == STOPPED
    with pytest.raises(UserError, match="was stopped: --resume to go on with it, --overwrite"):
        folder.check(resume=False, overwrite=False)
    folder = holds(tmp_path / "begun", STOPPED, resume=False)
    assert folder.check(resume=False, overwrite=False) == NEW
    with pytest.raises(UserError, match="contradict each other"):
        folder.check(resume=True, overwrite=True)


@pytest.mark.parametrize("status", [FINISHED, STOPPED])
@pytest.mark.parametrize("resume", [True, False])
def test_another_experiment_is_named_and_left(status, resume, tmp_path):
    folder = holds(tmp_path / "a", status, OTHER)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(UserError, match="another experiment: epochs is 50 there and 3 here"):
        folder.check(resume, overwrite=False)
    with pytest.raises(UserError, match="another experiment"), folder.open(resume, False):
        pass
    after = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    del after[".lock"]
    assert after == before


def test_a_finished_run_without_its_weights(tmp_path):
    folder = holds(tmp_path / "a", FINISHED)
    (folder.path / "net_last.pth").unlink()
    with pytest.raises(UserError, match="is finished, but its weights are gone: --overwrite"):
        folder.check(resume=True, overwrite=False)


def test_a_resume_file_of_another_experiment(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    holds(tmp_path / "b", STOPPED, OTHER)
    os.replace(tmp_path / "b" / "resume.pth", tmp_path / "a" / "resume.pth")
    with pytest.raises(UserError, match="epochs is 50 there"), folder.open(True, False):
        pass


@pytest.mark.parametrize("text", ["{", "[]", '"text"', ""])
def test_a_summary_that_cannot_be_read(text, tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    folder.summary_file.write_text(text)
    with pytest.raises(UserError, match="cannot be read"):
        folder.check(True, False)


def test_a_run_of_another_release(tmp_path):
    folder = holds(tmp_path / "a", FINISHED, schema=SCHEMA + 1)
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1}, here it is {SCHEMA}"):
        folder.check(True, False)
    folder.summary_file.write_text('{"status": "finished", "options": {}}')  # the first release's
    with pytest.raises(UserError, match="has schema 1"):
        folder.check(False, False)


def test_opening_clears_what_is_overwritten_and_nothing_else(tmp_path):
    folder = holds(tmp_path / "a", FINISHED)
    (folder.path / "notes.txt").write_text("mine")
    (folder.path / "tensorboard").mkdir()
    with folder.open(resume=False, overwrite=True) as state:
        assert state == {}
        assert {path.name for path in folder.path.iterdir()} == {
            "notes.txt", ".lock", ".lock.json"
        }  # fmt: skip
    assert not folder.holder.exists()


def test_leftovers_of_a_killed_run_are_removed(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    for name in (".resume.pth.x7k2m9qa", ".run.json.aaaaaaaa", ".metrics.jsonl.bbbbbbbb"):
        (folder.path / name).write_bytes(b"half")
    (folder.path / ".mine.txt.cccccccc").write_bytes(b"not ours")
    with folder.open(resume=True, overwrite=False) as state:
        assert state["epoch"] == 1
        left = {path.name for path in folder.path.iterdir() if path.name.startswith(".")}
        assert left == {".lock", ".lock.json", ".mine.txt.cccccccc"}


def test_large_memories_are_of_the_run_and_epoch_that_the_resume_file_is_of(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    state = {**checkpoint.load(folder.resume_file), "stage": "main", "task": {"a": 1}}
    for epoch in (1, 2):
        folder.write_state({**state, "epoch": epoch}, {"bank": 10 * epoch})
    with folder.open(resume=True, overwrite=False) as found:
        assert found["task"] == {"a": 1, "bank": 20}
    path = folder.path / "memories_main_2.pth"
    assert list(folder.path.glob("memories*")) == [path]
    content = checkpoint.load(path)
    for wrong in ({"epoch": 1}, {"stage": "first"}, {"experiment": OTHER.to_dict()}):
        checkpoint.save(path, {**content, **wrong})
        with pytest.raises(UserError, match="of another run or epoch than resume.pth: --overwrite"):
            folder.open(resume=True, overwrite=False).__enter__()
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="memories_main_2.pth is no checkpoint, or a truncated"):
        folder.open(resume=True, overwrite=False).__enter__()
    path.unlink()
    with pytest.raises(UserError, match="memories_main_2.pth, which resume.pth needs, is gone"):
        folder.open(resume=True, overwrite=False).__enter__()


def test_a_second_start_is_told_who_holds_the_folder(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    with folder.open(resume=True, overwrite=False):
        before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
        for resume, overwrite in ((True, False), (False, True), (False, False)):
            second = RunFolder(folder.path, ONE)
            says = f"written by process {os.getpid()} on {platform.node()} since 20"
            with pytest.raises(UserError, match=says), second.open(resume, overwrite):
                pass
        assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before
    with RunFolder(folder.path, ONE).open(resume=True, overwrite=False):
        pass


def test_a_killed_process_holds_nothing(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    code = (
        "import os, sys; from pathlib import Path; from runs.folder import RunFolder\n"
        "from tests.runs.test_folder import ONE\n"
        "held = RunFolder(Path(sys.argv[1]), ONE).open(True, False)\nheld.__enter__()\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder.path)])
    assert done.returncode == -9
    assert folder.holder.exists()
    with folder.open(resume=True, overwrite=False) as state:
        assert state["epoch"] == 1


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "a", ONE)
    with pytest.raises(UserError, match="cannot write to .* another --save_dir"):  # noqa: SIM117
        with folder.open(False, False):
            pass
