"""The data sets: what they contain, and what they say about bad input. Nothing is downloaded."""

import hashlib
import http.client
import os
import pickle
import re
import shutil
import subprocess
import sys
import urllib.error
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from dataset import DATASETS
from dataset.base import DataSet, DataSource, mean_and_std
from dataset.fingerprint import fingerprint
from dataset.folder import Folder, content_key, open_image, resize_and_center_crop
from dataset.layout import Files, Paths
from dataset.loader import Loader, Loading
from dataset.subset import hold_out
from helper.errors import UserError
from helper.options import Parser
from helper.vision import torchvision

NAMES = ["cifar10", "cifar100", "digits", "fake", "folder"]


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# Every data set


def test_registry():
    assert set(NAMES) <= set(DATASETS)
    assert all(issubclass(DATASETS[name], DataSource) for name in DATASETS)
    with pytest.raises(ValueError, match="'mine' is no subclass of dataset.base.DataSource"):
        DATASETS.register("mine")(object)


def test_a_source_of_no_more_than_images_changes_no_default():
    class Bare(DataSource):
        pass

    assert (Bare.teacher, Bare.student, Bare.warmup) == (None, None, None)
    assert not Bare.networks
    assert Bare.recipe({"epochs": 3}) == {}
    assert Bare.recipe({}) is not Bare.recipe({})  # a caller may fill it
    assert Bare.pretrained("resnet8") is None
    assert fields(Bare.Options()) == ()
    with pytest.raises(NotImplementedError, match="implements load"):
        Bare.load(Bare.Options())


@pytest.mark.parametrize("name", NAMES)
def test_options_are_flags_with_help_and_a_frozen_default(name):
    options = DATASETS[name].Options()
    assert all(field.metadata["help"] for field in fields(options))
    parser = Parser()
    parser.add(DATASETS[name].Options)
    typed = "--data_dir" if name in ("cifar10", "cifar100", "folder") else "--image_size"
    assert vars(parser.parse_args([typed, "48"]))[typed[2:]] in ("48", 48)
    with pytest.raises(AttributeError):
        options.image_size = 3


@pytest.mark.parametrize("name", ["digits", "fake"])
@pytest.mark.parametrize("size", [8, 32])
def test_generated_sets_keep_the_contract(name, size):
    cls = DATASETS[name]
    data = cls.load(cls.Options(image_size=size))
    assert isinstance(data, DataSet)
    assert data.image_size == size
    assert data.padding == size // 8
    assert len(data.classes) == 10
    for split in ("train", "test"):
        labels = Loader(data, split, 64, Loading()).labels  # checks shapes and types
        assert set(labels.tolist()) == set(range(10))


@pytest.mark.parametrize("name", ["digits", "fake"])
def test_training_images_are_normalised(name):
    cls = DATASETS[name]
    data = replace(cls.load(cls.Options()), padding=0)
    images = torch.cat([b.images for b in Loader(data, "train", 64, Loading()).batches(0)]).double()
    assert images.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (images.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["digits", "fake", "folder"])
def test_images_that_are_too_small(name):
    with pytest.raises(UserError, match="7 x 7 are too small: use at least 8"):
        DATASETS[name].load(DATASETS[name].Options(image_size=7))


def test_mean_and_std_are_exact():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1500, 3, 5, 7), dtype=torch.uint8, generator=generator)
    images[:, 2] = 51
    mean, std = mean_and_std(images)
    numbers = images.double().div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(numbers.mean(1).tolist(), abs=1e-12)
    assert std[:2] == pytest.approx(numbers.std(1, correction=0).tolist()[:2], abs=1e-12)
    assert std[2] == 1 / 255  # and not 0: normalising divides by it


def test_importing_data_sets_and_networks_imports_nothing_slow():
    """What a command's --help waits for: torch, and no package that only some runs need."""
    code = "import torch, sys; old = {*sys.modules}; import dataset, models"
    code += "; print(*{*sys.modules} - old)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = set(done.stdout.split())
    assert {"dataset.folder", "dataset.stream", "models.any"} <= new
    slow = {"PIL", "torchvision", "timm", "sklearn", "scipy", "pandas", "multiprocessing.pool"}
    slow |= {"concurrent.futures.process", "torch._dynamo", "torch._inductor"}
    assert not new & slow


