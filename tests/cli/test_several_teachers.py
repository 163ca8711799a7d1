"""--path_t A B: one teacher whose prediction is the mean of theirs."""

import contextlib
import json
import math
import re

import pytest
import torch

from cli.parse import parse_student
from helper.errors import UserError
from helper.options import shares
from models import MODELS
from runs import checkpoint
from runs.logs import read_lines
from tests.conftest import killed, only
from tools import bank

DATA = "--dataset fake --fake_size 24 --image_size 16 --batch_size 8 --fake_classes 4"
LINE = f"train_student --model_s resnet8 --epochs 2 {DATA}"


@pytest.fixture
def files(tmp_path):
    for seed, name in enumerate(("resnet14", "resnet8", "resnet8")):
        torch.manual_seed(seed)
        content = {"model": MODELS[name](4).state_dict(), "model_name": name}
        checkpoint.save(tmp_path / f"{seed}.pth", content)
    return tmp_path


def kept(folder):
    run = only(folder / "student_model")
    return run.name, json.loads((run / "run.json").read_text()), checkpoint.load(run / "resume.pth")


def test_the_run_has_both_and_its_bank_gives_the_same(files, run, capsys):
    run(f"{LINE} --distill kd --path_t 0.pth 1.pth --save_dir live")
    said = capsys.readouterr().out
    assert "resnet14+resnet8, 252,520 parameters (mean of softmaxes at T=4, weights 0.5, 0." in said
    name, summary, live = kept(files / "live")
    assert name.startswith("S_resnet8_T_resnet14_resnet8-")
    assert summary["teacher"]["model"] == "resnet14+resnet8"
    assert summary["experiment"]["options"]["model_t"] == ["resnet14", "resnet8"]
    run(f"{LINE} --distill kd --path_t 0.pth 1.pth --save_dir banked --teacher_bank bank")
    same, _, banked = kept(files / "banked")
    assert same == name
    for key, value in live["task"].items():
        torch.testing.assert_close(banked["task"][key], value, rtol=1e-3, atol=1e-4)
    run(f"{LINE} --distill kd --path_t 0.pth 1.pth --save_dir live")
    assert "nothing to do" in capsys.readouterr().out
    run(f"{LINE} --distill kd --path_t 0.pth 2.pth --save_dir other")
    other, _, _ = kept(files / "other")
    assert other != name  # of another file


def test_each_has_a_bank_of_its_own_which_runs_with_it_alone_read(files, run, capsys):
    def missing(where):
        lines = read_lines(only(files / where / "student_model") / "metrics.jsonl")
        return [line["bank_missing"] for line in lines]

    line = f"{LINE} --distill kd --teacher_bank bank"
    run(f"{line} --path_t 0.pth --save_dir one")
    run(f"{line} --path_t 0.pth 1.pth --save_dir two")
    assert (missing("one"), missing("two")) == ([1, 1], [0.5, 0.5])
    run(f"{line} --path_t 1.pth --save_dir other")
    run(f"{line} --path_t 1.pth 0.pth --teacher_weights 3,1 --save_dir both")
    assert missing("other") == missing("both") == [0, 0]
    assert len(list((files / "bank").iterdir())) == 2
    assert capsys.readouterr().out.count("bank:      ") == 1 + 2 + 1 + 2
    words = line.split()[1:]
    bank.command(["fill", *words, "--path_t", "0.pth", "1.pth"])
    bank.command(["check", *words, "--path_t", "0.pth", "1.pth"])
    said = capsys.readouterr().out
    assert len(re.findall(r" rows computed; bank/resnet\d+_fake\S+: logits 100.0 %", said)) == 2
    assert len(re.findall(r" rows are the teacher's; bank/resnet", said)) == 2


def test_weights_are_part_of_the_name_and_alike_are_none():
    assert shares("3,1") == (0.75, 0.25)
    assert shares("2,2") == ()
    options = parse_student(["--model_t", "vgg13", "wrn_40_2", "--teacher_weights", "3,1"])
    assert options.teacher_weights == (0.75, 0.25)
    assert "teacher_weights" not in options.idle
    assert "teacher_weights" in parse_student(["--model_t", "vgg13"]).idle
    assert parse_student(["--model_t", "vgg13"]).model_t == "vgg13"  # as it always was


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--distill crd", "crd reads pooled of a teacher, and of several there are only logits"),
        ("--distill hint", "hint reads stem, stages of a teacher"),
        ("--distill wkd_logit", "wkd_logit reads last_map of a teacher"),
        ("--distill kd --teacher_weights 1,2,3", "--teacher_weights has 3 numbers for 2 teachers"),
        ("--distill kd --teacher_weights 3", "3 is one number: give one to each"),
        ("--distill kd --ctkd", "--ctkd learns the temperature of one teacher"),
        ("--distill kd --teacher_weights 1,0", "0 is not above 0"),
        ("--distill kd --path_t x.pth", "--path_t has 1 teachers and --model_t 2: as many"),
        ("--distill pskd", "pskd has no teacher, and --model_t is of one"),
    ],
)
def test_what_does_not_fit_is_one_line(line, says):
    with pytest.raises(UserError, match=says):
        parse_student(["--model_t", "resnet20", "resnet8", *line.split()])
    with pytest.raises(UserError, match="--teacher_weights are of several teachers"):
        parse_student(["--distill", "kd", "--teacher_weights", "1,2"])


def test_a_list_in_a_config_is_several_teachers(files, run):
    (files / "a.yaml").write_text("path_t: [0.pth, 1.pth]\nteacher_weights: [3, 1]\n")
    typed = ["--distill", "kd", "--path_t", "0.pth", "1.pth", "--teacher_weights", "3,1"]
    with contextlib.chdir(files):
        configured = parse_student(["--distill", "kd", "--cfg", "a.yaml"])
        assert configured.path_t == ("0.pth", "1.pth")
        assert {**configured.values, "cfg": ""} == dict(parse_student(typed).values)


@pytest.mark.parametrize("kept_in", ["", "--teacher_bank bank"])
def test_a_resumed_run_is_the_one_that_was_not_stopped(kept_in, files, run):
    line = f"{LINE} --distill kd --path_t 0.pth 1.pth --teacher_weights 3,1 --amp bf16 {kept_in}"
    run(f"{line} --save_dir whole")
    _, summary, whole = kept(files / "whole")
    assert math.isfinite(summary["last"]["train_loss"])
    with killed():
        run(f"{line} --save_dir killed")
    run(f"{line} --save_dir killed --resume")
    _, _, resumed = kept(files / "killed")
    assert whole["task"].keys() == resumed["task"].keys()
    for key, value in whole["task"].items():
        assert torch.equal(value, resumed["task"][key]), key


def test_regions_of_several_teachers_are_refused(files, fails):
    line = fails(f"{LINE} --distill kd --sdd 1,2 --path_t 0.pth 1.pth")
    assert line.startswith("error: --sdd: regions need a network whose classifier reads the mean")
