import argparse
import copy
import os
import pickle
import random
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helper import files
from helper.errors import UserError
from models import MODELS
from runs import checkpoint
from tests.adapters import GOLDEN
from tests.golden.fill import make_input

FOLDER = GOLDEN / "checkpoints"


@pytest.mark.parametrize("name", ["resnet8_vanilla/ckpt_epoch_240.pth", "resnet8_last.pth"])
def test_files_of_repdistiller_give_its_logits(name):
    network = MODELS["resnet8"](10)
    checkpoint.load_weights(network, FOLDER / name, "resnet8")
    with torch.no_grad():
        logits = network.double().eval()(make_input())
    expected = np.load(FOLDER / "expected.npz")["logits"]
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-9, atol=1e-11)


def test_what_else_is_in_such_a_file():
    content = checkpoint.load(FOLDER / "resnet8_vanilla" / "ckpt_epoch_240.pth")
    expected = np.load(FOLDER / "expected.npz")
    assert content["epoch"] == expected["epoch"]
    assert float(content["accuracy"]) == pytest.approx(float(expected["accuracy"]))
    assert isinstance(checkpoint.load(FOLDER / "resnet8_last.pth")["opt"], argparse.Namespace)


def test_the_network_is_known_by_its_folder(tmp_path):
    assert checkpoint.model_name(FOLDER / "resnet8_vanilla" / "ckpt_epoch_240.pth") == "resnet8"
    for folder, name in [
        ("wrn_40_2_vanilla", "wrn_40_2"),
        ("resnet8x4_cifar100_trial_1", "resnet8x4"),
        ("something", None),
    ]:
        path = tmp_path / folder / "a.pth"
        checkpoint.save(path, {"model": {"a": torch.zeros(1)}})
        assert checkpoint.model_name(path) == name
    checkpoint.save(path, {"model_name": "vgg8"})
    assert checkpoint.model_name(path) == "vgg8"


