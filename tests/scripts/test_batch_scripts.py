"""The scripts that run many trainings."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli import parse
from distiller_zoo import METHODS
from models.any import build
from runs import checkpoint
from tests.conftest import only
from tools.train import translated

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = "--dataset fake --fake_size 24 --fake_classes 4 --image_size 16 --epochs 1 --device cpu"
PARSE = {
    "train_teacher.py": parse.parse_teacher,
    "train_student.py": parse.parse_student,
    "tools/train.py": lambda words: parse.parse_student(translated(words)),
}


def script(name, *flags, **variables):
    return subprocess.run(
        ["sh", ROOT / name, *flags],
        capture_output=True,
        text=True,
        cwd=ROOT.parent,
        env={**os.environ, "PYTHON": sys.executable, **variables},
    )


def dry(name, *flags, **variables):
    """The options of every command that a script would run."""
    done = script(name, *flags, DRY_RUN="1", **variables)
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line)[1:] for line in done.stdout.splitlines()]
    return [PARSE[words[0]](words[1:]) for words in commands]


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_vanilla_trains_every_network_of_the_tables():
    runs = dry("scripts/run_cifar_vanilla.sh")
    assert {"resnet32x4", "wrn_40_2", "vgg13", "ResNet50", "MobileNetV2"} < {r.model for r in runs}
    assert all(run.resume and run.trial == 1 for run in runs)
    runs = dry("scripts/run_cifar_vanilla.sh", "--epochs", "3", MODELS="vgg8 vgg13", TRIALS="1 2")
    assert [(r.model, r.trial) for r in runs] == [
        ("vgg8", 1), ("vgg13", 1), ("vgg8", 2), ("vgg13", 2),
    ]  # fmt: skip
    assert {run.epochs for run in runs} == {3}


def test_distill_runs_every_method():
    runs = dry("scripts/run_cifar_distill.sh")
    assert sorted(run.distill for run in runs) == sorted(set(METHODS) - {"dcd"})
    assert {run.model_s for run in runs} == {"resnet8x4"}
    for run in runs:
        assert run.model_t == ("resnet32x4" if METHODS[run.distill].has_teacher else "")
    how = {"TEACHER": "vgg13", "STUDENT": "vgg8", "METHODS": "dkd crd", "PATH_T": "x.pth"}
    runs = dry("scripts/run_cifar_distill.sh", **how)
    assert [(r.distill, r.model_t, r.model_s, r.path_t) for r in runs] == [
        ("dkd", "vgg13", "vgg8", "x.pth"),
        ("crd", "vgg13", "vgg8", "x.pth"),
    ]
    assert runs[0].dkd_others == 6  # settings of the pair


@pytest.mark.filterwarnings("ignore:.*the command line wins:UserWarning")
@pytest.mark.parametrize("method", ["kd", "dkd", "rld"])
def test_all_experiments_of_a_method(method):
    runs = dry("run_cifar100_train.sh", METHOD=method)
    shown = [(list(run.choice.views), run.values.get("sdd")) for run in runs]
    views = [["sdd"], ["sdd", "logit_stand"]]
    assert shown[:2] == [([], None), (["logit_stand"], None)]
    assert shown[2:] == [(v, s) for s in ((1,), (1, 2), (1, 2, 4)) for v in views]
    assert {run.distill for run in runs} == {method}
    how = {"METHOD": f"sdd_{method}", "GPU_ID": "3", "BASE_TEMP": "4", "KD_WEIGHT": "5"}
    runs = dry("run_cifar100_train.sh", MODEL="vgg13_vgg8", **how)
    assert {(run.model_t, run.model_s, run.device) for run in runs} == {("vgg13", "vgg8", "cuda:3")}
    weight = "alpha" if method == "kd" else "beta"
    assert [(r.kd_T, r.values[weight]) for r in runs if r.values.get("logit_stand")] == [(4, 5)] * 4


def test_an_unknown_experiment_is_explained():
    done = script("run_cifar100_train.sh", METHOD="crd")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no configs/cifar100/crd/resnet32x4_resnet8x4.yaml")


def test_what_is_finished_is_skipped_and_what_fails_stops_nothing(tmp_path):
    path = tmp_path / "teacher.pth"
    torch.manual_seed(0)
    checkpoint.save(path, {"model": build("resnet8", 4, 16).state_dict(), "model_name": "resnet8"})
    flags = [*FAKE.split(), "--save_dir", str(tmp_path), "--model_s", "resnet8"]
    how = {"METHODS": "kd nothing attention", "TEACHER": "resnet8", "PATH_T": str(path)}
    done = script("scripts/run_cifar_distill.sh", *flags, **how)
    assert done.returncode == 1
    assert "error: no method 'nothing'" in done.stderr
    assert done.stderr.splitlines()[-1] == "1 of the trainings failed: see above"
    assert done.stdout.count("resnet8: last") == 2
    how["METHODS"] = "kd attention"
    done = script("scripts/run_cifar_distill.sh", *flags, **how)
    assert done.returncode == 0
    assert done.stdout.count("is finished: nothing to do") == 2


def test_a_short_run_of_each_other_script(tmp_path):
    flags = [*FAKE.split(), "--save_dir", str(tmp_path)]
    done = script("scripts/run_cifar_vanilla.sh", *flags, MODELS="resnet8")
    assert (done.returncode, done.stdout.count("resnet8: last")) == (0, 1), done.stderr
    path = only(tmp_path / "models") / "ckpt_epoch_1.pth"
    flags += ["--path_t", str(path), "--model_t", "resnet8", "--model_s", "resnet8"]
    done = script("run_cifar100_train.sh", *flags, METHOD="rld")
    assert (done.returncode, done.stdout.count("resnet8: last")) == (0, 8), done.stderr
