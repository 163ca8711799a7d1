"""WKD: transport between classes, Gaussians of maps, and what is learned before training."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.literal import wkd as literal
from cli import parse
from cli.objective import describe_objective
from dataset import DATASETS
from dataset.base import Batch
from dataset.loader import Loader, Loading
from distiller_zoo import wkd_feature, wkd_logit
from distiller_zoo.wkd import WKD
from distiller_zoo.wkd_feature import WKDFeature, decayed
from distiller_zoo.wkd_logit import WKDLogit
from helper.errors import UserError
from models import MODELS
from models.base import Features
from runs import checkpoint
from tests.adapters import Case, bare_setup, index, only_logits
from tests.conftest import killed, only


def on_logits(classes=5, **options):
    shown = only_logits(torch.zeros(2, classes))
    setup = replace(bare_setup(), student=shown, teacher=shown)
    return WKDLogit(WKDLogit.Options(**{"wkd_cost": "logits", **options}), setup)


def with_map(*shape):
    """A pass of a last map (B, C, H, W)."""
    last_map = torch.randn(*shape)
    return Features(None, (), (), last_map, last_map.mean(dim=(2, 3)), torch.zeros(2, 5), None)


def on_maps(student, teacher, **options):
    setup = replace(bare_setup(), student=student, teacher=teacher)
    return WKDFeature(WKDFeature.Options(**options), setup)


def carried(method, student, teacher, labels):
    """The transport alone, of each row."""
    whole = method.per_row(student, teacher, labels)
    method.share.zero_()
    target = method.per_row(student, teacher, labels)
    method.share.fill_(1)
    return whole - target


def test_between_classes_that_are_equally_far_transport_is_total_variation():
    method = on_logits(wkd_T=1.0, wkd_transport=1.0, wkd_reg=0.1, wkd_rounds=5000).double()
    student, teacher, labels = *torch.randn(2, 4, 5).double(), torch.tensor([0, 1, 2, 4])
    p, q = (wkd_logit.mask_class(x, labels).softmax(dim=1) for x in (student, teacher))
    distance = carried(method, student, teacher, labels)
    torch.testing.assert_close(distance, (p - q).abs().sum(dim=1) / 2, rtol=0.01, atol=0)


def test_a_mistake_for_a_class_that_is_near_costs_less():
    """What KL does not see: of two students with equal probabilities in another order."""
    method = on_logits(wkd_T=1.0)
    method.cost.copy_(1 - torch.eye(5))
    method.cost[1, 2] = method.cost[2, 1] = 0.1  # to the teacher, 1 and 2 are alike
    teacher = torch.tensor([[0.0, 5, 0, 0, 0]])
    near, far = torch.tensor([[0.0, 0, 5, 0, 0]]), torch.tensor([[0.0, 0, 0, 5, 0]])
    label = torch.tensor([0])
    assert carried(method, near, teacher, label) < 0.3 * carried(method, far, teacher, label)


def test_gaussians_that_a_shift_and_a_scale_lead_to_one_another():
    """W2^2 of N(a, s^2) and N(b, t^2) is (a - b)^2 + (s - t)^2 (eq. 10 for diagonal covariances)"""
    x = torch.randn(3, 4, 8, 8, dtype=torch.float64)
    mean, deviation = wkd_feature.moment_losses(2 * x + 3, x, 1)
    means, deviations = x.mean(dim=(2, 3)), x.var(dim=(2, 3)).sqrt()
    torch.testing.assert_close(mean, (means + 3).square().sum(dim=1).mean())
    torch.testing.assert_close(
        deviation, deviations.square().sum(dim=1).mean(), rtol=1e-4, atol=0.0
    )


@pytest.mark.parametrize("size", [(4, 4), (7, 7), (5, 3)])
def test_blocks_are_those_of_adaptive_pooling(size):
    x = torch.randn(2, 3, *size)
    means, deviations = wkd_feature.block_moments(x, 3)
    pooled = nn.functional.adaptive_avg_pool2d(x, 3).flatten(2)
    torch.testing.assert_close(means, pooled)
    assert deviations.isfinite().all()


def test_the_weight_is_whole_for_150_of_240_epochs_then_falls_to_0():
    shares = {epoch: decayed(epoch, 240, 0.625) for epoch in (1, 150, 151, 195, 240)}
    assert shares == pytest.approx(
        {1: 1, 150: 1, 151: (1 + math.cos(math.pi / 90)) / 2, 195: 0.5, 240: 0}
    )
    assert decayed(50, 100, 0.0) == pytest.approx(0.5)
    assert decayed(7, 9, 1.0) == 1


def test_the_share_weighs_the_transport_and_all_of_the_features_loss():
    logit, student, teacher = on_logits(), *torch.randn(2, 4, 5)
    labels = torch.arange(4)
    logit.begin(240, 240)
    target = -teacher.softmax(1)[labels, labels] * student.log_softmax(1)[labels, labels]
    torch.testing.assert_close(logit.per_row(student, teacher, labels), target)
    shown = with_map(4, 3, 4, 4), with_map(4, 6, 4, 4)
    feature = on_maps(*shown)
    whole = feature(*shown, None)
    feature.begin(195, 240)
    torch.testing.assert_close(feature(*shown, None), whole / 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_where_probabilities_underflow(dtype):
    method = on_logits(wkd_T=1.0).to(dtype)
    teacher = 1e4 * torch.eye(5, dtype=dtype)
    student = (-teacher).roll(1, 0).requires_grad_()
    loss = method.per_row(student, teacher, torch.tensor([1, 1, 2, 0, 4]))
    loss.sum().backward()
    assert loss.isfinite().all()
    assert student.grad.isfinite().all()


def test_a_map_without_deviation_has_a_gradient():
    x = torch.ones(2, 3, 4, 4, requires_grad=True)
    sum(wkd_feature.moment_losses(x, torch.randn(2, 3, 4, 4), 2)).backward()
    assert x.grad.isfinite().all()


def test_what_is_refused():
    with pytest.raises(ValueError, match="with 2 classes there is one other class"):
        on_logits(2)
    with pytest.raises(ValueError, match="give --wkd_cost logits or classifier"):
        on_logits(wkd_cost="map")
    tokens = replace(with_map(2, 3, 4, 4), last_map=None)
    with pytest.raises(ValueError, match=r"the student has no last map, .* \(3,\)"):
        on_maps(tokens, with_map(2, 3, 4, 4))
    with pytest.raises(ValueError, match=r"no convolution leads from .*\(3, 2, 2\).*\(6, 8, 8\)"):
        on_maps(with_map(2, 3, 2, 2), with_map(2, 6, 8, 8))
    with pytest.warns(UserWarning, match="4x4 in 4x4 blocks has blocks of one place"):
        on_maps(with_map(2, 3, 4, 4), with_map(2, 3, 4, 4), wkd_grid=4)
    batch = Batch(None, torch.tensor([0, 1, 2, 3]), None)  # none of class 4
    with pytest.raises(UserError, match="a class has no training image.*--wkd_cost classifier"):
        on_logits().prepare(lambda _: only_logits(torch.randn(4, 5)), [batch])


def test_both_in_one_run_are_the_sum_of_both():
    shown, labels = [with_map(4, c, 4, 4) for c in (3, 6)], torch.arange(4)
    shown = [x.replace(logits=torch.randn(4, 5)) for x in shown]
    setup, batch = replace(bare_setup(), student=shown[0], teacher=shown[1]), Batch(0, labels, 0)
    both = WKD(WKD.Options(wkd_feature_weight=0.3), setup)
    loss = both(*shown, batch)
    logit, feature = both.logit(*shown, batch), both.feature(*shown, batch)
    torch.testing.assert_close(loss, logit + 0.3 * feature)
    both.begin(240, 240)
    probs = shown[1].logits.softmax(1), shown[0].logits.log_softmax(1)
    target = -(probs[0] * probs[1])[labels, labels].mean()
    torch.testing.assert_close(both(*shown, batch), target)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("wkd_feature", "0.08*wkd_feature(falls to 0 behind 0.625 of the epochs)"),
        ("wkd_logit", "1*wkd_logit(transport falls to 0 behind 0.625 of the epochs)"),
        (
            "wkd --wkd_decay_from 0",
            "1*wkd(transport and features fall to 0 behind 0 of the epochs)",
        ),
        ("wkd_feature --wkd_decay_from 1", "0.08*wkd_feature"),
    ],
)
def test_the_heading_says_that_the_weight_falls(line, says):
    options = parse.parse_student(["--distill", *line.split()])
    assert describe_objective(options) == f"1*CE + {says}"


def test_settings_of_single_pairs():
    def settings(name, pair, *names, data="cifar100"):
        teacher, student = pair.split()
        line = f"--distill {name} --model_t {teacher} --model_s {student} -d {data}"
        options = parse.parse_student(line.split())
        return tuple(getattr(options, n) for n in names)

    logit = "wkd_transport", "wkd_T", "wkd_cost", "wkd_sharpen", "wkd_decay_from"
    assert settings("wkd_logit", "resnet32x4 resnet8x4", *logit) == (600, 8, "map", 1, 0.625)
    assert settings("wkd_logit", "wrn_40_2 ShuffleV1", *logit) == (200, 6, "map", 1, 0.625)
    imagenet = settings("wkd_logit", "ResNet34 ResNet18", *logit, data="imagenet")
    assert imagenet == (30, 2, "logits", 1, 0)
    imagenet = settings("wkd_logit", "ResNet50 MobileNetV1", *logit, data="imagenet")
    assert imagenet == (25, 2, "logits", 2, 0)
    imagenet = settings("wkd_logit", "ResNet50 ResNet18", *logit, data="imagenet")
    assert imagenet == (30, 2, "logits", 1, 0)
    feature = "beta", "wkd_mean", "wkd_grid", "wkd_decay_from"
    assert settings("wkd_feature", "resnet32x4 resnet8x4", *feature) == (0.08, 4, 1, 0.625)
    assert settings("wkd_feature", "wrn_40_2 ShuffleV1", *feature) == (0.3, 3, 4, 0.625)
    imagenet = settings("wkd_feature", "ResNet50 MobileNetV1", *feature, data="imagenet")
    assert imagenet == (0.005, 2, 4, 0.3)
    imagenet = settings("wkd_feature", "ResNet34 ResNet18", *feature, data="imagenet")
    assert imagenet == (0.02, 2, 4, 0)
    both = "wkd_transport", "wkd_T", "wkd_feature_weight", "wkd_mean", "wkd_grid", *logit[2:]
    on_cifar = "map", 1, 0.625
    assert settings("wkd", "resnet32x4 resnet8x4", *both) == (200, 8, 0.08, 8, 1, *on_cifar)
    assert settings("wkd", "vgg13 vgg8", *both) == (200, 8, 0.08, 8, 1, *on_cifar)
    assert settings("wkd", "wrn_40_2 ShuffleV1", *both) == (60, 4, 0.5, 3, 4, *on_cifar)
    imagenet = settings("wkd", "ResNet34 ResNet18", *both, data="imagenet")
    assert imagenet == (10, 2, 1, 2, 4, "logits", 1, 0)
    imagenet = settings("wkd", "ResNet50 MobileNetV1", *both, data="imagenet")
    assert imagenet == (25, 2, 0.005, 2, 4, "logits", 2, 0)


CASES = [
    e for e in index()["cases"] if e["method"] == "wkd_logit" and e["hyper"]["piece"] == "full"
]


@pytest.mark.parametrize("entry", CASES, ids=lambda e: e["case"])
def test_the_literal_form_of_the_logits_equals_the_reference(entry):
    case, h = Case(entry), entry["hyper"]
    cost = wkd_logit.sharpened(case["cost_matrix"], h["sharpen"])
    inputs = case["logit_s"], case["logit_t"], case["target"], cost
    loss = literal.logit(*inputs, h["temperature"], h["gamma"], h["reg"], h["iterations"])
    assert loss.item() == pytest.approx(float(case.expected("loss")), rel=1e-9)


def test_the_literal_form_of_the_features():
    s, t = torch.randn(2, 3, 4, 8, 8).double()
    mean, deviation = wkd_feature.moment_losses(s, t, 4)
    torch.testing.assert_close(literal.feature(s, t, 4), 4 * mean + deviation)


# ---- what is learned before training

LINE = (
    "train_student --path_t teacher.pth --model_t resnet8 --model_s resnet8 --distill wkd_logit "
    "--dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4 --epochs 2"
)


@pytest.fixture
def teacher(tmp_path):
    network = MODELS["resnet8"](4).eval()
    checkpoint.save(tmp_path / "teacher.pth", {"model": network.state_dict()})
    return network


def relations(network, kind="map"):
    """1 - exp(-(1 - CKA)), from the definition, over all training images as they are."""
    data = DATASETS["fake"].load(DATASETS["fake"].Options(40, 4, image_size=8))
    batch = next(Loader(replace(data, test=data.train), "test", 40, Loading()).batches())
    with torch.no_grad():
        features = network.features(batch.images)
    x = features.last_map.flatten(2).mT if kind == "map" else features.logits[:, None]
    n = batch.labels.bincount().min()
    classes = [x[batch.labels == k][:n].flatten(0, 1).double() for k in range(4)]
    centred = [x - x.mean(dim=0) for x in classes]

    def similarity(x, y):
        return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())

    cka = torch.tensor([[similarity(x, y) for y in centred] for x in centred])
    return (1 - (-(1 - cka)).exp()).float()


def cost_of(folder):
    task = checkpoint.load(only(folder / "student_model") / "resume.pth")["task"]
    return next(value for key, value in task.items() if key.endswith(".cost"))


@pytest.mark.parametrize(
    ("flags", "kind"),
    [
        ("", "map"),
        ("--wkd_cost logits", "logits"),
        ("--teacher_bank bank", "map"),
        ("--distill wkd", "map"),
    ],
)
def test_relations_of_classes_are_made_from_all_training_images(
    flags, kind, run, tmp_path, teacher
):
    run(f"{LINE} {flags} --save_dir here")
    found, wanted = cost_of(tmp_path / "here"), relations(teacher, kind)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert wanted.unique().numel() > 4


def test_a_classifier_needs_no_pass(run, tmp_path, teacher, monkeypatch):
    monkeypatch.setattr("cli.setting.Setting.images_as_they_are", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(f"{LINE} --save_dir other")
    monkeypatch.setattr("cli.setting.Setting.images_as_they_are", lambda _: None)
    run(f"{LINE} --wkd_cost classifier --save_dir here")
    unit = nn.functional.normalize(teacher.fc.weight.detach(), dim=1)
    torch.testing.assert_close(cost_of(tmp_path / "here"), 1 - (unit @ unit.T - 1).exp())


def test_a_resumed_run_reads_what_was_learned(run, tmp_path, teacher, monkeypatch):
    run(f"{LINE} --save_dir whole")
    with killed():
        run(f"{LINE} --save_dir killed")
    monkeypatch.setattr(WKDLogit, "prepare", lambda *_: 1 / 0)
    run(f"{LINE} --save_dir killed --resume")
    one, other = (
        checkpoint.load(only(tmp_path / name / "student_model") / "resume.pth")["task"]
        for name in ("whole", "killed")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[key]) for key, value in one.items())
