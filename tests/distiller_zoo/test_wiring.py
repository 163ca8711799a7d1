"""Which tensors of a real pair reach the loss of each method, what is trained, and in which mode.

Golden numbers prove a formula, whatever it is given; here it is proven what it is given.
"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from cli import objective, parse
from dataset.base import Batch
from distiller_zoo import METHODS
from distiller_zoo.base import Setup
from engine import stage as stages
from engine.device import Numerics
from engine.objective import Distillation
from engine.teacher import LiveTeacher
from models import MODELS
from tests.distiller_zoo.watched import Watched

STAGES = {"stages.0", "stages.1", "stages.2"}
PREACTS = {"preacts.0", "preacts.1", "preacts.2"}


@dataclass(frozen=True)
class Wiring:
    """What is expected of a method; names of modules and parameters are those of the method."""

    student: set[str]  # tensors of the student that change the loss
    teacher: set[str]  # of the teacher
    trained: tuple[str, ...] = ()  # have a gradient beside the student's
    idle: tuple[str, ...] = ()  # are in the optimizer and have none, so that nothing moves them
    pair: tuple[str, str] = ("resnet8x4", "resnet8")  # teacher, student
    first: "Wiring | None" = None  # the first stage, where there is one
    student_is_trained: bool = True
    teacher_norms_in_train: bool = False


def of(*both: str, **how) -> Wiring:
    """The same tensors of both networks."""
    return Wiring(set(both), set(both), **how)


EQUAL = ("resnet14", "resnet8")  # in the channels of every stage
EMBEDDINGS = ("embed_s", "embed_t")
WIRING = {
    "abound": of(idle=("connectors",), first=of(*PREACTS, trained=("connectors",))),
    "attention": of(*STAGES),
    "catkd": of("last_map"),
    "correlation": of("pooled", trained=EMBEDDINGS),
    "crd": of("pooled", trained=EMBEDDINGS),
    "crld": of("logits", "strong.logits"),
    "dcd": of("pooled", trained=(*EMBEDDINGS, "tau", "b")),
    "dist": of("logits"),
    "dkd": of("logits"),
    "dml": of("logits"),
    "ega": of("pooled", trained=("embed",)),
    "factor": of(
        "stages.2",
        trained=("translator",),
        idle=("paraphraser",),
        first=Wiring(set(), {"stages.2"}, trained=("paraphraser",), student_is_trained=False),
    ),
    "fsp": of(pair=EQUAL, first=of("stem", *STAGES)),
    "hint": of("stages.1", trained=("regressor",)),
    "icd": of("pooled", trained=(*EMBEDDINGS, "tau", "b")),
    "itrd": of("pooled", trained=("embed",)),
    "kd": of("logits"),
    "kdsvd": of(*STAGES, pair=EQUAL),
    "ldrld": of("logits"),
    "mlkd": of("logits"),
    "nkd": of("logits"),
    "normkd": of("logits"),
    "nst": of(*STAGES),
    "ofd": of(*PREACTS, trained=("connectors",), teacher_norms_in_train=True),
    "pkt": of("pooled"),
    "reviewkd": Wiring({*STAGES, "pooled"}, {*PREACTS, "pooled"}, trained=("fusions",)),
    "pskd": Wiring({"logits"}, set()),
    "rkd": of("pooled"),
    "rld": of("logits"),
    "rrd": of("pooled", trained=("embed_s",)),
    "similarity": of("stages.2"),
    "skd": of("logits"),
    "srd": of("pooled", "logits", trained=("embed_s",)),
    "ttm": of("logits"),
    "tfkd": Wiring({"logits"}, set()),
    "vid": of(*STAGES, trained=("likelihoods",)),
    "simkd": of("last_map"),
    "wkd": of("last_map", "logits", trained=("feature",)),
    "wkd_feature": of("last_map", trained=("projector",)),
    "wkd_logit": of("logits"),
    "wsld": of("logits"),
    "wttm": of("logits"),
}


def test_every_method_is_wired_here():
    assert sorted(WIRING) == sorted(METHODS)


class Scene:
    """A student of a command line about to be trained, and a batch."""

    def __init__(self, name: str):
        self.name, self.wiring = name, WIRING[name]
        teacher, student = self.wiring.pair
        line = f"--distill {name} --model_s {student}"
        line += f" --model_t {teacher}" if METHODS[name].has_teacher else ""
        line += " --crld_weak 0 --crld_strong 0" * (name == "crld")  # or nothing may be left
        line += " --nce_k 8" if "nce_k" in METHODS[name].Options.__dataclass_fields__ else ""
        self.options = parse.parse_student(line.split())
        views = torch.randn(self.options.choice.views_per_image(self.options), 8, 3, 32, 32)
        images = views[0]
        shown = views if len(views) > 1 else images
        self.batch = Batch(shown, torch.arange(8) % 4, torch.arange(8))
        networks = MODELS[student](10), MODELS[teacher](10)
        with torch.no_grad():
            shown = [network.eval().features(images[:2]) for network in networks]
        setup = Setup(*shown, *networks, labels=torch.arange(40) % 4)
        kd, method = objective.kd_and_method(self.options, setup)
        numerics = Numerics(torch.device("cpu"))
        self.task = Distillation(
            networks[0], LiveTeacher(networks[1], numerics), kd, method, name, self.options
        )

    def stage(self, first: bool) -> stages.Stage:
        schedule = stages.Schedule(0.05)
        if first:
            return stages.first_stage(self.task, 0.05, self.options, 1)
        return stages.main_stage(self.task, schedule, self.options)

    def loss(self, features, first: bool) -> torch.Tensor:
        """The method's loss, as if it were the first: nothing that it keeps is changed."""
        torch.manual_seed(3)
        method = copy.deepcopy(self.task.kd if self.name == "kd" else self.task.method)
        call = method.first_stage_loss if first else method
        return call(*features, self.batch)


