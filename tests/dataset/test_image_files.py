"""Files and folders that are not what a data set of images should hold."""

import math
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image, TiffImagePlugin

from dataset import DATASETS
from dataset.fingerprint import fingerprint
from dataset.folder import MAX_BYTES, Folder, cpu_count, open_image
from helper.errors import UserError

SETS = ("folder", "imagenet")


def picture(path: Path, size=(12, 12), **how) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*reversed(size), 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return path


@pytest.fixture
def root(tmp_path):
    """train/ and val/ of two classes with an image each."""
    for name in ("train/ant", "train/cat", "val/ant", "val/cat"):
        picture(tmp_path / "set" / name / "0.png")
    return tmp_path / "set"


def load(name, root):
    where = {"data_dir": str(root), "image_size": 16, "cache_dir": str(root.parent / "cache")}
    return DATASETS[name].load(DATASETS[name].Options(**where))


def refused(path: Path, **how) -> str:
    with pytest.raises(UserError) as error:
        open_image(str(path), **how)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    return text


# Single files


@pytest.mark.parametrize("kind", ["EPS", "TGA", "PCX", "ICO", "ICNS", "JPEG2000"])
def test_only_formats_of_the_list_are_opened(kind, tmp_path, monkeypatch):
    def reached(*_, **__):
        pytest.fail("Ghostscript would be run")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", reached)
    path = picture(tmp_path / "a.png", (16, 16), format=kind)
    assert "in none of the formats BMP, GIF, JPEG" in refused(path)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
def test_a_format_of_the_list_may_have_another_suffix(kind, tmp_path):
    assert open_image(str(picture(tmp_path / "a.JPEG", format=kind))).size == (12, 12)


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "zero.png").symlink_to("/dev/zero")
    (tmp_path / "folder.png").mkdir()
    for name in ("pipe.png", "zero.png", "folder.png"):
        assert "is no regular file: remove it" in refused(tmp_path / name)
    picture(tmp_path / "0.png")
    (tmp_path / "link.png").symlink_to("0.png")
    assert open_image(str(tmp_path / "link.png")).size == (12, 12)


def test_files_that_cannot_be_read_say_why(tmp_path, monkeypatch):
    assert "No such file" in refused(tmp_path / "absent.png")
    (tmp_path / "loop.png").symlink_to("loop.png")
    assert "Too many levels of symbolic links" in refused(tmp_path / "loop.png")
    assert "File name too long" in refused(tmp_path / f"{'a' * 300}.png")
    (tmp_path / "empty.png").touch()
    assert "none of the formats" in refused(tmp_path / "empty.png")


def test_a_file_too_large_for_an_image_is_not_read(tmp_path):
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    assert "has 2,147,483,649 bytes, too many for an image" in refused(path)


