"""A folder that tools/export.py wrote stands wherever a checkpoint does."""

import json

import pytest
import torch

from cli.plan import read_plan
from deploy.network import read_deployed
from helper.errors import UserError
from models.any import build
from runs import checkpoint
from tests.conftest import only
from tools import eval as evaluating
from tools import export as exporting

FAKE = "--dataset fake --fake_size 20 --fake_classes 4 --image_size 16 --epochs 1"
SAID = {
    "classes": [f"class {i}" for i in range(4)], "image_size": 16, "crop_pct": 1.0,
    "mean": [0.2, 0.3, 0.4], "std": [0.3, 0.2, 0.1],
}  # fmt: skip


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The folder `out` of the network in net.pth, both in the working folder."""
    pytest.importorskip("safetensors")
    monkeypatch.chdir(tmp_path)
    weights = build("resnet8", 4, 16).state_dict()
    checkpoint.save(tmp_path / "net.pth", {"model": weights, "model_name": "resnet8", **SAID})
    exporting.export(["net.pth", "--format=safetensors", "--out=out"])
    return tmp_path / "out"


def test_it_says_what_the_checkpoint_says(out):
    assert checkpoint.network_of(out, "-m") == "resnet8"
    assert checkpoint.data_of(out) == SAID
    kept, found = checkpoint.weights_of("net.pth"), checkpoint.weights_of(out)
    assert kept.keys() == found.keys()
    assert all(torch.equal(found[name], x) for name, x in kept.items())


def test_its_digest_is_of_all_that_is_read(out):
    before = checkpoint.digest(out)
    (out / "README.md").unlink()
    assert checkpoint.digest(out) == before
    config = json.loads((out / "config.json").read_text())
    config["pretrained_cfg"]["mean"][0] = 0.5
    (out / "config.json").write_text(json.dumps(config))
    other = checkpoint.digest(out)
    (out / "model.safetensors").write_bytes((out / "model.safetensors").read_bytes() + b" ")
    assert len({before, other, checkpoint.digest(out)}) == 3


def test_a_plan_takes_it_and_no_other_folder(out, tmp_path):
    text = "dataset: fake\npairs: [resnet8 resnet8]\nmethods: {KD: kd}\nteachers: {resnet8: %s}\n"
    (tmp_path / "a.yaml").write_text(text % out)
    student = next(job for job in read_plan("a.yaml") if job.source)
    assert (student.source, student.source_now()) == (str(out), out)
    assert student.finished() is None
    (tmp_path / "a.yaml").write_text(text % tmp_path)
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_plan("a.yaml")


def test_it_is_evaluated_at_its_own_size(out):
    of_file, of_folder = (
        evaluating.evaluate_checkpoint(f"-c {path} -d fake --fake_classes 4 --device cpu".split())
        for path in ("net.pth", "out")
    )
    assert of_folder["image_size"] == 16
    same = "model", "acc", "loss", "mean", "std"
    assert [of_file[name] for name in same] == [of_folder[name] for name in same]


def test_it_teaches_starts_and_is_probed(out, run, tmp_path, capsys):
    run(f"train_student --path_t out --model_s resnet8 {FAKE}")
    teacher = json.loads((only(tmp_path / "save" / "student_model") / "run.json").read_text())
    assert teacher["teacher"]["model"] == "resnet8"
    assert "with its own mean and std" in capsys.readouterr().out
    run(f"train_teacher --init out {FAKE} --learning_rate 1e-30")
    assert "start:     out\n" in capsys.readouterr().out
    folder = only(tmp_path / "save" / "models")
    started = checkpoint.load(folder / "resnet8_last.pth")
    assert (started["mean"], started["std"]) == (SAID["mean"], SAID["std"])
    weights = checkpoint.weights_of(out)["conv1.weight"]
    torch.testing.assert_close(started["model"]["conv1.weight"], weights)
    run(f"transfer_student --path_s out {FAKE}")
    probe = json.loads((only(tmp_path / "save" / "linear_probe") / "run.json").read_text())
    assert probe["source"]["sha256"] == checkpoint.digest(out)


@pytest.mark.parametrize("flag", ["train_student --path_t", "train_teacher --init"])
@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", None, "out is a folder without config.json: give a checkpoint, or one"),
        ("config.json", '{"model_name": "resn', "config.json is broken (it is no JSON"),
        ("config.json", '{"model_name": "resnet8"}', "config.json is broken (it lacks label_names"),
        ("model.safetensors", None, "out has no model.safetensors: export it with --format"),
        ("model.safetensors", "{}", "model.safetensors is no checkpoint, or a damaged one"),
    ],
)
def test_a_folder_that_is_not_whole_is_one_line(flag, file, text, says, out, fails):
    (out / file).unlink()
    if text is not None:
        (out / file).write_text(text)
    assert says in fails(f"{flag} out {FAKE}")


@pytest.mark.parametrize("flag", ["train_student --path_t", "train_teacher --init"])
def test_a_network_that_cannot_be_built_is_one_line(flag, out, fails):
    config = json.loads((out / "config.json").read_text())
    for name in ("nonesuch", "torchvision:nonesuch"):
        (out / "config.json").write_text(json.dumps({**config, "model_name": name}))
        message = fails(f"{flag} out {FAKE}")
        assert name.removeprefix("torchvision:") in message
        assert "out" in message
    (out / "config.json").write_text(json.dumps({**config, "model_name": "os:getcwd"}))
    assert "os:getcwd, a function of somebody's module" in fails(f"{flag} out {FAKE}")


def test_names_of_a_data_set_are_known_to_it(tmp_path):
    pytest.importorskip("torchvision")
    weights = build("torchvision:resnet18", 4, 32).state_dict()
    said = {**SAID, "image_size": 32, "model_name": "ResNet18", "dataset": "imagenet"}
    checkpoint.save(tmp_path / "net.pth", {"model": weights, **said})
    assert read_deployed(tmp_path / "net.pth").name == "torchvision:resnet18"


def test_a_folder_says_no_data_set(out):
    with pytest.raises(UserError, match="out does not say its data set: give it with -d"):
        evaluating.evaluate_checkpoint(["-c=out"])
    with pytest.raises(UserError, match="out was trained for 4 classes .*: -d and --data_dir say"):
        evaluating.evaluate_checkpoint(["-c=out", "-d=fake", "--fake_classes=7", "--device=cpu"])
