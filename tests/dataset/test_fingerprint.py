"""What makes two data sets the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataset import DATASETS
from dataset.base import DataSet, Split
from dataset.fingerprint import fingerprint, fingerprint_of_images
from helper.errors import UserError


def make():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8, generator=generator)
    train, test = Split(images[:6], torch.arange(6) % 3), Split(images[6:], torch.arange(3))
    return DataSet("small", train, test, ("a", "b", "c"), (0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def with_pixel(split, sample):
    images = split.images.clone()
    images[sample, 2, 7, 7] ^= 1
    return replace(split, images=images)


def with_label(split):
    labels = split.labels.clone()
    labels[-1] = 0
    return replace(split, labels=labels)


CHANGES = {
    "a training pixel": lambda d: replace(d, train=with_pixel(d.train, 5)),
    "a test pixel": lambda d: replace(d, test=with_pixel(d.test, 0)),
    "a training label": lambda d: replace(d, train=with_label(d.train)),
    "a test label": lambda d: replace(d, test=with_label(d.test)),
    "the splits": lambda d: replace(d, train=d.test, test=d.train),
    "a class name": lambda d: replace(d, classes=("a", "b", "d")),
    "where class names end": lambda d: replace(d, classes=("a", "b, c")),
    "the mean": lambda d: replace(d, mean=(0.5, 0.4, 0.3000001)),
    "the std": lambda d: replace(d, std=(0.2, 0.1, 0.2)),
    "padding": lambda d: replace(d, padding=3),
    "flip": lambda d: replace(d, flip=False),
    "the shape of the images": lambda d: replace(
        d, train=replace(d.train, images=d.train.images.view(6, 3, 4, 16))
    ),
}


def test_the_same_data_has_the_same_fingerprint():
    first = fingerprint(make())
    assert len(first) == 64
    assert first == fingerprint(make())
    assert first == fingerprint(replace(make(), name="otherwise called"))
    strided = make()
    images = strided.train.images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not images.is_contiguous()
    assert first == fingerprint(replace(strided, train=replace(strided.train, images=images)))


def test_the_fingerprint_of_this_version_is_kept():
    """Experiments are found again by it."""
    assert fingerprint(make()).startswith("9ea59723c1413706")


@pytest.mark.parametrize("change", CHANGES)
def test_another_fingerprint(change):
    assert fingerprint(CHANGES[change](make())) != fingerprint(make())


@pytest.mark.parametrize(
    ("change", "other"),
    [("flip", False), ("padding", False), ("the mean", True), ("a test label", True),
     ("a class name", True), ("the shape of the images", True)],
)  # fmt: skip
def test_images_are_the_same_however_they_are_augmented(change, other):
    changed = fingerprint_of_images(CHANGES[change](make()))
    assert (changed != fingerprint_of_images(make())) == other


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_data_on_a_gpu():
    data = make()
    train = Split(data.train.images.cuda(), data.train.labels.cuda())
    assert fingerprint(replace(data, train=train)) == fingerprint(data)


# Image files


@pytest.fixture
def root(tmp_path):
    rng = np.random.default_rng(0)
    for split, width in (("train", 12), ("val", 9)):
        for name in ("n01", "n02"):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                pixels = rng.integers(0, 256, (10 + i, width, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "images"


def load(root, image_size=16, **options):
    entry = DATASETS["imagenet"]
    where = {"data_dir": str(root), "cache_dir": str(Path(root).absolute().parent / "cache")}
    return entry.load(entry.Options(**where, image_size=image_size, **options))


def test_where_files_lie_does_not_count(root, tmp_path, monkeypatch):
    first = fingerprint(load(root))
    shutil.copytree(root, tmp_path / "n01" / "elsewhere")
    assert fingerprint(load(tmp_path / "n01" / "elsewhere")) == first
    monkeypatch.chdir(root)
    assert fingerprint(load(".")) == first
    assert fingerprint(load(f"{root}/")) == first


def test_what_counts_of_files(root):
    data = load(root)
    found = {
        "as it is": fingerprint(data),
        "image_size": fingerprint(load(root, 24)),
        "classes": fingerprint(replace(data, classes=("n01", "n03"))),
        "mean": fingerprint(replace(data, mean=(0.5, 0.5, 0.5))),
        "std": fingerprint(replace(data, std=(0.5, 0.5, 0.5))),
        "splits": fingerprint(replace(data, train=data.test, test=data.train)),
        "label": fingerprint(
            replace(data, train=data.train._replace(labels=torch.tensor([0, 0, 0, 1])))
        ),
    }
    file = root / "train" / "n02" / "1.png"
    file.write_bytes(file.read_bytes() + b"\0")
    found["size"] = fingerprint(load(root))
    file.rename(file.with_name("2.png"))
    found["name"] = fingerprint(load(root))
    assert len(set(found.values())) == len(found)


def test_contents_count_where_they_are_asked_for(root, tmp_path):
    def known(where=root):
        return [fingerprint(load(where, hash_content=asked)) for asked in (False, True)]

    before = known()
    assert before[0] != before[1]
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert known(tmp_path / "elsewhere") == before
    file = root / "train" / "n02" / "1.png"
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content)
    after = known()
    assert (after[0] == before[0], after[1] == before[1]) == (True, False)


def test_a_file_that_has_gone_is_named(root):
    data = load(root)
    (root / "val" / "n01" / "0.png").unlink()
    with pytest.raises(UserError, match=r"cannot read .*val/n01/0.png: No such file"):
        fingerprint(data)
