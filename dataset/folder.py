"""Any images on disk, in the layouts of `dataset.layout`, decoded and kept in memory.

Decoded images are kept in a cache file. Its name is a hash of the names, sizes and times of change
of all image files, so a changed pixel is never answered with an old file. N images of S x S.
"""

import concurrent.futures
import contextlib
import hashlib
import io
import math
import multiprocessing
import os
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dataset import DATASETS
from dataset.base import (
    DataSet,
    DataSource,
    Split,
    StreamedSet,
    check_image_size,
    mean_and_std,
    mean_and_std_of,
)
from dataset.layout import (
    SPLITS,
    Files,
    Layout,
    SplitOptions,
    find_files,
    name_of,
    print_note,
    reading,
)
from dataset.subset import part_of
from helper.errors import UserError
from helper.options import option, positive

if TYPE_CHECKING:  # Pillow is imported where an image is read, which a command's --help never does
    from PIL import Image

T = TypeVar("T")
# What images take at most of the machine's memory unless told to; each process has its own copy.
SHARE = 1 / 8
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_LIMITS = {"": "memory.max", "memory": "memory.limit_in_bytes"}  # v2 and v1
MAX_SIZE = 64  # default size of larger images: the data set has to fit in memory
DECODING_VERSION = 3  # raised when decoding changes: older cache files are not read
DECODE_BATCH = 64  # images that a process decodes at a time
# Pillow would open others as well, PostScript with a program of its own
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
HASH_CONTENT = "know files again by a hash of their content, which reads all of them"
SKIP_THEM = ", or skip such files with --skip_corrupt"
MAX_BYTES = 1 << 31  # of a file: more is no image
MAX_PIXELS = 1 << 27  # of an image whose shorter side has been scaled


class Decoded(NamedTuple):
    """What N files hold."""

    images: np.ndarray  # (M, 3, S, S) uint8, of those that are images
    readable: np.ndarray  # (N,) bool, M of them true

    def is_of(self, n: int) -> bool:
        """Whether it is whole, and of n files."""
        fits = self.images.ndim == 4 and len(self.readable) == n
        fits = fits and len(self.images) == self.readable.sum()
        return fits and (self.images.dtype, self.readable.dtype) == (np.uint8, bool)


class Survey(NamedTuple):
    """What is known of N files without their pixels."""

    counts: np.ndarray  # (3, 256) int64: pixels of each value in all images, scaled and cut
    readable: np.ndarray  # (N,) bool

    def is_of(self, n: int) -> bool:
        """Whether it is whole, and of n files."""
        shapes, types = (self.counts.shape, self.readable.shape), (np.int64, bool)
        return shapes == ((3, 256), (n,)) and (self.counts.dtype, self.readable.dtype) == types


