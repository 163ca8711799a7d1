"""reporting/measure.py: numbers of networks against their definitions and numbers by hand."""

from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from dataset.base import DataSet, Split
from dataset.layout import print_note
from reporting import measure
from reporting.measure import Cache, Outputs


class Shown:
    """A network whose outputs are known."""

    def __init__(self, logits, labels=(0, 1), maps=None, name="a"):
        logits, labels = torch.tensor(logits), torch.tensor(labels)
        self.outputs = Outputs(
            logits, labels, torch.arange(len(labels)), logits, labels, maps or {}, 7
        )
        self.sha256, self.images = name * 64, (None, "f" * 64)


def logits_of(*shares):
    return [[float(np.log(p)) for p in row] for row in shares]


def test_accuracy_and_what_each_class_is_taken_for():
    network = Shown(logits_of((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.2, 0.7, 0.1)), (0, 1, 1))
    looks = measure.looks_of(network)
    assert looks["accuracy"] == pytest.approx(200 / 3)
    assert looks["confusion"].tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 0]]
    shares = measure.confusion_shares(looks["confusion"])
    assert shares.tolist() == [[100, 0, 0], [50, 50, 0], [0, 0, 0]]


def test_the_worst_images_are_those_of_the_highest_loss(monkeypatch):
    monkeypatch.setattr(measure, "WORST", 2)
    images = torch.randint(256, (3, 3, 8, 8), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 0])
    split = Split(images, labels)
    data = DataSet("a", split, split, ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    student = Shown(logits_of((0.4, 0.6), (0.3, 0.7), (0.1, 0.9)), labels.tolist())
    teacher = Shown(logits_of((0.8, 0.2), (0.5, 0.5), (0.3, 0.7)), labels.tolist())
    student.images = (data, "f" * 64)
    found = measure.worst(student, teacher)
    assert np.array_equal(found["pixels"], images[[2, 0]].permute(0, 2, 3, 1).numpy())
    assert found["labels"].tolist() == [0, 0]
    assert found["answers"].tolist() == [[1, 1], [1, 0]]
    assert found["shares"] == pytest.approx(np.array([[0.9, 0.7], [0.6, 0.8]]))
    assert measure.worst(student, None)["answers"].tolist() == [[1], [1]]
    monkeypatch.setattr(measure, "THUMBNAIL", 4)
    assert measure.worst(student, None)["pixels"].shape == (2, 4, 4, 3)


def test_a_latency_is_the_median_of_the_passes_after_those_that_warm_up(monkeypatch):
    seconds = [9, 9, 1, 7, 2, 6, 3, 5, 4]
    clock = iter(
        [t for n in range(len(seconds)) for t in (sum(seconds[:n]), sum(seconds[: n + 1]))]
    )
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    shown = []
    assert measure.time_passes(shown.append, torch.zeros(32, 3, 8, 8)) == 4000
    assert len(shown) == measure.WARM_UP + measure.PASSES == len(seconds)


def test_calibration_error_by_hand():
    # Two images of confidence 0.9, one right: |0.9 - 0.5|; one of 0.62, right: |0.62 - 1|.
    network = Shown(logits_of((0.9, 0.1), (0.1, 0.9), (0.62, 0.38)), (0, 0, 0))
    bins = measure.looks_of(network)["bins"]
    assert bins.shape == (3, 15)
    assert bins[:, 13] == pytest.approx([2, 1.8, 1])  # (13/15, 14/15]
    assert measure.calibration_error(bins) == pytest.approx(100 * (2 * 0.4 + 0.38) / 3)


def test_a_confidence_on_a_border_is_in_the_lower_bin():
    bins = measure.confidence_bins(torch.tensor([[50.0, -50.0]]), torch.tensor([0]))
    assert bins[0, 14] == 1


def test_agreement_and_kl_by_hand():
    student = Shown(logits_of((0.5, 0.5), (0.25, 0.75)))
    teacher = Shown(logits_of((0.8, 0.2), (0.75, 0.25)))
    looks = measure.fidelity(student, teacher)
    first = 0.8 * np.log(0.8 / 0.5) + 0.2 * np.log(0.2 / 0.5)
    second = 0.75 * np.log(3) + 0.25 * np.log(1 / 3)
    assert looks["kl"] == pytest.approx((first + second) / 2)
    assert looks["agreement"] == 50


def hsic(a, b):
    """The unbiased estimator, as sums over different images (Song et al., JMLR 2012)."""
    n = len(a)
    pairs = sum(a[i, j] * b[i, j] for i, j in permutations(range(n), 2)) / (n * (n - 1))
    triples = sum(a[i, j] * b[i, k] for i, j, k in permutations(range(n), 3))
    fours = sum(a[i, j] * b[k, m] for i, j, k, m in permutations(range(n), 4))
    among = n * (n - 1) * (n - 2)
    return pairs - 2 * triples / among + fours / (among * (n - 3))


def test_cka_is_that_of_the_unbiased_estimator():
    x, y = torch.randn(7, 3).double(), torch.randn(7, 4).double()
    a, b = x @ x.T, y @ y.T
    expected = hsic(a, b) / (hsic(a, a) * hsic(b, b)) ** 0.5
    found = measure.cka(measure.centred_gram(x), measure.centred_gram(y))
    assert found == pytest.approx(float(expected))


def test_cka_does_not_see_rotation_and_scale_and_finds_nothing_in_noise():
    x, rotation = torch.randn(200, 30), torch.linalg.qr(torch.randn(30, 30)).Q
    gram = measure.centred_gram(x)
    assert measure.cka(gram, measure.centred_gram(3 * x @ rotation + 1)) == pytest.approx(1)
    assert abs(measure.cka(gram, measure.centred_gram(torch.randn(200, 500)))) < 0.1


def test_similarity_is_student_by_teacher():
    maps = {"stage 1": torch.randn(20, 9), "pooled": torch.randn(20, 4)}
    looks = measure.similarity(
        Shown([[0.0]], maps=maps), Shown([[0.0]], maps={**maps, "x": maps["pooled"]})
    )
    assert looks["cka"].shape == (2, 3)
    assert looks["cka"][0, 0] == pytest.approx(1)
    assert looks["cka"][1, 2] == pytest.approx(1)


def test_flops_are_two_for_a_multiplication_with_its_addition():
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    assert measure.count_flops(layer, torch.zeros(1, 3, 10, 10)) == 2 * 3 * 8 * 9 * 100


def test_shown_images_are_of_ten_classes_at_most():
    labels = torch.arange(100).repeat(70)
    shown = labels[measure.shown_images(labels)]
    assert len(shown.unique()) == 10
    assert shown.bincount().max() == 60


def test_a_number_is_computed_once_for_a_checkpoint(tmp_path):
    cache, asked = Cache(tmp_path), []

    def compute():
        asked.append(1)
        return {"x": np.arange(3)}

    for _ in range(2):
        assert cache.get("looks", [Shown([[0.0]])], compute)["x"].tolist() == [0, 1, 2]
    assert len(asked) == 1
    cache.get("looks", [Shown([[0.0]], name="b")], compute)
    assert len(asked) == 2
    next(tmp_path.glob("looks-a*")).write_bytes(b"torn")
    assert cache.get("looks", [Shown([[0.0]])], compute)["x"].tolist() == [0, 1, 2]
    assert len(asked) == 3


def test_a_latency_is_kept_for_its_machine(tmp_path, monkeypatch):
    network, measured = Shown([[0.0]]), []
    network.name = "resnet8"
    monkeypatch.setattr(measure, "latency", lambda n: measured.append(n) or {"x": np.zeros(1)})
    for cpus in (2, 2, 4):
        monkeypatch.setattr("os.cpu_count", lambda cpus=cpus: cpus)
        Cache(tmp_path).latency(network)
    assert len(measured) == 2


def test_notes_on_the_images_are_printed_once(monkeypatch, capsys):
    def load_data(options):
        print_note("skipped: a.jpg")
        print_note(f"images of {options.values['image_size']}")

    options = iter(SimpleNamespace(values={"image_size": size}) for size in (32, 64))
    monkeypatch.setattr(measure, "parse_eval", lambda words: next(options))
    monkeypatch.setattr(measure, "load_data", load_data)
    monkeypatch.setattr(measure, "fingerprint", lambda data: "f" * 64)
    monkeypatch.setattr(measure, "as_trained", lambda data, path: data)
    data = measure.Data(None)
    data.of("a.pth")
    data.of("b.pth")
    assert capsys.readouterr().err.splitlines() == [
        "skipped: a.jpg", "images of 32", "images of 64",
    ]  # fmt: skip
