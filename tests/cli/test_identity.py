"""Command lines that give other numbers are other experiments, and only those."""

import dataclasses
import json
import warnings

import pytest
import torch
from PIL import Image

import train_student
import train_teacher
import transfer_student
from helper.options import option
from models import MODELS
from runs import checkpoint
from tests.conftest import only, stopped

DATA = "--dataset fake --fake_size 40 --image_size 8 --batch_size 16 --fake_classes 4 --epochs 1"
STUDENT = f"train_student --path_t one.pth --model_t resnet8 {DATA}"
SCRIPTS = {
    "train_student": train_student,
    "train_teacher": train_teacher,
    "transfer_student": transfer_student,
}


@pytest.fixture
def folder_of(tmp_path, monkeypatch):
    """The folder that a command line would train in; nothing is trained."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(5)
    for name in ("one", "two"):
        torch.save({"model": MODELS["resnet8"](4).state_dict()}, f"{name}.pth")

    def folder_of(line):
        script, *words = line.split()
        found = []
        monkeypatch.setattr(
            SCRIPTS[script], "is_finished", lambda folder, setting: found.append(folder) or True
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(SCRIPTS[script], script)(words)
        return found[0]

    return folder_of


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "--kd_T 20"),
        ("", "--learning_rate 0.001"),
        ("", "--epochs 50"),
        ("", "--seed 7"),
        ("", "--batch_size 8"),
        ("", "--path_t two.pth"),
        ("", "--momentum 0.8"),
        ("", "--weight_decay 0"),
        ("", "--lr_decay_rate 0.2"),
        ("--epochs 9", "--epochs 9 --lr_decay_epochs 7"),
        ("", "--aug"),
        ("", "--train_fraction 0.5"),
        ("", "--val_fraction 0.5"),
        ("--val_fraction 0.5", "--val_fraction 0.5 --val_seed 1"),
        ("", "-r 0.2"),
        ("", "--model_s resnet14"),
        ("", "--fake_size 44"),
        ("", "--distill dkd"),
        ("", "--dot 0.05"),
        ("", "--schedule cosine"),
        ("", "--optimizer adamw"),
        ("", "--ema 0.9"),
        ("", "--backbone_rate 0.01"),
        ("", "--mixup 0.2"),
        ("--balance loss", "--balance sampler"),
        ("--lr 0.01234561", "--lr 0.01234562"),
        ("", "--tekap"),
        ("--ctkd", "--kd_T 1"),
        ("--ctkd", "--ctkd --ctkd_loops 5"),
        ("--train_fraction 0.5", "--train_fraction 0.5 --fraction_seed 1"),
        ("--tekap", "--tekap --tekap_noise 0.5"),
        ("--sdd 1,2", "--sdd 1"),
        ("--logit_stand --base-temp 2", "--logit_stand --base-temp 4"),
        ("--distill crd --nce_k 16", "--distill crd --nce_k 8"),
        ("--distill crd -a 1", "--distill crd -a 1 --kd_T 2"),
        ("--distill dkd", "--distill dkd --warmup 1"),
        ("--distill abound", "--distill abound --init_epochs 2"),
        ("--distill crd --tekap --nce_k 8", "--distill crd --tekap --nce_k 8 --noisy_teachers 2"),
    ],
)
def test_other_numbers_are_another_experiment_in_another_folder(one, other, folder_of):
    here, there = folder_of(f"{STUDENT} {one}"), folder_of(f"{STUDENT} {other}")
    assert here.experiment != there.experiment
    assert here.experiment.differences(there.experiment)
    assert here.path != there.path


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("", "--kd_T 4"),
        ("", "--seed 1"),
        ("", "-r 0.1 -a 0.9"),
        ("", "--learning_rate 0.05"),
        ("", "--backbone_rate 0.05"),
        ("", "--lr_decay_epochs 1"),
        ("", "--print_freq 7 --tb_freq 3 --save_freq 9 --num_workers 2"),
        ("", "--device cpu --amp bf16 --channels_last off --tf32 off --deterministic"),
        ("", "--path_t copy.pth"),
        ("", "--train_fraction 1 --fraction_seed 3"),
        ("", "--val_fraction 0 --val_seed 3"),
        ("", "--no_pair_defaults"),
        ("", "--sync_bn"),
        ("", "--logit_stand off"),
        ("", "--dot 0"),
        ("", "--schedule step --optimizer sgd --ema 0"),
        ("--optimizer adamw", "--optimizer adamw --learning_rate 0.001 --weight_decay 0.05"),
        ("--sdd 1,2", "--sdd 1,2 --tekap off"),
        ("", "--data_dir elsewhere --dataset fake"),
        ("--distill crd", "--distill crd --kd_T 20"),
        ("--distill icd", "--distill dcd"),
        ("-a 0 -r 1", "-a -0.0 -r 1"),
        ("--logit_stand --kd_T 3", "--logit_stand --base_temp 3"),
        ("--logit_stand -a 5", "--logit_stand --kd_weight 5"),
    ],
)
def test_the_same_numbers_are_the_same_experiment(one, other, folder_of, tmp_path):
    (tmp_path / "copy.pth").write_bytes((tmp_path / "one.pth").read_bytes())
    other = other.replace("--data_dir elsewhere", "")
    here, there = folder_of(f"{STUDENT} {one}"), folder_of(f"{STUDENT} {other}")
    assert here.experiment == there.experiment
    assert here.path == there.path


@pytest.fixture
def photos(tmp_path):
    """A command line that trains on images in a folder."""
    for name in ("ant", "cat"):
        for i in range(4):
            path = tmp_path / "photos" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(path)
    return "train_teacher --model resnet8 --data_dir photos --image_size 8 --cache_dir cache"


@pytest.mark.parametrize(
    "data", ["folder --in_memory on", "folder --in_memory off", "imagenet --epochs 1"]
)
def test_skipping_files_counts_by_what_is_left(data, photos, folder_of):
    here, there = (folder_of(f"{photos} --dataset {data} {how}") for how in ("", "--skip_corrupt"))
    assert here.experiment == there.experiment
    assert here.path == there.path


def test_how_files_are_known_counts_where_the_fingerprint_is_of_files(photos, folder_of):
    line = f"{photos} --dataset folder --in_memory"
    here, there = (folder_of(f"{line} off {how}").experiment for how in ("", "--hash_content"))
    assert there.differences(here) == ["hash_content is not in force there and True here"]
    here, there = (folder_of(f"{line} on {how}").experiment for how in ("", "--hash_content"))
    assert here == there


def test_trials_and_seeds(folder_of):
    one, two = folder_of(f"{STUDENT} --trial 1"), folder_of(f"{STUDENT} --trial 2")
    assert one.experiment != two.experiment
    assert one.experiment.row == two.experiment.row
    same = folder_of(f"{STUDENT} --trial 2 --seed 1")
    assert same.experiment == one.experiment
    assert same.path not in (one.path, two.path)


def test_the_name_says_what_differs_from_the_usual(folder_of):
    plain = folder_of(f"{STUDENT} --distill crd")
    name = plain.path.name.split("_fake_")
    assert name[0].startswith("S_resnet8_T_resnet8-")
    assert name[1].startswith("crd_r_1_a_0_b_0.8_epochs_1_batch_size_16")
    named = folder_of(f"{STUDENT} --distill crd --nce_k 4096 -a 1 --nce_t 0.07 --seed 4")
    assert "_crd_r_1_a_1_b_0.8_nce_k_4096_epochs_1_batch_size_16_" in named.path.name
    assert "_seed_4_" in named.path.name
    assert "nce_t" not in named.path.name


def test_two_sets_of_one_name_are_two_experiments(folder_of, tmp_path):
    from PIL import Image

    for where, level in (("a", 10), ("b", 200)):
        for split in ("train", "val"):
            for label in ("x", "y"):
                path = tmp_path / where / "photos" / split / label
                path.mkdir(parents=True)
                Image.new("RGB", (8, 8), (level, 0, 0)).save(path / "1.png")
    line = "train_teacher --model resnet8 --dataset folder --data_dir {}/photos"
    one, two = folder_of(line.format("a")), folder_of(line.format("b"))
    assert one.path == two.path
    assert two.experiment.differences(one.experiment) == [
        "the images or labels of the data set are others"
    ]


def test_best_and_last_of_a_run_are_two_sources(folder_of, tmp_path):
    for name in ("resnet8_best.pth", "resnet8_last.pth"):
        path = tmp_path / "a_run" / name
        checkpoint.save(path, {"model": MODELS["resnet8"](4).state_dict()})
    line = f"transfer_student --model_s resnet8 {DATA} --path_s a_run"
    best, last = folder_of(f"{line}/resnet8_best.pth"), folder_of(f"{line}/resnet8_last.pth")
    assert best.experiment.differences(last.experiment) == ["the probed checkpoint is another file"]
    assert best.path.name.startswith("a_run_best-")
    assert last.path.name.startswith("a_run_last-")


def test_processes_without_synchronised_batchnorm_are_another_experiment(folder_of, monkeypatch):
    alone = folder_of(STUDENT)
    monkeypatch.setattr("cli.identity.world_size", lambda: 4)
    four, synchronised = folder_of(STUDENT), folder_of(f"{STUDENT} --sync_bn")
    assert synchronised.experiment == alone.experiment
    assert four.experiment.differences(alone.experiment) == ["processes is 1 there and 4 here"]
    assert "_processes_4_" in four.path.name


def test_a_method_from_elsewhere_is_known_by_its_code(folder_of, tmp_path):
    source = (
        "from distiller_zoo import METHODS\n"
        "from distiller_zoo.kd import KD\n"
        "@METHODS.register('{name}')\n"
        "class Mine(KD):\n"
        "    '''Somebody, A Paper, 2026.'''\n"
        "    recipe = KD.recipe.__class__(1.0, 0.0, 1.0)\n"
    )
    from distiller_zoo import METHODS

    for name in ("mine_a", "mine_b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(source.format(name=name))
    try:
        one = folder_of(f"{STUDENT} --methods_dir mine_a --distill mine_a")
        two = folder_of(f"{STUDENT} --methods_dir mine_b --distill mine_b")
    finally:
        for name in ("mine_a", "mine_b"):
            METHODS._entries.pop(name, None)
    assert dict(one.experiment.code)["method mine_a"]
    assert dict(one.experiment.code)["method mine_a"] != dict(two.experiment.code)["method mine_b"]


def test_an_option_that_is_added_later_leaves_older_runs_what_they_are(folder_of, monkeypatch):
    from cli import parse

    @dataclasses.dataclass(frozen=True)
    class Later:
        clip: float = option(0.0, "an option of the next release", added=True)

    before = folder_of(STUDENT)
    monkeypatch.setattr(parse, "COMMON", (*parse.COMMON, Later))
    assert folder_of(STUDENT).experiment == before.experiment
    clipped = folder_of(f"{STUDENT} --clip 3")
    differences = clipped.experiment.differences(before.experiment)
    assert differences == ["clip is not in force there and 3 here"]
    assert "_clip_3_" in clipped.path.name


def test_a_finished_run_is_left_and_a_stopped_one_of_other_numbers_refused(run, fails, tmp_path):
    run(f"train_teacher --model resnet8 {DATA}")
    folder = only(tmp_path / "save" / "models")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    run(f"train_teacher --model resnet8 {DATA} --resume")
    run(f"train_teacher --model resnet8 {DATA} --learning_rate 0.05")
    assert before == {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    summary = json.loads((folder / "run.json").read_text())
    summary["experiment"]["options"]["weight_decay"] = 0.5
    (folder / "run.json").write_text(json.dumps(summary))
    message = fails(f"train_teacher --model resnet8 {DATA}")
    assert "another experiment: weight_decay is 0.5 there and 0.0005 here" in message


def test_a_resume_under_other_rounding_says_that_bits_may_differ(run, tmp_path, capsys):
    line = f"train_teacher --model resnet8 {DATA}"
    run(line)
    folder = only(tmp_path / "save" / "models")
    stopped(folder)
    run(f"{line} --resume --amp bf16")
    assert (
        "amp was off and is bf16: the run goes on, but bits may differ" in capsys.readouterr().err
    )
    began, resumed = json.loads((folder / "run.json").read_text())["provenance"]
    assert began["options"]["amp"] == "off"
    assert resumed["options"]["amp"] == "bf16"
    assert resumed["command"] != began["command"]


def test_a_size_that_the_files_would_have_decided_is_named(folder_of, tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for label in ("x", "y"):
            path = tmp_path / "photos" / split / label
            path.mkdir(parents=True)
            Image.new("RGB", (16, 16), (9, 0, 0)).save(path / "1.png")
    line = "train_teacher --model resnet8 --dataset folder --data_dir photos"
    plain, small = folder_of(line), folder_of(f"{line} --image_size 8")
    assert plain.path.name == "resnet8_photos_trial_1"
    assert small.path.name == "resnet8_photos_image_size_8_trial_1"
    assert folder_of(f"{line} --image_size 16").experiment == plain.experiment


def test_the_name_of_a_probe_keeps_what_it_is_of(folder_of, tmp_path):
    path = tmp_path / ("a_long_name_" * 12) / "resnet8_best.pth"
    checkpoint.save(path, {"model": MODELS["resnet8"](4).state_dict()})
    folder = folder_of(f"transfer_student --model_s resnet8 {DATA} --path_s {path}")
    assert "_best-" in folder.path.name
    assert "_to_fake_epochs_1" in folder.path.name


def test_a_folder_in_use_is_told_before_anything_is_computed(run, fails, tmp_path, capsys):
    line = f"train_teacher --model resnet8 {DATA}"
    run(line)
    folder = only(tmp_path / "save" / "models")
    from runs.experiment import Experiment
    from runs.folder import RunFolder

    stored = json.loads((folder / "run.json").read_text())["experiment"]
    with RunFolder(folder, Experiment.from_dict(stored)).open(resume=False, overwrite=True):
        capsys.readouterr()
        assert "is being written by process" in fails(f"{line} --overwrite")


def test_what_a_pair_leaves_out_is_in_the_name(folder_of):
    torch.save({"model": MODELS["resnet8x4"](4).state_dict()}, "wide.pth")
    line = f"train_student --path_t wide.pth --model_t resnet8x4 --model_s resnet8x4 {DATA}"
    line += " --distill rld --logit_stand -b 6"
    one, other = folder_of(line), folder_of(f"{line} --no_pair_defaults")
    assert one.experiment != other.experiment
    assert "_no_pair_defaults_" in other.path.name


def test_a_probe_is_the_same_whether_its_network_is_typed_or_not(folder_of, tmp_path):
    path = tmp_path / "resnet8_run" / "resnet8_last.pth"
    checkpoint.save(path, {"model": MODELS["resnet8"](4).state_dict()})
    line = f"transfer_student --path_s {path} {DATA}"
    assert folder_of(line).path == folder_of(f"{line} --model_s resnet8").path


@pytest.mark.parametrize("kind", ["network", "helper", "view"])
def test_code_of_ones_own_is_part_of_the_experiment(kind, folder_of, tmp_path, monkeypatch):
    import sys

    from distiller_zoo import VIEWS

    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_net.py").write_text(
        "from own_help import W\n"
        "from models import MODELS\n"
        "def make(num_classes):\n"
        "    return MODELS['resnet8'](num_classes)\n"
    )
    (tmp_path / "own_help.py").write_text("W = 1\n")
    (tmp_path / "own_views.py").write_text(
        "from dataclasses import dataclass\n"
        "from distiller_zoo import VIEWS\n"
        "from distiller_zoo.base import View\n"
        "from helper.options import option\n"
        "@VIEWS.register('own_view')\n"
        "class Own(View):\n"
        "    @dataclass(frozen=True)\n"
        "    class Options:\n"
        "        own_view: bool = option(False, 'mine')\n"
        "    def __call__(self, rows, student, teacher, labels):\n"
        "        return rows\n"
    )
    line = f"{STUDENT} --model_s own_net:make --methods_dir own_views --own_view"
    digests = []
    try:
        for change in ("", "# changed\n"):
            for name in ("own_net", "own_help", "own_views"):
                sys.modules.pop(name, None)
            VIEWS._entries.pop("own_view", None)
            file = {"network": "own_net", "helper": "own_help", "view": "own_views"}[kind]
            with (tmp_path / f"{file}.py").open("a") as source:
                source.write(change)
            digests.append(folder_of(line).experiment.digest)
    finally:
        VIEWS._entries.pop("own_view", None)
    assert digests[0] != digests[1]


def test_dropout_on_several_processes_is_another_experiment(folder_of, monkeypatch):
    line = f"train_teacher {DATA} --model torchvision:mobilenet_v2 --sync_bn".replace(
        "image_size 8", "image_size 32"
    )
    alone = folder_of(line)
    assert dict(alone.experiment.code)["dropout"] == "2"
    without = line.replace("torchvision:mobilenet_v2", "resnet8")
    assert "dropout" not in dict(folder_of(without).experiment.code)
    monkeypatch.setattr("cli.identity.world_size", lambda: 2)
    assert folder_of(line).experiment.differences(alone.experiment) == [
        "processes is 1 there and 2 here"
    ]
