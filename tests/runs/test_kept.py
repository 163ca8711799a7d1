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