def png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel that says how large it is, and has no pixels."""
    parts = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0), b"IDAT", b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
        for part in parts
    )


def test_too_many_pixels_are_not_decoded(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(20_000, 20_000))
    assert "400000000 pixels" in refused(path)


def test_an_image_too_long_to_be_scaled(tmp_path):
    path = tmp_path / "thin.png"
    Image.new("1", (1_000_000, 1)).save(path)
    assert open_image(str(path)).size == (1_000_000, 1)
    assert "1000000 x 1 has too many pixels once its shorter side is 64" in refused(
        path, shorter=64
    )
    assert open_image(str(picture(path, (500, 3))), shorter=64).size == (500, 3)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (4000, 5)])
def test_odd_sizes_are_scaled_and_cut(size, tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        picture(tmp_path / "set" / name / "0.png", size)
    data = load("folder", tmp_path / "set")
    assert data.train.images.shape == (2, 3, 16, 16)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "I;16", "F"])
def test_every_mode_is_read_as_rgb(mode, tmp_path):
    grey = np.full((9, 9), 200)
    wide = {"I;16": (grey * 257).astype(np.uint16), "F": (grey / 255).astype(np.float32)}
    image = Image.fromarray(wide.get(mode, grey.astype(np.uint8)))
    image = image if mode in wide else image.convert("RGB").convert(mode)
    image.save(tmp_path / "a.tiff")
    pixels = np.asarray(open_image(str(tmp_path / "a.tiff")))
    assert pixels.shape == (9, 9, 3)
    assert abs(pixels.mean() - 200) < (56 if mode == "1" else 5)


@pytest.mark.parametrize("bits", [">u2", "<u2"])
def test_grey_of_16_bits_is_scaled_by_its_range(bits, tmp_path):
    for suffix in ("png", "tiff"):
        Image.fromarray(np.array([[0, 257, 65535]], dtype=bits)).save(tmp_path / f"a.{suffix}")
        assert np.asarray(open_image(str(tmp_path / f"a.{suffix}")))[0, :, 0].tolist() == [
            0,
            1,
            255,
        ]
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 1000\n" + np.array([500, 1000], ">u2").tobytes())
    assert np.asarray(open_image(str(tmp_path / "a.pgm")))[0, :, 0].tolist() == [128, 255]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([[0.0, 1.5]], np.float32), "floats from 0 to 1.5, not from 0 to 1"),
        (np.array([[-1.0, 1.0]], np.float32), "floats from -1 to 1"),
        (np.array([[0.0, np.nan]], np.float32), "floats from nan to nan"),
        (np.array([[0, 255]], np.int32), "whole numbers of 32 bits or with a sign: save"),
    ],
)
def test_numbers_whose_range_nobody_says_are_refused(values, words, tmp_path):
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert words in refused(tmp_path / "a.tiff")


def test_signed_numbers_are_refused(tmp_path):
    image = Image.fromarray(np.array([[0, 255]], np.uint16))
    image.save(tmp_path / "a.tiff", tiffinfo={TiffImagePlugin.SAMPLEFORMAT: 2})
    assert "32 bits or with a sign: save it with 8 or 16, without" in refused(tmp_path / "a.tiff")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_turned_as_their_exif_says(kind, orientation, tmp_path):
    corners = np.zeros((16, 24, 3), np.uint8)
    corners[:8, :8] = 255, 0, 0
    corners[:8, 16:] = 0, 0, 255
    stored = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the inverse transposition, of Pillow
    image = Image.fromarray(corners)
    image = image.transpose(stored[orientation]) if orientation > 1 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", format=kind, exif=exif)
    seen = np.asarray(open_image(str(tmp_path / "a.png"))).astype(int)
    assert seen.shape == corners.shape
    assert abs(seen - corners).mean() < 12


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_pixels(tmp_path):
    plain = picture(tmp_path / "a.png", format="JPEG")
    damaged = picture(
        tmp_path / "b.png", format="JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01"
    )
    assert np.array_equal(*(np.asarray(open_image(str(path))) for path in (plain, damaged)))


def test_a_jpeg_is_read_as_pillow_reads_it(tmp_path):
    path = picture(tmp_path / "a.jpg", (33, 47))
    assert np.array_equal(np.asarray(open_image(str(path))), np.asarray(Image.open(path)))


@pytest.mark.parametrize("mode", ["LA", "RGBA", "P"])
def test_what_is_transparent_is_white(mode, tmp_path):
    image = Image.new("RGBA", (2, 1), (100, 100, 100, 255))
    image.putpixel((0, 0), (0, 0, 0, 0))
    if mode == "P":
        image = Image.fromarray(np.array([[1, 0]], np.uint8), "L").convert("P")
        image.putpalette([100, 100, 100, 0, 0, 0])
        image.save(tmp_path / "a.png", transparency=1)
    else:
        image.convert(mode).save(tmp_path / "a.png")
    assert np.asarray(open_image(str(tmp_path / "a.png")))[0, :, 0].tolist() == [255, 100]


def test_grey_of_16_bits_is_white_where_it_is_transparent(tmp_path):
    grey = np.array([[0, 256, 257]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=257)
    assert np.asarray(open_image(str(tmp_path / "a.png")))[0, :, 0].tolist() == [0, 1, 255]


# Folders


@pytest.mark.parametrize("name", SETS)
def test_hidden_files_and_folders_are_no_classes_and_no_images(name, root):
    before = fingerprint(load(name, root))
    (root / "train" / ".DS_Store").touch()
    picture(root / "val" / ".ipynb_checkpoints" / "0.png")
    picture(root / "train" / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png")
    picture(root / "train" / "ant" / "._0.png")
    assert fingerprint(load(name, root)) == before


@pytest.mark.parametrize("name", SETS)
def test_a_link_to_a_folder_around_it_is_left_out(name, root):
    before = fingerprint(load(name, root))
    ant = root / "train" / "ant"
    (ant / "itself").symlink_to(".")
    (ant / "all").symlink_to(root)
    (ant / "again").symlink_to(ant)
    assert fingerprint(load(name, root)) == before
    picture(root.parent / "elsewhere" / "1.png")
    (root.parent / "elsewhere" / "back").symlink_to(ant)
    for link in ("one", "two"):
        (ant / link).symlink_to(root.parent / "elsewhere")
    assert len(load(name, root).train.labels) == 4


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("place", ["train", "ant"])
def test_a_folder_that_cannot_be_read_says_why(name, place, root, monkeypatch):
    def denied(real):
        def read(path="."):
            if os.path.basename(path) == place:
                raise PermissionError(13, "Permission denied", os.fspath(path))
            return real(path)

        return read

    with monkeypatch.context() as patch:
        for function in ("listdir", "scandir"):
            patch.setattr(os, function, denied(getattr(os, function)))
        with pytest.raises(UserError, match=f"cannot read .*{place}: Permission denied$"):
            load(name, root)


@pytest.mark.parametrize("name", [*SETS, "tinyimagenet", "cifar100", "stl10"])
def test_a_folder_of_too_long_a_name(name):
    entry = DATASETS[name]
    with pytest.raises(UserError, match="aaa.*File name too long"):
        entry.load(entry.Options(data_dir="a" * 300))


def test_more_images_than_fit_in_memory(root, monkeypatch):
    monkeypatch.setattr("dataset.base.LARGEST_SIZE", 10**8)
    monkeypatch.setattr("dataset.folder.host_memory", lambda: math.inf)
    where = Folder.Options(str(root), 10**7, str(root.parent / "cache"))
    with pytest.raises(UserError, match="4 images of 10000000 x 10000000 do not fit in memory"):
        Folder.load(where)


@pytest.mark.parametrize("name", SETS)
def test_names_of_any_bytes_and_of_full_length(name, root):
    names = {"ant": b"\xff\xfe", "cat": "é".encode() * 127}
    for split in ("train", "val"):
        for old, new in names.items():
            folder = os.path.join(os.fsencode(root / split), new)
            os.rename(root / split / old, folder)
            os.rename(os.path.join(folder, b"0.png"), os.path.join(folder, b"\x80" * 251 + b".png"))
    data = load(name, root)
    assert [os.fsencode(known) for known in data.classes] == sorted(names.values())
    assert len(fingerprint(data)) == 64


# Processes


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5, 7}, raising=False)
    assert cpu_count() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpu_count() == 64
