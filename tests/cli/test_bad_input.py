"""Every mistake a user can make ends in one line that says what is wrong and what to do."""

import argparse
import os
import re
from io import BytesIO

import pytest
import torch
from PIL import Image

from models import MODELS
from models.any import build
from runs import checkpoint
from tests.conftest import COMMANDS, only, stopped
from tools.eval import evaluate_checkpoint

FAKE = "--dataset fake --fake_size 20 --image_size 8 --epochs 1"
TEACHER = f"train_teacher --model resnet8 {FAKE}"
STUDENT = f"train_student --model_s resnet8 {FAKE}"
PROBE = f"transfer_student {FAKE}"
FOLDER = "train_teacher --model resnet8 --epochs 1 --dataset folder --image_size 8 --data_dir"

LINES = [
    # flags
    (f"{STUDENT} --distill kdd", r"no method 'kdd' \(did you mean kd\?\); there are: .*kd"),
    (f"{STUDENT} --fake_sizes 3", "unknown argument --fake_sizes: did you mean --fake_size"),
    (f"{STUDENT} --cache_dir x", "--cache_dir is a flag of --dataset folder"),
    (f"{STUDENT} --base_temp 3", "--base_temp is a flag of --logit_stand"),
    (f"{STUDENT} --epochs ten", "argument --epochs: 'ten' is no whole number"),
    (f"{STUDENT} --epochs 0", "argument --epochs: 0 is not at least 1"),
    (f"{STUDENT} --batch_size -4", "argument --batch_size/.*: -4 is not at least 1"),
    (f"{STUDENT} --learning_rate nan", "nan is not a finite number"),
    (f"{STUDENT} -a -1", "argument --alpha/-a: -1 is not a finite number of at least 0"),
    (f"{STUDENT} --kd_T 0", "0 is not above 0"),
    (f"{STUDENT} --epochs=--", "argument --epochs: -- is no value"),
    (f"{STUDENT} --resume=--", "argument --resume: -- is no value"),
    (f"{TEACHER} --epochs {2**31}", "2147483648 is too large: 2147483647 at most"),
    (f"{TEACHER} --learning_rate 1e308", "1e308 is not a finite number of at least 0 in float32"),
    (f"{STUDENT} --kd_T 1e308", "1e308 is not a finite number of at least 0 in float32"),
    (f"{STUDENT} --distill factor --ft_k 1e30", "1e30 is more than 100"),
    (f"{STUDENT} --distill ofd --ofd_kernel 100", "100 is more than 99"),
    (f"{STUDENT} --tekap --tekap_copies 1001", "1001 is more than 1000"),
    (f"{STUDENT} --sdd 1,65", "'1,65' is no growing list"),
    (f"{TEACHER} --image_size 8193", "images of 8193 x 8193 are too large: use at most 8192"),
    (f"{TEACHER} --seed {2**63}", "9223372036854775808 is too large"),
    (f"{TEACHER} --lr_decay_epochs {2**63}", "--lr_decay_epochs.*9223372036854775808 is too large"),
    (f"{STUDENT} --amp fp8", "invalid choice: 'fp8'"),
    (f"{STUDENT} --lr_decay_epochs 3;4", "lr_decay_epochs.*'3;4'"),
    (f"{STUDENT} --sdd 2,4", "'2,4' is no growing list of grid sizes from 1 to 64: try 1,2,4"),
    (f"{STUDENT} --M [1,2", r"'\[1,2' is no growing list"),
    (f"{STUDENT} --sdd 1,x", "'1,x' is no growing list"),
    (f"{STUDENT} --logit_stand maybe", "'maybe' is neither on nor off"),
    (f"{STUDENT} --logit_stand --kd_weight 3 -a 2", "--kd_weight 3 and --alpha 2 set the same"),
    (f"{STUDENT} --distill crd --sdd 1,2", "--sdd changes rows of logits.* KD has no weight"),
    (f"{STUDENT} --distill kd -b 1", "--distill kd is the -a term already"),
    (f"{STUDENT} --distill kd --init_epochs 3", "--init_epochs has no meaning for kd.*no first"),
    (f"{STUDENT} -r 0 --label_smoothing 0.1", "--label_smoothing changes cross-entropy, which has"),
    (f"{STUDENT} -r 0 --balance loss", "--balance changes cross-entropy, which has no weight here"),
    (f"{STUDENT} --distill kd --warmup 3", "--warmup has no meaning for kd.*weight is 0; -b sets"),
    (f"{STUDENT} --methods_dir {'x' * 300}", "as a module it cannot be imported"),
    (f"{STUDENT} --methods_dir {'x' * 300}.py", "there are no .py files"),
    (f"{STUDENT} -r 0 -a 0 -b 0", "all 0: there is nothing to train on"),
    (f"{TEACHER} --aug --randaugment", "--aug and --randaugment: give one of them"),
    (f"{TEACHER} --balance both", "invalid choice: 'both'"),
    (f"{TEACHER} --label_smoothing 1", "argument --label_smoothing.*: 1 is not below 1"),
    (f"{TEACHER} --resume --overwrite", "--resume and --overwrite contradict each other"),
    (f"{TEACHER} --distill kd", "unknown argument --distill"),
    # recipe
    (
        f"{TEACHER} --optimizer adam",
        r"--optimizer: invalid choice: 'adam' .*'sgd', 'adamw'",
    ),
    (f"{TEACHER} --ema 1.5", "argument --ema: 1.5 is not between 0 and 1"),
    (f"{TEACHER} --ema 1", "argument --ema: 1 is not below 1"),
    (f"{TEACHER} --backbone_rate 0", "argument --backbone_rate/.*: 0 is not above 0"),
    (
        f"{PROBE} --path_s bare.pth --model_s resnet8 --backbone_rate 0.01",
        "--backbone_rate tells a network from its classifier, and here one of them is not trained",
    ),
    (
        f"{STUDENT} --path_t bare.pth --model_t resnet8 --distill simkd --backbone_rate 0.01",
        "--backbone_rate tells a network from its classifier, and here one of them is not trained",
    ),
    (f"{TEACHER} --schedule linear", "--schedule: invalid choice: 'linear'"),
    (
        f"{TEACHER} --schedule cosine --lr_decay_epochs 1",
        "--lr_decay_epochs has no meaning with --schedule cosine: leave it out",
    ),
    (
        f"{TEACHER} --optimizer adamw --momentum 0.8",
        "--momentum has no meaning with --optimizer adamw: leave it out",
    ),
    (
        f"{STUDENT} --optimizer adamw --dot 0.05",
        "--dot is SGD with two momenta: leave out --optimizer adamw",
    ),
    # machine
    (f"{TEACHER} --device tpu", "--device tpu is none of auto, cpu, cuda, cuda:N"),
    (f"{TEACHER} --device gpu0", "--device gpu0 is none of auto, cpu, cuda, cuda:N"),
    pytest.param(
        f"{TEACHER} --device cuda:99", r"--device cuda:99: torch .* sees .* GPU", id="no such GPU"
    ),
    # networks
    (f"{TEACHER} --model resnet9", "no model 'resnet9'.*did you mean"),
    (f"{TEACHER} --model torchvision:resnet19", "torchvision.*resnet19"),
    (f"{TEACHER} --model nowhere:net", "nowhere"),
    (f"{TEACHER} --model json:dumps", "json:dumps"),
    # data
    ("train_teacher --dataset cifar11", r"no data set 'cifar11' \(did you mean cifar10"),
    ("train_teacher --dataset folder --data_dir nowhere", "no folder nowhere"),
    (f"{FOLDER} empty", "no train/ in empty, and no folder of images: sort them into a folder a"),
    (f"{FOLDER} sets/good/a", "no train/ in .*, 3 images lie there, and no folder of images"),
    (f"{FOLDER} sets", "no train/ in sets, but in held/: --data_dir sets/held"),
    (f"{FOLDER} sets/one_class", r"one class in sets/one_class \(a\): there is nothing to tell"),
    (f"{FOLDER} sets/one_image", r"class b has one image \(sets/one_image/b/0.png\): it needs one"),
    (f"{FOLDER} sets/strange", r"differ in their classes \(only in val: c\)"),
    (f"{FOLDER} sets/hollow", "no images in sets/hollow/val/b: looked for .bmp"),
    (f"{FOLDER} sets/untested", "neither val/ nor test/ in .*--data_dir sets/untested/train has"),
    (f"{FOLDER} sets/good --test_fraction 1", "argument --test_fraction.*: 1 is more than 0.9"),
    (
        f"{FOLDER} sets/split --test_fraction 0.5",
        r"has a split \(train, test\): leave the flag out",
    ),
    (f"{FOLDER} sets/zero", r"a/9.png is no readable image \(in none of the formats BMP"),
    (f"{FOLDER} sets/svg", r"a/9.png is no readable image \(in none of the formats BMP"),
    (f"{FOLDER} sets/cut", "a/9.png is no readable image .*: repair or remove it"),
    (f"{FOLDER} sets/bomb", r"a/9.png is no readable image \(Image size \(400000000 pixels\)"),
    (f"{FOLDER} sets/line", "a/9 9.png is no readable image"),
    (f"{FOLDER} sets/absent.csv", "cannot read sets/absent.csv: No such file or directory"),
    (f"{FOLDER} sets/text.csv", "begins with '<html>'.* has to be path,label"),
    (f"{FOLDER} sets/gone.csv", "cannot read sets/none.png: No such file or directory"),
    (f"{FOLDER} sets/dev.csv", "line 3: split is 'dev', and none of train, val, test"),
    (f"{FOLDER} sets/short.csv", "line 2: it needs path,label, a value each"),
    (f"{FOLDER} sets/bytes.csv", "is no CSV file in UTF-8"),
    (f"{TEACHER} --image_size 2", "images of 2 x 2 are too small"),
    (f"{TEACHER} --fake_classes 50", "--fake_size 20 is fewer than --fake_classes 50"),
    (
        f"train_teacher --model MobileNetV1 {FAKE} --batch_size 19",
        r"batch size 19 leaves a last batch of 1 of the 20 training images, and BatchNorm "
        r"student\.\S+ sees a 1x1 map of it: choose another batch size",
    ),
    (f"train_teacher --model MobileNetV1 {FAKE} --batch_size 1", "batch size 1 leaves a last"),
    # checkpoints
    (f"{STUDENT} --path_t nowhere.pth", "no checkpoint nowhere.pth"),
    (f"{STUDENT} --path_t empty", "empty is a folder without config.json: give a"),
    (f"{STUDENT} --path_t text.pth", "text.pth is no checkpoint, or a damaged one"),
    (f"{STUDENT} --path_t void.pth", r"void.pth is no checkpoint.*\(0 bytes\)"),
    (f"{STUDENT} --path_t cut.pth", "cut.pth is no checkpoint, or a damaged one"),
    (f"{STUDENT} --path_t code.pth", "code.pth would run code when loaded .*refused"),
    (f"{STUDENT} --path_t numbers.pth --model_t resnet8", "numbers.pth holds no weights"),
    (f"{STUDENT} --path_t bare.pth", "bare.pth does not say which network.*--model_t"),
    (
        f"{STUDENT} --path_t bare.pth --model_t resnet14",
        r"bare.pth does not fit resnet14.*layer1.1.conv1.weight \(16, 16, 3, 3\) is missing",
    ),
    (
        f"{STUDENT} --path_t bare.pth --model_t resnet8x4",
        r"conv1.weight is \(16, 3, 3, 3\) in the file, \(32, 3, 3, 3\) in resnet8x4",
    ),
    (
        f"{STUDENT} --path_t bare.pth --model_t resnet8 --fake_classes 7",
        r"fc.weight is \(10, 64\) in the file, \(7, 64\) in resnet8 with 7 classes",
    ),
    (f"{STUDENT} --path_t extra.pth --model_t resnet8", r"spare \(3,\) is not in resnet8"),
    (f"{STUDENT}", "the published teachers know cifar100, not fake: train one.*--path_t"),
    (f"{PROBE}", "no --path_s"),
    (f"{PROBE} --path_s nowhere.pth", "no checkpoint nowhere.pth"),
    (
        f"train_student --model_s MobileNetV1 {FAKE} --path_t bare.pth --model_t resnet8 --sdd 1,2",
        "--sdd: a 1x1 last map has no regions",
    ),
    # what to start from
    (
        f"{TEACHER} --pretrained",
        "published weights of torchvision:NAME and timm:NAME, not of resnet8",
    ),
    (
        f"{TEACHER} --model tests.networks:tiny --pretrained",
        "not of tests.networks:tiny: --init FILE",
    ),
    (f"{STUDENT} --path_t bare.pth --model_t resnet8 --pretrained", "not of resnet8: --init FILE"),
    (
        f"{TEACHER} --pretrained --init bare.pth",
        "--pretrained and --init both say what to start from: give one of them",
    ),
    (
        f"{TEACHER} --model timm:botnet50ts_256 --pretrained",
        "timm has no weights of botnet50ts_256|needs the timm package",
    ),
    (f"{TEACHER} --init nowhere.pth", "no checkpoint nowhere.pth"),
    (f"train_teacher {FAKE} --init bare.pth", "bare.pth does not say which network.*with --model$"),
    (
        f"train_student {FAKE} --init bare.pth --path_t bare.pth --model_t resnet8",
        "bare.pth does not say which network.*with --model_s",
    ),
    (f"{TEACHER} --init empty", "empty is a folder without config.json: give a"),
    (f"{TEACHER} --init text.pth", "text.pth is no checkpoint, or a damaged one"),
    (f"{TEACHER} --init code.pth", "code.pth would run code when loaded .*refused"),
    (f"{TEACHER} --init numbers.pth", "numbers.pth holds no weights"),
    (
        f"{TEACHER} --init broken.safetensors",
        "broken.safetensors is no checkpoint, or a damaged one",
    ),
    (
        f"{TEACHER} --init wide.pth",
        r"wide.pth does not fit resnet8 with 10 classes: conv1.weight is \(32, 3, 3, 3\) in",
    ),
    (
        f"{TEACHER} --init extra.pth",
        r"extra.pth does not fit resnet8.*spare \(3,\) is not in resnet8",
    ),
    (f"{PROBE} --path_s bare.pth --model_s resnet8 --init two.pth", "unknown argument --init"),
    # methods
    (
        f"{STUDENT} --nce_k 8",
        "--nce_k is a flag of --distill crd, --distill rrd: it has no meaning",
    ),
    (
        f"{STUDENT} --path_t bare.pth --model_t resnet8 --distill hint --hint_layer 9",
        r"--distill hint: the student has no layer 9; it has 0 \(16, 8, 8\), 1 \(16, 8, 8\)",
    ),
    (
        f"{STUDENT} --path_t two.pth --model_t resnet8 --fake_classes 2 --distill dkd",
        "--distill dkd: with 2 classes there is one other class than the target",
    ),
    (
        f"{STUDENT} --path_t two.pth --model_t resnet8 --fake_classes 2 --distill nkd",
        "--distill nkd: with 2 classes there is one other class than the target",
    ),
    (
        f"{STUDENT} --path_t wide.pth --model_t resnet8x4 --distill fsp",
        r"--distill fsp: stem and stages of the student are \(16, 8, 8\).*teacher \(32, 8, 8\)",
    ),
]