# digits


def test_digits_are_those_of_scikit_learn():
    data = DATASETS["digits"].load(DATASETS["digits"].Options(image_size=8))
    theirs = load_digits()
    images = torch.cat([data.train.images, data.test.images])
    assert len(data.train.labels) == 898
    assert len(data.test.labels) == 899
    assert torch.equal(images[:, 0], torch.tensor(theirs.images * 255 / 16).round().byte())
    assert torch.equal(images[:, 0], images[:, 2])
    assert torch.cat([data.train.labels, data.test.labels]).tolist() == theirs.target.tolist()
    assert not data.flip
    assert data.train.images.max() == 255


# fake


def test_fake_images_are_the_same_in_every_run():
    fake = DATASETS["fake"]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = fake.load(fake.Options(fake_size=40))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    second = fake.load(fake.Options(fake_size=40))
    assert torch.equal(first.train.images, second.train.images)
    assert len(first.test.labels) == 10
    assert not torch.equal(first.train.images[:10], first.test.images)


def test_fake_classes_can_be_told_apart_from_new_samples():
    """A linear model fitted to the training images: it has to carry over to the test images."""
    fake = DATASETS["fake"]
    data = fake.load(fake.Options(fake_size=200, fake_classes=5, image_size=16))
    (x, y, _), (u, v, _) = (
        next(Loader(replace(data, padding=0), s, 200, Loading()).batches())
        for s in ("train", "test")
    )
    centres = torch.stack([x[y == k].mean(0).flatten() for k in range(5)])
    assert (torch.cdist(u.flatten(1), centres).argmin(1) == v).float().mean() > 0.95


def test_fake_needs_an_image_a_class():
    fake = DATASETS["fake"]
    with pytest.raises(UserError, match="--fake_size 5 is fewer than --fake_classes 10"):
        fake.load(fake.Options(fake_size=5))


# CIFAR, from files written here in its format


PUBLISHED = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **how):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", refuse)


@pytest.fixture(params=["CIFAR10", "CIFAR100"])
def cifar(request, monkeypatch, tmp_path, offline):
    """(name, folder of its files, images, labels), with checksums to match."""
    source = getattr(torchvision.datasets, request.param)
    folder = tmp_path / source.base_folder
    folder.mkdir()
    generator = np.random.default_rng(0)
    names = [f"kind {k}" for k in range(int(request.param[5:]))]
    key = "labels" if len(names) == 10 else "fine_labels"
    images, labels = [], []

    def write(name, content):
        (folder / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]

    def write_images(name):
        images.append(generator.integers(0, 256, (4, 3072), dtype=np.uint8))
        labels.append(generator.integers(0, len(names), 4).tolist())
        return write(name, {"data": images[-1], key: labels[-1]})

    for which in ("train_list", "test_list"):
        monkeypatch.setattr(source, which, [write_images(n) for n, _ in getattr(source, which)])
    file, md5 = write(source.meta["filename"], {source.meta["key"]: names})
    monkeypatch.setattr(source, "meta", source.meta | {"filename": file, "md5": md5})
    return request.param.lower(), folder, images, labels


def load_cifar(name, root):
    return DATASETS[name].load(DATASETS[name].Options(data_dir=str(root)))


def test_cifar_files_are_read(cifar, tmp_path):
    name, _, images, labels = cifar
    data = load_cifar(name, tmp_path)
    train = np.concatenate(images[:-1]).reshape(-1, 3, 32, 32)
    assert data.train.images.numpy().tolist() == train.tolist()
    assert data.train.labels.tolist() == sum(labels[:-1], [])
    assert data.test.images.flatten(1).tolist() == images[-1].tolist()
    assert data.test.labels.tolist() == labels[-1]
    assert data.classes[:2] == ("kind 0", "kind 1")
    assert (data.padding, data.flip) == (4, True)
    assert (data.mean, data.std) == PUBLISHED[name]
    assert data.train.images.is_contiguous()
    assert len(Loader(data, "train", 4, Loading())) == len(train) // 4


