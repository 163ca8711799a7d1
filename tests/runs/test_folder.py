"""A folder belongs to one experiment, and one process at a time writes there."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helper.errors import UserError
from runs import checkpoint
from runs.experiment import Experiment
from runs.folder import FINISHED, NEW, SCHEMA, STOPPED, RunFolder
from runs.results import read_result

ONE = Experiment("teacher", (("epochs", 3), ("seed", 1)), data="abc", title="net_set")
OTHER = Experiment("teacher", (("epochs", 50), ("seed", 1)), data="abc", title="net_set")

EPOCH = {"epoch": 1, "test_acc": 50.0}
STATE = {
    "schema": SCHEMA, "stage": "main", "epoch": 1, "task": {}, "optimizer": {}, "scaler": {},
    "seconds": 1.0, "last": EPOCH, "best": EPOCH, "history": [EPOCH],
}  # fmt: skip


def holds(path, status, experiment=ONE, resume=True, schema=SCHEMA):
    """A folder as a run leaves it."""
    path.mkdir(exist_ok=True)
    summary = {"schema": schema, "status": status, "experiment": experiment.to_dict()}
    summary["digest"] = experiment.digest
    if status == FINISHED:
        checkpoint.save(path / "net_last.pth", {"experiment": experiment.digest})
    (path / "run.json").write_text(json.dumps(summary))
    if resume:
        checkpoint.save(path / "resume.pth", {**STATE, "experiment": experiment.to_dict()})
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


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_what_is_no_file_is_not_read(name, tmp_path):
    """A pipe would be waited for."""
    folder = holds(tmp_path, STOPPED, resume=False)
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).symlink_to(os.devnull)
    with pytest.raises((UserError, OSError), match="no regular file"):
        folder.check(resume=True, overwrite=False)


@pytest.mark.parametrize("name", ["metrics.jsonl", "net_best.pth"])
def test_a_pipe_in_the_place_of_a_file(name, tmp_path):
    """A resumed run writes these anew; a pipe would wait for a reader."""
    folder = holds(tmp_path, STOPPED)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name} is no regular file, which no run makes"):
        folder.check(resume=True, overwrite=False)


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
    checkpoint.save(folder.path / "net_last.pth", {"experiment": OTHER.digest})
    with pytest.raises(UserError, match="is finished, but its weights are gone: --overwrite"):
        folder.check(resume=True, overwrite=False)
    (folder.path / "net_last.pth").write_bytes(b"half")
    with pytest.raises(UserError, match="net_last.pth is no checkpoint, or a damaged one"):
        folder.check(resume=True, overwrite=False)


def test_killed_while_it_is_cleared(tmp_path, monkeypatch):
    """Whatever was removed by then, a folder without its weights is never finished."""
    real, seen = Path.unlink, set()
    for moment in range(1, 20):
        folder, count = holds(tmp_path / str(moment), FINISHED), 0

        def unlink(path, missing_ok=False, moment=moment):
            nonlocal count
            count += path.suffix in (".json", ".pth") and path.name != ".lock.json"
            if count == moment:
                raise KeyboardInterrupt
            real(path, missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            try:
                with folder.open(resume=False, overwrite=True):
                    break
            except KeyboardInterrupt:
                pass
        weights = (folder.path / "net_last.pth").exists()
        try:
            seen.add((weights, folder.check(resume=False, overwrite=False)))
        except UserError:
            seen.add((weights, "refused"))
    assert moment > 2
    assert seen <= {(True, FINISHED), (True, "refused"), (False, "refused"), (False, NEW)}


def test_killed_while_it_starts_anew(tmp_path, monkeypatch):
    """A run that was stopped in its first epoch begins again, however often it is killed."""
    folder = holds(tmp_path, STOPPED, resume=False)
    checkpoint.save(tmp_path / "net_best.pth", {"experiment": ONE.digest})
    real = Path.unlink

    def unlink(path, missing_ok=False):
        if path.suffix == ".pth":
            raise KeyboardInterrupt
        real(path, missing_ok)

    with (
        monkeypatch.context() as patch,
        pytest.raises(KeyboardInterrupt),
        patch.setattr(Path, "unlink", unlink) or folder.open(resume=True, overwrite=False),
    ):
        pass
    with folder.open(resume=True, overwrite=False) as state:
        assert state == {}
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("name", ["run.json", "resume.pth", "metrics.jsonl", "net_last.pth"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_in_the_place_of_a_file(name, overwrite, tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    (folder.path / name).unlink(missing_ok=True)
    (folder.path / name).mkdir()
    with pytest.raises(UserError, match=f"{name} is a folder, which no run makes: move it away"):
        folder.check(not overwrite, overwrite)


def test_a_resume_file_of_another_experiment(tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    holds(tmp_path / "b", STOPPED, OTHER)
    os.replace(tmp_path / "b" / "resume.pth", tmp_path / "a" / "resume.pth")
    with pytest.raises(UserError, match="epochs is 50 there"), folder.open(True, False):
        pass


@pytest.mark.parametrize(
    "content", [b"{", b"[]", b'"text"', b"", b"\xff", b"[" * 100_000, b"9" * 5000, b"NaN"]
)
def test_a_summary_that_cannot_be_read(content, tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    folder.summary_file.write_bytes(content)
    for read in (lambda: folder.check(True, False), lambda: read_result(folder.path)):
        with pytest.raises(UserError, match="run.json is broken .*: start that run anew"):
            read()


def test_what_may_not_be_read_is_not_broken(tmp_path, monkeypatch):
    folder = holds(tmp_path / "a", STOPPED)
    real = Path.read_bytes

    def refuse(path):  # root, who may run tests, is never refused
        if path.name == refused:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    refused = "run.json"
    for read in (lambda: folder.check(True, False), lambda: read_result(folder.path)):
        with pytest.raises(UserError, match=r"run.json cannot be read \(Permission denied\)$"):
            read()
    refused = "metrics.jsonl"
    (kept,) = (Path(__file__).parent / "kept" / "second").glob("tests*")
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be read \(Permission denied\)$"):
        read_result(kept)


WRONG = [
    ("status", "crashed"), ("status", []), ("last", [1]), ("last", {"test_acc": "90"}),
    ("best", {"test_acc": float("nan")}), ("seconds", "3"), ("options", {}), ("options", 5),
    ("options", {"epochs": float("inf"), "trial": 1}), ("parameters", float("inf")),
    ("provenance", 3), ("provenance", ["x"]), ("provenance", [{"options": 3}]), ("wandb_id", 3),
    ("teacher", "x"), ("seed", True), ("model", 3),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_summary_that_was_edited(name, value, tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    summary = {**json.loads(folder.summary_file.read_text()), name: value}
    folder.summary_file.write_text(json.dumps(summary))
    for read in (lambda: folder.check(True, False), lambda: read_result(folder.path)):
        with pytest.raises(UserError, match=rf"run.json is broken \({name} is "):
            read()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"stage": "second"}, "stage is 'second'"),
        ({"schema": 3}, "schema is 3"),
        ({"epoch": 0}, "epoch is 0"),
        ({"epoch": 10**9}, "its last epoch is not 1000000000"),
        ({"epoch": True}, "epoch is True"),
        ({"last": {}}, "its last epoch is not 1"),
        ({"last": {"epoch": 1}}, "its last epoch is not 1"),
        ({"best": {}}, "its best epoch is none of these"),
        ({"best": {"epoch": 2, "test_acc": 50.0}}, "its best epoch is none of these"),
        ({"best": {"test_acc": 50.0}}, "its best epoch is none of these"),
        ({"history": [{}]}, "its history is not one of epochs in order"),
        ({"history": [EPOCH, EPOCH]}, "its history is not one of epochs in order"),
        ({"history": 5}, "history is 5"),
        ({"seconds": float("nan")}, "seconds is such a float"),
        ({"task": None}, "task is None"),
        ({"optimizer": 3}, "optimizer is 3"),
        ({"scaler": {"scale": "x"}}, "scaler is such a dict"),
        ({"stage": "first"}, "its last epoch is not 0"),
        ({"experiment": {}}, "experiment is such a dict"),
        ({"experiment": {**ONE.to_dict(), "options": {"x": ((1,),)}}}, "experiment is such a dict"),
    ],
)
def test_a_resume_file_that_was_edited(change, says, tmp_path):
    folder = holds(tmp_path / "a", STOPPED)
    state = {**checkpoint.load(folder.resume_file), **change}
    checkpoint.save(folder.resume_file, state)
    match = re.escape(f"resume.pth is no resume file ({says})")
    with pytest.raises(UserError, match=match), folder.open(True, False):
        pass
    del state[next(iter(change))]
    checkpoint.save(folder.resume_file, state)
    if "history" not in change:  # which older files lack
        with pytest.raises(UserError, match=f"it lacks {next(iter(change))}"):  # noqa: SIM117
            with folder.open(True, False):
                pass


def test_a_run_of_another_release(tmp_path):
    folder = holds(tmp_path / "a", FINISHED, schema=SCHEMA + 1)
    with pytest.raises(UserError, match=f"schema {SCHEMA + 1}, here it is {SCHEMA}"):
        folder.check(True, False)
    folder.summary_file.write_text('{"status": "finished"}')  # the first release's
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
    assert not folder.lock.holder.exists()


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
    state = {**checkpoint.load(folder.resume_file), "task": {"a": 1}}
    folder.write_state(state, {"bank": 10})
    second = {**EPOCH, "epoch": 2}
    state |= {"epoch": 2, "last": second, "history": [EPOCH, second]}
    folder.write_state(state, {"bank": 20})
    with folder.open(resume=True, overwrite=False) as found:
        assert found["task"] == {"a": 1, "bank": 20}
    path = folder.path / "memories_main_2.pth"
    assert list(folder.path.glob("memories*")) == [path]
    content = checkpoint.load(path)
    others = ({"epoch": 1}, {"stage": "first"}, {"experiment": OTHER.to_dict()}, {"task": 3})
    for wrong in others:
        checkpoint.save(path, {**content, **wrong})
        with pytest.raises(UserError, match="of another run or epoch than resume.pth: --overwrite"):
            folder.open(resume=True, overwrite=False).__enter__()
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="memories_main_2.pth is no checkpoint, or a damaged"):
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
    assert folder.lock.holder.exists()
    with folder.open(resume=True, overwrite=False) as state:
        assert state["epoch"] == 1


def test_a_run_that_has_nothing_to_resume_is_not_its_own_sibling(tmp_path):
    folder = holds(tmp_path / "a", STOPPED, resume=False)
    assert folder.stopped_sibling() == ""
    holds(tmp_path / "b", STOPPED, OTHER)
    assert folder.stopped_sibling() == "b was stopped, of which epochs is 50 there and 3 here"


def test_a_folder_is_given_back_whatever_the_disk_says(tmp_path, monkeypatch):
    folder = holds(tmp_path / "a", STOPPED)

    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:  # noqa: SIM117 - what is patched outlives the folder
        with folder.open(resume=True, overwrite=False):
            patch.setattr(Path, "unlink", refuse)
    with RunFolder(folder.path, ONE).open(resume=True, overwrite=False):
        pass


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    folder = RunFolder(tmp_path / "file" / "a", ONE)
    with pytest.raises(UserError, match="cannot write to .* another --save_dir"):  # noqa: SIM117
        with folder.open(False, False):
            pass
