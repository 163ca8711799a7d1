"""Every file of configs/ says what its place says, and resolves to the published setting."""

from pathlib import Path

import pytest
import torch

from cli import objective, parse
from distiller_zoo import VIEWS
from distiller_zoo.base import Setup
from helper import config
from helper.errors import UserError
from models import MODELS

ROOT = Path(__file__).resolve().parent.parent.parent / "configs"
FILES = sorted(ROOT.glob("*/*/*.yaml"))
WITHIN = [  # teacher and student of one family
    ("resnet32x4", "resnet8x4"), ("vgg13", "vgg8"), ("wrn_40_2", "wrn_40_1"),
    ("wrn_40_2", "wrn_16_2"), ("resnet56", "resnet20"), ("resnet110", "resnet32"),
    ("resnet110", "resnet20"),
]  # fmt: skip
ACROSS = [
    ("wrn_40_2", "resnet20"), ("resnet32x4", "ShuffleV2"), ("resnet32x4", "wrn_16_2"),
    ("resnet32x4", "wrn_40_2"), ("wrn_40_2", "resnet8x4"), ("wrn_40_2", "MobileNetV2"),
    ("vgg13", "MobileNetV2"), ("ResNet50", "MobileNetV2"),
]  # fmt: skip
IMAGENET = [("ResNet34", "ResNet18"), ("ResNet50", "MobileNetV1")]
METHODS = ("kd", "dkd", "rld", "sdd_kd", "sdd_dkd", "sdd_rld")
# What was published, as a table of its own: teacher->student, or teacher->* for the rest of them.
DKD = {
    "resnet56->resnet20": 2, "resnet110->resnet32": 2, "wrn_40_2->wrn_16_2": 6,
    "wrn_40_2->wrn_40_1": 6, "vgg13->vgg8": 6, "vgg13->MobileNetV2": 6,
    "ResNet34->ResNet18": 0.5, "ResNet50->MobileNetV1": 2,
}  # fmt: skip
SDD_DKD = {
    "vgg13->vgg8": 6, "vgg13->MobileNetV2": 6, "wrn_40_2->MobileNetV2": 6, "wrn_40_2->wrn_16_2": 6,
    "wrn_40_2->wrn_40_1": 6, "resnet56->resnet20": 2, "resnet110->resnet32": 2,
    "resnet110->resnet20": 2, "ResNet34->ResNet18": 0.5, "ResNet50->MobileNetV1": 2,
}  # fmt: skip
KD_WEIGHTS = {  # r, a, b
    ("cifar100", "*"): (0.1, 0.9, 0),
    ("imagenet", "ResNet34->ResNet18"): (1, 0.5, 0),
    ("imagenet", "ResNet50->MobileNetV1"): (0.5, 0.5, 0),
}
# Of other methods on ImageNet: batch, rate, weight, warm-up.
ON_IMAGENET = {
    ("crd", "ResNet34->ResNet18"): (256, 0.1, 0.8, 0),
    ("crd", "ResNet50->MobileNetV1"): (256, 0.1, 0.8, 0),
    ("reviewkd", "ResNet34->ResNet18"): (256, 0.1, 1, 1),
    ("reviewkd", "ResNet50->MobileNetV1"): (256, 0.1, 8, 1),
    ("ofd", "ResNet34->ResNet18"): (128, 0.05, 1e-4, 0),
    ("ofd", "ResNet50->MobileNetV1"): (128, 0.05, 1e-4, 0),
}
LS_KD = {  # temperature, weight
    "vgg13->vgg8": (3, 9), "resnet110->resnet20": (4, 12), "resnet32x4->wrn_16_2": (3, 9),
    "resnet32x4->wrn_40_2": (3, 9), "wrn_40_2->MobileNetV2": (3, 9), "vgg13->MobileNetV2": (3, 9),
    "ResNet50->MobileNetV2": (3, 1),
}  # fmt: skip
LS_DKD = {  # temperature, weight, weight of the other-classes term
    "vgg13->vgg8": (2, 15, 2), "resnet110->resnet20": (2, 15, 2),
    "resnet110->resnet32": (2, 15, 2), "resnet56->resnet20": (3, 18, 2),
    "wrn_40_2->wrn_40_1": (2, 12, 2), "wrn_40_2->wrn_16_2": (2, 12, 2),
    "resnet32x4->wrn_16_2": (2, 9, 2), "resnet32x4->wrn_40_2": (2, 9, 8),
    "wrn_40_2->resnet8x4": (2, 18, 2), "wrn_40_2->MobileNetV2": (2, 15, 2),
    "vgg13->MobileNetV2": (3, 9, 2), "ResNet50->MobileNetV2": (2, 15, 2),
}  # fmt: skip


