import argparse
from pathlib import Path

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
        with pytest.raises(UserError, match="is no checkpoint, or a truncated one"):
            checkpoint.load(path)


def test_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    digest = files.sha256(Path(tmp_path / "a"))
    assert digest == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
