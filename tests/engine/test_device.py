"""The device that a run is given, without one."""

import json

import pytest
import torch

from engine.device import DeviceOptions, start
from tests.conftest import only


@pytest.fixture
def gpus(monkeypatch):
    """Two pretended GPUs -> the devices that were made the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    monkeypatch.setattr(torch.cuda, "is_tf32_supported", lambda: True)
    yield chosen
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize(("name", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_one_process_computes_on_the_gpu_that_it_names(name, index, gpus):
    numerics = start(DeviceOptions(device=name))
    assert gpus == [numerics.device] == [torch.device("cuda", index)]
    assert numerics.gpu == f"GPU {index}"
    assert numerics.describe().startswith(f"cuda:{index} (GPU {index}), float32 (")


def test_a_float32_run_says_whether_tf32_is_on(gpus):
    torch.backends.cuda.matmul.allow_tf32 = True  # whatever it was before
    for tf32, said in ((False, "float32"), (True, "float32 (convolutions in TF32)")):
        numerics = start(DeviceOptions(tf32=tf32))
        assert torch.backends.cudnn.allow_tf32 is tf32
        assert torch.backends.cuda.matmul.allow_tf32 is False
        assert numerics.precision == said
        assert numerics.in_tf32 is tf32
    assert start(DeviceOptions(amp="bf16")).precision == "bf16 autocast"
    for options in (DeviceOptions(amp="bf16"), DeviceOptions(device="cpu")):
        assert start(options).in_tf32 is False
    assert start(DeviceOptions(device="cpu")).precision == "float32"


def test_a_run_remembers_the_gpu_and_tf32(run, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.device.Numerics.gpu", "GPU 1")
    data = "--dataset fake --fake_size 12 --image_size 8 --fake_classes 4 --epochs 1"
    run(f"train_teacher --model resnet8 --device cpu --tf32 off {data}")
    began = json.loads((only(tmp_path / "save/models") / "run.json").read_text())["provenance"][0]
    assert began["gpu"] == "GPU 1"
    assert began["options"]["tf32"] is False
