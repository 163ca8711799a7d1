"""What every method and view must do. A new file in distiller_zoo/ is tested here by itself."""

import itertools
from dataclasses import replace

import pytest
import torch

from cli import objective, parse
from dataset.base import Batch
from distiller_zoo import METHODS, VIEWS
from distiller_zoo.base import Distiller, LogitDistiller, Setup
from distiller_zoo.noisy_teacher import NoisyTeacher
from helper.errors import UserError
from models import MODELS
from tests.distiller_zoo.watched import Watched

SWITCHES = {
    "sdd": "--sdd 1,2",
    "tekap": "--tekap",
    "logit_stand": "--logit_stand",
    "ctkd": "--ctkd",
}
COMBINATIONS = [c for n in range(len(SWITCHES) + 1) for c in itertools.combinations(SWITCHES, n)]


@pytest.fixture
def batch():
    return Batch(torch.randn(8, 3, 16, 16), torch.arange(8) % 4, torch.arange(8))


@pytest.fixture
def nets():
    teacher = MODELS["resnet14"](10).eval().requires_grad_(False)
    return MODELS["resnet8"](10), teacher


@pytest.fixture
def setup(nets, batch):
    student, teacher = nets
    with torch.no_grad():
        shown = student.eval().features(batch.images[:2]), teacher.features(batch.images[:2])
    student.train()
    return Setup(*shown, student, teacher, labels=torch.arange(40) % 4)


def made(line, setup):
    """The method of a command line, behind its views."""
    return objective.kd_and_method(parse.parse_student(line.split()), setup)[1]


def passes(name, nets, images):
    """What networks show of images, of two views of them where the method reads two."""
    shown = [net.features(images) for net in nets]
    if METHODS[name].views_per_image(METHODS[name].Options()) == 1:
        return shown
    return [x.replace(strong=net.features(images.flip(3))) for x, net in zip(shown, nets)]


def test_the_views_here_are_all_there_are():
    assert set(SWITCHES) == set(VIEWS)


def takes_noise(name) -> bool:
    """Whether --tekap is not refused."""
    return METHODS[name].has_teacher and METHODS[name].reads <= NoisyTeacher.reads


def learns_temperature(name, views):
    """Whether --ctkd, in front of the method itself, is not refused."""
    return getattr(METHODS[name], "one_temperature", False) and "logit_stand" not in views


def is_refused(name, views):
    """Whether the method called `name` does not go behind these views."""
    if not METHODS[name].has_teacher:
        return bool(views)
    return (
        ("ctkd" in views and not learns_temperature(name, views))
        or ("tekap" in views and not takes_noise(name))
        or ("sdd" in views and name == "crld")  # regions of two crops are other places
    )


def combinations():
    """Every method behind every combination of views that is not refused."""
    for name, views in itertools.product(METHODS, COMBINATIONS):
        if not is_refused(name, views):
            yield pytest.param(name, views, id="-".join([name, *views]))


@pytest.mark.parametrize(("name", "views"), list(combinations()))
def test_loss_is_one_finite_number_that_reaches_the_student_alone(name, views, nets, setup, batch):
    student, teacher = nets
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    shown = passes(name, nets, batch.images)
    flags = " ".join(SWITCHES[view] for view in views)
    rows = issubclass(METHODS[name], LogitDistiller) or not views
    read = "" if rows else "-a 1"  # rows for the views
    method = made(f"--distill {name} {read} {flags}", setup)
    loss = method(*shown, batch)
    if list(method.first_stage(student)):  # some methods reach the student there alone
        loss = loss + method.first_stage_loss(*shown, batch)
    loss.backward()
    assert loss.shape == ()
    assert loss.isfinite()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(g.abs().sum() > 0 for g in gradients)
    assert all(g.isfinite().all() for g in gradients)
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())


@pytest.mark.parametrize("name", list(METHODS))
def test_losses_draw_from_the_generator_that_is_given(name, nets, setup, batch):
    noise = "--tekap" if takes_noise(name) else ""
    generator = torch.Generator()
    method = made(f"--distill {name} {noise}", replace(setup, generator=generator))
    shown = passes(name, nets, batch.images)
    own, given = torch.get_rng_state(), generator.get_state()
    method(*shown, batch)
    if list(method.first_stage(nets[0])):
        method.first_stage_loss(*shown, batch)
    assert torch.equal(torch.get_rng_state(), own)
    assert torch.equal(generator.get_state(), given) == (not noise)


@pytest.mark.parametrize("name", list(METHODS))
def test_reads_what_it_declares_and_nothing_else(name, nets, setup, batch):
    method = made(f"--distill {name}", setup)
    shown = [Watched(x) for x in passes(name, nets, batch.images)]
    method(*shown, batch)
    if list(method.first_stage(nets[0])):
        method.first_stage_loss(*shown, batch)
    assert set.union(*(each.seen for each in shown)) == METHODS[name].reads


