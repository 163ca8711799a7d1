"""--mixup: mixtures of images and of labels, for student and teacher alike."""

import json

import pytest
import torch
from torch.nn import functional as F

from cli import parse
from dataset.base import Batch
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Recipe
from engine.device import Numerics
from engine.mixup import draw_pairs, mix
from engine.objective import Distillation, LinearProbe, Supervised
from engine.teacher import LiveTeacher
from helper.errors import UserError
from models import MODELS
from tests.adapters import bare_setup
from tests.conftest import only

NUMERICS = Numerics(torch.device("cpu"))
LABELS = torch.arange(6) % 4
FAKE = "--dataset fake --fake_size 20 --fake_classes 4 --image_size 16 --epochs 1 --device cpu"


@pytest.fixture
def batch():
    return Batch(torch.randn(6, 3, 16, 16), LABELS, torch.arange(6))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def drawn(task):
    """What the next batch of a task is mixed with, and the own shares."""
    return draw_pairs(task.mixup, LABELS, generator())


@pytest.mark.parametrize(("alpha", "mean"), [(1.0, 0.75), (0.01, 0.993), (1e-4, 1.0), (1e6, 0.5)])
def test_the_larger_share_is_of_a_beta_distribution(alpha, mean):
    given, own = generator(), torch.get_rng_state()
    pairs = [draw_pairs(alpha, LABELS, given) for _ in range(1000)]
    shares = torch.stack([share for _, share in pairs])
    assert shares.min() >= 0.5
    assert shares.max() <= 1
    assert shares.mean().item() == pytest.approx(mean, abs=0.02)
    assert {tuple(order.sort().values.tolist()) for order, _ in pairs} == {tuple(range(6))}
    assert len({tuple(order.tolist()) for order, _ in pairs}) > 500  # of 720
    assert torch.equal(torch.get_rng_state(), own)


def test_an_image_is_mixed_with_its_partner(batch):
    order, share = torch.tensor([2, 0, 1, 3, 5, 4]), torch.tensor(0.7)
    mixed = mix(batch.images, order, share)
    wanted = [0.7 * batch.images[i] + 0.3 * batch.images[j] for i, j in enumerate(order)]
    torch.testing.assert_close(mixed, torch.stack(wanted))


def test_cross_entropy_is_on_both_labels(batch):
    task = Supervised(MODELS["resnet8"](4), NUMERICS).eval()
    task.mixup, task.generator = 0.5, generator()
    order, share = drawn(task)
    output = task(batch)
    logits = task.predict(mix(batch.images, order, share))
    torch.testing.assert_close(output.logits, logits)
    soft = share * F.one_hot(LABELS, 4) + (1 - share) * F.one_hot(LABELS[order], 4)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, soft))
    task.mixup = 0.0
    torch.testing.assert_close(
        task(batch).loss, F.cross_entropy(task.predict(batch.images), LABELS)
    )


def test_pairs_are_alike_on_all_processes(batch):
    """Which have torch's own generator each to itself, for dropout."""
    task = Supervised(MODELS["resnet8"](4), NUMERICS).eval()
    task.mix_images(0.5)
    own = torch.get_rng_state()
    losses = []
    for seed in (1, 1, 2):
        task.seed_losses(seed)
        losses.append(task(batch).loss)
    assert torch.equal(torch.get_rng_state(), own)
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


@pytest.mark.parametrize("views", [1, 2])
def test_the_teacher_sees_the_same_mixtures(views, batch):
    torch.manual_seed(1)
    student, network = MODELS["resnet8"](4), MODELS["resnet14"](4)
    name = "crld" if views == 2 else "kd"
    options = parse.parse_student(["--distill", name])
    kd, method = (METHODS[n](options.read(METHODS[n].Options), bare_setup()) for n in ("kd", name))
    recipe = Recipe(1.0, 1.0, 1.0 if views == 2 else 0.0)
    task = Distillation(student, LiveTeacher(network, NUMERICS), kd, method, name, recipe).eval()
    task.mixup, task.generator = 0.5, generator()
    images = torch.stack([batch.images, batch.images.flip(4 - 1)]) if views == 2 else batch.images
    order, share = drawn(task)
    output = task(batch._replace(images=images))
    shown = [mix(view, order, share) for view in batch._replace(images=images).views]
    wanted = [kd(student.features(x), network.features(x), batch) for x in shown]
    torch.testing.assert_close(output.terms["kd"], sum(wanted) / views)


def test_a_probe_is_trained_on_mixtures(batch):
    task = LinearProbe(MODELS["resnet8"](4), NUMERICS)
    task.mixup, task.generator = 0.5, generator()
    order, share = drawn(task)
    wanted = task.predict(task.pooled(mix(batch.images, order, share)))
    torch.testing.assert_close(task(batch).logits, wanted)


@pytest.mark.parametrize("name", [n for n in METHODS if METHODS[n].reads_samples and n != "kd"])
def test_what_reads_samples_is_refused(name):
    with pytest.raises(UserError, match=f"^--mixup shows two images in one, and {name} reads"):
        parse.parse_student(["--distill", name, "--mixup", "0.2"])
    if METHODS[name].has_teacher:
        parse.parse_student(["--distill", name, "--mixup", "0.2", "-a", "1", "-b", "0"])


def test_views_are_refused_by_what_they_declare():
    for name in VIEWS:
        words = [f"--{name}=1,2" if name == "sdd" else f"--{name}", "--mixup", "0.2"]
        if VIEWS[name].reads_samples:
            with pytest.raises(UserError, match=f"^--mixup shows two images in one, and --{name}"):
                parse.parse_student(words)
        else:
            parse.parse_student(words)
    assert VIEWS["sdd"].reads_samples


def test_runs_with_mixup(run, tmp_path, capsys):
    run(f"train_teacher --model resnet8 {FAKE} --mixup 0.4")
    assert "seed 1" in (out := capsys.readouterr().out)
    assert ", mixup 0.4" in out
    teacher = only(tmp_path / "save" / "models")
    assert "_mixup_0.4_" in teacher.name
    assert "train_acc" in json.loads((teacher / "metrics.jsonl").read_text())
    run(
        f"train_student --path_t {teacher}/resnet8_last.pth --model_s resnet8 {FAKE} --mixup 0.4 "
        "--teacher_bank bank"
    )
    assert "the teacher runs in every step: mixtures of --mixup are" in capsys.readouterr().out