def test_batchnorm_without_a_counter_and_keys_of_data_parallel(tmp_path):
    network = MODELS["resnet8"](10)
    old = {
        f"module.{key}": value
        for key, value in network.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    torch.save({"state_dict": old}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    fresh = MODELS["resnet8"](10)
    assert not torch.equal(fresh.conv1.weight, network.conv1.weight)
    checkpoint.load_weights(fresh, tmp_path / "old.pth", "resnet8")
    assert torch.equal(fresh.conv1.weight, network.conv1.weight)


def test_a_file_is_whole_or_what_it_was(tmp_path):
    path = tmp_path / "a.pth"
    checkpoint.save(path, {"model": 1})

    def breaks(file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(path, breaks)
    assert checkpoint.load(path) == {"model": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("length", [1, 10, 100, 1000, 100_000])
def test_a_truncated_file_of_either_format(length, tmp_path):
    for zipped in (True, False):
        path = tmp_path / f"{zipped}.pth"
        state = MODELS["resnet8"](10).state_dict()
        torch.save({"model": state}, path, _use_new_zipfile_serialization=zipped)
        path.write_bytes(path.read_bytes()[:length])
        with pytest.raises(UserError, match="is no checkpoint, or a damaged one"):
            checkpoint.load(path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = files.sha256(Path(tmp_path / "a"))
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def content():
    """What a checkpoint of a small network has."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    return {"epoch": 3, "model": network.state_dict(), "classes": ["a", "b"], "accuracy": 41.5}


def equal(one, other):
    return str(one) == str(other) and all(
        torch.equal(one["model"][key], other["model"][key]) for key in one["model"]
    )


@pytest.mark.parametrize("sealed", [True, False])
def test_a_flipped_bit_is_found_or_changes_nothing(sealed, tmp_path):
    """Of every eleventh byte; files of torch.save, which have no sha256, as well."""
    torch.set_printoptions(precision=17)
    path, expected, silent = tmp_path / "a.pth", content(), 0
    (checkpoint.save if sealed else lambda path, what: torch.save(what, path))(path, expected)
    whole, chance = path.read_bytes(), random.Random(0)
    for place in range(0, len(whole), 11):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << chance.randrange(8)
        path.write_bytes(flipped)
        try:
            found = checkpoint.load(path)
        except UserError:
            continue
        assert equal(found, expected), f"byte {place} of {len(whole)}"
        silent += 1
    torch.set_printoptions(profile="default")
    if sealed:
        assert silent <= len(checkpoint.SEAL), "a byte is covered by no checksum"


def test_files_with_and_without_a_sha256(tmp_path):
    """torch reads ours, we read torch's; what was made of a zip by others is no checkpoint."""
    checkpoint.save(tmp_path / "ours.pth", content())
    assert torch.load(tmp_path / "ours.pth", weights_only=True)["epoch"] == 3
    assert zipfile.ZipFile(tmp_path / "ours.pth").testzip() is None
    torch.save(content(), tmp_path / "torch.pth")
    assert checkpoint.load(tmp_path / "torch.pth")["epoch"] == 3
    with (
        zipfile.ZipFile(tmp_path / "torch.pth") as source,
        zipfile.ZipFile(tmp_path / "small.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in source.infolist():
            packed.writestr(entry.filename, source.read(entry))
    with pytest.raises(UserError, match="small.pth is no checkpoint, or a damaged one"):
        checkpoint.load(tmp_path / "small.pth")


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "endless.pth").symlink_to("/dev/zero")
    for name in ("pipe.pth", "endless.pth"):
        with pytest.raises(UserError, match="is no regular file"):
            checkpoint.load(tmp_path / name)


def test_what_cannot_be_read_is_not_called_truncated(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be read \(File name too long\)"):
        checkpoint.load(tmp_path / ("n" * 300))
    checkpoint.save(tmp_path / "a.pth", content())

    def refuse(*_):
        raise PermissionError(13, "Permission denied")  # root, who may run tests, is never refused

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match=r"a.pth cannot be read \(Permission denied\)"):
        checkpoint.load(tmp_path / "a.pth")


def laugh(lines=9):
    """A few lines that make a thousand million words."""
    words = ("ha",)
    for _ in range(lines):
        words = (words,) * 10
    return words


WEIGHT = torch.zeros(2, 3)
FORMS = [
    ({"w": WEIGHT, 3: WEIGHT}, "keys of type int"),
    ({laugh(3): WEIGHT}, "keys of type tuple"),
    ({"w": laugh()}, "holds no weights: its entries are w"),
    ({"w": WEIGHT.to_sparse()}, "no plain numbers under w"),
    ({"w": torch.zeros(2, 3, device="meta")}, "no plain numbers under w"),
    ({"w": WEIGHT.int()}, "w is torch.int32 in the file, torch.float32 in net"),
    ({"w": WEIGHT.bool()}, "w is torch.bool in the file, torch.float32 in net"),
    ({"w": torch.zeros(1).expand(10**9)}, r"w is \(1000000000,\) in the file, \(2, 3\) in net"),
]


@pytest.mark.parametrize(("weights", "says"), FORMS)
def test_weights_of_another_form(weights, says, tmp_path):
    network = torch.nn.Module()
    network.w = torch.nn.Parameter(torch.ones(2, 3))
    torch.save({"model": weights}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=says):
        checkpoint.load_weights(network, tmp_path / "a.pth", "net")
    assert (network.w == 1).all()


def test_half_precision_fits(tmp_path):
    network = torch.nn.BatchNorm2d(4)
    torch.save({k: v.half() for k, v in network.state_dict().items()}, tmp_path / "a.pth")
    checkpoint.load_weights(network, tmp_path / "a.pth", "net")


FACTS = [
    {"classes": 5}, {"classes": "abc"}, {"classes": ["a", 3]}, {"classes": torch.zeros(3)},
    {"image_size": "32"}, {"image_size": 0}, {"image_size": True}, {"image_size": 10**500},
    {"mean": 0.5}, {"mean": [0.5, 0.5]}, {"mean": [float("nan")] * 3}, {"std": [1.0, 0.0, 1.0]},
    {"model_name": 3}, {"model_name": "n" * 10**6}, {"data": None}, {"dataset": laugh()},
    {"data_options": 5}, {"data_options": {"image_size": laugh()}},
    {"data_options": {"image_size": 10**500}}, {"fingerprint": WEIGHT},
]  # fmt: skip


@pytest.mark.parametrize("facts", FACTS, ids=lambda facts: str(next(iter(facts))))
def test_what_a_file_cannot_be_of(facts, tmp_path):
    torch.save({"model": {"w": WEIGHT}, **facts}, tmp_path / "a.pth")
    for read in (checkpoint.data_of, checkpoint.model_name, checkpoint.describe):
        with pytest.raises(UserError, match=rf"says what cannot be \({next(iter(facts))} is "):
            read(tmp_path / "a.pth")


def test_a_bare_state_dict_says_nothing(tmp_path):
    torch.save({"mean": torch.zeros(3), "fc.weight": WEIGHT}, tmp_path / "a.pth")
    assert checkpoint.data_of(tmp_path / "a.pth") == {}
    assert set(checkpoint.weights_of(tmp_path / "a.pth")) == {"mean", "fc.weight"}


@pytest.mark.parametrize("name", ["tests.networks:tiny", "os:system", "torchvision.models:vgg11"])
def test_a_function_that_a_file_names_is_not_imported(name, tmp_path):
    torch.save({"model": {"w": WEIGHT}, "model_name": name}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=f"cannot have run: --model_t {name} where it is yours"):
        checkpoint.network_of(tmp_path / "a.pth", "--model_t")
    for name in ("resnet8", "torchvision:vgg11", "timm:vgg11"):
        torch.save({"model": {"w": WEIGHT}, "model_name": name}, tmp_path / "a.pth")
        assert checkpoint.network_of(tmp_path / "a.pth", "--model_t") == name


@pytest.mark.parametrize(
    "break_it",
    [
        lambda kept: kept.pop("step"),
        lambda kept: kept.update(step=torch.zeros(2, 3)),
        lambda kept: kept.update(step=3.0),
        lambda kept: kept.update(exp_avg=torch.zeros(3)),
        lambda kept: kept.update(momentum_buffer=WEIGHT),
    ],
)
def test_the_state_of_adamw_is_all_of_it(break_it):
    weight = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.AdamW([weight], fused=True)
    weight.sum().backward()
    optimizer.step()
    stage = SimpleNamespace(optimizer=optimizer, momentum_names=("step", "exp_avg", "exp_avg_sq"))
    state = copy.deepcopy(optimizer.state_dict())
    checkpoint.check_optimizer(stage, state, "a.pth")
    break_it(state["state"][0])
    with pytest.raises(UserError, match="a.pth has another optimizer's state"):
        checkpoint.check_optimizer(stage, state, "a.pth")


def test_a_pickle_of_a_later_protocol_is_one_error(tmp_path, recwarn):
    path = tmp_path / "a.pth"
    path.write_bytes(pickle.dumps({"model": {"fc": 1}, "s": b"1"}, protocol=4))
    with pytest.raises(UserError, match="a.pth is no checkpoint"):
        checkpoint.load(path)
    assert not recwarn.list