class Exploding:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with one file for each way in which a checkpoint can be wrong."""
    folder = tmp_path_factory.mktemp("files")
    network = build("resnet8", 10, 8)
    weights = network.state_dict()
    torch.save({"model": weights, "opt": argparse.Namespace(lr=0.1)}, folder / "bare.pth")
    torch.save({"model": {**weights, "spare": torch.zeros(3)}}, folder / "extra.pth")
    torch.save({"model": build("resnet8", 2, 8).state_dict()}, folder / "two.pth")
    torch.save({"model": build("resnet8x4", 10, 8).state_dict()}, folder / "wide.pth")
    torch.save({"accuracy": 3.0, "epoch": 2}, folder / "numbers.pth")
    torch.save({"model": weights, "extra": Exploding()}, folder / "code.pth")
    whole = (folder / "bare.pth").read_bytes()
    (folder / "cut.pth").write_bytes(whole[: len(whole) // 2])
    (folder / "broken.safetensors").write_bytes(b"{" * 20)
    (folder / "text.pth").write_text("<html>404 not found</html>")
    (folder / "void.pth").write_bytes(b"")
    (folder / "empty").mkdir()
    data_sets(folder / "sets")
    return folder


def data_sets(root):
    """A folder or a CSV file for each way in which a data set of one's own can be wrong."""

    def images(name, *places):
        for place in places:
            path = root / name / place
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8)).save(path)

    good = [f"{label}/{i}.png" for label in "ab" for i in range(3)]
    split = [f"{part}/{label}/0.png" for part in ("train", "test") for label in "ab"]
    images("good", *good)
    images("split", *split)
    images("held", *split, "val/a/0.png", "val/b/0.png")
    images("one_class", "a/0.png", "a/1.png")
    images("one_image", "a/0.png", "a/1.png", "b/0.png")
    images("strange", "train/a/0.png", "val/a/0.png", "val/c/0.png")
    images("hollow", "train/a/0.png", "train/b/0.png", "val/a/0.png")
    (root / "hollow/val/b").mkdir()
    images("untested", "train/a/0.png", "train/b/0.png")
    whole = (root / "good/a/0.png").read_bytes()
    bomb = BytesIO()
    Image.new("1", (20_000, 20_000)).save(bomb, "PNG")
    bad = {
        "zero": b"",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "cut": whole[: len(whole) // 2],
        "bomb": bomb.getvalue(),
        "line": b"",
    }
    for name, content in bad.items():
        images(name, *good)
        (root / name / "a" / ("9\n9.png" if name == "line" else "9.png")).write_bytes(content)
    (root / "text.csv").write_text("<html>")
    rows = [f"good/{name},{name[0]}" for name in good]
    (root / "gone.csv").write_text("\n".join(["path,label", *rows, "none.png,a", "none2.png,a"]))
    (root / "dev.csv").write_text("path,label,split\na.png,a,train\nb.png,b,dev\n")
    (root / "short.csv").write_text("path,label\na.png\n")
    (root / "bytes.csv").write_bytes(b"path,label\n\xff\xff,a\n")


@pytest.fixture
def here(files, tmp_path):
    """Those files in the working folder of the command."""
    for path in files.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return tmp_path


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_one_line_says_what_is_wrong(line, expected, here, fails):
    before = sorted(here.iterdir())
    message = fails(line)
    assert re.search(expected, message), message
    assert sorted(here.iterdir()) == before, "something was written"
    assert not (here / "exploded").exists(), "a stranger's code was run"


@pytest.mark.parametrize(
    ("line", "flag"),
    [
        (f"{STUDENT} --path_t save/own.pth", "--model_t"),
        (f"{PROBE} --path_s save/own.pth", "--model_s"),
        ("eval -c save/own.pth", "-m"),
    ],
)
def test_a_file_does_not_have_code_beside_it_run(line, flag, here, fails, monkeypatch):
    monkeypatch.syspath_prepend(here)
    monkeypatch.setitem(COMMANDS, "eval", evaluate_checkpoint)
    (here / "save").mkdir()
    (here / "save" / "own.py").write_text("open('exploded', 'w')")
    torch.save({"model": {"w": torch.zeros(1)}, "model_name": "save.own:net"}, "save/own.pth")
    message = fails(line)
    assert "save/own.pth says that it is of save.own:net" in message
    assert f"{flag} save.own:net where it is yours" in message
    assert not (here / "exploded").exists()


def test_there_are_enough_lines():
    assert len(LINES) >= 25


def test_teacher_absent_and_no_network(here, fails, monkeypatch):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setattr("helper.teachers.DATASET", "fake")
    message = fails(f"{STUDENT} --distill kd")
    assert re.search("no teacher save/models/resnet32x4_vanilla/ckpt_epoch_240.pth", message)
    assert "fetch_pretrained_teachers.sh resnet32x4" in message
    assert "train_teacher.py --model resnet32x4" in message
    message = fails(f"{STUDENT} --model_t resnet8")
    assert "resnet8 is not among the published ones" in message
    assert not (here / "save").exists() or not list((here / "save").rglob("*.pth"))


def test_a_run_is_not_lost(here, run, fails, capsys):
    run(TEACHER)
    folder = only(here / "save" / "models")
    before = {path: path.read_bytes() for path in folder.glob("*.pth")}
    assert before
    run(TEACHER)
    assert "is finished: nothing to do" in capsys.readouterr().out

    stopped(folder)
    assert "holds a run that was stopped: --resume to go on" in fails(TEACHER)

    (folder / "resume.pth").rename(here / "elsewhere.pth")
    lines = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(lines + lines.replace('"epoch": 1', '"epoch": 2'))
    assert "holds a run whose resume.pth is gone" in fails(f"{TEACHER} --resume")
    (folder / "metrics.jsonl").write_text(lines)
    (here / "elsewhere.pth").rename(folder / "resume.pth")

    (folder / "run.json").unlink()
    assert "holds checkpoints that no run here can go on with" in fails(TEACHER)
    (folder / "run.json").write_text("{")
    assert "run.json is broken" in fails(TEACHER)
    assert {path: path.read_bytes() for path in folder.glob("*.pth")} == before


def test_nothing_that_depends_on_the_student(here, fails):
    line = f"{STUDENT} --path_t bare.pth --model_t resnet8 --distill fsp --init_epochs 1"
    assert "no term of the objective depends on the student" in fails(f"{line} -r 0 -a 0")


def test_overwriting_waits_until_everything_else_is_right(here, run, fails):
    run(TEACHER)
    folder = only(here / "save" / "models")
    before = (folder / "resnet8_last.pth").read_bytes()
    fails(f"{TEACHER} --overwrite --device tpu")
    fails(f"{TEACHER} --overwrite --image_size 3")
    assert (folder / "resnet8_last.pth").read_bytes() == before


def test_broken_resume_file(here, run, fails):
    run(TEACHER)
    folder = only(here / "save" / "models")
    stopped(folder)
    (folder / "resume.pth").write_bytes(b"half")
    assert "resume.pth is no checkpoint, or a damaged one" in fails(f"{TEACHER} --resume")
    torch.save({"model": {}}, folder / "resume.pth")
    assert "resume.pth is no resume file" in fails(f"{TEACHER} --resume")


def test_a_loss_that_is_not_finite_names_itself_and_keeps_the_last_epoch(here, run, fails):
    line = TEACHER.replace("--epochs 1", "--epochs 3")
    message = fails(f"{line} --learning_rate 1e30 --batch_size 5")
    assert re.search(
        "ce is not finite in epoch 1, step [234]: try a lower --learning_rate", message
    )
    assert "no epoch was finished" in message


def test_maps_that_are_not_finite_stop_a_decomposition(here, fails):
    line = f"{STUDENT} --path_t bare.pth --model_t resnet8 --distill kdsvd".replace(
        "8 --e", "16 --e"
    )
    message = fails(f"{line} --learning_rate 1e30 --batch_size 5")
    assert "features are not finite in epoch 1" in message
    assert "try a lower --learning_rate (here 1e+30)" in message


def test_a_teacher_that_is_not_finite(here, fails):
    weights = checkpoint.weights_of("bare.pth")
    torch.save({"model": {k: v * float("nan") for k, v in weights.items()}}, "nan.pth")
    message = fails(f"{STUDENT} --path_t nan.pth --model_t resnet8")
    assert "the teacher nan.pth gives numbers that are not finite" in message


def test_wandb_absent(fails, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)
    assert "--wandb needs the wandb package: pip install wandb" in fails(f"{TEACHER} --wandb")


def test_every_network_says_which_checkpoint_is_not_its_own(tmp_path):
    torch.save({"model": MODELS["resnet8"](10).state_dict()}, tmp_path / "a.pth")
    for name in ("vgg8", "wrn_16_1", "ShuffleV1"):
        with pytest.raises(ValueError, match=f"does not fit {name}"):
            checkpoint.load_weights(MODELS[name](10), tmp_path / "a.pth", name)
