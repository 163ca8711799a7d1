"""Where the images of a folder lie while a run trains."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from dataset.base import DataSet, StreamedSet
from dataset.folder import Folder, host_memory
from dataset.loader import Loader, Loading
from dataset.stream import CROP, ImageFiles, StreamLoader
from helper.errors import UserError
from tests.conftest import only


@pytest.fixture
def root(tmp_path):
    """Two classes of images of several sizes, split by the loading."""
    rng = np.random.default_rng(0)
    for c, name in enumerate(("ant", "cat")):
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for i in range(5):
            pixels = rng.integers(0, 200, (20 + i, 30 - i, 3)) + 50 * c
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def load(root, image_size=16, **more):
    cache = str(root.parent / "cache")
    return Folder.load(Folder.Options(str(root), image_size, cache, **more))


def test_streamed_images_are_those_in_memory(root):
    here, there = load(root, in_memory="on"), load(root, in_memory="off", flip=False)
    assert isinstance(here, DataSet)
    assert isinstance(there, StreamedSet)
    assert (here.mean, here.std, here.classes) == (there.mean, there.std, there.classes)
    assert (here.padding, here.image_size) == (there.padding, there.image_size)
    shown = [
        torch.cat([batch.images for batch in loader(data, "test", 4, Loading()).batches()])
        for loader, data in ((Loader, here), (StreamLoader, there))
    ]
    torch.testing.assert_close(*shown)
    chain = ImageFiles(there.train.paths, there, True, Loading()).transforms[CROP].transforms
    assert [type(step).__name__ for step in chain[1:]] == ["RandomCrop", "PILToTensor"]
    assert chain[1].padding == [2, 2, 2, 2]


def test_a_set_too_large_for_the_machine_is_streamed(root, monkeypatch, capsys):
    needed = 10 * 3 * 16 * 16
    monkeypatch.setattr("dataset.folder.host_memory", lambda: 8 * needed)
    assert isinstance(load(root), DataSet)
    monkeypatch.setattr("dataset.folder.host_memory", lambda: 8 * needed - 1)
    assert isinstance(load(root), StreamedSet)
    assert "10 images of 16 x 16 take 0.0 GB, more than an eighth of" in capsys.readouterr().err
    assert isinstance(load(root, in_memory="on"), DataSet)
    monkeypatch.setattr("dataset.folder.host_memory", lambda: needed - 1)
    with pytest.raises(UserError, match="--in_memory on: 10 images .* smaller --image_size, or"):
        load(root, in_memory="on")
    with pytest.raises(UserError, match="--in_memory off: give the size to train at with"):
        load(root, image_size=None, in_memory="off")
    with pytest.raises(UserError, match="64 x 64 take .* give the size to train at with"):
        load(root, image_size=None)


def test_the_memory_that_a_machine_has_is_that_of_each_process(monkeypatch, tmp_path):
    machine = host_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert host_memory() == machine
    monkeypatch.setattr("dataset.folder.CGROUPS", tmp_path)
    (tmp_path / "memory").mkdir()
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / file).write_text("max\n")
    assert host_memory() >= machine
    for file in ("memory.max", "memory/memory.limit_in_bytes"):
        (tmp_path / file).write_text("1000\n")
    assert host_memory() == 1000


def test_what_was_found_out_is_kept(root, monkeypatch):
    first = load(root, in_memory="off")
    with monkeypatch.context() as patch:
        patch.setattr("dataset.folder.read_file", lambda _: pytest.fail("a file was read"))
        again = load(root, in_memory="off")
    assert (again.mean, again.std) == (first.mean, first.std)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "ant" / "0.png")
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(root / "ant" / "1.png")
    assert load(root, in_memory="off").mean != first.mean


def test_files_that_are_no_images_are_left_out_of_what_is_streamed(root, capsys):
    broken = load(root, in_memory="off").train.paths[0]
    with open(broken, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError, match="1 of 8 files are no images"):
        load(root, in_memory="off")
    capsys.readouterr()
    here, there = (load(root, in_memory=kept, skip_corrupt=True) for kept in ("on", "off"))
    assert (here.mean, here.std) == (there.mean, there.std)
    assert capsys.readouterr().err.count(f"skipped: {broken}") == 2, "once each"
    assert len(there.train.paths) == 7
    assert torch.equal(there.train.labels, here.train.labels)
    with open(there.test.paths[0], "wb") as file:
        file.write(b"no image")
    os.remove(broken)
    with pytest.raises(UserError, match="no readable image .*--skip_corrupt; 1 of 2 files"):
        load(root, in_memory="off")


@pytest.mark.parametrize("how", [{}, {"hash_content": True}], ids=["times", "content"])
@pytest.mark.parametrize("kept", ["on", "off"])
def test_files_that_are_absent_are_skipped_like_those_that_are_no_images(kept, how, root, capsys):
    (root / "ant" / "gone.png").symlink_to("nothing")
    (root / "cat" / "loop.png").symlink_to("loop.png")
    names = ["cat/absent.png", *(f"{path.parent.name}/{path.name}" for path in root.glob("*/*"))]
    rows = "".join(f"{name},{name[:3]}\n" for name in names)
    (root / "list.csv").write_text(f"path,label\n{rows}")
    for data_dir, absent in ((root, 2), (root / "list.csv", 3)):
        with pytest.raises(UserError, match="cannot read .* files are no images"):
            load(data_dir, in_memory=kept, **how)
        capsys.readouterr()
        data = load(data_dir, in_memory=kept, skip_corrupt=True, **how)
        assert len(data.train.labels) + len(data.test.labels) == 10
        err = capsys.readouterr().err
        assert err.count("skipped: cannot read") == absent
        assert "loop.png: Too many levels of symbolic links" in err


def test_where_images_lie_is_part_of_the_experiment_where_its_views_differ(run, root, tmp_path):
    line = f"train_teacher --model resnet8 --dataset folder --data_dir {root} --image_size 16"
    line += " --epochs 1 --batch_size 4 --num_workers 0"
    for kept in ("auto", "on", "off"):
        run(f"{line} --in_memory {kept} --save_dir {kept}")
    runs = {kept: only(tmp_path / kept / "models") for kept in ("auto", "on", "off")}
    found = {
        kept: json.loads((path / "run.json").read_text())["experiment"]
        for kept, path in runs.items()
    }
    assert found["auto"] == found["on"]
    assert "in_memory" not in found["on"]["options"]
    assert found["off"]["options"]["in_memory"] == "off"
    assert "in_memory_off" in runs["off"].name
