"""What papers published, and which runs it stands beside."""

from pathlib import Path

import pytest

from cli import published
from cli.job import make_job
from cli.plan import read_plan
from helper.errors import UserError
from runs.results import Result

ROOT = Path(__file__).resolve().parent.parent.parent
# Methods and views that papers have numbers of and this release has not.
NOT_HERE = set()


@pytest.fixture(scope="module")
def known():
    return published.read_published()


def run_of(job):
    """A finished run of a job, as a table reads it."""
    options = dict(job.experiment.options)
    return Result(
        folder=Path(), kind=job.kind, finished=True, model=job.model, data=options["dataset"],
        objective="", teacher=options.get("model_t", ""), source="", parameters=1,
        epochs=options["epochs"], seed=options["seed"], trial=1, seconds=1.0, last={}, best={},
        options=options, all_options=options, row="", digest="",
    )  # fmt: skip


def student(line, teacher="resnet32x4", network="resnet8x4", trial=3):
    method, *more = line.split()
    own = {"distill": method, "model_t": teacher, "model_s": network, "trial": trial}
    return run_of(make_job("", "student", own, more))


def test_entries_of_what_is_here_are_experiments(known):
    strange = {
        entry.flags for entry in known if entry.epochs in (100, 240) and not entry.experiment
    }
    assert strange <= NOT_HERE
    assert len(known) > 411


def test_the_rows_of_a_published_table_have_their_numbers(known):
    jobs = read_plan(str(ROOT / "plans" / "tekap.yaml"))
    found = {one.label: published.published(run_of(one), known) for one in jobs}
    assert {label: entry.accuracy for label, entry in found.items()} == {
        "alone": 72.5, "KD": 73.33, "TeKAP L": 74.79, "CRD": 75.51, "TeKAP F": 75.65,
        "CRD+KD": 75.46, "TeKAP F+L": 75.98,
    }  # fmt: skip


def test_a_teacher_by_itself(known):
    run = run_of(make_job("", "teacher", {"model": "wrn_40_2"}, ["--seed", "5"]))
    assert published.published(run, known).accuracy == 75.61


def test_of_a_setting_that_was_not_printed_nothing_is_published(known):
    assert published.published(student("ttm", "vgg13", "vgg8"), known).accuracy == 74.33
    assert published.published(student("ttm"), known) is None
    assert published.published(student("dist", "wrn_40_2", "wrn_16_2"), known).accuracy == 75.51
    assert published.published(student("dist"), known) is None


def test_scale_decoupling_is_published_with_its_clipping(known):
    line = "kd --sdd 1,2,4 --clip_grad 40"
    run = student(line, "ResNet50", "MobileNetV2")
    assert published.published(run, known).accuracy == 69.55
    assert published.published(student("kd --sdd 1,2,4", "ResNet50", "MobileNetV2"), known) is None


@pytest.mark.parametrize(
    "line",
    ["kd --epochs 480", "kd --aug", "kd -a 0.8", "kd --batch_size 128", "crd --nce_k 4096", "pkt "
     "-a 1", "mlkd --logit_stand", "mlkd --logit_stand --epochs 480"],
)  # fmt: skip
def test_of_another_recipe_nothing_is_published(known, line):
    assert published.published(student(line), known) is None


def test_flags_that_cannot_be_read_are_those_of_nothing():
    entry = published.Published("cifar100", "vgg8", "kd 'a", 1.0, "240 epochs", "x", "vgg13")
    assert not entry.is_of(student("kd", "vgg13", "vgg8"))


def test_of_other_data_or_another_pair_nothing_is_published(known):
    assert published.published(student("kd --dataset cifar10"), known) is None
    assert published.published(student("kd", "wrn_40_2", "resnet20"), known) is None
    probe = make_job("", "probe", {"path_s": "a/b.pth", "model_s": "wrn_16_2"}, ["-d", "stl10"])
    assert published.published(run_of(probe), known) is None


@pytest.mark.parametrize(
    ("protocol", "epochs"),
    [
        ("240 epochs, crop and flip", 240),
        ("240 epochs, crop and flip, last epoch", 240),
        ("100 epochs", 100),
        ("240 epochs, augmentation not said", None),
        ("480 epochs, two views, strong augmentation", None),
        ("480 epochs of steps, weak and RandAugment images in one epoch, rate .1", None),
        ("linear probe on CIFAR-100 features", None),
        ("", None),
    ],
)
def test_protocols(protocol, epochs):
    entry = published.Published("cifar100", "vgg8", "kd", 1.0, protocol, "x", "vgg13")
    assert entry.epochs == epochs


ENTRY = "data: a, student: b, flags: student, accuracy: 1, protocol: c, source: d"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- {data: fake, student: vgg8}", "entry 1: it lacks flags"),
        (f"- {{{ENTRY}}}\n- 5", "entry 2: it is a int"),
        (f"- {{{ENTRY}}}".replace("1", ".nan"), "entry 1: accuracy is such a float"),
        (f"- {{{ENTRY}, deviation: x}}", "entry 1: deviation is 'x'"),
        (f"- {{{ENTRY}, model: x}}", "entry 1: model is no part of one"),
        (f"- {{{ENTRY}, teacher: x}}", "entry 1: it has a teacher and no method"),
        (f"- {{{ENTRY}}}".replace("flags: student", "flags: kd"), "entry 1: it lacks teacher"),
        ("{data: [a]}", "entry 1: data is such a list"),
        ("words", "entry 1: it is a str"),
        ("{", "is no YAML: while parsing"),
        ("[" * 3000, "is nested too deeply"),
        ("\x00", "is no YAML: "),
    ],
)
def test_a_broken_file_is_an_error(text, says, tmp_path, monkeypatch):
    known = tmp_path / "published.yaml"
    known.write_text(text)
    monkeypatch.setattr(published, "FILE", known)
    with pytest.raises(UserError, match=f"published.yaml.*{says}"):
        published.read_published()