def test_truncated_cifar_names_the_file(cifar, tmp_path):
    name, folder, *_ = cifar
    file = folder / ("data_batch_3" if name == "cifar10" else "train")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError) as error:
        load_cifar(name, tmp_path)
    assert f"{file} is damaged" in one_line(error)


def test_cifar_that_may_not_be_read_is_not_called_damaged(cifar, tmp_path, monkeypatch):
    name, folder, *_ = cifar

    def denied(path, *_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torchvision.datasets.utils, "calculate_md5", denied)
    with pytest.raises(UserError) as error:
        load_cifar(name, tmp_path)
    assert re.search(rf"cannot use {folder}/\w+ \(Permission denied\)", one_line(error))
    assert "damaged" not in str(error.value)


def test_a_download_that_breaks_off(cifar, tmp_path, monkeypatch):
    name, folder, *_ = cifar

    def broken(*_, **__):
        raise http.client.IncompleteRead(b"half")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", broken)
    shutil.rmtree(folder)
    with pytest.raises(UserError, match=r"downloading failed \(IncompleteRead\(4 bytes read\)\)"):
        load_cifar(name, tmp_path)


def test_absent_cifar_says_where_and_what_to_do(offline, tmp_path):
    with pytest.raises(UserError) as error:
        load_cifar("cifar100", tmp_path / "nowhere")
    text = one_line(error)
    assert f"{tmp_path}/nowhere/cifar-100-python/train is missing" in text
    for words in ("no route to host", "cifar-100-python.tar.gz", "--data_dir", "--dataset digits"):
        assert words in text


# folder


def save(path, pixels, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    (pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)).save(path, **how)


def random_image(seed, tall=10, wide=10):
    return np.random.default_rng(seed).integers(0, 256, (tall, wide, 3), dtype=np.uint8)


@pytest.fixture
def images(tmp_path):
    """train/ and val/ of two classes with 3 and 2 images of 10 x 10."""
    root = tmp_path / "pictures"
    for k, name in enumerate(["cat", "ant"]):
        for i in range(3):
            save(root / "train" / name / f"{i}.png", random_image(10 * k + i))
        for i in range(2):
            save(root / "val" / name / f"{i}.png", random_image(10 * k + 5 + i))
    return root


def load_folder(root, image_size=None, cache=None, **more):
    options = Folder.Options(str(root), image_size, str(cache or root.parent / "cache"), **more)
    return Folder.load(options)


def pixels(seed, **how):
    return torch.from_numpy(random_image(seed, **how)).permute(2, 0, 1)


def test_folder_contents(images):
    data = load_folder(images)
    assert data.classes == ("ant", "cat")
    assert data.name == "pictures"
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = torch.stack([pixels(seed) for seed in (10, 11, 12, 0, 1, 2)])
    assert torch.equal(data.train.images, expected)
    assert torch.equal(data.test.images, torch.stack([pixels(seed) for seed in (15, 16, 5, 6)]))
    assert (data.mean, data.std) == mean_and_std(expected)


def test_cache_gives_the_same_and_is_really_used(images, monkeypatch):
    first = load_folder(images)
    monkeypatch.setattr("dataset.folder.decode", lambda *_: pytest.fail("decoded again"))
    again = load_folder(images)
    assert torch.equal(first.train.images, again.train.images)
    assert torch.equal(first.test.images, again.test.images)
    assert first.classes == again.classes
    assert [p.suffix for p in (images.parent / "cache").iterdir()] == [".npz"]


