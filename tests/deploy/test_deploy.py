"""Exported networks say what the network says, and are read back."""

import json
import math
import os
import sys

import pytest
import torch

from deploy import check, network
from helper.errors import UserError
from models import MODELS
from models.any import build
from runs import checkpoint
from tests.conftest import only
from tools import export as exporting
from tools import predict as predicting

DATA = "--dataset fake --fake_size 60 --fake_classes 4 --image_size 16"
SAID = {
    "classes": ["ant", "bee", "cat", "dog"], "image_size": 16,
    "mean": [0.2, 0.3, 0.4], "std": [0.3, 0.2, 0.1],
}  # fmt: skip


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A checkpoint of resnet8, in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "net.pth"
    weights = build("resnet8", 4, 16).state_dict()
    checkpoint.save(path, {"model": weights, "model_name": "resnet8", **SAID})
    return path


def export(line):
    exporting.export(line.split())


def test_weights_and_config_are_read_back(trained, tmp_path):
    pytest.importorskip("safetensors")
    export("net.pth --format safetensors --out out")
    ours, theirs = (network.read_deployed(path) for path in (trained, tmp_path / "out"))
    assert (ours.classes, ours.mean, ours.std) == (theirs.classes, theirs.mean, theirs.std)
    images = torch.randn(3, 3, 16, 16)
    assert torch.equal(ours.network(images), theirs.network(images))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == "resnet8"
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]
    assert config["label_names"] == SAID["classes"]


