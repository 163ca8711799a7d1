"""What the command line makes of --teacher_bank, for every method that a bank can serve."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cli.bank import bank_key
from cli.networks import load_teacher
from cli.parse import parse_student
from cli.parts import make_parts
from cli.setting import make_setting
from cli.training import known_scores, measure_teacher
from distiller_zoo import METHODS
from distiller_zoo.base import LogitDistiller
from distiller_zoo.noisy_teacher import NoisyTeacher
from engine.evaluate import evaluate
from engine.objective import Distillation
from engine.teacher import BankedTeacher, LiveTeacher
from models import MODELS
from runs import checkpoint

DATA = "--dataset fake --fake_size 24 --fake_classes 10 --image_size 8 --batch_size 16"
ON_ROWS = ["", "--sdd 1,2", "--tekap", "--logit_stand", "--sdd 1,2 --tekap --logit_stand"]
ON_FEATURES = ["", "--tekap"]


def served():
    """Every method that reads what a bank can have, behind views."""
    for name in METHODS:
        method = METHODS[name]
        one_view = method.views_per_image(method.Options()) == 1
        if method.has_teacher and one_view and method.reads <= NoisyTeacher.reads:
            of_logits = issubclass(METHODS[name], LogitDistiller)
            yield from ((name, views) for views in (ON_ROWS if of_logits else ON_FEATURES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A teacher's checkpoint and, beside it, one bank of all tests."""
    folder = tmp_path_factory.mktemp("bank")
    torch.manual_seed(0)
    weights = MODELS["resnet14"](10).state_dict()
    checkpoint.save(folder / "t.pth", {"model": weights, "model_name": "resnet14"})
    return folder


def measured(line: str) -> tuple[type, list[dict[str, float]]]:
    """The kind of teacher that a command line has, and what each batch of an epoch gives."""
    options = parse_student(line.split())
    setting = make_setting(options, options.model_s)
    parts = make_parts(setting, load_teacher(setting))
    losses = parts.kd, parts.method, options.distill
    task = Distillation(parts.student, parts.teacher, *losses, options).train()
    task.begin_epoch(1, 1, 1)
    task.seed_losses(7)
    outputs = [task(batch) for batch in parts.loaders.train.batches(1)]
    found = [{**output.terms, "loss": output.loss} for output in outputs]
    return type(parts.teacher), [{k: v.item() for k, v in each.items()} for each in found]


def setting_of(line, folder):
    options = parse_student(f"{DATA} --path_t {folder}/t.pth --model_s resnet8 {line}".split())
    return make_setting(options, options.model_s)


def key(line, folder):
    """The key of the bank of a command line."""
    setting = setting_of(line, folder)
    return bank_key(load_teacher(setting), setting, setting.loaders().train)


@pytest.mark.parametrize(
    ("line", "other", "named"),
    [
        ("--train_fraction 0.5", "--fraction_seed 3", "fraction_seed"),
        ("", "--mean_t 0.4,0.5,0.5 --std_t 0.3,0.3,0.3", "teacher_pixels"),
    ],
)
def test_other_images_are_of_another_key(folder, line, other, named):
    one, another = key(line, folder), key(f"{line} {other}", folder)
    assert {name for name in one if one[name] != another[name]} == {named}


def test_scores_on_other_data_are_not_the_teachers(folder, tmp_path):
    setting = setting_of("", folder)
    trained = load_teacher(setting)
    scores = {"loss": 2.5, "acc": 12.5, "acc_top5": 50.0, "acc_balanced": 10.0}
    kept = {"fingerprint": setting.fingerprint, "teacher": {**scores, "sha256": trained.sha256}}

    def known(**changes):
        run = SimpleNamespace(summary_file=tmp_path, read_summary=lambda: {**kept, **changes})
        return known_scores(trained, setting, run, None)

    assert known() == scores
    assert known(fingerprint="1a2b") is None
    assert known(teacher={**scores, "sha256": "1a2b"}) is None


def test_rows_computed_in_tf32_are_of_another_key(folder, monkeypatch):
    plain = key("", folder)
    monkeypatch.setattr("engine.device.Numerics.in_tf32", True)
    assert key("", folder) == {**plain, "tf32": True}


class NoRun:
    """The folder of a run that has not begun."""

    summary_file = Path("nowhere")


@pytest.mark.parametrize("flags", ["-b 1 --distill attention", "-a 1 --teacher_bank"])
def test_the_teacher_is_measured_with_batch_norm_folded(flags, folder, tmp_path, monkeypatch):
    def measured(*args, **named):
        with monkeypatch.context() as patch:
            patch.setattr("torch.nn.BatchNorm2d.forward", None)
            return evaluate(*args, **named)

    flags += f" {tmp_path}" if flags.endswith("bank") else ""
    setting = setting_of(flags, folder)
    trained = load_teacher(setting)
    parts = make_parts(setting, trained)
    wanted = evaluate(trained.network, parts.loaders.test)
    monkeypatch.setattr("cli.training.evaluate", measured)
    found = measure_teacher(trained, setting, parts, NoRun)["teacher"]
    assert {name: found[name] for name in wanted} == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("flags", ["crld", "mlkd --mlkd_strong"])
def test_a_strong_view_is_in_no_bank(flags, folder):
    line = f"--distill {flags} {DATA} --path_t {folder}/t.pth --model_s resnet8"
    options = parse_student(f"{line} --teacher_bank {folder}/none".split())
    setting = make_setting(options, options.model_s)
    parts = make_parts(setting, load_teacher(setting))
    assert parts.bank.endswith("in every step: strongly augmented views are without number")
    assert isinstance(parts.teacher, LiveTeacher)
    assert parts.loaders.train.strong
    line = line.replace(" --mlkd_strong", "")
    options = parse_student(f"{line} -b 0 -a 1 --teacher_bank {folder}/bank".split())
    assert options.choice.views_per_image(options) == 1  # nothing reads it


@pytest.mark.parametrize(("name", "views"), list(served()))
def test_a_loss_out_of_the_bank_is_the_live_one(name, views, folder):
    line = f"--distill {name} -a 1 {views} {DATA} --path_t {folder}/t.pth --model_s resnet8"
    line += " --nce_k 8" if "nce_k" in METHODS[name].Options.__dataclass_fields__ else ""
    kind, live = measured(line)
    assert kind is LiveTeacher
    kind, banked = measured(f"{line} --teacher_bank {folder}/bank")
    assert kind is BankedTeacher
    assert len(live) == 2
    for one, other in zip(live, banked, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-8)  # PKT's is of 1e-4
