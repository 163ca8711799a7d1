"""--val_fraction: epochs are measured on held-out training images, the test set comes last."""

import json
import shutil

import pytest
import torch

from cli.parse import parse_student
from cli.setting import make_setting
from dataset.loader import Loader
from models import MODELS
from runs import checkpoint
from runs.results import read_result
from scripts import compare
from tests.conftest import killed, only, stopped
from tools.eval import evaluate_checkpoint

DATA = "--dataset fake --fake_size 80 --image_size 8 --fake_classes 4 --batch_size 16"
HELD_OUT = f"{DATA} --val_fraction 0.2"
ALONE = f"train_teacher --model resnet8 {HELD_OUT} --epochs 3 --learning_rate 0.2"
CRD = f"train_student --path_t t.pth --model_t resnet8 --distill crd --nce_k 8 {HELD_OUT}"


def summary(folder):
    return json.loads((folder / "run.json").read_text())


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def read(monkeypatch):
    """The splits that are read, in order."""
    batches, read = Loader.batches, []

    def noted(loader, epoch=0):
        read.append(loader.split)
        return batches(loader, epoch)

    monkeypatch.setattr(Loader, "batches", noted)
    return read


def test_the_best_epoch_is_chosen_without_the_test_set(run, read, tmp_path, capsys):
    run(ALONE)
    folder = only(tmp_path / "save" / "models")
    assert "_val_fraction_0.2_" in folder.name
    lines, stored = lines_of(folder), summary(folder)
    assert not any("test_acc" in line for line in lines)
    best = max(lines, key=lambda line: line["val_acc"])
    assert stored["best"]["epoch"] == best["epoch"]
    assert {**stored["last"], **lines[-1]} == stored["last"]
    chosen_late = best["epoch"] == 3
    assert read == ["train", "val"] * 3 + ["test"] * (1 if chosen_late else 2)
    assert stored["images"] == {"train": 64, "val": 16, "test": 20}
    assert stored["best_on"] == "val"
    for which in ("last", "best"):
        path = folder / f"resnet8_{which}.pth"
        found = evaluate_checkpoint(f"-c {path}".split())["acc"]
        assert found == pytest.approx(stored[which]["test_acc"])
        assert checkpoint.load(path)["accuracy"] == stored[which]["val_acc"]
    said = capsys.readouterr().out
    assert "64 training, 16 held-out and 20 test images" in said
    assert "protocol:  best epoch on the held-out images; the test images are read at" in said
    assert f"val {lines[0]['val_acc']:.2f} % (top-5" in said
    assert f"(epoch {best['epoch']} on the held-out images)" in said


def test_the_best_network_is_tested_and_not_the_last(run, tmp_path, monkeypatch):
    """By hand: the first epoch is made the best one."""
    from engine import fit

    evaluate, calls = fit.evaluate, []

    def first_is_best(predict, loader):
        calls.append(loader.split)
        return {**evaluate(predict, loader), "acc": 50.0 - len(calls)}

    monkeypatch.setattr(fit, "evaluate", first_is_best)
    run(ALONE)
    folder = only(tmp_path / "save" / "models")
    best = summary(folder)["best"]
    assert best["epoch"] == checkpoint.load(folder / "resnet8_best.pth")["epoch"] == 1
    found = evaluate_checkpoint(f"-c {folder}/resnet8_best.pth".split())
    assert best["test_loss"] == pytest.approx(found["loss"])
    assert best["test_loss"] != summary(folder)["last"]["test_loss"]


def test_a_run_stopped_before_its_test_is_resumed(run, tmp_path):
    run(ALONE)
    folder = only(tmp_path / "save" / "models")
    whole = stopped(folder)
    run(f"{ALONE} --resume")
    again = summary(folder)
    assert (again["last"], again["best"]) == (whole["last"], whole["best"])
    assert again["status"] == "finished"


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(5)
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "t.pth")


def test_memories_a_bank_and_a_resumed_run(run, teacher, tmp_path):
    """`index` counts the images that are trained on: memories and bank have a row for each."""
    line = f"{CRD} -a 1 --epochs 2 --teacher_bank bank"
    run(f"{line} --save_dir whole")
    (key,) = (tmp_path / "bank").glob("*/bank.json")
    assert json.loads(key.read_text())["samples"] == 64
    whole = only(tmp_path / "whole" / "student_model")
    assert summary(whole)["last"]["bank_missing"] < 1

    with killed():
        run(f"{line} --save_dir cut")
    run(f"{line} --save_dir cut --resume")
    cut = only(tmp_path / "cut" / "student_model")
    for name in ("resume.pth", "resnet8_best.pth"):
        one, other = (checkpoint.load(folder / name) for folder in (whole, cut))
        for key in ("task", "model"):
            assert all(torch.equal(x, other[key][n]) for n, x in one.get(key, {}).items())
    one, other = summary(whole), summary(cut)
    for which in ("last", "best"):
        for name in ("val_acc", "val_loss", "test_acc", "test_loss"):
            assert one[which][name] == other[which][name]


def test_other_held_out_images_have_another_bank(run, teacher, tmp_path):
    for flags in ("", "--val_seed 1", "--val_fraction 0"):
        run(f"{CRD} {flags} -a 1 --epochs 1 --teacher_bank bank")
    assert len(list((tmp_path / "bank").glob("*/bank.json"))) == 3


def test_a_probe_is_chosen_on_held_out_images(probed, tmp_path):
    probed(f"{DATA} --val_fraction 0.2")
    (folder,) = (path.parent for path in tmp_path.glob("save/linear_probe/*/run.json"))
    assert {"val_acc", "test_acc"} <= summary(folder)["best"].keys()
    assert "test_acc" not in lines_of(folder)[0]


def test_of_a_run_that_goes_on_the_best_so_far_is_known(run, tmp_path):
    run(ALONE)
    folder = only(tmp_path / "save" / "models")
    stopped(folder)
    found = read_result(folder)
    assert found.best["val_acc"] == max(line["val_acc"] for line in lines_of(folder))


def test_tables_say_on_what_the_best_was_chosen(run, tmp_path, capsys):
    run(f"{ALONE} --epochs 1")
    capsys.readouterr()
    compare.compare([])
    said = capsys.readouterr().out
    assert compare.HELD_OUT in said
    assert compare.PROTOCOL not in said
    run(f"train_teacher --model resnet8 {DATA} --epochs 1")
    compare.compare([])
    assert compare.PROTOCOL in capsys.readouterr().out
    shutil.rmtree(only(tmp_path / "save" / "models", "*val_fraction*"))
    compare.compare([])
    assert compare.HELD_OUT not in capsys.readouterr().out


def test_labels_that_methods_read_are_those_of_the_training_part(run, teacher):
    options = parse_student([*CRD.split()[1:], "--train_fraction", "0.5"])
    setting = make_setting(options, options.model_s)
    loaders = setting.loaders()
    assert (len(loaders.train.labels), len(loaders.val.labels)) == (32, 16)
    index = torch.cat([batch.index for batch in loaders.train.batches(1)])
    assert index.sort().values.tolist() == list(range(32))
    shown = next(iter(loaders.val.batches(0)))
    assert torch.equal(shown.index, torch.arange(16)), "not shuffled, not augmented"


@pytest.mark.parametrize("value", ["1", "-0.1", "1.5", "x"])
def test_what_is_no_share(value, fails):
    assert "--val_fraction" in fails(f"{ALONE} --val_fraction {value}")