def test_a_folder_holds_the_export_of_one_network(trained, tmp_path):
    export("net.pth --format safetensors --out out")
    export("net.pth --format torch_export --out out --random_images 2")
    assert {"model.safetensors", "model.pt2"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    torch.save(torch.load(trained) | {"epoch": 9}, tmp_path / "other.pth")
    for line in ("other.pth", "net.pth --normalize"):
        with pytest.raises(UserError, match="out holds the export of another network"):
            export(f"{line} --format safetensors --out out")
    export("other.pth --format safetensors --out out --overwrite")
    assert not (tmp_path / "out" / "model.pt2").exists()
    (tmp_path / "out" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="out has no model.safetensors: export it with --format"):
        predicting.predict(["out", "net.pth"])


@pytest.mark.parametrize("more", ["", "--normalize"])
def test_a_program_of_torch_export(more, trained, tmp_path, capsys):
    export(f"net.pth --format torch_export --out out --random_images 70 {more}")
    assert "same class for 70 of 70 images" in capsys.readouterr().out
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    deployed, pixels = network.read_deployed(trained), torch.rand(5, 3, 16, 16)
    expected = deployed.network(deployed.normalise(pixels))
    given = pixels if more else deployed.normalise(pixels)
    torch.testing.assert_close(program(given), expected)


def test_onnx_is_compared_on_the_test_images(run, trained, tmp_path, capsys):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    run(f"train_teacher --init {trained.name} --epochs 1 {DATA}")
    folder = only(tmp_path / "save" / "models")
    export(f"{folder}/resnet8_last.pth --format onnx --out out")
    assert "same class for 15 of 15 images" in capsys.readouterr().out
    session = runtime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    images = torch.randn(1, 3, 16, 16)
    (logits,) = session.run(None, {"images": images.numpy()})
    deployed = network.read_deployed(folder / "resnet8_last.pth")
    torch.testing.assert_close(torch.from_numpy(logits), deployed.network(images))
    card = (tmp_path / "out" / "README.md").read_text()
    summary = json.loads((folder / "run.json").read_text())
    accuracy = f"{summary['last']['test_acc']:.2f} %"
    for text in (
        accuracy,
        "| objective | CE |",
        "| seed | 1 |",
        f"| started from | {trained.name} |",
    ):
        assert text in card


@pytest.mark.whole
@pytest.mark.parametrize(
    "name",
    [*MODELS, "torchvision:resnet18", "torchvision:mobilenet_v3_small", "torchvision:vgg11",
     "timm:convnext_atto", "timm:repvgg_a0"],
)  # fmt: skip
def test_every_network_can_be_exported(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    weights = build(name, 4, 32).state_dict()
    content = {"model": weights, "model_name": name, **SAID, "image_size": 32}
    checkpoint.save(tmp_path / "net.pth", content)
    export("net.pth --out out --random_images 32")
    assert capsys.readouterr().out.count("same class for 32 of 32 images") == 2


def test_a_file_that_says_something_else_is_exit_code_1(trained, monkeypatch, capsys):
    wrong = "model.pt2", lambda *args: lambda images: images[:, 0, 0, :4]
    monkeypatch.setitem(exporting.GRAPHS, "torch_export", wrong)
    with pytest.raises(SystemExit) as ended:
        export("net.pth --format torch_export --out out --random_images 9")
    assert ended.value.code == 1
    assert "error: a file says something else than the network" in capsys.readouterr().err


def test_agreement_is_of_the_whole_and_of_each_image():
    def of(logits):
        return lambda images: logits

    own = torch.tensor([[1.0, 5.0], [2.0, 1.0]])
    other = torch.tensor([[1.0, 5.0], [1.0, 2.0]])
    found = check.compare(of(own), of(other), [torch.zeros(2, 3, 4, 4)])
    assert found == (2, 1.0, 5.0, 1)
    assert not found.holds
    assert check.compare(of(own), of(own + 1e-4), [torch.zeros(2, 3, 4, 4)]).holds


def photos(folder):
    from PIL import Image

    folder.mkdir()
    for i, size in enumerate([(40, 30), (16, 16), (9, 50)]):
        Image.new("RGB", size, (40 * i, 99, 7)).save(folder / f"{i}.png")
    return folder


def test_predictions_of_files_and_folders(trained, tmp_path, capsys):
    photos(tmp_path / "photos")
    predicting.predict(["net.pth", "photos", "photos/1.png", "--top", "9", "--json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["image"] for line in lines] == [f"photos/{i}.png" for i in (0, 1, 2, 1)]
    assert lines[1]["classes"] == lines[3]["classes"]
    for line in lines:
        shares = [found["probability"] for found in line["classes"]]
        assert {found["class"] for found in line["classes"]} == set(SAID["classes"])
        assert shares == sorted(shares, reverse=True)
        assert math.isclose(sum(shares), 1, rel_tol=1e-5)
    deployed = network.read_deployed(trained)
    pixels = torch.tensor([40 / 255, 99 / 255, 7 / 255]).view(1, 3, 1, 1).expand(1, 3, 16, 16)
    shares = deployed.network(deployed.normalise(pixels)).softmax(dim=1)
    assert lines[1]["classes"][0]["class"] == SAID["classes"][shares.argmax()]
    predicting.predict(["net.pth", "photos/0.png", "--top", "1"])
    assert capsys.readouterr().out.startswith("photos/0.png  ")


def test_what_cannot_be_read_is_named_and_the_rest_is_answered(trained, tmp_path, capsys):
    photos(tmp_path / "photos")
    (tmp_path / "photos" / "0.txt.png").write_text("no image")
    with pytest.raises(
        UserError, match=r"^1 of \d+ cannot be read: photos/0.txt.png is no readable"
    ):
        predicting.predict(["net.pth", "photos", "--top", "1"])
    answered = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    readable = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.glob("photos/?.png"))
    assert answered == readable
    assert answered


@pytest.mark.parametrize(
    ("command", "line", "says"),
    [
        ("export", "", "no checkpoint"),
        ("export", "gone.pth", "gone.pth"),
        ("export", "net.pth --format tflite", "invalid choice: 'tflite'"),
        (
            "export",
            "net.pth --format torch_export -d fake --image_size 8",
            "size 8, the network's 16: give its data set with -d, or --random_images 100",
        ),
        ("export", "bare.pth", "does not say its classes, image_size, mean, std"),
        ("export", "net.pth -m resnet20 --format safetensors", "does not fit resnet20"),
        ("predict", "net.pth", "required: IMAGE"),
        ("predict", "net.pth gone.png", "gone.png"),
        ("predict", "net.pth empty", "no images in empty"),
        ("predict", "net.pth net.pth", "net.pth is no readable image"),
        ("predict", "empty photos", "empty is a folder without config.json: give a"),
        ("predict", "bad photos", "bad/config.json is broken (it is no JSON"),
        ("predict", "code photos", "os:getcwd, a function of somebody's module"),
    ],
)
def test_what_cannot_be_is_one_line(command, line, says, trained, tmp_path):
    photos(tmp_path / "photos")
    for name in ("empty", "bad", "code"):
        (tmp_path / name).mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    pixels = {"input_size": [3, 16, 16], "mean": SAID["mean"], "std": SAID["std"]}
    config = {"model_name": "os:getcwd", "label_names": ["a"], "pretrained_cfg": pixels}
    (tmp_path / "code" / "config.json").write_text(json.dumps(config))
    weights = {"model": build("resnet8", 4, 16).state_dict(), "model_name": "resnet8"}
    torch.save(weights, tmp_path / "bare.pth")
    tool = exporting.export if command == "export" else predicting.predict
    with pytest.raises(UserError) as error:
        tool(line.split())
    assert says in str(error.value)


def test_a_missing_package_is_named_before_anything_is_written(trained, monkeypatch):
    pytest.importorskip("safetensors")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs the onnxruntime package.*requirements-export.txt"):
        export("net.pth --out out --random_images 2")
    assert not (trained.parent / "out").exists()


@pytest.mark.parametrize("names", [["README.md"], ["config.json"], ["README.md", "config.json"]])
def test_files_of_no_export_are_not_replaced(names, trained, tmp_path):
    pytest.importorskip("safetensors")
    for name in names:
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match=rf"\. holds a {names[0]} of no export: .*--overwrite"):
        export("net.pth --format safetensors --out .")
    assert [(tmp_path / name).read_text() for name in names] == ["{}"] * len(names)
    assert not (tmp_path / "model.safetensors").exists()
    export("net.pth --format safetensors --out . --overwrite")
    assert "# resnet8" in (tmp_path / "README.md").read_text()
    export("net.pth --format safetensors --out .")


def test_an_export_that_was_stopped_is_repeated(trained, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "compare", None)
        with pytest.raises(TypeError):
            export("net.pth --format torch_export --out out --random_images 2")
    assert (tmp_path / "out" / "model.pt2").exists()
    export("net.pth --format safetensors --out out")
    assert (tmp_path / "out" / "README.md").exists()


def test_the_card_lists_what_lies_there(trained, tmp_path):
    pytest.importorskip("safetensors")
    export("net.pth --format torch_export --out out --random_images 2")
    export("net.pth --format safetensors --out out")
    assert "Files: `model.safetensors`, `model.pt2`." in (tmp_path / "out/README.md").read_text()


def test_names_of_any_characters(trained, tmp_path, capsys):
    pytest.importorskip("safetensors")
    classes = [os.fsdecode(b"caf\xe9"), "a|b", "new\nline", "\x1b[31m"]
    checkpoint.save(trained, torch.load(trained) | {"classes": classes})
    export("net.pth --format safetensors --out out")
    assert list(network.read_deployed(tmp_path / "out").classes) == classes
    card = (tmp_path / "out" / "README.md").read_text()
    assert r"| classes | caf\udce9, a\|b, new line, \x1b[31m |" in card
    capsys.readouterr()
    photo = photos(tmp_path / "photos") / "0.png"
    photo = photo.rename(photo.with_name("two  blanks\n\x1b.png"))
    predicting.predict(["out", str(photo)])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(rf"{tmp_path}/photos/two  blanks\n\x1b.png  ")
    for name in (r"caf\udce9", "a|b", r"new\nline", r"\x1b[31m"):
        assert f"{name} " in line
