"""tools/train.py and tools/eval.py."""

import json
from pathlib import Path

import pytest
import torch

from cli import parse
from helper.errors import UserError
from models.any import build
from runs import checkpoint
from tools import eval as tool
from tools.train import translated

ROOT = Path(__file__).resolve().parent.parent.parent
FAKE = "--fake_size 40 --fake_classes 4 --image_size 16"
PUBLISHED = [  # forms of the predecessors' READMEs
    "--cfg configs/cifar100/sdd_kd/resnet32x4_resnet8x4.yaml --gpu 0 --M [1,2]",
    "--cfg configs/cifar100/sdd_kd/resnet32x4_resnet8x4.yaml --M [1,2] --logit-stand --base-temp 2 "
    "--kd-weight 9 --aug --gpu 0",
    "--cfg configs/cifar100/sdd_dkd/wrn_40_2_resnet8x4.yaml --gpu 1 --M [1,2,4]",
    "--cfg configs/cifar100/kd/vgg13_vgg8.yaml --logit-stand --base-temp 2 --kd-weight 9",
    "--cfg configs/cifar100/rld/ResNet50_MobileNetV2.yaml --same-t --logit-stand",
    "--cfg configs/cifar100/dkd/resnet56_resnet20.yaml --base-temp 3 --kd-weight 18 --logit-stand",
    "--cfg configs/imagenet/sdd_kd/ResNet34_ResNet18.yaml --M [1,2]",
]
PASSED_OVER = [  # --base-temp and --kd-weight mean nothing there without --logit-stand
    "--cfg configs/cifar100/rld/wrn_40_2_resnet20.yaml --M [1] --base-temp 2 --kd-weight 9",
    "--cfg configs/cifar100/sdd_rld/wrn_40_2_resnet20.yaml --M [1,2,4] --base-temp 2 --kd-weight 9",
    "--cfg configs/imagenet/rld/ResNet34_ResNet18.yaml --M [1] --base_temp 2 --kd_weight 9",
]


