"""Runs of earlier releases, kept in the repository, are resumed, evaluated and compared.

kept/first has finished runs of the first release (run.json without a schema). kept/second has a run
of schema 2 that was stopped after 2 of its 4 epochs, and what the whole run logged; its command was

    train_teacher --model tests.networks:tiny --dataset digits --image_size 8 --batch_size 128
        --epochs 4 --save_freq 2

A release that can't read them any more loses its users' runs: do not make them anew, add others.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch

from runs import checkpoint
from runs.folder import SCHEMA
from runs.logs import read_lines
from runs.results import read_result
from scripts.compare import compare
from tests.conftest import only
from tools.eval import evaluate_checkpoint

KEPT = Path(__file__).resolve().parent / "kept"
DIGITS = "--dataset digits --image_size 8 --batch_size 128"
LINE = f"train_teacher --model tests.networks:tiny {DIGITS} --epochs 4 --save_freq 2"


@pytest.fixture
def stopped(tmp_path):
    """The stopped run of schema 2, in the working folder."""
    (source,) = (KEPT / "second").glob("tests*")
    folder = tmp_path / "save" / "models" / source.name
    shutil.copytree(source, folder)
    return folder


def test_a_stopped_run_is_gone_on_with(stopped, run, tmp_path, capsys):
    run(f"{LINE} --resume")
    assert "resumed after epoch 2 of the main stage" in capsys.readouterr().out
    assert only(tmp_path / "save" / "models") == stopped
    whole = read_lines(KEPT / "second" / "whole" / "metrics.jsonl")
    lines = read_lines(stopped / "metrics.jsonl")
    assert len(lines) == len(whole) == 4
    for line, expected in zip(lines, whole, strict=True):
        assert line["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
        assert line["test_acc"] == pytest.approx(expected["test_acc"], abs=0.5)
    summary = json.loads((stopped / "run.json").read_text())
    assert summary["status"] == "finished"
    assert len(summary["provenance"]) == 2


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [],
        lambda lines: lines[1:],
        lambda lines: [lines[0], lines[0], lines[1]],
        lambda lines: [lines[0].replace("1", "9", 1), lines[1]],
        lambda lines: ["\x85", *lines],
    ],
    ids=["gone", "gap", "twice", "edited", "no JSON"],
)
@pytest.mark.parametrize("release", ["this", "earlier"])
def test_epochs_are_1_to_n_whatever_became_of_the_metrics(change, release, stopped, run, capsys):
    """resume.pth has all of them; that of an earlier release the best and the last, here both."""
    lines = (stopped / "metrics.jsonl").read_text().splitlines()
    if release == "this":
        state = checkpoint.load(stopped / "resume.pth")
        checkpoint.save(stopped / "resume.pth", {**state, "history": list(map(json.loads, lines))})
    (stopped / "metrics.jsonl").write_text("\n".join(change(lines)))
    run(f"{LINE} --resume")
    assert "metrics.jsonl" not in capsys.readouterr().err
    kept = [json.loads(line) for line in (stopped / "metrics.jsonl").read_text().split("\n")[:-1]]
    assert [line["epoch"] for line in kept] == [1, 2, 3, 4]
    assert kept[:2] == list(map(json.loads, lines))
    assert kept[2:] == read_lines(stopped / "metrics.jsonl")[2:]


def test_epochs_that_are_lost_are_said(stopped, run, capsys):
    state = checkpoint.load(stopped / "resume.pth")
    checkpoint.save(stopped / "resume.pth", {**state, "best": state["last"]})
    (stopped / "metrics.jsonl").unlink()
    run(f"{LINE} --resume")
    assert "metrics.jsonl lacks 1 of 2 epochs, which are lost" in capsys.readouterr().err
    text = (stopped / "metrics.jsonl").read_text()
    assert [json.loads(line)["epoch"] for line in text.splitlines()] == [2, 3, 4]


def momentum(of):
    """Put something else in the place of the first momentum, (4, 3, 3, 3)."""

    def change(state):
        state["optimizer"]["state"][0]["momentum_buffer"] = of

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (momentum(torch.zeros(1)), "another optimizer's state"),
        (momentum(torch.zeros(4, 3, 3, 3).double()), "another optimizer's state"),
        (momentum(torch.zeros(4, 3, 3, 3).to_sparse()), "another optimizer's state"),
        (momentum(torch.zeros(4, 3, 3, 3, device="meta")), "another optimizer's state"),
        (momentum(None), "another optimizer's state"),
        (lambda state: state["optimizer"]["state"].clear(), "another optimizer's state"),
        (lambda state: state["optimizer"]["state"].update({99: {}}), "another optimizer's state"),
        (lambda state: state["optimizer"].pop("state"), "another optimizer's state"),
        (lambda state: state["task"].clear(), "is missing"),
        (lambda state: state["task"].pop("student.norm.num_batches_tracked"), "is missing"),
        (lambda state: state["task"].update({"x": torch.zeros(2)}), "is not in this run"),
        (lambda state: state["task"].update({"x": 2}), "holds no weights"),
        (
            lambda state: [line.update(epoch=10**9) for line in (state, state["last"])],
            "is of epoch 1000000000, and there are 4",
        ),
    ],
)
def test_a_state_that_does_not_fit(change, says, stopped, fails):
    state = checkpoint.load(stopped / "resume.pth")
    change(state)
    state["history"] = [state["best"], state["last"]]
    checkpoint.save(stopped / "resume.pth", state)
    message = fails(f"{LINE} --resume")
    assert "resume.pth" in message
    assert says in message


def test_a_run_of_other_numbers_does_not_go_on_with_it(stopped, fails):
    kept = json.loads((stopped / "run.json").read_text())
    kept["experiment"]["options"]["momentum"] = 0.5
    (stopped / "run.json").write_text(json.dumps(kept))
    assert "momentum is 0.5 there and 0.9 here" in fails(f"{LINE} --resume")


@pytest.mark.parametrize("folder", sorted(KEPT.glob("*/*tests.networks*")), ids=lambda p: p.name)
def test_what_is_read_of_a_kept_run(folder):
    result = read_result(folder)
    assert result.finished == (folder.parent.name == "first")
    assert result.data == "digits"
    assert result.model == "tests.networks:tiny"
    assert result.kind == ("student" if folder.name.startswith("S_") else "teacher")
    assert (result.seed, result.trial) == (1, 1)
    assert 0 < result.best["test_acc"] <= 100


def test_runs_of_all_releases_stand_in_one_table(stopped, run, capsys):
    run(f"{LINE} --resume")
    capsys.readouterr()
    compare([str(KEPT / "first"), "save"])
    out = capsys.readouterr().out
    rows = [line for line in out.splitlines() if line.startswith("tests.networks:tiny")]
    assert len(rows) == 3
    assert any("0.9*KD(T=3)" in row for row in rows)


@pytest.mark.parametrize("kind", ["", "S_"])
def test_checkpoints_of_the_first_release(kind, run, tmp_path, capsys):
    (folder,) = (KEPT / "first").glob(f"{kind}tests*")
    path = folder / "tests.networks-tiny_last.pth"
    stored = json.loads((folder / "run.json").read_text())
    line = f"-c {path} -m tests.networks:tiny"  # the file says which data set
    assert evaluate_checkpoint(line.split())["acc"] == pytest.approx(stored["last"]["test_acc"])
    run(
        f"train_student --path_t {path} --model_t tests.networks:tiny --epochs 1 "
        f"--model_s tests.networks:tiny {DIGITS}"
    )
    assert f"{stored['last']['test_acc']:.2f} %" in capsys.readouterr().out
    run(f"transfer_student --path_s {path} --model_s tests.networks:tiny --epochs 1 {DIGITS}")
    assert (only(tmp_path / "save" / "linear_probe") / "run.json").exists()


def test_the_schema_has_a_kept_run():
    """A new schema needs a kept run of its own."""
    (folder,) = (KEPT / "second").glob("tests*")
    assert json.loads((folder / "run.json").read_text())["schema"] == SCHEMA == 2
    assert checkpoint.load(folder / "resume.pth")["schema"] == SCHEMA