def test_the_files_are_those_of_the_tables():
    wanted = {f"cifar100/{m}/{t}_{s}.yaml" for m in METHODS for t, s in WITHIN + ACROSS}
    wanted |= {f"imagenet/{m}/{t}_{s}.yaml" for m in METHODS for t, s in IMAGENET}
    assert {path.relative_to(ROOT).as_posix() for path in FILES} == wanted


def place(path):
    """Data set, method, teacher, student, as the path of a config says them."""
    data, method, name = path.relative_to(ROOT).with_suffix("").parts
    pairs = {f"{t}_{s}": (t, s) for t, s in WITHIN + ACROSS + IMAGENET}
    return data, method, *pairs[name]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_resolves_to_the_published_setting(path):
    data, method, teacher, student = place(path)
    kind, pair = method.removeprefix("sdd_"), f"{teacher}->{student}"
    options = parse.parse_student(["--cfg", str(path)])
    assert (options.dataset, options.distill) == (data, kind)
    assert (options.model_t, options.model_s) == (teacher, student)
    same = (teacher, student) in [*WITHIN, ("ResNet34", "ResNet18")]
    scales = (1, 2) if same else (1, 2, 4)
    assert options.sdd == scales if method.startswith("sdd_") else "sdd" not in options.choice.views

    assert options.clip_grad == (40 if method.startswith("sdd_") else 0)
    weights = options.gamma, options.alpha, options.beta
    of_kd = KD_WEIGHTS[data, pair if data == "imagenet" else "*"]
    assert weights == (of_kd if kind == "kd" else (1, 0, 1))
    assert options.kd_T == (1 if data == "imagenet" else 4)
    if kind == "dkd":
        assert options.dkd_target == 1
        assert options.dkd_others == (DKD if method == "dkd" else SDD_DKD).get(pair, 8)
    if kind == "rld":
        assert (options.rld_alpha, options.rld_alpha_T) == (1, None)
        assert options.rld_beta == (DKD[pair] if data == "imagenet" else 8)
    recipe = options.epochs, options.batch_size, options.weight_decay, options.warmup
    warmup = 0 if kind == "kd" else 1 if data == "imagenet" else 20
    if data == "imagenet":
        batch = 256 if method.startswith("sdd_") else 512  # SDD's own files: 256 at the rate of 512
        assert recipe == (100, batch, 1e-4, warmup)
        assert (options.learning_rate, options.lr_decay_epochs) == (0.2, (30, 60, 90))
    else:
        assert recipe == (240, 64, 5e-4, warmup)

    options = parse.parse_student(["--cfg", str(path), "--logit-stand"])
    weight = options.alpha if kind == "kd" else options.beta
    if kind == "dkd" and pair in LS_DKD:
        assert (options.kd_T, weight, options.dkd_others) == LS_DKD[pair]
    else:
        default = (5, 6) if kind == "rld" and same else (2, 9)
        assert (options.kd_T, weight) == (LS_KD.get(pair, default) if kind == "kd" else default)


@pytest.mark.parametrize(("method", "pair"), ON_IMAGENET, ids=" ".join)
def test_other_methods_on_imagenet(method, pair):
    teacher, student = pair.split("->")
    line = f"--dataset imagenet --distill {method} --model_t {teacher} --model_s {student}"
    options = parse.parse_student(line.split())
    batch, rate, weight, warmup = ON_IMAGENET[method, pair]
    assert (options.batch_size, options.beta, options.warmup) == (batch, weight, warmup)
    assert options.learning_rate == pytest.approx(rate)
    typed = parse.parse_student([*line.split(), "--batch_size", "512"])
    assert (typed.batch_size, typed.learning_rate) == (512, 0.2)


@pytest.mark.parametrize("method", ["kd", "dkd", "rld", "reviewkd", "ofd", "crd"])
def test_settings_of_imagenet_are_for_imagenet(method):
    """ResNet50 and MobileNetV1 are networks of CIFAR-100 as well."""
    line = f"--distill {method} --model_t ResNet50 --model_s MobileNetV1"
    options = parse.parse_student(line.split())
    assert "pair" not in options.origin.values()
    assert options.batch_size == 64


@pytest.mark.parametrize("method", ["kd", "ofd"])
def test_settings_do_not_depend_on_how_a_network_is_spelled(method):
    def values(teacher, student):
        line = f"--dataset imagenet --distill {method} --model_t {teacher} --model_s {student}"
        found = parse.parse_student(line.split()).values
        return {name: found[name] for name in found.keys() - {"model_t", "model_s"}}

    spelled = values("torchvision:resnet34", "torchvision:resnet18")
    assert spelled == values("ResNet34", "ResNet18")


