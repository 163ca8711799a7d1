"""What a newcomer meets first: what is said before training, and when something is mistaken."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distiller_zoo import METHODS
from distiller_zoo.base import Recipe
from models import MODELS
from runs import checkpoint
from runs.logs import read_lines
from tests.conftest import only, stopped
from tools import eval as tool

ROOT = Path(__file__).resolve().parent.parent.parent
DATA = "--dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4 --epochs 1"
STUDENT = f"train_student --path_t one.pth --model_t resnet8 {DATA}"


@pytest.fixture
def teacher(tmp_path):
    torch.manual_seed(5)
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "one.pth")


def test_what_will_run_is_said_before_the_first_epoch(run, teacher, capsys):
    run(f"{STUDENT} --distill crd --nce_k 8 -a 1 --epochs 9 --train_fraction 0.5")
    before = capsys.readouterr().out.partition("\nepoch 1/9")[0]
    for text in (
        "fake: 20 training (0.5 of all) and 10 test images of 8x8 in 4 classes, in memory",
        "mean (0.4",
        "network:   resnet8, 77,652 parameters",
        "objective: 1*CE + 1*KD(T=4) + 0.8*crd",
        "9 epochs, batch 16, rate 0.05, times 0.1 after 6, 7, 8, momentum 0.9, weight decay 0.0005",
        "device:    cpu (1 threads), float32, channels last",
        "folder:    save/student_model/S_resnet8_T_resnet8-",
        f"code:      {ROOT}",
        "teacher:   resnet8, 77,652 parameters, ",
    ):
        assert text in before, text


def test_the_stages_found_in_a_foreign_network_are_said(run, capsys):
    run(f"train_teacher --model tests.networks:tiny {DATA}")
    assert "parameters (stages: " in capsys.readouterr().out


def test_plain_terms_are_logged_with_their_weighted_total(run, teacher, tmp_path):
    run(f"{STUDENT} --distill rkd -r 0.5 -a 2 -b 3 --learning_rate 0.001")
    folder = only(tmp_path / "save" / "student_model")
    (line,) = read_lines(folder / "metrics.jsonl")
    terms = {name: line[f"train_{name}"] for name in ("ce", "kd", "rkd")}
    total = 0.5 * terms["ce"] + 2 * terms["kd"] + 3 * terms["rkd"]
    assert line["train_loss"] == pytest.approx(total, rel=1e-5)
    parts = 25 * line["train_rkd_distance"] + 50 * line["train_rkd_angle"]
    assert terms["rkd"] == pytest.approx(parts, rel=1e-5)
    stored = json.loads((folder / "run.json").read_text())
    assert stored["terms"] == {"ce": 0.5, "kd": 2.0, "rkd": 3.0}
    assert stored["learning_rate"] == 0.001


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--gpu 0", "unknown argument --gpu: it is --device cuda:N here"),
        ("-T 4", "unknown argument -T: it is --kd_T here"),
        ("--kd-temperature 4", "unknown argument --kd-temperature: it is --kd_T here"),
        ("--sdd 1 2", "unknown argument 2: a list has commas, as in --sdd 1,2"),
        ("--lr_decay_epochs 3 1 2", "unknown argument 1: a list has commas"),
        ("--lr_decay_epochs 3,1,2", "'3,1,2' is no growing list of epochs from 1 on"),
        ("--lr_decay_epochs=-3,2", "'-3,2' is no growing list of epochs from 1 on"),
        ("stray", "unknown argument stray: it belongs to no flag"),
        ("--model_s resnet9 --path_t nowhere.pth --model_t resnet8", "no model 'resnet9'"),
        ("--train_fraction 0", "0 is not above 0"),
        ("--train_fraction 1.5", "1.5 is not between 0 and 1"),
        ("--methods_dir nowhere", "--methods_dir nowhere is no folder, and as a module"),
    ],
)
def test_mistaken_flags(flags, says, fails, teacher):
    assert says in fails(f"{STUDENT} {flags}")


def test_flags_under_the_names_of_the_field(run, teacher, tmp_path):
    run(f"{STUDENT} --lr 0.01 --wd 0.001 --batch-size 8")
    stored = json.loads((only(tmp_path / "save" / "student_model") / "run.json").read_text())
    options = stored["options"]
    assert (options["learning_rate"], options["weight_decay"]) == (0.01, 0.001)
    assert options["batch_size"] == 8


def test_a_folder_of_a_run_does_not_offer_its_resume_file(run, fails, tmp_path):
    run(f"train_teacher --model resnet8 {DATA}")
    folder = only(tmp_path / "save" / "models")
    message = fails(f"{STUDENT} --path_t {folder}")
    assert "resnet8_last.pth" in message
    assert "resume.pth" not in message


@pytest.mark.parametrize(
    ("known", "says"),
    [
        ({"data": "cifar9"}, "was trained on another data set (cifar9) than the student's (fake)"),
        ({"image_size": 16}, "was trained on another image size (16) than the student's (8)"),
        ({"classes": list("abcd")}, "another classes (a, b, c, d) than the student's (class 0, "),
    ],
)
def test_a_teacher_of_other_data(known, says, run, fails, teacher, tmp_path, capsys):
    weights = checkpoint.weights_of(tmp_path / "one.pth")
    torch.save({"model": weights, **known}, tmp_path / "one.pth")
    assert says in fails(STUDENT)
    run(f"{STUDENT} --any_teacher")
    assert "resnet8: last" in capsys.readouterr().out


def test_a_teacher_with_statistics_of_its_own(run, teacher, tmp_path, capsys):
    weights = checkpoint.weights_of(tmp_path / "one.pth")
    statistics = {"mean": [0.2, 0.3, 0.4], "std": [0.1, 0.2, 0.3]}
    torch.save({"model": weights, **statistics}, tmp_path / "one.pth")
    run(STUDENT)
    assert "parameters, with its own mean and std, " in capsys.readouterr().out


def test_typed_statistics_of_a_teacher(run, fails, teacher, tmp_path):
    """Those of a foreign checkpoint, which does not say them."""
    weights = checkpoint.weights_of(tmp_path / "one.pth")
    means, stds = [0.2, 0.3, 0.4], [0.1, 0.2, 0.3]
    torch.save({"model": weights}, tmp_path / "one.pth")
    run(f"{STUDENT} --mean_t 0.2,0.3,0.4 --std_t [0.1,0.2,0.3]")
    typed = scores_of_the_teacher(tmp_path)
    torch.save({"model": weights, "mean": means, "std": stds}, tmp_path / "one.pth")
    run(f"{STUDENT} --trial 2")
    told = scores_of_the_teacher(tmp_path)
    torch.save({"model": weights}, tmp_path / "one.pth")
    run(f"{STUDENT} --trial 3")
    assert typed == told != scores_of_the_teacher(tmp_path)
    assert "--mean_t and --std_t go together" in fails(f"{STUDENT} --mean_t 0.2,0.3,0.4")
    assert "not three numbers" in fails(f"{STUDENT} --mean_t 0.2 --std_t 1")
    assert "0 is not above 0" in fails(f"{STUDENT} --mean_t 0,0,0 --std_t 0,1,1")


def scores_of_the_teacher(tmp_path):
    """What the newest run measured of its teacher."""
    runs = (tmp_path / "save" / "student_model").glob("*/run.json")
    newest = max(runs, key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())["teacher"]["loss"]


def test_an_evaluation_takes_the_data_from_the_checkpoint(run, tmp_path, monkeypatch):
    run(f"train_teacher --model resnet8 {DATA}")
    folder = only(tmp_path / "save" / "models")
    stored = json.loads((folder / "run.json").read_text())
    numbers = tool.evaluate_checkpoint(["-c", str(folder / "resnet8_last.pth")])
    assert numbers["acc"] == stored["last"]["test_acc"]
    assert numbers["image_size"] == 8
    # Statistics are those of training, whatever the data at hand would give.
    content = checkpoint.load(folder / "resnet8_last.pth")
    checkpoint.save(tmp_path / "other.pth", {**content, "mean": [0.9] * 3, "std": [0.1] * 3})
    other = tool.evaluate_checkpoint(["-c", str(tmp_path / "other.pth")])
    assert other["mean"] == (0.9, 0.9, 0.9)
    assert other["loss"] != pytest.approx(numbers["loss"], rel=1e-3)


METHOD = """
from dataclasses import dataclass

