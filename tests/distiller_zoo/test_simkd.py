"""SimKD, and the network that it makes of the student: trained, counted, kept and read again."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from distiller_zoo.base import Setup
from distiller_zoo.simkd import SimKD
from helper.errors import UserError
from models import MODELS
from models.any import build, learning_rate, source_of
from models.projected import Projected, parts_of
from runs import checkpoint
from tests.conftest import only
from tools.eval import evaluate_checkpoint


def scene(student="resnet8", teacher="resnet8x4", sizes=(16, 16)):
    """A method, the network that it makes, the teacher, and images for each."""
    networks = build(student, 5), build(teacher, 5).eval()
    images = [torch.randn(4, 3, size, size) for size in sizes]
    with torch.no_grad():
        shown = [network.eval().features(x) for network, x in zip(networks, images, strict=True)]
    method = SimKD(SimKD.Options(), Setup(*shown, *networks, None))
    return method, method.deployed(*networks), networks[1], images


def test_where_the_maps_agree_the_prediction_is_the_teachers():
    method, network, teacher, (images, _) = scene()
    shown = teacher.features(images)
    network.projector = nn.Identity()
    network.network.features = lambda x: shown
    own = network.features(images)
    assert method(own, shown, None) == 0
    torch.testing.assert_close(own.logits, shown.logits)


def test_what_is_trained_and_what_is_left_out():
    _, network, teacher, _ = scene()
    names = {name for name, p in network.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in names} == {"network", "projector"}
    assert not any("fc" in name for name in network.state_dict())
    assert torch.equal(network.classifier.weight, teacher.fc.weight)
    assert network.classifier.weight is not teacher.fc.weight


@pytest.mark.parametrize("sizes", [(32, 16), (16, 32), (24, 16)])
def test_the_larger_map_is_pooled_whichever_it_is(sizes):
    method, network, teacher, images = scene(sizes=sizes)
    own, shown = network.train().features(images[0]), teacher.features(images[1])
    assert own.last_map.shape[2:] == (min(sizes) // 4,) * 2
    loss = method(own, shown, None)
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.requires_grad)


def test_what_is_refused():
    _, network, teacher, (images, _) = scene()
    shown = teacher.features(images)
    setup = Setup(shown, replace(shown, last_map=None), teacher, teacher, None)
    with pytest.raises(ValueError, match=r"the teacher has no last map, .* \(256,\)"):
        SimKD(SimKD.Options(), setup)
    setup = replace(setup, teacher=replace(shown, head=nn.Linear(256, 5, bias=False)))
    with pytest.raises(ValueError, match="no linear layer with a bias"):
        SimKD(SimKD.Options(), setup)


def test_the_network_is_made_again_of_its_name():
    _, network, *_ = scene()
    assert network.name == "projected:resnet8,256x4x4,2"
    again = build(network.name, 5, 16)
    assert isinstance(again, Projected)
    assert again.name == network.name
    again.load_state_dict(network.state_dict())
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.eval()(x), network.eval()(x))
    assert learning_rate("projected:ShuffleV1,256x4x4,2") == 0.01
    assert source_of(network.name) is source_of("resnet8")


@pytest.mark.parametrize(
    "name",
    [
        "projected:resnet8", "projected:resnet8,4x4,2", "projected:resnet8,0x4x4,2",
        "projected:resnet8,4x4x4,x", "projected:projected:resnet8,4x4x4,2,4x4x4,2",
        "projected:resnet8,99999x4x4,2",
    ],
)  # fmt: skip
def test_names_that_are_none(name):
    with pytest.raises(UserError, match="is no network and its projector"):
        parts_of(name)


def test_a_file_cannot_have_a_function_run_by_such_a_name(tmp_path):
    said = {"model": {"x": torch.zeros(1)}, "model_name": "projected:somebody.module:run,8x4x4,2"}
    checkpoint.save(tmp_path / "a.pth", said)
    with pytest.raises(UserError, match="which a file cannot have run"):
        checkpoint.network_of(tmp_path / "a.pth", "-m")


DATA = "--dataset fake --fake_size 40 --image_size 16 --batch_size 16 --fake_classes 4 --epochs 2"


def test_from_the_checkpoint_alone(run, tmp_path, capsys):
    """Evaluated, probed, and the teacher of another student."""
    checkpoint.save(tmp_path / "t.pth", {"model": MODELS["resnet8x4"](4).state_dict()})
    pair = "--path_t t.pth --model_t resnet8x4 --model_s resnet8"
    run(f"train_student {pair} --distill simkd {DATA}")
    folder = only(tmp_path / "save" / "student_model")
    summary, path = json.loads((folder / "run.json").read_text()), folder / "resnet8_last.pth"
    network = build("projected:resnet8,256x4x4,2", 4, 16)
    parameters = sum(p.numel() for p in network.parameters())
    assert summary["parameters"] == parameters
    assert summary["model"] == "resnet8"
    assert f"network:   resnet8, {parameters:,} parameters (" in capsys.readouterr().out
    assert checkpoint.network_of(path, "-m") == summary["model_name"] == network.name
    assert checkpoint.weights_of(path).keys() == network.state_dict().keys()
    scores = evaluate_checkpoint(["-c", str(path), "--device", "cpu"])
    assert scores["acc"] == pytest.approx(summary["last"]["test_acc"])
    assert scores["loss"] == pytest.approx(summary["last"]["test_loss"], rel=1e-4)

    run(f"transfer_student --path_s {path} {DATA.replace('classes 4', 'classes 3')}")
    probed = json.loads((only(tmp_path / "save" / "linear_probe") / "run.json").read_text())
    assert probed["model"] == network.name
    run(f"train_student --path_t {path} --model_s resnet8 {DATA}")
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("teacher:"))
    assert f"{network.name}, {parameters:,} parameters" in line
    assert f"{summary['last']['test_acc']:.2f} %" in line


def test_without_a_weight_the_student_is_the_bare_one(run, tmp_path):
    checkpoint.save(tmp_path / "t.pth", {"model": MODELS["resnet8x4"](4).state_dict()})
    pair = "--path_t t.pth --model_t resnet8x4 --model_s resnet8"
    run(f"train_student {pair} --distill simkd -r 1 -b 0 {DATA}")
    folder = only(tmp_path / "save" / "student_model")
    assert checkpoint.network_of(folder / "resnet8_last.pth", "-m") == "resnet8"
