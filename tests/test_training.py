"""Whole runs through the command line, on small invented data."""

import json
import math
import sys
import types

import pytest
import torch
from torch import nn

from dataset import DATASETS
from dataset.loader import Loader, Loading
from distiller_zoo import METHODS
from distiller_zoo.base import Recipe, Setup
from distiller_zoo.kd import KD
from engine.device import Numerics, pick_device, seed_everything
from engine.evaluate import balanced_accuracy, evaluate
from engine.meter import Meter, NotFinite
from engine.objective import (
    Distillation,
    FirstStage,
    LinearProbe,
    PooledOnce,
    make_cross_entropy,
)
from engine.teacher import LiveTeacher
from helper import files
from models import MODELS
from runs import checkpoint
from tests.adapters import bare_setup
from tests.conftest import only, stopped

DATA = "--dataset fake --fake_size 64 --image_size 8 --fake_classes 4 --batch_size 16"
ALONE = f"train_teacher --model resnet8 {DATA}"
TEACHER = "teacher/resnet8_last.pth"
STUDENT = f"train_student --path_t {TEACHER} --model_s resnet8 {DATA} --distill kd"


@pytest.fixture
def teacher(run, tmp_path):
    """The teacher of STUDENT, trained for an epoch."""
    run(f"{ALONE} --epochs 1 --save_dir elsewhere")
    only(tmp_path / "elsewhere" / "models").rename(tmp_path / "teacher")


def fake():
    options = DATASETS["fake"].Options(fake_size=64, fake_classes=4, image_size=8)
    return DATASETS["fake"].load(options)


def summary(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_run_leaves_what_it_promises(run, tmp_path, capsys):
    run(f"{ALONE} --epochs 4 --lr_decay_epochs 3 --save_freq 2 --print_freq 2")
    folder = only(tmp_path / "save" / "models")
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "ckpt_epoch_2.pth", "ckpt_epoch_4.pth", "resnet8_best.pth", "resnet8_last.pth",
        "resume.pth", "run.json", "metrics.jsonl", "tensorboard", ".lock",
    }  # fmt: skip

    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert [line["lr"] for line in lines] == pytest.approx([0.05, 0.05, 0.05, 0.005])
    assert lines[-1]["train_loss"] < lines[0]["train_loss"]

    stored = summary(folder)
    assert stored["status"] == "finished"
    assert stored["last"] == lines[-1]
    assert stored["best"]["test_acc"] == max(line["test_acc"] for line in lines)
    assert stored["parameters"] == sum(p.numel() for p in MODELS["resnet8"](4).parameters())
    assert stored["options"]["batch_size"] == 16
    assert stored["origin"]["batch_size"] == "typed"
    assert stored["seed"] == 1
    (began,) = stored["provenance"]
    assert began["versions"]["torch"] == torch.__version__
    assert began["processes"] == 1

    content = checkpoint.load(folder / "resnet8_best.pth")
    assert content["epoch"] == stored["best"]["epoch"]
    assert content["accuracy"] == stored["best"]["test_acc"]
    assert content["model_name"] == "resnet8"

    shown = capsys.readouterr()
    assert shown.err == "", "progress bars are for terminals"
    assert "epoch 4/4" in shown.out
    assert shown.out.splitlines()[-1].startswith(f"resnet8: last {lines[-1]['test_acc']:.2f} %")


