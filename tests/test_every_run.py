"""Every method through the real command line: first stage, main stage, resumed in either."""

import dataclasses
import json
import math

import pytest
import torch

from distiller_zoo import METHODS
from distiller_zoo.base import Distiller
from models import MODELS
from runs import checkpoint
from tests.conftest import killed

SMALL = {
    "nce_k": 8,
    "queue_size": 32,
    "feat_dim": 16,
    "ldrld_k": 2,
}  # for flags that a method may have
DATA = "--dataset fake --fake_size 24 --image_size 32 --batch_size 16 --fake_classes 4"


CASES = [*METHODS, "mlkd --mlkd_strong"]


def line_of(case: str) -> str:
    name = case.split()[0]
    flags = {field.name for field in dataclasses.fields(METHODS[name].Options)}
    small = " ".join(f"--{flag} {value}" for flag, value in SMALL.items() if flag in flags)
    networks = "--model_s resnet8"
    networks += " --path_t teacher.pth --model_t resnet14" if METHODS[name].has_teacher else ""
    small += " --init_epochs 2" if has_two_stages(name) else ""
    return f"train_student {networks} {DATA} --distill {case} {small} --epochs 2"


def has_two_stages(case: str) -> bool:
    return METHODS[case.split()[0]].first_stage is not Distiller.first_stage


def states(folder) -> dict:
    (run,) = (folder / "student_model").iterdir()
    assert json.loads((run / "run.json").read_text())["status"] == "finished"
    return checkpoint.load(run / "resume.pth")


@pytest.mark.parametrize("name", CASES)
def test_trains_and_resumes_bit_for_bit(name, run, tmp_path):
    torch.manual_seed(5)
    torch.save({"model": MODELS["resnet14"](4).state_dict()}, tmp_path / "teacher.pth")
    line = line_of(name)
    run(f"{line} --save_dir whole")
    whole = states(tmp_path / "whole")

    for last in (1, 3) if has_two_stages(name) else (1,):
        folder = tmp_path / f"killed{last}"
        with killed(after=last) as saved:
            run(f"{line} --save_dir {folder}")
        assert saved[-1] == ("first" if has_two_stages(name) and last == 1 else "main")
        run(f"{line} --save_dir {folder} --resume")
        resumed = states(folder)
        assert whole["task"].keys() == resumed["task"].keys()
        for key, value in whole["task"].items():
            assert torch.equal(value, resumed["task"][key]), key


@pytest.mark.parametrize("name", CASES)
def test_is_finite_in_half_precision(name, run, tmp_path):
    """Losses are computed in float32 whatever the networks compute in."""
    torch.manual_seed(5)
    torch.save({"model": MODELS["resnet14"](4).state_dict()}, tmp_path / "teacher.pth")
    run(line_of(name).replace("epochs 2", "epochs 1") + " --amp bf16")
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    numbers = json.loads((folder / "run.json").read_text())["last"]
    assert math.isfinite(numbers["train_loss"])
    assert math.isfinite(numbers["test_loss"])