@pytest.mark.parametrize("line", PUBLISHED)
def test_published_command_lines_are_understood(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    options = parse.parse_student(translated(line.split()))
    words = line.split()
    if "--gpu" in words:
        assert options.device == f"cuda:{words[words.index('--gpu') + 1]}"
    assert options.aug == ("--aug" in words)
    if "--M" in words:
        assert str(list(options.sdd)).replace(" ", "") == words[words.index("--M") + 1]
    if "--base-temp" in words:
        assert options.kd_T == float(words[words.index("--base-temp") + 1])


@pytest.mark.parametrize("line", PASSED_OVER)
def test_flags_that_the_published_tool_passes_over(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.warns(UserWarning, match="base-temp and --kd-weight: no effect without"):
        words = translated(line.split())
    plain = translated(line.partition(" --base")[0].split())
    assert words == plain
    options = parse.parse_student(words)
    assert (options.gamma, options.alpha, options.beta) == (1, 0, 1)
    assert options.kd_T == (1 if "imagenet" in line else 4)
    assert str(list(options.sdd)).replace(" ", "") == line.split()[3]


@pytest.fixture
def trained(tmp_path):
    path = tmp_path / "net.pth"
    network = build("resnet8", 4, 16)
    facts = {"model_name": "resnet8", "classes": [f"class {i}" for i in range(4)]}
    checkpoint.save(path, {"model": network.state_dict(), **facts})
    return path, network


def test_train_runs_a_config(run, trained, tmp_path, monkeypatch):
    config = tmp_path / "a.yaml"
    config.write_text("distill: dkd\ndataset: fake\nepochs: 1\nmodel_s: resnet8\nsdd: [1, 2]\n")
    monkeypatch.chdir(tmp_path)
    line = f"--cfg {config} --path_t {trained[0]} {FAKE} --M [1,2,4] --logit-stand --aug"
    from tools.train import train

    with pytest.warns(UserWarning, match="the command line wins"):
        train(line.split())
    (summary,) = tmp_path.glob(
        "save/student_model/*_dkd_sdd-1-2-4_logit_stand_*_epochs_1_aug_*_trial_1/run.json"
    )
    assert json.loads(summary.read_text())["options"]["beta"] == 9


def test_eval_counts_what_is_right(trained, tmp_path, capsys):
    path, network = trained
    line = f"-c {path} -d fake {FAKE} --per_class --json {tmp_path / 'n.json'} --device cpu"
    numbers = tool.evaluate_checkpoint(line.split())
    bare = [str(path), *line.split()[2:]]
    assert tool.evaluate_checkpoint(bare)["acc"] == numbers["acc"]
    uneven = tool.evaluate_checkpoint([*line.split(), "--batch_size", "3"])
    assert uneven["acc"] == pytest.approx(numbers["acc"])
    assert uneven["per_class"] == numbers["per_class"]
    numbers = tool.evaluate_checkpoint(line.split())
    assert json.loads(json.dumps(numbers)) == json.loads((tmp_path / "n.json").read_text())
    assert "resnet8 on fake" in capsys.readouterr().out

    from dataset import DATASETS
    from dataset.loader import Loader, Loading

    options = DATASETS["fake"].Options(fake_size=40, fake_classes=4, image_size=16)
    data = DATASETS["fake"].load(options)
    (batch,) = Loader(data, "test", 500, Loading()).batches()
    with torch.no_grad():
        right = network.eval()(batch.images).argmax(dim=1) == batch.labels
    assert numbers["acc"] == pytest.approx(100 * right.double().mean().item())
    for label, name in enumerate(data.classes):
        wanted = 100 * right[batch.labels == label].double().mean().item()
        assert numbers["per_class"][name] == pytest.approx(wanted)
    assert numbers["images"] == len(batch.labels)


def test_a_class_without_images_has_no_accuracy():
    labels = torch.tensor([0, 0, 2])
    shares = tool.per_class(torch.tensor([0, 1, 2]), labels, ("a", "b", "c"))
    assert shares == {"a": 50, "b": None, "c": 100}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fake_size": "many"}, "net.pth: .*'many' is no whole number"),
        ({"fake_size": -1}, "net.pth: .*-1 is not at least 1"),
        ({"fake_size": [1, 2]}, "net.pth: .*'1,2' is no whole number"),
        ({"image_size": 2**70}, "net.pth: .*is too large"),
        ({"fake_size": {}}, "net.pth says what cannot be"),
    ],
)
def test_what_a_file_says_of_options_has_their_bounds(options, says, trained):
    content = {**checkpoint.load(trained[0]), "dataset": "fake", "data_options": options}
    checkpoint.save(trained[0], content)
    with pytest.raises(UserError, match=says):
        tool.evaluate_checkpoint(["-c", str(trained[0])])


def test_where_to_write_is_not_for_a_file_to_say(trained):
    options = {"data_dir": "images", "cache_dir": "/elsewhere"}
    content = {**checkpoint.load(trained[0]), "dataset": "folder", "data_options": options}
    checkpoint.save(trained[0], content)
    parsed = parse.parse_eval(["-c", str(trained[0])])
    assert (parsed.data_dir, parsed.cache_dir) == ("images", "./data/cache")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "no checkpoint: python tools/eval.py CKPT"),
        ("-c {path} -m resnet20", r"net.pth \(resnet8 with 4 classes\) does not fit resnet20"),
        (
            "-c {path} --fake_classes 7",
            "net.pth was trained for 4 classes .* fake has 7 classes",
        ),
        ("-c nowhere.pth", "no checkpoint nowhere.pth"),
        ("-c {path} --epochs 3", "unknown argument --epochs"),
    ],
)
def test_eval_explains_what_is_wrong(line, words, trained):
    size = FAKE.replace("--fake_classes 4", "" if "--fake_classes" in line else "--fake_classes 4")
    with pytest.raises(UserError, match=words):
        tool.evaluate_checkpoint(f"-d fake {size} {line.format(path=trained[0])}".split())
