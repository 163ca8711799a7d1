"""STL-10, from files written here in its format. Nothing is downloaded."""

import hashlib
import urllib.error

import numpy as np
import pytest
import torch
from PIL import Image

from cli import parse
from dataset import DATASETS
from dataset.loader import Loader, Loading
from helper.errors import UserError
from helper.vision import torchvision

STL10 = DATASETS["stl10"]
THEIRS = torchvision.datasets.STL10
TRAIN, TEST = 12, 7  # images


def load(root, size=32):
    return STL10.load(STL10.Options(data_dir=str(root), image_size=size))


def one_line(error) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def files(monkeypatch):
    """Name of a file -> its bytes, images (N, 96, 96, 3) and labels; torchvision has the md5s."""
    generator = np.random.default_rng(0)
    content, images, labels = {}, {}, {}
    for part, count in (("train", TRAIN), ("test", TEST)):
        images[part] = generator.integers(0, 256, (count, 96, 96, 3), dtype=np.uint8)
        labels[part] = np.arange(count) % 10
        # Each colour is written column by column, and labels start at 1.
        content[f"{part}_X.bin"] = images[part].transpose(0, 3, 2, 1).tobytes()
        content[f"{part}_y.bin"] = (labels[part] + 1).astype(np.uint8).tobytes()
    for which in ("train_list", "test_list"):
        known = [
            [name, hashlib.md5(content[name]).hexdigest() if name in content else md5]
            for name, md5 in getattr(THEIRS, which)
        ]
        monkeypatch.setattr(THEIRS, which, known)
    return content, images, labels


def write(root, content):
    folder = root / "stl10_binary"
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **how):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets.stl10, "download_and_extract_archive", refuse)


def test_images_are_resized_as_the_field_does_it(files, offline, tmp_path):
    content, images, labels = files
    write(tmp_path, content)
    data = load(tmp_path)
    resize = torchvision.transforms.Resize(32)
    for part, split in (("train", data.train), ("test", data.test)):
        expected = np.stack([np.asarray(resize(Image.fromarray(i))) for i in images[part]])
        assert split.images.dtype == torch.uint8
        assert np.array_equal(split.images.permute(0, 2, 3, 1), expected)
        assert split.labels.tolist() == labels[part].tolist()
    assert (data.mean, data.std) == ((0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2712))
    assert (data.name, data.padding, data.flip) == ("stl10", 4, True)
    assert len(Loader(data, "train", 4, Loading())) == TRAIN // 4  # checks shapes and types


def test_other_sizes(files, offline, tmp_path):
    content, images, _ = files
    write(tmp_path, content)
    whole = load(tmp_path, 96)
    assert np.array_equal(whole.train.images.permute(0, 2, 3, 1), images["train"])
    assert whole.padding == 12
    half = load(tmp_path, 48)
    assert (half.image_size, half.padding) == (48, 6)
    with pytest.raises(UserError, match="7 x 7 are too small: use at least 8"):
        load(tmp_path, 7)


def test_class_names_are_the_published_ones(files, offline, tmp_path):
    """torchvision reads them from a file, and has none where that is absent."""
    names = "airplane bird car cat deer dog horse monkey ship truck"
    write(tmp_path, files[0])
    assert " ".join(load(tmp_path).classes) == names


def test_unlabelled_images_need_not_be_there(files, offline, tmp_path):
    write(tmp_path, files[0])
    with pytest.raises(RuntimeError, match="not found or corrupted"):
        THEIRS(tmp_path)
    assert len(load(tmp_path).train.labels) == TRAIN


def test_it_is_downloaded_once(files, monkeypatch, tmp_path):
    asked = []

    def download(url, root, **how):
        asked.append(url)
        write(tmp_path, files[0])

    monkeypatch.setattr(torchvision.datasets.stl10, "download_and_extract_archive", download)
    first, second = load(tmp_path), load(tmp_path)
    assert asked == [THEIRS.url]
    assert torch.equal(first.test.images, second.test.images)


def test_a_damaged_download_is_named(files, monkeypatch, tmp_path):
    """torchvision does not look at what it has downloaded."""
    content = files[0] | {"test_X.bin": bytes(len(files[0]["test_X.bin"]))}
    monkeypatch.setattr(
        torchvision.datasets.stl10,
        "download_and_extract_archive",
        lambda url, root, **how: write(tmp_path, content),
    )
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert "test_X.bin is damaged" in one_line(error)


@pytest.mark.parametrize("name", ["train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin"])
def test_a_truncated_file_is_named(files, offline, tmp_path, name):
    content = files[0] | {name: files[0][name][:-1]}
    folder = write(tmp_path, content)
    with pytest.raises(UserError) as error:
        load(tmp_path)
    assert f"STL10: {folder / name} is damaged" in one_line(error)


def test_absent_says_where_and_what_to_do(offline, tmp_path):
    with pytest.raises(UserError) as error:
        load(tmp_path / "nowhere")
    text = one_line(error)
    assert f"{tmp_path}/nowhere/stl10_binary/train_X.bin is missing" in text
    for words in ("no route to host", "stl10_binary.tar.gz", "--data_dir", "--dataset digits"):
        assert words in text


def test_flags():
    words = "--dataset stl10 --data-dir there --image_size 48"
    options = parse.parse_teacher(words.split())
    assert options.read(STL10.Options) == STL10.Options("there", 48)
    assert STL10.Options() == STL10.Options("./data", 32)


def test_a_probe_runs_on_it(files, offline, tmp_path, probed):
    write(tmp_path / "data", files[0])
    accuracy = probed(f"--dataset stl10 --data_dir {tmp_path / 'data'} --trial 1")
    assert 0 <= accuracy <= 100
    (folder,) = tmp_path.glob("save/linear_probe/*_to_stl10_epochs_1_trial_1")
    assert (folder / "wrn_16_2_last.pth").exists()