@DATASETS.register("folder")
class Folder(DataSource):
    """Any images: a folder a class, in train/ and val/ or test/ or not split, or a CSV file.

    Class names are those of the folders; mean and std are inferred from the training images.
    """

    @dataclass(frozen=True)
    class Options(SplitOptions):
        data_dir: str = option(
            "./data",
            "folder of folders CLASS, or of train/ and val/ or test/, or a CSV of path,label",
        )
        image_size: int | None = option(
            None,
            "side of the squares that images are scaled and cut to (default: the one size that all "
            f"of them have, {MAX_SIZE} at most)",
            parse=positive,
        )
        cache_dir: str = option("./data/cache", "folder for decoded images")
        crop: str = option(
            "padded", "crops to train on: of the image with a black border; or of 8 to 100 % of an "
            "image, resized", choices=("padded", "resized"), added=True,
        )  # fmt: skip
        flip: bool = option(True, "flip half of the training images", added=True)
        skip_corrupt: bool = option(
            False, "leave out files that are no images, and name them", added=True
        )
        hash_content: bool = option(False, HASH_CONTENT, added=True)
        in_memory: str = option(
            "auto", "keep decoded images in memory, or read files as a run trains: on, off, or "
            "auto, on where they take at most an eighth of the machine's",
            choices=("auto", "on", "off"), added=True,
        )  # fmt: skip

    @staticmethod
    def load(options: Options) -> DataSet | StreamedSet:
        size = options.image_size
        if size is not None:
            check_image_size(size)
        layout = find_files(options.data_dir, options)
        splits = [files for files in layout[1:] if files]  # train, test, val
        if not fits_in_memory(sum(len(files.paths) for files in splits), options):
            return streamed(layout, options)
        key = content_key(splits, size, options.hash_content)
        cache = Path(options.cache_dir) / f"folder-{key}.npz"
        paths = [path for files in splits for path in files.paths]
        kept = read_cache(cache, Decoded, len(paths))
        decoded = kept or decode(paths, size)
        report_corrupt(paths, decoded.readable, decoded.images.shape[-1], options.skip_corrupt)
        if not kept:
            write_cache(cache, decoded)
        train, test, *val = to_splits(decoded, splits, layout.classes)
        mean, std = mean_and_std(train.images)
        data = DataSet(Folder.called(options), train, test, layout.classes, mean, std)
        return replace(
            data,
            padding=data.image_size // 8,
            flip=options.flip,
            resized=options.crop == "resized",
            val=val[0] if val else None,
        )

    @staticmethod
    def called(options: Options) -> str:
        return name_of(options.data_dir)


def to_splits(decoded: Decoded, splits: list[Files], classes: tuple[str, ...]) -> list[Split]:
    """The readable images of each split; UserError where a class has none to train on."""
    labels = torch.cat([files.labels for files in splits])  # (N,)
    sizes = [len(files.labels) for files in splits]
    readable = torch.from_numpy(decoded.readable)
    counts = [int(part.sum()) for part in readable.split(sizes)]
    images = torch.from_numpy(decoded.images).split(counts)
    found = [Split(*pair) for pair in zip(images, labels[readable].split(counts))]
    check_enough([split.labels for split in found], splits, classes)
    return found


def check_enough(labels: list[Tensor], splits: list[Files], classes: tuple[str, ...]) -> None:
    """UserError unless readable images of these labels are enough to train and to test on."""
    for label, n in enumerate(labels[0].bincount(minlength=len(classes)).tolist()):
        if not n:
            raise UserError(f"no readable image of class {classes[label]} to train on")
    for own, files in zip(labels, splits):
        if not len(own):
            raise UserError(f"no readable image to test on below {files.root}")


def fits_in_memory(n: int, options: Folder.Options) -> bool:
    """Whether n images are to be kept in memory.

    It is decided by the memory that there is, not by what is free: a run that goes on later, and
    another process of it, have to decide alike. Without a size it is the largest that is kept then.
    """
    size, chosen = options.image_size or MAX_SIZE, options.in_memory
    needed, there = 3 * n * size**2, host_memory()
    takes = f"{n:,} images of {size} x {size} take {needed / 1e9:,.1f} GB"
    if chosen == "on" and needed > there:
        raise UserError(
            f"--in_memory on: {takes}, and there are {there / 1e9:,.1f}: give a smaller "
            "--image_size, or --in_memory off"
        )
    if chosen == "on" or (chosen == "auto" and needed <= SHARE * there):
        return True
    much = f"{takes}, more than an eighth of {there / 1e9:,.1f}"
    if options.image_size is None:
        why = much if chosen == "auto" else "--in_memory off"
        raise UserError(f"{why}: give the size to train at with --image_size")
    if chosen == "auto":
        print_note(f"{much}: see --in_memory")
    return False


def host_memory() -> float:
    """Bytes of memory that this machine has, or its cgroups allow; without end if unknown."""
    if not hasattr(os, "sysconf"):
        return math.inf
    return min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *cgroup_limits())