from distiller_zoo import METHODS
from distiller_zoo.base import Distiller, Recipe
from helper.options import option


@METHODS.register("{name}")
class Mine(Distiller):
    \"\"\"Author et al., Title, Venue 2026 (eq. 1).\"\"\"

    recipe = Recipe(gamma=1.0, alpha=0.0, beta=10.0)

    @dataclass(frozen=True)
    class Options:
        {option}: float = option(2.0, "a power")

    def forward(self, student, teacher, batch):
        return (student.pooled - teacher.pooled).abs().pow(self.options.{option}).mean()
"""


@pytest.fixture
def methods_dir(tmp_path):
    """A folder with a method, one that cannot be imported, and one of whose options is refused."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "good.py").write_text(METHOD.format(name="mine", option="mine_power"))
    (folder / "bad.py").write_text("import nothing_of_that_name\n")
    (folder / "taken.py").write_text(METHOD.format(name="taken", option="beta"))
    yield folder
    METHODS._entries.pop("mine", None)
    METHODS.broken.clear()
    for name in [name for name in sys.modules if name.startswith("methods_dir_")]:
        del sys.modules[name]


def test_methods_of_ones_own(methods_dir, run, fails, teacher, capsys, tmp_path):
    run(f"{STUDENT} --methods_dir mine --distill mine --mine_power 3")
    err = capsys.readouterr().err.splitlines()
    assert [line for line in err if "bad.py is left out: ModuleNotFoundError" in line]
    assert [line for line in err if "taken.py is left out: ValueError: option 'beta'" in line]
    assert len(err) == 2
    folder = only(tmp_path / "save" / "student_model")
    assert "_mine_r_1_a_0_b_10_mine_power_3_" in folder.name
    message = fails(f"{STUDENT} --methods_dir mine --distill taken")
    assert "no method 'taken'" in message
    assert "taken.py (ValueError: option 'beta' of 'taken' is a general flag" in message