def test_a_weight_under_logit_standardization_on_imagenet():
    line = "--cfg configs/imagenet/kd/ResNet34_ResNet18.yaml --logit_stand --kd_weight 5"
    options = parse.parse_student(line.replace("configs", str(ROOT)).split())
    assert (options.gamma, options.alpha, options.kd_T) == (1, 5, 2)


@pytest.mark.filterwarnings("ignore:.*regions.*same place:UserWarning")
@pytest.mark.parametrize("path", sorted((ROOT / "cifar100" / "sdd_kd").iterdir()), ids=str)
def test_the_regions_of_a_pair_can_be_cut(path):
    options = parse.parse_student(["--cfg", str(path)])
    nets = [MODELS[name](10).eval() for name in (options.model_s, options.model_t)]
    with torch.no_grad():
        shown = [net.features(torch.randn(2, 3, 32, 32)) for net in nets]
    view = objective.construct("--sdd", VIEWS["sdd"], options, [Setup(*shown, *nets, None)])
    regions = sum(scale**2 for scale in options.sdd)
    assert view(None, *shown, torch.tensor([1, 2])).student.shape == (regions, 2, 10)


def resolved(tmp_path, text, line=""):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    return parse.parse_student(["--cfg", str(path), *line.split()])


def test_the_command_line_wins_and_says_so(tmp_path, recwarn):
    options = resolved(tmp_path, "sdd: [1, 2]\nalpha: 0.5\nepochs: 7", "--M [1,2,4] -a 0.5")
    assert (options.sdd, options.alpha, options.epochs) == ((1, 2, 4), 0.5, 7)
    assert [str(w.message).split(" in ")[0] for w in recwarn] == [
        "--sdd is (1, 2, 4) on the command line and (1, 2)"
    ]


def test_every_spelling_of_a_flag_is_one_of_a_config(tmp_path):
    options = resolved(tmp_path, "M: [1,2]\nlogit-stand: true\nbase-temp: 3\nnum_workers: 2")
    assert (options.sdd, options.logit_stand, options.kd_T, options.num_workers) == (
        (1, 2),
        True,
        3,
        2,
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("alpah: 1", "a.yaml: unknown argument --alpah.*did you mean --alpha"),
        ("nce_k: 5", "a.yaml: --nce_k is a flag of --distill crd"),
        ("epochs: 2.5", "a.yaml: argument --epochs: '2.5' is no whole number"),
        ("epochs: [1, 2]", "a.yaml: argument --epochs"),
        ("epochs:", "line 1: epochs has no value"),
        ("epochs: {a: 1}", "line 1: epochs is a table"),
        ("epochs: 1\nalpha: 2\nepochs: 3", "a.yaml: epochs is set twice"),
        ("distill: kdd", "no method 'kdd'"),
        ("batch_size: 8\nbatch-size: 9", "a.yaml: batch_size is set twice"),
        ("M: [1, 2]\nsdd: [1, 2]", "a.yaml: sdd is set twice"),
        ("epochs: --", "a.yaml: argument --epochs: -- is no value"),
        ('save_dir: "a\\0b"', "line 1: save_dir has a NUL byte"),
        ("a: " + 3000 * "[", "^[^ ]*a.yaml is nested too deeply"),
        ("".join(f"a{n}: 1\n" for n in range(200_000)), "^[^ ]*a.yaml has more than 65,536 bytes"),
        ("M: [2, 4]", "a.yaml: argument --sdd.*no growing list"),
        ("cfg: b.yaml", "line 1: cfg is no flag of a config"),
        ("kd", "a.yaml holds no flags"),
        ("", "a.yaml holds no flags"),
        ("a: [1", "a.yaml is no YAML"),
    ],
)
def test_a_wrong_config_is_explained(text, words, tmp_path):
    with pytest.raises(UserError, match=words):
        resolved(tmp_path, text)


@pytest.mark.parametrize("name", ["x.yaml", 300 * "x"])
def test_no_such_config(name):
    with pytest.raises(UserError, match=f"no config file {name}"):
        config.words_of(name)


def test_a_config_that_may_not_be_read(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("io.open", denied)
    (tmp_path / "a.yaml").touch()
    with pytest.raises(UserError, match="cannot read .*a.yaml: Permission denied"):
        config.words_of(str(tmp_path / "a.yaml"))


def test_a_config_is_utf_8_in_any_locale(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_bytes("save_dir: größe\n".encode())
    monkeypatch.setattr("locale.getencoding", lambda: "ascii")
    assert config.words_of(str(tmp_path / "a.yaml")) == ["--save_dir=größe"]