@pytest.fixture
def scene(name):
    torch.manual_seed(0)
    return Scene(name)


def stages_of(names):
    """(name, whether it is the first stage) of each method and of each of its stages."""
    cases = [(name, first) for name in names for first in (True, False)]
    cases = [(name, first) for name, first in cases if not first or WIRING[name].first]
    ids = [f"{name}-first" if first else name for name, first in cases]
    return pytest.mark.parametrize(("name", "first"), cases, ids=ids)


def tensors_of(features):
    """Every tensor of a pass by its name: stem, stages.0, ... -> features with it changed."""

    def changed(x):
        return x + torch.randn(x.shape, generator=torch.Generator().manual_seed(5))

    for name in ("stem", "last_map", "pooled", "logits"):
        yield name, replace(features, **{name: changed(getattr(features, name))})
    if features.strong:
        for name, strong in tensors_of(features.strong):
            yield f"strong.{name}", replace(features, strong=strong)
    for name in ("stages", "preacts"):
        maps = getattr(features, name)
        for i, x in enumerate(maps):
            new = (*maps[:i], changed(x), *maps[i + 1 :])
            yield f"{name}.{i}", replace(features, **{name: new})


@stages_of(WIRING)
def test_which_tensors_reach_the_loss(name, first, scene):
    expected = scene.wiring.first if first else scene.wiring
    with torch.no_grad():
        shown = list(scene.task.train().features(scene.batch))
        before = scene.loss(shown, first)
        assert torch.equal(scene.loss(shown, first), before)
        for place, tensors in ((0, expected.student), (1, expected.teacher)):
            found = set()
            for tensor, features in tensors_of(shown[place]):
                other = [*shown[:place], features, *shown[place + 1 :]]
                if not torch.equal(scene.loss(other, first), before):
                    found.add(tensor)
            assert found == tensors, ("student", "teacher")[place]


@stages_of(WIRING)
def test_who_reads_which_features(name, first, scene):
    """A name that is read has a tensor that reaches the loss, or lies beside one that does."""
    expected = scene.wiring.first if first else scene.wiring
    shown = [Watched(features) for features in scene.task.train().features(scene.batch)]
    scene.loss(shown, first)
    for watched, tensors in zip(shown, (expected.student, expected.teacher), strict=True):
        names = {tensor.removeprefix("strong.").partition(".")[0] for tensor in tensors}
        assert names <= watched.seen <= METHODS[name].reads


@stages_of(WIRING)
def test_what_has_a_gradient_and_what_is_in_the_optimizer(name, first, scene):
    expected = scene.wiring.first if first else scene.wiring
    stage = scene.stage(first)
    task = stage.task.train()
    kept = {key: value.clone() for key, value in scene.task.teacher.network.state_dict().items()}
    task(scene.batch).loss.backward()
    names = {p: key for key, p in scene.task.named_parameters()}  # teacher's included

    student = {key for key, p in scene.task.student.named_parameters() if p.requires_grad}
    student = {f"student.{key}" for key in student if expected.student_is_trained}
    if first:  # the classifier is behind the last stage
        student = {key for key in student if not key.startswith("student.fc.")}
    modules = {key: key.split(".")[1] for key in names.values() if key.startswith("method.")}
    trained = {key for key, module in modules.items() if module in expected.trained}
    idle = {key for key, module in modules.items() if module in expected.idle}
    assert {modules[key] for key in trained | idle} == {*expected.trained, *expected.idle}

    in_optimizer = {names[p] for group in stage.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == student | trained | idle
    with_gradient = {names[p] for p in in_optimizer_of(stage) if p.grad is not None}
    assert with_gradient == student | trained
    before = {key: p.detach().clone() for p, key in names.items()}
    stage.optimizer.step()
    moved = {key for p, key in names.items() if not torch.equal(p, before[key])}
    assert moved <= with_gradient
    assert {key.split(".")[0] for key in moved} == {key.split(".")[0] for key in with_gradient}
    teacher = scene.task.teacher.network
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(value, kept[key]) for key, value in teacher.state_dict().items())


def in_optimizer_of(stage):
    return [p for group in stage.optimizer.param_groups for p in group["params"]]


@stages_of(WIRING)
def test_in_which_mode_each_module_is(name, first, scene):
    expected = scene.wiring.first if first else scene.wiring
    stage = scene.stage(first)
    task = scene.task
    for _ in range(2):  # evaluation between two epochs changes nothing
        stage.task.train()
        for key, module in task.teacher.network.named_modules():
            in_train = expected.teacher_norms_in_train and isinstance(module, nn.BatchNorm2d)
            assert module.training == in_train, f"teacher's {key}"
        assert all(module.training for module in task.method.modules())
        for key, module in task.student.named_modules():
            in_train = not first
            if first and expected.student_is_trained:  # what has weights, but the classifier
                in_train = bool(list(module.parameters(recurse=False))) and key != "fc"
            assert module.training == in_train, f"student's {key}"
        stage.task.eval()
        assert not any(module.training for module in stage.task.modules())
        assert not any(module.training for module in task.modules())