def test_a_changed_pixel_is_never_served_stale(images):
    """Same name, same size in bytes, same time of change: only the content tells."""
    file = images / "val" / "ant" / "0.bmp"
    save(file, random_image(1))
    load_folder(images)
    before = file.stat()
    changed = bytearray(file.read_bytes())
    changed[60] ^= 1  # the header is 54 bytes
    file.write_bytes(changed)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size
    fresh = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1)
    assert not torch.equal(fresh, pixels(1))
    assert torch.equal(load_folder(images).test.images[0], fresh)


def test_key_depends_on_names_sizes_and_times(tmp_path):
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, content in zip(paths, (b"12", b"3")):
        Path(path).write_bytes(content)

    def key(paths=paths, size=None):
        return content_key([Files(Paths(paths), torch.zeros(len(paths)), str(tmp_path))], size)

    keys = [key(), key(size=32), key(paths[::-1]), key(paths[:1])]
    assert key() == keys[0]
    os.rename(paths[1], tmp_path / "c.png")
    keys.append(key([paths[0], str(tmp_path / "c.png")]))
    os.utime(paths[0], ns=(0, 5))
    keys.append(key([paths[0], str(tmp_path / "c.png")]))
    assert len(set(keys)) == len(keys)


def test_a_set_is_known_again_by_its_content(images, monkeypatch):
    first = load_folder(images, hash_content=True)
    for path in images.rglob("*.bmp"):
        os.utime(path, ns=(0, 5))
    monkeypatch.setattr("dataset.folder.decode", lambda *_: pytest.fail("decoded again"))
    assert torch.equal(load_folder(images, hash_content=True).train.images, first.train.images)


def test_the_key_reads_no_file(images, monkeypatch):
    first = load_folder(images)
    monkeypatch.setattr("dataset.folder.read_file", lambda _: pytest.fail("a file was read"))
    assert torch.equal(load_folder(images).train.images, first.train.images)


