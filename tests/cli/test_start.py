"""Networks that start from trained weights: --pretrained and --init."""

import json

import pytest
import torch

from cli.networks import load_teacher
from cli.parse import parse_student, parse_teacher
from cli.setting import make_setting
from helper.vision import torchvision
from models import MODELS
from models.any import build
from models.pretrained import pretrained
from runs import checkpoint
from tests.conftest import only

FAKE = "--dataset fake --fake_size 20 --fake_classes 4 --image_size 32 --epochs 1"
STILL = "--learning_rate 1e-30"  # so that the weights of the start are those of the end
SHUFFLE = "torchvision:shufflenet_v2_x0_5"
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder where torchvision and timm look for files, without a network."""

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def publish(hub, url, network):
    """Put the weights of a network where its package looks for what it fetched before."""
    torch.save(network.state_dict(), hub / url.rpartition("/")[2])
    return network.state_dict()


@pytest.fixture
def published(hub):
    url = torchvision.models.ShuffleNet_V2_X0_5_Weights.DEFAULT.url
    return publish(hub, url, torchvision.models.shufflenet_v2_x0_5())


def content(tmp_path, kind="models"):
    return checkpoint.load(next(only(tmp_path / "save" / kind).glob("*_last.pth")))


def weights_but(head, weights):
    """Those that training moves by its rate alone."""
    return {
        name: x
        for name, x in weights.items()
        if not name.startswith(head) and "running" not in name and "num_batches" not in name
    }


def assert_starts_from(found, weights, head="fc"):
    for name, x in weights_but(head, weights).items():
        torch.testing.assert_close(found[name], x, msg=name)


def test_torchvision_weights_with_another_head_and_their_own_pixels(
    published, run, tmp_path, capsys
):
    run(f"train_teacher --model {SHUFFLE} --pretrained {FAKE} {STILL}")
    out = capsys.readouterr().out
    said = f"IMAGENET1K_V1 of {SHUFFLE}, with a new classifier for these 4 classes (they had 1000)"
    assert f"start:     {said}\n" in out
    assert "pixels:    mean (0.4850, 0.4560, 0.4060), std (0.2290, 0.2240, 0.2250)" in out
    kept = content(tmp_path)
    assert_starts_from(kept["model"], published)
    assert kept["model"]["fc.weight"].shape == (4, 1024)
    assert (kept["mean"], kept["std"]) == IMAGENET
    folder = only(tmp_path / "save" / "models")
    assert "_pretrained_IMAGENET1K_V1_" in folder.name
    summary = json.loads((folder / "run.json").read_text())
    assert summary["start"] == f"IMAGENET1K_V1 of {SHUFFLE}"


def test_timm_weights(hub, monkeypatch):
    timm = pytest.importorskip("timm")
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda necessary=False: False)
    name = "mobilenetv3_small_050"
    weights = publish(hub, timm.get_pretrained_cfg(name).url, timm.create_model(name))
    found = pretrained(f"timm:{name}")
    assert (found.label, *map(list, found.statistics)) == ("lamb_in1k", *IMAGENET)
    read = found.read()
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[key], x) for key, x in weights.items())


def test_no_network_is_one_line(hub, fails):
    message = fails(f"train_teacher --model {SHUFFLE} --pretrained {FAKE}")
    assert f"the published weights of {SHUFFLE} cannot be had here (no network)" in message
    assert "--init" in message


def test_a_network_that_normalises_by_itself_is_shown_what_it_then_sees():
    """torchvision's pretrained GoogLeNet takes pixels normalised as ImageNet's to halves."""
    network = torchvision.models.googlenet(init_weights=False, aux_logits=False)
    network.transform_input = True
    pixels = torch.rand(1, 3, 4, 4)
    mean, std = (torch.tensor(x)[:, None, None] for x in IMAGENET)
    seen = network._transform_input((pixels - mean) / std)
    mean, std = pretrained("torchvision:googlenet").statistics
    torch.testing.assert_close((pixels - mean[0]) / std[0], seen)


@pytest.mark.parametrize("form", ["checkpoint", "state dict", "safetensors"])
def test_a_file_in_any_form(form, run, tmp_path, capsys):
    weights = build("resnet8", 4).state_dict()
    path = tmp_path / ("a.safetensors" if form == "safetensors" else "a.pth")
    if form == "safetensors":
        pytest.importorskip("safetensors.torch").save_file(weights, path)
    else:
        torch.save(weights if form == "state dict" else {"model": weights}, path)
    run(f"train_teacher --model resnet8 --init {path} {FAKE} {STILL}")
    assert (
        f"start:     {path}; it says no mean and std: those of these images\n"
        in capsys.readouterr().out
    )
    assert_starts_from(content(tmp_path)["model"], weights, head="none: it is for as many classes")


@pytest.mark.parametrize("classes", [["a", "b", "c", "d"], ["a", "b"]])
def test_a_checkpoint_of_other_classes_gets_a_new_head(classes, run, tmp_path, capsys):
    weights = build("resnet8", len(classes)).state_dict()
    said = {"classes": classes, "mean": [0.1] * 3, "std": [0.2] * 3}
    torch.save({"model": weights, **said}, tmp_path / "a.pth")
    run(f"train_teacher --model resnet8 --init a.pth {FAKE} {STILL}")
    had = f"with a new classifier for these 4 classes (they had {len(classes)})"
    assert had in capsys.readouterr().out
    kept = content(tmp_path)
    assert_starts_from(kept["model"], weights)
    assert kept["model"]["fc.weight"].shape == (4, 64)
    assert not torch.equal(kept["model"]["fc.weight"][: len(classes)], weights["fc.weight"])
    assert (kept["mean"], kept["std"]) == ([0.1] * 3, [0.2] * 3)


def test_teacher_and_student_see_pixels_normalised_each_its_own_way(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"model": MODELS["resnet8"](4).state_dict()}, "teacher.pth")
    said = {"mean": [0.1] * 3, "std": [0.2] * 3}
    torch.save({"model": MODELS["resnet8"](4).state_dict(), **said}, "student.pth")
    seen = {}
    for init in ("", "--init student.pth"):
        line = (
            f"--path_t teacher.pth --model_t resnet8 --model_s resnet8 {FAKE} --device cpu {init}"
        )
        options = parse_student(line.split())
        setting = make_setting(options, options.model_s)
        images = next(setting.images_as_they_are()).images
        seen[init] = images, load_teacher(setting).network.own_pixels(images)
    (plain, teacher_plain), (own, teacher_own) = seen.values()
    assert not torch.allclose(own, plain, atol=0.1)
    torch.testing.assert_close(teacher_own, teacher_plain)


def test_a_student_that_starts_from_a_file(run, tmp_path, capsys):
    weights = MODELS["resnet8"](4).state_dict()
    torch.save({"model": weights}, tmp_path / "a.pth")
    line = f"train_student --path_t a.pth --model_t resnet8 --model_s resnet8 {FAKE} {STILL}"
    run(f"{line} --init a.pth")
    assert "start:     a.pth; it says no mean and std" in capsys.readouterr().out
    assert_starts_from(content(tmp_path, "student_model")["model"], weights)


def test_which_weights_and_not_where_they_lie_are_part_of_the_experiment(run, tmp_path, capsys):
    for name in ("a", "b"):
        torch.save({"model": MODELS["resnet8"](4).state_dict()}, tmp_path / f"{name}.pth")
    (tmp_path / "copy.pth").write_bytes((tmp_path / "a.pth").read_bytes())
    for name, folders in (("a", 1), ("copy", 1), ("b", 2)):
        run(f"train_teacher --model resnet8 --init {name}.pth {FAKE}")
        assert len(list((tmp_path / "save" / "models").iterdir())) == folders
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_fine_tuning_starts_at_a_lower_rate():
    assert parse_teacher(["--init", "a.pth"]).learning_rate == 0.01
    options = parse_teacher(["--pretrained", "--optimizer", "adamw"])
    assert (options.learning_rate, options.weight_decay) == (1e-4, 0.05)
    assert parse_student(["--pretrained", "--lr", "0.3"]).learning_rate == 0.3
