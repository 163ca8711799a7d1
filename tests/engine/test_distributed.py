"""A run on several processes is the run on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.main import main
from dataset.loader import rank_shares
from engine import distributed
from engine.device import pick_device
from helper.errors import UserError
from models import MODELS
from models.any import build
from runs.logs import read_lines
from train_student import train_student

ROOT = Path(__file__).resolve().parent.parent.parent
METHODS = {
    "kd": "--distill kd",
    "crd": "--distill crd --nce_k 12",
    "rrd": "--distill rrd --nce_k 24",
    "icd": "--distill icd",
    "dkd": "--distill dkd --sdd 1,2 --tekap",
    "dkd, normalised": "--distill dkd --dkd_norm",
    "dist": "--distill dist -b 0.05",
    "ttm": "--distill ttm -b 5",
    "wttm": "--distill wttm",
    "normkd": "--distill normkd",
    "ldrld": "--distill ldrld --ldrld_k 2",
    "mlkd": "--distill mlkd --mlkd_strong",
    "hint": "--distill hint --hint_layer 1",
    "skd": "--distill skd",
    "catkd": "--distill catkd -b 1",
    "srd": "--distill srd -a 1 -b 0.1 --divergence ab",
    "abound": "--distill abound --init_epochs 1",
    "ofd": "--distill ofd",
    "pskd": "--distill pskd",
    "tfkd": "--distill tfkd",
    "dml": "--distill dml --peer resnet14",
    "wkd_logit": "--distill wkd_logit",
    "wkd_feature": "--distill wkd_feature -b 0.008",
    "wkd": "--distill wkd --wkd_feature_weight 0.008",
    "crd, dot": "--distill crd --nce_k 12 -a 1 --dot 0.05 --clip_grad 2",
    "kd, several teachers": "--distill kd --teacher_weights 3,1 --teacher_bank {folder}/two",
    "dkd, ctkd": "--distill dkd --ctkd",
    "kd, average": "--distill kd --ema 0.5 --trial 4",
    "crld, mixup": "--distill crld --crld_weak 0.3 -a 1 --mixup 0.4",
    "crd, balanced": "--distill crd --nce_k 12 --balance sampler --train_fraction 0.8",
    "crld": "--distill crld --crld_weak 0.3 -a 1",
    "simkd": "--distill simkd",
    "kd, banked": "--distill kd --sdd 1,2 --teacher_bank {folder}/bank",
    "crd, banked": "--distill crd --nce_k 12 --trial 2 --teacher_bank {folder}/bank",
}
# 27 images in batches of 8: the last one has 3, which 2 processes cannot share evenly.
FAKE = "--dataset fake --fake_size 27 --fake_classes 4 --image_size 16 --batch_size 8"
HOW = "--model_s resnet8 --epochs 2 --seed 3 --learning_rate 0.01 --sync_bn --device cpu"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "teacher.pth"
    torch.save({"model": build("resnet14", 4, 16).state_dict(), "model_name": "resnet14"}, path)
    return path


def lines(teacher, folder, names):
    start = f"{FAKE} {HOW} --save_dir {folder}"
    of = {"pskd": "", "tfkd": "", "dml": ""}  # they have no teacher
    of["kd, several teachers"] = f"--path_t {teacher} {teacher}"
    return [
        f"{start} {METHODS[name].format(folder=folder)} {of.get(name, f'--path_t {teacher}')}"
        for name in names
    ]


def launch(processes, command_lines, dies_after=None):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={processes}", "-m", "tests.engine.processes"]
    given = json.dumps([command_lines, dies_after])
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, given], cwd=ROOT, capture_output=True, text=True, env=environment, timeout=240
    )


@pytest.fixture(scope="module")
def alone(teacher, tmp_path_factory):
    """The folder of the same runs on one process."""
    folder = tmp_path_factory.mktemp("alone")
    for line in lines(teacher, folder, METHODS):
        train_student(line.split())
    return folder


def runs(folder):
    return {path.parent.name: path.parent for path in folder.glob("student_model/*/run.json")}


def assert_same(one, other):
    """Curves equal but for rounding, and so are weights and memories."""
    a, b = read_lines(one / "metrics.jsonl"), read_lines(other / "metrics.jsonl")
    assert len(a) == len(b) == 2
    for before, now in zip(a, b, strict=True):
        for name in before.keys() - {"seconds", "images_per_s"}:
            assert now[name] == pytest.approx(before[name], rel=1e-4, abs=1e-6), name
    a, b = (torch.load(x / "resume.pth", weights_only=True)["task"] for x in (one, other))
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(b[name], a[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("processes", [2, 3])
def test_several_processes_train_as_one_does(processes, alone, teacher, tmp_path):
    done = launch(processes, lines(teacher, tmp_path, METHODS))
    assert done.returncode == 0, done.stderr
    assert runs(tmp_path).keys() == runs(alone).keys()
    for name, folder in runs(tmp_path).items():
        assert_same(runs(alone)[name], folder)
        assert (
            json.loads((folder / "run.json").read_text())["provenance"][0]["processes"] == processes
        )
    assert done.stdout.count("objective: ") == len(METHODS)  # one process speaks
    assert_bank_is_complete(teacher, tmp_path)


def assert_bank_is_complete(teacher, folder):
    """A run on one process finds every row of a run on several, and is that run."""
    for line in lines(teacher, folder, [name for name in METHODS if "banked" in name]):
        train_student([*line.split(), "--save_dir", f"{folder}/again"])
    again = runs(folder / "again")
    assert len(again) == 2
    for name, found in again.items():
        shares = [epoch.pop("bank_missing") for epoch in read_lines(found / "metrics.jsonl")]
        assert shares == [0, 0]
        first = [
            epoch["bank_missing"] for epoch in read_lines(runs(folder)[name] / "metrics.jsonl")
        ]
        assert first[0] == 1


def test_a_process_that_dies_and_another_number_of_them_after(alone, teacher, tmp_path):
    (line,) = lines(teacher, tmp_path, ["crd"])
    died = launch(3, [line], dies_after=1)
    assert died.returncode != 0
    said = [text for text in died.stderr.splitlines() if text.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith("error: a process of this run ended (")
    assert said[0].endswith("); --resume goes on after the last whole epoch")
    (name,) = (path.parent.name for path in tmp_path.glob("student_model/*/resume.pth"))
    refused = launch(2, [line])
    assert [t for t in refused.stderr.splitlines() if t.startswith("error: ")][0].endswith(
        "--resume to go on with it, --overwrite to start it anew"
    )
    assert launch(2, [f"{line} --resume"]).returncode == 0
    assert_same(runs(alone)[name], runs(tmp_path)[name])


def test_each_process_takes_its_own_gpu(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda:1")
    with pytest.raises(UserError, match="--device cuda:0 would put every process there"):
        pick_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="--device cuda:1: .* sees 1 GPU"):
        pick_device("cuda")


def test_processes_that_nobody_started(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(
        UserError, match=r"WORLD_SIZE is 2, but .*MASTER_ADDR is not set\): start proc"
    ):
        distributed.join(torch.device("cpu"))


def test_each_process_tells_that_it_was_not_joined(monkeypatch, capsys):
    """The main one may be gone."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(SystemExit) as stop:
        main(lambda _: distributed.join(torch.device("cpu")))
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("error: WORLD_SIZE is 2, but the processes cannot")


@pytest.mark.parametrize(("n", "ranks"), [(10, 3), (2, 3), (7, 1)])
def test_shares_are_those_of_the_loader(n, ranks, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    dealt = [hi - lo for r in range(ranks) for lo, hi in rank_shares(n, n, r, ranks)]
    assert distributed.share_sizes(n) == dealt


@pytest.mark.parametrize("name", ["resnet8", "vgg8", "wrn_16_2", "MobileNetV2", "ShuffleV1"])
def test_networks_take_an_empty_share(name):
    with torch.no_grad():
        assert MODELS[name](7).eval()(torch.empty(0, 3, 32, 32)).shape == (0, 7)