@pytest.mark.parametrize("name", [n for n in METHODS if not METHODS[n].reads_samples])
def test_labels_and_numbers_of_samples_are_read_where_that_is_declared(name, nets, setup, batch):
    """By the method and the views that may stand in front of it."""
    views = [f"--{view}" for view in VIEWS if not VIEWS[view].reads_samples]
    views = [v for v in views if not is_refused(name, [v[2:]])]
    others = batch._replace(labels=(batch.labels + 1) % 4, index=batch.index + 8)
    shown, kd = passes(name, nets, batch.images), "-a 1" if METHODS[name].has_teacher else ""
    for line in ["", *views]:
        losses = []
        for seen in (batch, others):
            torch.manual_seed(1)
            method = made(f"--distill {name} {kd} {line}", setup)
            losses.append(method(*shown, seen))
        assert torch.equal(*losses), line


READS_MAPS = [
    "abound", "attention", "catkd", "factor", "fsp", "hint", "kdsvd", "nst", "ofd", "reviewkd",
    "similarity", "vid", "simkd", "wkd", "wkd_feature",
]  # fmt: skip


@pytest.mark.parametrize("name", READS_MAPS)
def test_noise_on_the_pooled_vector_is_refused_where_maps_are_read(name):
    with pytest.raises(UserError) as error:
        parse.parse_student(["--distill", name, "--tekap", "-a", "1"])
    line = str(error.value)
    assert line.startswith("--tekap changes the pooled vector")
    assert f"{name} reads " in line
    able = line.rpartition(" with ")[2].split(", ")
    assert sorted([*able, *READS_MAPS, *logit_methods(), *WITHOUT_TEACHER]) == sorted(METHODS)
    parse.parse_student(["--distill", name, "--tekap", "-a", "1", "-b", "0"])  # of KD's rows alone


def test_a_method_that_declares_nothing_is_not_refused(monkeypatch):
    monkeypatch.setattr(METHODS["attention"], "reads", Distiller.reads)
    parse.parse_student(["--distill", "attention", "--tekap"])


WITHOUT_TEACHER = [name for name in METHODS if not METHODS[name].has_teacher]


@pytest.mark.parametrize("name", [n for n in WITHOUT_TEACHER if not METHODS[n].mutual])
def test_without_a_teacher_nothing_of_one_is_read(name, nets, setup, batch):
    method = made(f"--distill {name}", replace(setup, teacher=None, teacher_net=None))
    assert method(*passes(name, nets[:1], batch.images), None, batch).isfinite()


@pytest.mark.parametrize("name", WITHOUT_TEACHER)
@pytest.mark.parametrize(
    "flag",
    ["--path_t nowhere.pth", "--model_t resnet20", "-a 1", "--teacher_bank x", "--any_teacher",
     "--tekap", "--sdd 1,2", "--logit_stand"],
)  # fmt: skip
def test_without_a_teacher_flags_of_one_are_refused(name, flag):
    with pytest.raises(UserError, match=f"^{name} has no teacher, and {flag.split()[0]} is of one"):
        parse.parse_student(["--distill", name, *flag.split()])


@pytest.mark.parametrize("name", list(METHODS))
def test_a_last_batch_may_be_small(name, nets, setup, batch):
    method = made(f"--distill {name}", setup)
    for n in (8, 3, 1):
        part = Batch(*(t[:n] for t in batch))
        assert method(*passes(name, nets, part.images), part).isfinite()


@pytest.mark.parametrize("name", list(METHODS))
def test_says_which_paper_it_is(name):
    method = METHODS[name]
    first = (method.__doc__ or "").splitlines()[0]
    assert method.__doc__ != Distiller.__doc__
    assert any(year in first for year in map(str, range(2014, 2027))), first


@pytest.mark.parametrize("name", list(METHODS))
def test_what_a_method_keeps_survives_a_resume(name, nets, setup, batch):
    torch.manual_seed(1)
    method = made(f"--distill {name}", setup)
    method(*passes(name, nets, batch.images), batch)
    torch.manual_seed(2)
    other = made(f"--distill {name}", setup)
    other.load_state_dict(method.state_dict())
    losses = []
    for each in (method, other):
        torch.manual_seed(3)
        shown = passes(name, [net.eval() for net in nets], batch.images)
        losses.append(each.eval()(*shown, batch))
    assert torch.equal(*losses)


def logit_methods():
    return [name for name in METHODS if issubclass(METHODS[name], LogitDistiller)]


@pytest.mark.parametrize("name", logit_methods())
def test_identities_of_views(name, nets, setup, batch):
    """One region is the image; copies without noise repeat the loss; so do z-scores of z-scores."""
    shown = passes(name, [net.eval() for net in nets], batch.images)

    def loss(flags):
        return made(f"--distill {name} {flags}", setup)(*shown, batch)

    torch.testing.assert_close(loss("--sdd 1 --no_pair_defaults"), loss(""))
    copies = "--tekap --tekap_copies 3 --tekap_noise 0 --tekap_weight 0.5"
    torch.testing.assert_close(loss(copies), 2.5 * loss(""))
    method = made(f"--distill {name} --logit_stand", setup)
    once = method(*shown, batch)
    method.views *= 2
    torch.testing.assert_close(method(*shown, batch), once, rtol=1e-5, atol=1e-5)