def test_tensorboard_has_every_number(run, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(f"{ALONE} --epochs 2 --print_freq 2 --tb_freq 2")
    folder = only(tmp_path / "save" / "models")
    epochs, steps = (
        EventAccumulator(str(folder / "tensorboard" / name)).Reload() for name in ("", "steps")
    )
    tags = set(epochs.Tags()["scalars"])
    assert {"train_acc", "train_loss", "train_ce", "test_acc", "test_acc_top5", "test_loss", "lr",
            } <= tags  # fmt: skip
    assert [point.step for point in epochs.Scalars("test_acc")] == [1, 2]
    assert [point.step for point in steps.Scalars("step/loss")] == [2, 4, 6, 8]


def test_teacher_student_and_probe(teacher, run, tmp_path, capsys):
    run(f"{STUDENT} --epochs 2 --sdd 1,2 --logit_stand --trial 3 --seed 9")
    out = capsys.readouterr().out
    assert out.index("objective: 0.1*CE + 9*KD(T=2)") < out.index("teacher:   resnet8, ")
    folder = only(tmp_path / "save" / "student_model")
    teacher_sha = files.sha256(tmp_path / TEACHER)[:8]
    assert folder.name.startswith(
        f"S_resnet8_T_resnet8-{teacher_sha}_fake_kd_sdd-1-2_logit_stand_r_0.1_a_9_b_0_epochs_2_"
    )
    assert folder.name.endswith("_seed_9_fake_size_64_fake_classes_4_image_size_8_trial_3")
    stored = summary(folder)
    assert stored["seed"] == 9
    assert stored["teacher"]["sha256"] == files.sha256(tmp_path / TEACHER)
    assert {"train_ce", "train_kd", "train_loss"} <= stored["last"].keys()
    assert stored["terms"] == {"ce": 0.1, "kd": 9.0}
    total = 0.1 * stored["last"]["train_ce"] + 9 * stored["last"]["train_kd"]
    assert stored["last"]["train_loss"] == pytest.approx(total, rel=1e-5)

    source = folder / "resnet8_last.pth"
    other = DATA.replace("fake_classes 4", "fake_classes 6")
    run(f"transfer_student --path_s {source} {other} --epochs 2")
    probe = only(tmp_path / "save" / "linear_probe")
    probed = checkpoint.weights_of(probe / "resnet8_last.pth")
    backbone = checkpoint.weights_of(source)
    assert probed["fc.weight"].shape == (6, 64)
    for key, value in backbone.items():
        if not key.startswith("fc."):
            assert torch.equal(value, probed[key]), f"{key} moved in a frozen backbone"


def test_a_student_starts_as_it_would_alone(teacher, run, tmp_path):
    """Same seed: the first epoch of a distillation without weight is that of the student alone."""
    run(f"{STUDENT} --epochs 1 -r 1 -a 1e-30")
    alone = checkpoint.weights_of(tmp_path / TEACHER)
    folder = only(tmp_path / "save" / "student_model")
    student = checkpoint.weights_of(folder / "resnet8_last.pth")
    assert all(torch.equal(value, student[key]) for key, value in alone.items())


def test_trials_differ_and_repeat(run, tmp_path):
    run(f"{ALONE} --epochs 1")
    run(f"{ALONE} --epochs 1 --trial 2")
    run(f"{ALONE} --epochs 1 --trial 3 --seed 1")
    one, two, three = (
        checkpoint.weights_of(only(tmp_path / "save/models", f"*trial_{t}") / "resnet8_last.pth")
        for t in (1, 2, 3)
    )
    assert not torch.equal(one["conv1.weight"], two["conv1.weight"])
    assert all(torch.equal(value, three[key]) for key, value in one.items())


@pytest.mark.parametrize("flags", ["--amp bf16", "--channels_last off", "--deterministic"])
def test_ways_of_computing(flags, teacher, run, tmp_path):
    run(f"{STUDENT} --epochs 2 {flags}")
    (folder,) = (tmp_path / "save" / "student_model").iterdir()
    assert math.isfinite(summary(folder)["last"]["train_loss"])
    torch.use_deterministic_algorithms(False)


def test_layout_and_precision_change_only_rounding(teacher, run, tmp_path):
    losses = {}
    for trial, flags in enumerate(["", "--channels_last off", "--amp bf16"], start=10):
        run(f"{STUDENT} --epochs 1 --trial {trial} --seed 1 {flags}")
        (folder,) = (tmp_path / "save" / "student_model").glob(f"*trial_{trial}")
        losses[flags] = summary(folder)["last"]["train_loss"]
    assert losses["--channels_last off"] == pytest.approx(losses[""], rel=1e-3)
    assert losses["--amp bf16"] == pytest.approx(losses[""], rel=0.05)


def test_a_folder_of_images(run, tmp_path):
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    for split, n in (("train", 8), ("test", 4)):
        for name, level in (("dark", 40), ("light", 200)):
            (tmp_path / "set" / split / name).mkdir(parents=True)
            for i in range(n):
                noise = torch.randint(-30, 30, (8, 8, 3), generator=generator)
                pixels = (level + noise).to(torch.uint8).numpy()
                Image.fromarray(pixels).save(tmp_path / "set" / split / name / f"{i}.png")
    run("train_teacher --model resnet8 --dataset folder --data_dir set --epochs 8 --batch_size 4")
    stored = summary(only(tmp_path / "save" / "models"))
    assert stored["classes"] == ["dark", "light"]
    assert stored["image_size"] == 8
    assert stored["mean"] == pytest.approx([120 / 255] * 3, abs=0.05)
    assert stored["best"]["test_acc"] == 100


def distillation(numerics=None):
    student, teacher = MODELS["resnet8"](4), MODELS["resnet14"](4)
    kd = KD(KD.Options(), bare_setup())
    numerics = numerics or Numerics(torch.device("cpu"))
    return Distillation(student, LiveTeacher(teacher, numerics), kd, kd, "kd", Recipe(0.1, 0.9, 0))


def test_a_teacher_never_learns():
    task = distillation().train()
    loader = Loader(fake(), "train", 16, Loading())
    before = {key: value.clone() for key, value in task.teacher.network.state_dict().items()}
    assert task.student.training
    assert not any(module.training for module in task.teacher.network.modules())
    for batch in loader.batches(1):
        task(batch).loss.backward()
    assert all(torch.equal(v, before[k]) for k, v in task.teacher.network.state_dict().items())
    assert not any(p.requires_grad or p.grad is not None for p in task.teacher.network.parameters())
    assert not any(key.startswith("teacher.") for key in task.training_state())


@pytest.mark.parametrize("name", ["abound", "fsp", "factor"])
def test_a_first_stage_trains_the_norms_of_what_it_trains(name):
    """Of the student, features for AB and FSP, nothing for FT."""
    task, loader = distillation(), Loader(fake(), "train", 16, Loading())
    nets = [task.student, task.teacher.network]
    with torch.no_grad():
        shown = [net.eval().features(torch.zeros(2, 3, 8, 8)) for net in nets]
    task.method = METHODS[name](METHODS[name].Options(), Setup(*shown, *nets, None))
    stage = FirstStage(task).train()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    next_batch = next(loader.batches(1))
    stage(next_batch).loss.backward()
    moved = [key for key, value in task.state_dict().items() if not torch.equal(value, before[key])]
    assert all(key.startswith("student.") and "running" in key or "tracked" in key for key in moved)
    assert bool(moved) == (name != "factor")
    assert ("student.bn1.running_mean" in moved) == (name != "factor")
    assert not any(module.training for module in task.teacher.network.modules())
    assert not task.student.fc.training
    stage.eval()
    assert not any(module.training for module in task.student.modules())


def test_a_term_without_weight_is_not_computed():
    task = distillation()
    batch = next(Loader(fake(), "train", 16, Loading()).batches(1))
    assert set(task(batch).terms) == {"ce", "kd"}
    task.recipe = Recipe(0.0, 0.9, 0)
    assert set(task(batch).terms) == {"kd"}


def test_two_views_are_two_passes_and_terms_are_means_of_both():
    """BatchNorm sees one view after the other."""
    task, seen = distillation().train(), []
    task.recipe = Recipe(1.0, 1.0, 0)
    task.student.bn1.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    (batch, *_) = Loader(fake(), "train", 16, Loading(strong=True)).batches(1)
    both = task(batch)
    assert seen == [16, 16]
    weak, strong = (task(batch._replace(images=images)) for images in batch.views)
    for name in ("ce", "kd"):
        mean = (weak.terms[name] + strong.terms[name]) / 2
        torch.testing.assert_close(both.terms[name], mean)
    assert torch.equal(both.logits, weak.logits)  # accuracy is that of the weak view


def test_warm_up_grows_the_methods_weight():
    task = distillation().eval()
    task.recipe = Recipe(0, 0, 2.0, warmup=4)
    batch = next(Loader(fake(), "train", 16, Loading()).batches(1))
    losses = []
    for epoch in (1, 2, 4, 9):
        task.begin_epoch(epoch, 2, epoch)
        losses.append(task(batch).loss.item())
    assert [loss / losses[-1] for loss in losses] == pytest.approx([0.25, 0.5, 1, 1], rel=1e-4)


def test_a_probe_trains_the_classifier_alone():
    network = MODELS["MobileNetV2"](4)
    task = LinearProbe(network, Numerics(torch.device("cpu"))).train()
    trained = [name for name, p in task.student.named_parameters() if p.requires_grad]
    assert trained == ["classifier.0.weight", "classifier.0.bias"]
    assert not any(m.training for m in network.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("name", ["resnet8x4", "MobileNetV2", "vgg8"])
def test_the_classifier_of_a_probe_starts_as_published(name):
    network = MODELS[name](200)
    nn.init.ones_(list(network.head.parameters())[0])
    LinearProbe(network, Numerics(torch.device("cpu")))
    weight, bias = network.head.parameters()
    assert weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert torch.equal(bias, torch.zeros(200))


def test_a_probe_is_evaluated_on_features_that_are_computed_once():
    network = MODELS["vgg8"](4)
    probe = LinearProbe(network, Numerics(torch.device("cpu")))
    test = Loader(fake(), "test", 7, Loading())
    once = PooledOnce(probe, test)
    passes = []
    network.block0.register_forward_hook(lambda *_: passes.append(1))
    for change in (0.0, 0.5):
        with torch.no_grad():
            network.head.weight += change * torch.randn_like(network.head.weight)
        scores = evaluate(probe.eval().predict, once)
        assert scores == evaluate(lambda images: network.eval()(images), test)
    assert len(passes) == (1 + 2) * len(test)


def test_scores_are_exact_over_uneven_batches():
    data = fake()
    predicted = torch.randn(len(data.test.labels), 4)
    loader = Loader(data, "test", 7, Loading())
    rows = iter(predicted.split(7))
    scores = evaluate(lambda images: next(rows), loader)
    hits = (predicted.argmax(dim=1) == data.test.labels).double().mean()
    assert scores["acc"] == pytest.approx(100 * hits.item(), rel=1e-12)
    assert scores["acc_top5"] == pytest.approx(100)  # four classes: all are among the first five
    right = predicted.argmax(dim=1) == data.test.labels
    of_class = [right[data.test.labels == k].double().mean().item() for k in range(4)]
    assert scores["acc_balanced"] == pytest.approx(25 * sum(of_class), rel=1e-12)
    loss = nn.functional.cross_entropy(predicted, data.test.labels)
    assert scores["loss"] == pytest.approx(loss.item(), rel=1e-6)


def test_balanced_accuracy_is_a_mean_over_the_classes_that_are_there():
    labels, predicted = torch.tensor([0, 0, 0, 2, 2, 4]), torch.tensor([0, 0, 1, 1, 2, 3])
    assert balanced_accuracy(predicted, labels) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)


def test_labels_are_smoothed_and_classes_weighed():
    labels = torch.tensor([0, 0, 0, 1])
    logits = torch.randn(4, 3, dtype=torch.float64)
    rows = -logits.log_softmax(dim=1)  # (4, 3)
    smooth = make_cross_entropy(labels, 3, smoothing=0.3, balanced=False)
    wanted = 0.7 * rows.gather(1, labels[:, None])[:, 0] + 0.1 * rows.sum(dim=1)
    torch.testing.assert_close(smooth(logits, labels), wanted.mean())
    balanced = make_cross_entropy(labels, 3, smoothing=0.0, balanced=True)
    own = rows.gather(1, labels[:, None])[:, 0].float()
    wanted = (own[:3].mean() + own[3]) / 2  # each class that is there counts once
    torch.testing.assert_close(balanced(logits.float(), labels), wanted)
    plain = make_cross_entropy(labels, 3, smoothing=0.0, balanced=False)
    assert torch.equal(plain(logits, labels), nn.functional.cross_entropy(logits, labels))


@pytest.mark.parametrize(
    ("balance", "says"), [("loss", "classes weigh alike"), ("sampler", "classes drawn alike")]
)
def test_smoothing_and_balance_reach_every_kind_of_training(balance, says, run, tmp_path, capsys):
    how = f"--label_smoothing 0.2 --balance {balance}"
    losses = {}
    for name, line in (("plain", ALONE), ("other", f"{ALONE} {how}")):
        run(f"{line} --save_dir {name}")
        metrics = only(tmp_path / name / "models") / "metrics.jsonl"
        losses[name] = json.loads(metrics.read_text().splitlines()[0])["train_ce"]
    assert losses["plain"] != losses["other"]
    assert f"label smoothing 0.2, {says}" in capsys.readouterr().out
    folder = only(tmp_path / "other" / "models")
    assert f"_label_smoothing_0.2_balance_{balance}_" in folder.name


def test_evaluating_changes_nothing():
    task = distillation()
    before = {key: value.clone() for key, value in task.state_dict().items()}
    evaluate(task.eval().predict, Loader(fake(), "test", 16, Loading()))
    assert all(torch.equal(value, before[key]) for key, value in task.state_dict().items())


def test_a_meter_names_the_first_step_that_is_not_finite():
    meter = Meter()
    for value in (1.0, 2.0, math.nan, 4.0):
        meter.add({"ce": torch.tensor(0.0), "kd": torch.tensor(value)}, 8)
    with pytest.raises(NotFinite, match="kd is nan in step 3"):
        meter.read()


def test_a_meter_weighs_by_samples():
    meter = Meter()
    meter.add({"loss": torch.tensor(1.0)}, 3)
    assert meter.read() == {"loss": 1.0}
    meter.add({"loss": torch.tensor(5.0)}, 1)
    assert meter.read() == {"loss": 2.0}


def test_seeds_and_devices():
    seed_everything(7)
    one = torch.rand(2)
    seed_everything(7)
    assert torch.equal(one, torch.rand(2))
    assert pick_device("cpu").type == "cpu"
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_wandb_gets_every_epoch(run, monkeypatch):
    logged, calls = [], []
    wandb = types.SimpleNamespace(
        id="an id",
        init=lambda **how: calls.append(how) or wandb,
        log=logged.append,
        finish=lambda: calls.append("finish"),
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(f"{ALONE} --epochs 2 --wandb")
    assert [numbers["epoch"] for numbers in logged] == [1, 2]
    assert {"train_loss", "test_acc"} <= logged[0].keys()
    assert calls[0]["name"].startswith("resnet8_fake_")
    assert calls[0]["config"]["batch_size"] == 16
    assert calls[-1] == "finish"


def test_wandb_goes_on_in_the_same_run(run, tmp_path, monkeypatch):
    calls = []
    wandb = types.SimpleNamespace(
        id="an id",
        init=lambda **how: calls.append(how) or wandb,
        log=lambda numbers: None,
        finish=lambda: None,
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    run(f"{ALONE} --epochs 2 --wandb")
    folder = only(tmp_path / "save" / "models")
    assert stopped(folder)["wandb_id"] == "an id"
    run(f"{ALONE} --epochs 2 --wandb --resume")
    assert "id" not in calls[0]
    assert (calls[1]["id"], calls[1]["resume"]) == ("an id", "allow")
    run(f"{ALONE} --epochs 2 --wandb --overwrite")
    assert "id" not in calls[2], "another run is another one there too"