def cgroup_limits() -> list[int]:
    """Bytes that each control group around this process allows it: a container's, a scheduler's."""
    limits = [sys.maxsize]
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, own = line.split(":", 2)
            if file := CGROUP_LIMITS.get(controllers):
                inner = CGROUPS / controllers / own.lstrip("/")
                for folder in (inner, *inner.parents):
                    with contextlib.suppress(OSError, ValueError):  # absent, or "max"
                        limits.append(int((folder / file).read_text()))
    return limits


def streamed(layout: Layout, options: Folder.Options) -> StreamedSet:
    """The data set with its files read as a run trains, in the crops that it has in memory."""
    size = options.image_size
    layout, known = without_corrupt(layout, options)
    mean, std = mean_and_std_of(torch.from_numpy(known["train"].counts))
    padding = size // 8 if options.crop == "padded" else 0
    more = {"padding": padding, "flip": options.flip, "hash_content": options.hash_content}
    return StreamedSet(
        Folder.called(options), **layout._asdict(), mean=mean, std=std, image_size=size, **more
    )


def without_corrupt(
    layout: Layout, options: Any, names: Sequence[str] = SPLITS
) -> tuple[Layout, dict[str, Survey]]:
    """The layout without the files of these splits that are no images, and what is known of each.

    Such files are named and counted, or a UserError unless they are to be skipped.
    """
    splits = {name: files for name in names if (files := getattr(layout, name))}
    known = {}
    for name, files in splits.items():
        known[name] = survey(files, options)
        readable = known[name].readable
        if readable.all():  # as it is: a million names are not copied
            continue
        report_corrupt(
            list(files.paths), readable, options.image_size, options.skip_corrupt, SKIP_THEM
        )
        splits[name] = part_of(files, torch.from_numpy(readable).nonzero()[:, 0])
    layout = layout._replace(**splits)
    every = [files for files in layout[1:] if files]
    check_enough([files.labels for files in every], every, layout.classes)
    return layout, known


def survey(files: Files, options: Any) -> Survey:
    """What is known of a split's files: they are all read once, and it is kept in `cache_dir`."""
    size, n = options.image_size, len(files.paths)
    key = content_key([files], size, options.hash_content)
    cache = Path(options.cache_dir) / f"survey-{key}.npz"
    if kept := read_cache(cache, Survey, n):
        return kept
    parts = list(in_groups(partial(survey_group, size=size), list(files.paths), "reading"))
    counts, readable = zip(*parts)
    found = Survey(sum(counts), np.concatenate(readable))
    write_cache(cache, found)
    return found


def survey_group(paths: list[str], size: int) -> Survey:
    counts, readable = np.zeros((3, 256), np.int64), np.zeros(len(paths), bool)
    for i, path in enumerate(paths):  # one at a time, since they may be large
        images, readable[i : i + 1] = decode_group([path], size, None)
        channels = images.swapaxes(0, 1).reshape(3, -1)
        counts += np.stack([np.bincount(x, minlength=256) for x in channels])
    return Survey(counts, readable)


def content_key(splits: list[Files], size: int | None, by_content: bool = False) -> str:
    """A hash of all that the decoded images depend on: image size, and of each file its name, its
    size and when it was changed (ctime as well, which nobody can set), or a hash of its content; no
    other file is read."""
    total = hashlib.sha256(f"{DECODING_VERSION} {MAX_SIZE} {size}".encode())
    for files in splits:
        total.update(b"%d\0" % len(files.paths))
        marks = content_hashes(files.paths) if by_content else map(size_and_times, files.paths)
        for path, mark in zip(files.paths, marks):
            total.update(b"%b\0%b\0" % (os.fsencode(path.removeprefix(files.root)), mark))
    return total.hexdigest()[:32]


def size_and_times(path: str) -> bytes:
    """What tells a file from what it was; nothing of one that cannot be read."""
    try:
        known = os.stat(path)
    except OSError:
        return b""
    return b"%d %d %d" % (known.st_size, known.st_mtime_ns, known.st_ctime_ns)


def content_hashes(paths: Sequence[str]) -> Iterator[bytes]:
    """sha256, in hex, of each file; nothing of one that cannot be read."""
    return chain.from_iterable(in_groups(hash_group, list(paths), "hashing"))


