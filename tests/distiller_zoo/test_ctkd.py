"""--ctkd: a view that is trained, against the student."""

import json
from dataclasses import replace

import pytest
import torch

from cli import parse
from cli.objective import kd_and_method
from dataset.base import Batch
from distiller_zoo.base import Rows, Setup
from distiller_zoo.ctkd import CurriculumTemperature, reversal
from engine.device import Numerics
from engine.objective import Distillation
from engine.recipe import Schedule
from engine.stage import main_stage
from engine.teacher import LiveTeacher
from models import MODELS
from runs import checkpoint
from runs.logs import read_lines
from tests.adapters import bare_setup
from tests.conftest import killed, only


def view(epoch=10, **options):
    found = CurriculumTemperature(CurriculumTemperature.Options(True, **options), bare_setup())
    found.begin(epoch, 240)
    return found


def task_of(line):
    torch.manual_seed(0)
    options = parse.parse_student(f"--model_t resnet14 --model_s resnet8 {line}".split())
    networks = MODELS["resnet8"](10), MODELS["resnet14"](10)
    batch = Batch(torch.randn(8, 3, 16, 16), torch.arange(8), torch.arange(8))
    with torch.no_grad():
        shown = [network.eval().features(batch.images) for network in networks]
    kd, method = kd_and_method(options, Setup(*shown, *networks, batch.labels))
    teacher = LiveTeacher(networks[1], Numerics(torch.device("cpu")))
    task = Distillation(networks[0], teacher, kd, method, options.distill, options)
    return task, main_stage(task, Schedule(0.05), options), batch


def test_the_gradient_is_reversed_by_and_by():
    assert [reversal(epoch, 10) for epoch in (0, 1, 5, 10, 240)] == pytest.approx(
        [0, -0.02447174, -0.5, -1, -1]
    )


@pytest.mark.parametrize("line", ["--distill kd --ctkd", "--distill dkd --ctkd --sdd 1,2"])
def test_a_step_against_the_student_makes_its_loss_larger(line):
    """The temperature goes where distillation is hardest (eq. 3 of the paper)."""
    task, _, batch = task_of(line)
    task.eval().begin_epoch(10, 240, 10)
    term = line.split()[1]
    before = task(batch)
    before.loss.backward()
    (theta,) = (p for name, p in task.named_parameters() if name.endswith("theta"))
    theta.data -= 0.1 * theta.grad / theta.grad.abs()
    assert task(batch).terms[term] > before.terms[term]


def test_one_temperature_for_both_terms_is_trained_beside_the_student():
    task, stage, batch = task_of("--distill dkd -a 1 --ctkd")
    task.begin_epoch(3, 240, 3)
    output = task.train()(batch)
    output.loss.backward()
    thetas = {name: p for name, p in task.named_parameters() if "theta" in name}
    assert list(thetas) == ["views.0.theta"]
    (theta,) = thetas.values()
    assert theta.grad.abs() > 0
    assert any(p is theta for group in stage.optimizer.param_groups for p in group["params"])
    assert output.terms["ctkd_temperature"].item() == pytest.approx(1 + 20 / (1 + 1 / 2.718281828))
    assert "views.0.theta" in task.training_state()


def test_in_epoch_0_it_would_not_move_and_the_loss_is_kd_at_that_temperature():
    still, rows = view(epoch=0), Rows(*torch.randn(2, 1, 4, 5), torch.ones(1, 4))
    scaled = still(rows, None, None, None)
    (scaled.student.sum() + scaled.weight.sum()).backward()
    assert still.theta.grad == 0
    torch.testing.assert_close(scaled.student * still.temperature, rows.student)
    torch.testing.assert_close(scaled.weight, still.temperature.square().expand(1, 4))
    assert torch.equal(scaled.plain[0], rows.student)


@pytest.mark.parametrize("line", ["--distill kd --ctkd", "--distill dkd --ctkd"])
def test_finite_where_probabilities_underflow(line):
    task, _, batch = task_of(line)
    task.views[0].theta.data.fill_(-1e3)  # temperature 1
    logits = [1e4 * torch.eye(10)[:8], (-1e4 * torch.eye(10)[:8])]
    student, teacher = task.features(batch)
    method = task.kd if line.split()[1] == "kd" else task.method
    leaf = logits[0].requires_grad_()
    shown = replace(student, logits=leaf), replace(teacher, logits=logits[1])
    method(*shown, batch).backward()
    assert leaf.grad.isfinite().all()
    assert task.views[0].theta.grad.isfinite()


def test_the_settings_of_the_paper():
    options = parse.parse_student(["--distill", "kd", "--ctkd"])
    assert (options.gamma, options.alpha, options.kd_T) == (0.1, 0.9, 1)
    line = "--distill dkd --ctkd --model_t resnet56 --model_s resnet20"
    options = parse.parse_student(line.split())
    assert (options.gamma, options.warmup, options.dkd_others, options.kd_T) == (1, 0, 2, 1)
    assert parse.parse_student(f"{line} --warmup 5".split()).warmup == 5
    assert parse.parse_student(["--distill", "crd", "-a", "1", "--ctkd"]).kd_T == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("--distill mlkd --ctkd", "--ctkd has no meaning for mlkd: it learns the T"),
        ("--distill kd --ctkd --kd_T 4", "--kd_T 4 set the same thing"),
        ("--distill kd --ctkd --logit_stand", "--logit_stand and --ctkd both set kd_T"),
        ("--distill crd --ctkd", "changes rows of logits, and none are read here"),
        ("--distill kd --ctkd --ctkd_loops 0", "0 is not at least 1"),
    ],
)
def test_what_is_refused(line, says, fails):
    assert says in fails(f"train_student {line}")


@pytest.mark.parametrize("distill", ["kd", "crd -a 1"])
def test_a_loss_that_is_not_times_T_squared_is_refused(distill, run, fails, tmp_path):
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "teacher.pth")
    line = fails(f"{LINE} --distill {distill} --divergence ab")
    assert line.startswith("error: --distill kd: --ctkd learns the T of a loss that is times T^2")


LINE = (
    "train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 --dataset fake "
    "--fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4 --epochs 3 --ctkd"
)


@pytest.mark.parametrize("more", ["--distill kd", "--distill dkd --teacher_bank bank --amp bf16"])
def test_a_resumed_run_has_its_temperature(more, run, tmp_path):
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / "teacher.pth")
    run(f"{LINE} {more} --save_dir whole")  # the bank is full then
    run(f"{LINE} {more} --save_dir again")
    with killed():
        run(f"{LINE} {more} --save_dir killed")
    run(f"{LINE} {more} --save_dir killed --resume")
    folders = [only(tmp_path / name / "student_model") for name in ("again", "killed")]
    one, other = (checkpoint.load(folder / "resume.pth") for folder in folders)
    assert one["task"]["views.0.theta"] != 1
    assert all(torch.equal(value, other["task"][key]) for key, value in one["task"].items())
    temperatures = [x["train_ctkd_temperature"] for x in read_lines(folders[1] / "metrics.jsonl")]
    assert len(set(temperatures)) == 3
    assert json.loads((folders[0] / "run.json").read_text())["objective"].endswith("rows: ctkd")
    assert "_ctkd_" in folders[0].name
    assert "kd_T" not in folders[0].name