def test_the_example_of_the_readme_trains(run, teacher, tmp_path, capsys):
    """It is taken from the README as it stands there."""
    text = (ROOT / "README.md").read_text()
    example = next(
        part.partition("```")[0]
        for part in text.split("```python\n")[1:]
        if '@METHODS.register("mine")' in part
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "readme.py").write_text(example)
    try:
        run(f"{STUDENT} --methods_dir mine --distill mine")
    finally:
        METHODS._entries.pop("mine", None)
        sys.modules.pop("methods_dir_readme", None)
    assert "10*mine" in capsys.readouterr().out


def test_an_option_with_the_name_of_a_general_flag_is_refused():
    from dataclasses import dataclass

    from helper.options import option

    class Mine(METHODS["rkd"]):
        recipe = Recipe()

        @dataclass(frozen=True)
        class Options:
            gamma: float = option(1.0, "taken")

    with pytest.raises(ValueError, match="option 'gamma' of 'mine' is a general flag: call it min"):
        METHODS.register("mine")(Mine)
    assert "mine" not in METHODS


@pytest.mark.parametrize("script", ["train_teacher.py", "tools/eval.py", "scripts/compare.py"])
def test_a_python_without_the_packages(script, tmp_path):
    """One line that names what to do, from a Python that has nothing installed."""
    code = f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: this Python lacks torch, ")
    assert ".venv/bin/python" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_python_that_is_too_old(monkeypatch, capsys):
    code = (ROOT / "cli" / "__init__.py").read_text()
    monkeypatch.setattr(sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit) as stop:
        exec(compile(code, "cli/__init__.py", "exec"), {})
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(
        "error: this is Python 3.10 and 3.11 or newer is need"
    )


def test_ctrl_c_while_modules_are_imported():
    code = "import cli; raise KeyboardInterrupt"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "stopped\n"
    assert done.returncode


@pytest.mark.parametrize(
    ("script", "first"),
    [
        ("train_student.py --distill crd", "CRD:"),
        ("train_teacher.py", "Teacher:"),
        ("transfer_student.py", "Transfer:"),
        ("tools/eval.py", "Eval:"),
        ("tools/train.py", "--gpu N"),
        ("scripts/compare.py", "--sort"),
    ],
)
def test_help(script, first):
    """Of every command; a method's own flags come before the general ones."""
    done = subprocess.run(
        [sys.executable, *script.split(), "--help"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert first in done.stdout
    if "student" in script:
        assert done.stdout.index("--nce_k" if "crd" in script else first) < done.stdout.index(
            "--epochs"
        )


def test_nothing_heavy_is_imported_for_a_command_line():
    code = "import train_student, sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    loaded = set(done.stdout.split())
    heavy = {"sklearn", "torchvision", "tensorboard", "PIL", "torch._inductor", "wandb", "pooch"}
    assert "train_student" in loaded
    assert not heavy & loaded


def test_nothing_to_resume_names_the_stopped_run_beside_it(run, tmp_path, capsys):
    line = f"train_teacher --model resnet8 {DATA}"
    run(line)
    folder = only(tmp_path / "save" / "models")
    stopped(folder)
    capsys.readouterr()
    run(f"{line} --lr 0.02 --resume")
    err = capsys.readouterr().err
    assert "nothing to resume in save/models/resnet8_fake_" in err
    assert "was stopped, of which learning_rate is 0.05 there and 0.02 here" in err


def test_a_loss_that_is_no_scalar(methods_dir, fails, teacher):
    source = METHOD.format(name="mine", option="mine_power").replace(".mean()", ".mean(dim=1)")
    (methods_dir / "good.py").write_text(source)
    message = fails(f"{STUDENT} --methods_dir mine --distill mine")
    assert "mine gives a loss of shape (16,): it has to be a scalar" in message