def hash_group(paths: list[str]) -> list[bytes]:
    hashes = [b""] * len(paths)
    for i, path in enumerate(paths):
        with contextlib.suppress(UserError):
            hashes[i] = hashlib.sha256(read_file(path)).hexdigest().encode()
    return hashes


def in_groups(work: Callable[[list[str]], T], paths: list[str], title: str) -> Iterator[T]:
    """What `work` makes of some files at a time, in several processes, below a progress bar."""
    groups = [paths[i : i + DECODE_BATCH] for i in range(0, len(paths), DECODE_BATCH)]
    bar = tqdm(total=len(paths), desc=title, unit="file", disable=None)
    with bar, worker_pool() as pool:
        for group, found in zip(groups, pool.map(work, groups)):
            yield found
            bar.update(len(group))


def read_file(path: str) -> bytes:
    """All of a regular file: a pipe or a device may have no end. UserError for any other."""
    with reading(path):
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise UserError(f"{path} is no regular file: remove it")
        if status.st_size > MAX_BYTES:
            raise UserError(
                f"{path} has {status.st_size:,} bytes, too many for an image: remove it"
            )
        with open(path, "rb") as file:
            return file.read()


def decode(paths: list[str], size: int | None) -> Decoded:
    """All images of so many files. Without a size, all of them must have the same one."""
    common = None
    if size is None:
        common = first_size(paths)
        size = min(*common, MAX_SIZE)
        check_image_size(size)
        if min(common) > MAX_SIZE:
            width, height = common
            print_note(f"images of {width} x {height} become {size} x {size}; see --image_size")
    work = partial(decode_group, size=size, common=common)
    try:
        images = np.empty((len(paths), 3, size, size), dtype=np.uint8)
    except (MemoryError, ValueError):
        raise UserError(
            f"{len(paths):,} images of {size} x {size} do not fit in memory: give a smaller "
            "--image_size, with --in_memory off to read them as a run trains"
        ) from None
    masks, done = [], 0
    for part in in_groups(work, paths, "decoding"):
        images[done : done + len(part.images)] = part.images
        masks.append(part.readable)
        done += len(part.images)
    return Decoded(images[:done], np.concatenate(masks))


def first_size(paths: list[str]) -> tuple[int, int]:
    """Width and height of the first image that can be read; UserError where there is none."""
    for path in paths[:-1]:
        with contextlib.suppress(UserError):
            return open_image(path).size
    return open_image(paths[-1]).size


def report_corrupt(
    paths: list[str], readable: np.ndarray, size: int, skip: bool, advice: str = ""
) -> None:
    """Name and count the files that are no images; UserError where they are not to be skipped."""
    corrupt = [path for path, known in zip(paths, readable) if not known]
    count = f"{len(corrupt)} of {len(paths)} files are no images"
    for path in corrupt:
        try:
            open_image(path, size)
        except UserError as error:
            if not skip:
                raise UserError(f"{error}{advice}; {count}") from error
            print_note(f"skipped: {error}")
    if corrupt:
        print_note(f"{count} and were skipped")


