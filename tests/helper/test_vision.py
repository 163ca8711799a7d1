"""Importing torchvision with and without its compiled operators."""

import runpy
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

import helper.vision
from helper.vision import torchvision


def test_data_sets_transforms_and_models_work():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = torchvision.transforms.ToTensor()(Image.fromarray(pixels))
    assert torch.equal(image * 255, torch.from_numpy(pixels).permute(2, 0, 1).float())
    network = torchvision.models.resnet18(num_classes=3).eval()
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert issubclass(torchvision.datasets.CIFAR100, torch.utils.data.Dataset)


def test_nothing_is_declared_where_the_import_works(monkeypatch):
    working = ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", working)
    done = runpy.run_path(helper.vision.__file__)
    assert done["torchvision"] is working
    assert "_library" not in done


def test_another_failure_is_not_hidden(monkeypatch, tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('wheel of another planet')")
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeError, match="another planet"):
        runpy.run_path(helper.vision.__file__)
