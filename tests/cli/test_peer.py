"""Two students by the command line: both are measured, said and kept."""

import json

import pytest
import torch

from cli.job import make_job, planned
from cli.parse import parse_student
from runs import checkpoint
from runs.logs import read_lines
from tests.conftest import only
from tools import eval as evaluation
from tools import export as exporting

DATA = "--dataset fake --fake_size 32 --fake_classes 4 --image_size 16"
LINE = f"train_student --distill dml --model_s resnet8 {DATA} --batch_size 16 --epochs 2"

SHUFFLE = f"--distill dml --model_s resnet8 --peer ShuffleV1 {DATA}"


def finished(tmp_path):
    folder = only(tmp_path / "save" / "student_model")
    return folder, json.loads((folder / "run.json").read_text())


def test_both_students_are_measured_said_and_kept(run, tmp_path, capsys):
    run(f"{LINE} --peer resnet14")
    folder, summary = finished(tmp_path)
    said = capsys.readouterr().out.splitlines()
    assert "objective: 1*CE + 1*dml, of resnet8 and of its peer resnet14" in said
    assert "_dml_r_1_a_0_b_1_peer_resnet14_" in folder.name
    peer, lines = summary["others"]["peer"], read_lines(folder / "metrics.jsonl")
    assert [peer["model"], peer["parameters"]] == ["resnet14", 174868]
    assert peer["last"]["test_acc"] == lines[-1]["test_peer_acc"]
    best = max(lines, key=lambda line: line["test_peer_acc"])
    assert peer["best"]["test_acc"] == best["test_peer_acc"]
    assert {"train_ce", "train_dml", "train_peer_ce", "train_peer_dml"} <= lines[-1].keys()
    last, best_acc = (f"{peer[which]['test_acc']:.2f} %" for which in ("last", "best"))
    assert said[-1] == f"peer resnet14: last {last}, best {best_acc} (epoch {best['epoch']})"
    assert f"(top-5 100.00), peer {last}  " in said[-3]
    for which in ("last", "best"):
        file = folder / f"peer_resnet14_{which}.pth"
        known = checkpoint.load(file)
        assert known["model_name"] == "resnet14"
        assert [known["epoch"], known["accuracy"]] == [
            peer[which][x] for x in ("epoch", "test_acc")
        ]
        evaluation.evaluate_checkpoint(["-c", str(file), "--json", "scores.json"])
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert scores["acc"] == pytest.approx(peer[which]["test_acc"])


def test_the_peer_is_a_teacher_like_any_other(run, tmp_path):
    run(LINE)
    folder, _ = finished(tmp_path)
    file = folder / "peer_resnet8_last.pth"
    run(f"train_student --distill kd --path_t {file} {DATA} --epochs 1 --save_dir taught")
    summary = json.loads((only(tmp_path / "taught" / "student_model") / "run.json").read_text())
    assert summary["teacher"]["acc"] == read_lines(folder / "metrics.jsonl")[-1]["test_peer_acc"]


def test_of_one_network_two_students_start_apart_and_the_first_as_it_would_alone(run, tmp_path):
    how = "--learning_rate 1e-30"
    run(f"{LINE} {how}")
    folder, _ = finished(tmp_path)
    run(f"train_teacher --model resnet8 {DATA} --batch_size 16 --epochs 2 {how}")
    alone = only(tmp_path / "save" / "models") / "resnet8_last.pth"
    files = folder / "resnet8_last.pth", folder / "peer_resnet8_last.pth", alone
    first, peer, alone = (checkpoint.weights_of(file)["conv1.weight"] for file in files)
    torch.testing.assert_close(first, alone)
    assert not torch.allclose(first, peer)


def test_the_network_of_the_first_is_the_usual_peer(run, tmp_path, capsys):
    run(LINE)
    run(f"{LINE} --peer resnet8")
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_with_held_out_images_both_are_tested_once(run, tmp_path):
    run(f"{LINE} --val_fraction 0.25")
    folder, summary = finished(tmp_path)
    for line in read_lines(folder / "metrics.jsonl"):
        assert {"val_acc", "val_peer_acc"} <= line.keys()
        assert not [name for name in line if name.startswith("test_")]
    for which in ("last", "best"):
        file = folder / f"peer_resnet8_{which}.pth"
        evaluation.evaluate_checkpoint(["-c", str(file), "--json", "scores.json"])
        scores = json.loads((tmp_path / "scores.json").read_text())
        assert summary["others"]["peer"][which]["test_acc"] == pytest.approx(scores["acc"])


@pytest.mark.parametrize(
    ("flags", "rate"),
    [("", 0.01), ("--lr 0.02", 0.02), ("--peer_rate 0.03", 0.03), ("--optimizer adamw", 0.001)],
)
def test_the_peer_starts_at_its_own_rate(flags, rate):
    options = parse_student(f"{SHUFFLE} {flags}".split())
    assert planned(options, "resnet8").peer_rate == rate


def test_the_rate_of_the_peer_is_part_of_the_experiment_where_it_is_another():
    def job(flags):
        experiment = make_job("", "student", {}, f"{SHUFFLE} {flags}".split()).experiment
        return experiment, dict(experiment.options).get("peer_rate")

    (own, of_own), (alike, of_alike) = job(""), job("--lr 0.05")
    assert (of_own, of_alike) == (0.01, None)
    assert own != alike  # whose first students start at one rate
    assert job("--peer_rate 0.01")[0] == own
    assert job("--peer_rate 0.05")[0] == alike
    assert "peer_rate" not in own.unusual


def test_a_finished_run_has_the_weights_of_both(run, tmp_path, fails):
    run(LINE)
    folder, _ = finished(tmp_path)
    (folder / "resnet8_last.pth").unlink()
    assert fails(LINE).endswith(
        "is finished, but its weights are gone: --overwrite to start it anew"
    )


def test_the_card_of_an_exported_peer_has_its_own_accuracy(run, tmp_path):
    pytest.importorskip("safetensors")
    run(f"{LINE} --peer resnet14")
    folder, summary = finished(tmp_path)
    summary["others"]["peer"]["last"]["test_acc"] = 71.5
    (folder / "run.json").write_text(json.dumps(summary))
    file = folder / "peer_resnet14_last.pth"
    exporting.export([str(file), "--format", "safetensors", "--out", "out"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| test accuracy | last epoch 71.50 %, best epoch " in card


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ("--path_t a.pth", "dml has no teacher, and --path_t is of one"),
        ("--ema 0.9", "--ema is of one student, and dml trains two"),
        ("-a 1", "dml has no teacher, and -a is of one"),
        ("--sdd 1,2", "dml has no teacher, and --sdd is of one"),
        ("--peer resnet7", "resnet7"),
    ],
)
def test_what_has_no_meaning_is_refused_in_one_line(flags, line, fails):
    assert line in fails(f"{LINE} {flags}")