def cpu_count() -> int:
    """Cores that this process may use: a scheduler may have given it fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_pool() -> concurrent.futures.Executor:
    """A process for each core, or threads where processes cannot fork (slower: the GIL is busy)."""
    if "fork" in multiprocessing.get_all_start_methods():
        fork = multiprocessing.get_context("fork")
        return concurrent.futures.ProcessPoolExecutor(cpu_count(), fork)
    return concurrent.futures.ThreadPoolExecutor(cpu_count())


def decode_group(paths: list[str], size: int, common: tuple[int, int] | None) -> Decoded:
    """A few images; UserError if one has not the `common` size, if given."""
    images, readable = np.empty((len(paths), 3, size, size), np.uint8), np.zeros(len(paths), bool)
    for i, path in enumerate(paths):
        try:
            image = open_image(path, size)
        except UserError:
            continue  # `report_corrupt` says why
        if common and image.size != common:
            raise UserError(
                f"images differ in size ({path} is {image.size[0]} x {image.size[1]}, the first is "
                f"{common[0]} x {common[1]}): give --image_size"
            )
        images[i] = np.asarray(resize_and_center_crop(image, size)).transpose(2, 0, 1)
        readable[i] = True
    return Decoded(images[readable], readable)


def open_image(path: str, shorter: int = 0) -> "Image.Image":
    """A decoded RGB image; UserError that names the file if that is impossible.

    `shorter` is the length that its shorter side will be scaled to, 0 where it will not.
    """
    from PIL import Image, UnidentifiedImageError

    data = read_file(path)
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)  # checks the number of pixels
        if shorter**2 * max(image.size) > MAX_PIXELS * min(image.size):
            size = " x ".join(map(str, image.size))
            raise ValueError(f"{size} has too many pixels once its shorter side is {shorter}")
        image.load()
        return as_rgb(upright(image))
    except Exception as error:  # decoders raise whatever they like about a damaged file
        known = not isinstance(error, UnidentifiedImageError)
        unknown = f"in none of the formats {', '.join(FORMATS)}"
        reason = " ".join(str(error).split()) if known else unknown
        raise UserError(f"{path} is no readable image ({reason}): repair or remove it") from error


def upright(image: "Image.Image") -> "Image.Image":
    """An image as its EXIF orientation says; where that is damaged, as it is stored."""
    from PIL import ExifTags, ImageOps

    try:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
        return ImageOps.exif_transpose(image) if turned else image
    except Exception:  # readers of EXIF raise whatever they like, and the pixels are there
        return image


def as_rgb(image: "Image.Image") -> "Image.Image":
    """An image in RGB, on white where it is transparent."""
    from PIL import Image

    if image.mode == "F" or image.mode.startswith("I"):  # convert() would cut them off at 255
        image = Image.fromarray(as_bytes(image))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def as_bytes(image: "Image.Image") -> np.ndarray:
    """Grey of 16 bits, or of floats from 0 to 1, as (H, W) uint8, white where it is transparent;
    ValueError for other numbers."""
    values = np.asarray(image)
    if image.mode == "I" and image.format == "TIFF":  # elsewhere it has 16 bits
        raise ValueError("whole numbers of 32 bits or with a sign: save it with 8 or 16, without")
    if image.mode != "F":
        grey = (values >> 8).astype(np.uint8)
        grey[values == image.info.get("transparency", -1)] = 255
        return grey
    if not (values.min() >= 0 and values.max() <= 1):  # NaN is refused as well
        raise ValueError(f"floats from {values.min():g} to {values.max():g}, not from 0 to 1")
    return (255 * values).round().astype(np.uint8)


def resize_and_center_crop(image: "Image.Image", size: int) -> "Image.Image":
    """Resize the shorter side to `size`, then crop a square of that size from the center."""
    from PIL.Image import Resampling

    width, height = image.size
    if min(width, height) != size:
        scale = size / min(width, height)
        width, height = max(size, round(width * scale)), max(size, round(height * scale))
        image = image.resize((width, height), Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def read_cache(path: Path, kind: type[T], n: int) -> T | None:
    """What is kept of n files, or None if the file is absent or (with a note) broken."""
    if not os.path.exists(path):
        return None
    try:
        with np.load(path, allow_pickle=False) as stored:  # checks the checksum of each array
            found = kind(*(stored[name] for name in kind._fields))
        if found.is_of(n):
            return found
        problem = "is broken (unexpected content)"
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
    except Exception as error:  # whatever readers of a damaged file raise
        problem = f"is broken ({error})"
    print_note(f"cache file {path} {problem}: decoding the images again")
    return None


def write_cache(path: Path, found: Decoded | Survey) -> None:
    """Write under another name and rename, so that no reader ever sees half a file."""
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = Path(file.name)
            np.savez(file, **found._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        print_note(f"what was read is not kept in {path}: {error}")
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