@pytest.mark.parametrize("damage", ["cut", "flip", "method", "other", "empty"])
def test_a_broken_cache_file_is_rebuilt_with_a_note(images, damage, capsys):
    first = load_folder(images)
    (cache,) = (images.parent / "cache").iterdir()
    content = bytearray(cache.read_bytes())
    if damage == "flip":
        content[len(content) // 3] ^= 64
    if damage == "method":  # of compression, in the directory at the end
        content[content.rindex(b"PK\1\2") + 10] = 99
    cache.write_bytes({"cut": content[:-99], "other": b"", "empty": b""}.get(damage, content))
    if damage == "other":
        np.savez(cache, images=np.zeros(3), readable=np.zeros(3))
    again = load_folder(images)
    assert torch.equal(first.train.images, again.train.images)
    assert f"cache file {cache} is broken" in capsys.readouterr().err
    load_folder(images)
    assert capsys.readouterr().err == ""  # the rebuilt file is whole


def test_a_cache_that_may_not_be_read_is_not_called_broken(images, monkeypatch, capsys):
    load_folder(images)

    def denied(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(np, "load", denied)
    assert len(load_folder(images).train.labels) == 6
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"cache file .*\.npz cannot be read \(Permission denied\): decoding", line)


def test_a_cache_folder_of_too_long_a_name(images, capsys):
    assert len(load_folder(images, cache=images / ("a" * 300)).train.labels) == 6
    assert "not kept in" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_is_no_reason_to_stop(images, capsys):
    blocked = images.parent / "file"
    blocked.write_text("not a folder")
    assert len(load_folder(images, cache=blocked).train.labels) == 6
    assert "not kept in" in capsys.readouterr().err


def test_modes_are_all_turned_into_rgb(images):
    grey = random_image(3)[..., 0]
    palette = Image.fromarray(random_image(4)).quantize(16)
    rgba = np.dstack([random_image(5), np.full((10, 10), 9, np.uint8)])
    save(images / "train" / "ant" / "a.png", grey)
    save(images / "train" / "ant" / "b.png", palette, transparency=0)
    save(images / "train" / "ant" / "c.png", rgba)
    save(images / "train" / "ant" / "d.png", grey.astype(np.uint16) * 257)
    save(images / "train" / "ant" / "e.gif", palette)
    found = load_folder(images).train.images[3:8].permute(0, 2, 3, 1).numpy()
    rgb = np.asarray(palette.convert("RGB"))
    hole = np.where(np.asarray(palette)[..., None] == 0, 255, rgb)
    faint = 255 - (255.0 - rgba[..., :3]) * 9 / 255  # on white
    for got, expected in zip(found, [grey[..., None], hole, faint, grey[..., None], rgb]):
        assert (abs(got - expected) <= (1 if expected is faint else 0)).all()


@pytest.mark.filterwarnings("error")
def test_a_palette_with_many_transparent_colours_brings_no_warning(tmp_path):
    palette = Image.fromarray(random_image(4)).quantize(16)
    save(tmp_path / "a.png", palette, transparency=bytes(range(16)))
    assert open_image(str(tmp_path / "a.png")).mode == "RGB"


def test_square_scales_the_shorter_side_and_keeps_the_middle():
    stripes = np.zeros((16, 48, 3), np.uint8)
    stripes[:, 16:32] = 255  # the middle third is white
    assert (np.asarray(resize_and_center_crop(Image.fromarray(stripes), 16)) == 255).all()
    middle = np.asarray(
        resize_and_center_crop(Image.fromarray(stripes.transpose(1, 0, 2).copy()), 8)
    )
    assert middle.shape == (8, 8, 3)
    assert (middle[1:-1] == 255).all()
    assert resize_and_center_crop(Image.fromarray(random_image(0, 9, 13)), 32).size == (32, 32)


def test_image_size_brings_different_sizes_together(images):
    save(images / "train" / "cat" / "wide.jpg", random_image(9, 20, 33))
    with pytest.raises(UserError) as error:
        load_folder(images)
    assert re.search(
        r"wide.jpg is 33 x 20, the first is 10 x 10\): give --image_size", one_line(error)
    )
    assert load_folder(images, 16).train.images.shape == (7, 3, 16, 16)


def test_large_images_are_scaled_and_that_is_said(tmp_path, capsys):
    for split in ("train", "val"):
        for name in "ab":
            save(tmp_path / "set" / split / name / "0.png", random_image(0, 90, 70))
    assert load_folder(tmp_path / "set").image_size == 64
    assert "images of 70 x 90 become 64 x 64; see --image_size" in capsys.readouterr().err


def test_a_test_split_without_labels_is_left_and_that_is_said(images, capsys):
    save(images / "test" / "images" / "0.png", random_image(0))
    assert len(load_folder(images).test.labels) == 4
    assert "test has none of the classes of val/" in capsys.readouterr().err


def test_beside_a_test_split_val_is_held_out(images):
    save(images / "test" / "ant" / "0.png", random_image(0))
    save(images / "test" / "cat" / "0.png", random_image(1))
    data = load_folder(images)
    assert torch.equal(data.test.images, torch.stack([pixels(0), pixels(1)]))
    assert torch.equal(data.val.images, torch.stack([pixels(seed) for seed in (15, 16, 5, 6)]))
    again = load_folder(images)  # out of the cache
    assert torch.equal(data.val.images, again.val.images)
    changed = replace(data, val=data.test)
    assert fingerprint(data) == fingerprint(again) != fingerprint(changed)
    with pytest.raises(UserError, match="pictures has held-out images of its own"):
        hold_out(data, 0.1, 0)


def test_test_serves_when_there_is_no_val(images):
    (images / "val").rename(images / "test")
    assert len(load_folder(images).test.labels) == 4


def test_images_in_folders_of_a_class_and_other_files(images):
    save(images / "train" / "ant" / "images" / "deep.JPEG", random_image(1))
    (images / "train" / "ant" / "boxes.txt").write_text("no image")
    (images / "train" / "ant" / "._0.png").write_bytes(b"left by another system")
    (images / "train" / ".checkpoints").mkdir()
    assert load_folder(images).train.labels.tolist() == [0] * 4 + [1] * 3


def test_what_is_missing_is_named(images):
    def says(words):
        with pytest.raises(UserError, match=words) as error:
            load_folder(images)
        assert str(images) in one_line(error)

    save(images / "val" / "dog" / "0.png", random_image(0))
    save(images / "train" / "cow" / "0.png", random_image(0))
    says(r"differ in their classes \(only in train: cow; only in val: dog\)")
    shutil.rmtree(images / "val" / "dog")
    shutil.rmtree(images / "train" / "cow")
    (images / "val" / "cat" / "0.png").unlink()
    (images / "val" / "cat" / "1.png").rename(images / "val" / "cat" / "1.txt")
    says("no images in .*val/cat: looked for .bmp")
    shutil.rmtree(images / "val")
    says("neither val/ nor test/ in")
    (images / "val").mkdir()
    says("only in train: ant, cat")
    shutil.rmtree(images / "train")
    says("no train/ in")
    (images / "val").rmdir()
    says("no train/ in .*, and no folder of images")
    (images / "train").mkdir()
    (images / "val").mkdir()
    says("no class folders in")
    shutil.rmtree(images)
    says("no folder")


@pytest.mark.parametrize("size", [None, 16])
def test_an_unreadable_image_is_named(images, size):
    file = images / "train" / "cat" / "2.png"
    file.write_bytes(file.read_bytes()[:120])
    with pytest.raises(UserError) as error:
        load_folder(images, size)
    assert f"{file} is no readable image" in one_line(error)
    file.write_bytes(b"text")
    with pytest.raises(UserError, match="2.png is no readable image") as error:
        load_folder(images, size)
    assert "JPEG, PNG, PPM, TIFF, WEBP): repair or remove it" in one_line(error)
    assert not list((images.parent / "cache").glob("*"))


def test_unreadable_images_are_skipped_named_and_counted(images, capsys):
    paths = [images / "train/ant/0.png", images / "val/cat/1.png"]
    for path in paths:
        path.write_bytes(b"text")
    with pytest.raises(UserError, match=r"ant/0.png is no .*; 2 of 10 files are no images"):
        load_folder(images)
    options = Folder.Options(str(images), cache_dir=str(images.parent / "c"), skip_corrupt=True)
    capsys.readouterr()
    for _ in ("decoded", "out of the cache"):
        data = Folder.load(options)
        assert data.train.labels.tolist() == [0, 0, 1, 1, 1]
        assert torch.equal(data.train.images[:2], torch.stack([pixels(11), pixels(12)]))
        assert torch.equal(data.test.images, torch.stack([pixels(15), pixels(16), pixels(5)]))
        err = capsys.readouterr().err
        assert [err.count(f"skipped: {path} is no readable image") for path in paths] == [1, 1]
        assert "2 of 10 files are no images and were skipped" in err
    with pytest.raises(UserError, match="ant/0.png is no readable image"):
        Folder.load(replace(options, skip_corrupt=False))  # though a cache file has the others


def test_what_is_left_has_to_be_enough(images):
    options = Folder.Options(str(images), cache_dir=str(images.parent / "c"), skip_corrupt=True)
    for path in images.glob("val/*/*"):
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="no readable image to test on below .*val"):
        Folder.load(options)
    for path in images.glob("train/ant/*"):
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="no readable image of class ant to train on"):
        Folder.load(options)
    for path in images.glob("train/cat/*"):
        path.write_bytes(b"text")
    with pytest.raises(UserError, match="is no readable image"):
        Folder.load(options)


def test_images_are_cropped_as_is_said(images):
    options = Folder.Options(str(images), cache_dir=str(images.parent / "c"))
    data, resized = Folder.load(options), Folder.load(replace(options, crop="resized"))
    assert (data.resized, resized.resized) == (False, True)


def test_images_are_not_flipped_where_that_is_said(images):
    options = Folder.Options(str(images), cache_dir=str(images.parent / "c"))
    data, fixed = Folder.load(options), Folder.load(replace(options, flip=False))
    assert (data.flip, fixed.flip) == (True, False)
    assert fingerprint(data) != fingerprint(fixed)
