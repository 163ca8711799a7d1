"""Tiny ImageNet: the data set, and the script that gets it, from a server that is started here."""

import hashlib
import io
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from contextlib import suppress
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import parse
from dataset import DATASETS
from dataset.loader import Loader, Loading
from helper.errors import UserError
from helper.vision import torchvision

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"  # as everybody who publishes a loader has it
SCRIPT = ROOT / "scripts" / "get_tinyimagenet.py"
CLASSES = ("n02", "n01")  # as in wnids.txt, which is not sorted
TinyImageNet = DATASETS["tinyimagenet"]


@cache
def jpeg(seed) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def published() -> dict[str, bytes]:
    """Path below tiny-imagenet-200/ -> content: 2 classes of 3 + 2 images, as it is published."""
    files = {"wnids.txt": "\n".join(CLASSES).encode(), "words.txt": b"n01\tfish\nn02\tbird\n"}
    rows = []
    for k, wnid in enumerate(CLASSES):
        for i in range(3):
            files[f"train/{wnid}/images/{wnid}_{i}.JPEG"] = jpeg(10 * k + i)
        files[f"train/{wnid}/{wnid}_boxes.txt"] = f"{wnid}_0.JPEG\t0\t0\t9\t9\n".encode()
        for i in range(2):
            name = f"val_{2 * i + k}.JPEG"  # classes take turns
            files[f"val/images/{name}"] = jpeg(10 * k + 5 + i)
            rows.append(f"{name}\t{wnid}\t0\t0\t9\t9\n")
    files["val/val_annotations.txt"] = "".join(rows).encode()
    files["test/images/test_0.JPEG"] = jpeg(99)
    return files


def arranged() -> dict[str, bytes]:
    """The same as the script leaves it."""
    files = published()
    kept = {name: files[name] for name in ("wnids.txt", "words.txt")}
    for k, wnid in enumerate(CLASSES):
        for i in range(3):
            kept[f"train/{wnid}/{wnid}_{i}.JPEG"] = jpeg(10 * k + i)
        for i in range(2):
            kept[f"val/{wnid}/val_{2 * i + k}.JPEG"] = jpeg(10 * k + 5 + i)
    return kept


def write_folder(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def read_folder(folder) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def write_zip(path, files, top=f"{NAME}/"):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def write_tar(path, files, top=f"./{NAME}/", mode=0o644):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size, member.mode = len(content), mode
            archive.addfile(member, io.BytesIO(content))
    return path


# The data set


@pytest.fixture
def root(tmp_path):
    return write_folder(tmp_path / NAME, arranged())


def load(folder, size=32):
    options = TinyImageNet.Options(str(folder), size, str(folder / "cache"))
    return TinyImageNet.load(options)


def resized(seed, size):
    image = Image.open(io.BytesIO(jpeg(seed)))
    return np.asarray(torchvision.transforms.Resize(size)(image)).transpose(2, 0, 1)


@pytest.mark.parametrize("size", [32, 64])
def test_contents(root, size):
    data = load(root.parent, size)
    train = np.stack([resized(seed, size) for seed in (10, 11, 12, 0, 1, 2)])
    test = np.stack([resized(seed, size) for seed in (15, 16, 5, 6)])
    assert data.classes == ("n01", "n02")
    assert np.array_equal(data.train.images, train)
    assert np.array_equal(data.test.images, test)
    assert data.train.labels.tolist() == [0] * 3 + [1] * 3
    assert data.test.labels.tolist() == [0] * 2 + [1] * 2
    assert (data.mean, data.std) == ((0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821))
    assert (data.name, data.padding, data.flip) == ("tinyimagenet", size // 8, True)
    assert len(Loader(data, "train", 2, Loading())) == 3  # checks shapes and types


def test_train_may_have_the_published_folders(tmp_path):
    """As scripts leave it that rearrange val/ only, with the table still there."""
    kept = {name: c for name, c in published().items() if not name.startswith("val/images/")}
    val = {name: c for name, c in arranged().items() if name.startswith("val/")}
    write_folder(tmp_path / NAME, kept | val)
    data = load(tmp_path)
    assert np.array_equal(data.train.images[3], resized(0, 32))
    assert (len(data.train.labels), len(data.test.labels)) == (6, 4)


def test_decoded_images_are_kept(root, monkeypatch):
    first = load(root.parent)
    monkeypatch.setattr("dataset.folder.decode", lambda *_: pytest.fail("decoded again"))
    again = load(root.parent)
    assert torch.equal(again.test.images, first.test.images)
    assert (again.name, again.mean) == (first.name, first.mean)


def complaint_of(folder, size=32) -> str:
    with pytest.raises(UserError) as error:
        load(folder, size)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_absent_says_what_to_run(tmp_path):
    folder = tmp_path / "my data"
    text = complaint_of(folder)
    assert text.startswith(f"no folder {folder}/{NAME}: run `sh data/get_tinyimagenet.sh")
    assert f"--to '{folder}'`" in text
    assert "--data_dir" in text


def test_published_folders_say_what_to_run(tmp_path):
    write_folder(tmp_path / NAME, published())
    text = complaint_of(tmp_path)
    assert f"{tmp_path}/{NAME}/val is as published" in text
    here = f"{tmp_path}/{NAME}"
    said = f"`mv {here} {here}.published && sh data/get_tinyimagenet.sh --to {tmp_path} --from "
    assert f"{said}{here}.published`" in text


def test_what_is_missing_is_named(root):
    shutil.rmtree(root / "val" / "n02")
    assert "differ in their classes (only in train: n02)" in complaint_of(root.parent)
    shutil.rmtree(root / "val")
    write_folder(root / "test", {"n01/0.JPEG": jpeg(0)})  # has no labels where it is published
    text = complaint_of(root.parent)
    assert f"no val/ in {root}: " in text
    assert "sh data/get_tinyimagenet.sh" in text
    (root / "val").mkdir()
    shutil.rmtree(root / "train")
    assert f"no train/ in {root}" in complaint_of(root.parent)


def test_too_small(root):
    assert "7 x 7 are too small: use at least 8" in complaint_of(root.parent, 7)


def test_flags():
    words = "--dataset tinyimagenet --data-dir there --image_size 64 --cache_dir kept"
    options = parse.parse_teacher(words.split())
    assert options.read(TinyImageNet.Options) == TinyImageNet.Options("there", 64, "kept")
    assert TinyImageNet.Options() == TinyImageNet.Options("./data", 32, "./data/cache")


# The script


@pytest.fixture
def get(tmp_path, monkeypatch, capfd):
    """Call the script in this process, which has torchvision, without a network -> what it did."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("TQDM_DISABLE", "")
    monkeypatch.setattr(tarfile.TarFile, "extraction_filter", None, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # it remembers the proxy
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    timeout = socket.getdefaulttimeout()

    def get(*words):
        monkeypatch.setattr(sys, "argv", ["get_tinyimagenet.py", *map(str, words)])
        monkeypatch.setattr(sys, "path", list(sys.path))
        capfd.readouterr()
        code = 0
        try:
            runpy.run_path(str(SCRIPT), run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return subprocess.CompletedProcess(words, code, *capfd.readouterr())

    yield get
    socket.setdefaulttimeout(timeout)


@pytest.fixture
def checkout(tmp_path):
    """The files of the script in a checkout of their own, without an environment."""
    folder = tmp_path / "a checkout"
    files = ("scripts/get_tinyimagenet.py", "helper/errors.py", "helper/vision.py")
    for name in ("data/get_tinyimagenet.sh", *files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def start(checkout, *words, python=sys.executable):
    """Start the shell script as a user does, from the folder above."""
    script = ["sh", "a checkout/data/get_tinyimagenet.sh", *words]
    env = {**os.environ, "PYTHON": python}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    # Ctrl-C counts also where the tests themselves run in the background, deaf to it.
    listen = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(script, cwd=checkout.parent, env=env, preexec_fn=listen, **pipes)


def ended(process):
    output = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, *output)


def refused(done) -> str:
    """The one line of a call that failed."""
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def write_source(kind, tmp_path, files):
    if kind == "zip":
        return write_zip(tmp_path / "x.zip", files)
    if kind == "tar.gz":
        return write_tar(tmp_path / "x.tar.gz", files)
    folder = write_folder(tmp_path / "x" / NAME, files)
    return folder if kind == "folder" else folder.parent


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "folder", "folder above"])
def test_arranged_from_what_is_there(get, tmp_path, kind):
    source = write_source(kind, tmp_path, published())
    before = read_folder(source) if source.is_dir() else source.read_bytes()
    first = get("--from", source.relative_to(tmp_path), "--to", "new/place")
    made = tmp_path / "new" / "place"
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"new/place/{NAME}: 2 classes, 10 images\n"
    assert read_folder(made) == {f"{NAME}/{name}": c for name, c in arranged().items()}
    assert [path.name for path in made.iterdir()] == [NAME]
    umask = os.umask(0)
    os.umask(umask)
    assert (made / NAME).stat().st_mode & 0o777 == 0o777 & ~umask  # others may read it
    assert (read_folder(source) if source.is_dir() else source.read_bytes()) == before

    changed = made / NAME / "train" / "n01" / "n01_0.JPEG"
    changed.write_bytes(b"mine")
    second = get("--from", source, "--to", "new/place")
    assert (second.returncode, second.stderr) == (0, "")
    assert second.stdout == f"new/place/{NAME} is there: nothing to do\n"
    assert changed.read_bytes() == b"mine"


def test_the_default_place_is_in_the_checkout(checkout, tmp_path):
    source = write_zip(tmp_path / "x.zip", published())
    done = ended(start(checkout, "--from", source.name))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(load(checkout / "data").test.labels) == 4
    shutil.rmtree(checkout / "data" / "cache")
    assert read_folder(checkout / "data" / NAME) == arranged()
    assert sorted(p.name for p in (checkout / "data").iterdir()) == ["get_tinyimagenet.sh", NAME]


def test_without_torchvision(checkout, tmp_path):
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    for python in (bare, tmp_path / "absent"):
        done = ended(start(checkout, "--to", "to", python=str(python)))
        assert f"{python} is not there or lacks torchvision: run sh scripts/s" in refused(done)


def test_train_without_images_folders_and_files_of_other_systems(get, tmp_path):
    files = {name: c for name, c in published().items() if not name.startswith("train/")}
    files |= {name: c for name, c in arranged().items() if name.startswith("train/")}
    files |= {"train/n01/._n01_0.JPEG": b"no image", "val/images/._val_0.JPEG": b"no image"}
    assert get("--from", write_zip(tmp_path / "x.zip", files), "--to", "to").returncode == 0
    assert read_folder(tmp_path / "to" / NAME) == arranged()


def test_something_else_under_the_name_is_left_alone(get, tmp_path):
    write_folder(tmp_path / "to" / NAME, {"train/n01/0.JPEG": b"mine", "val/other/1.JPEG": b""})
    source = write_zip(tmp_path / "x.zip", published())
    for words in (["--from", source], []):
        text = refused(get(*words, "--to", "to"))
        assert f"to/{NAME} is there and not arranged by class: move it away" in text
    assert (tmp_path / "to" / NAME / "train" / "n01" / "0.JPEG").read_bytes() == b"mine"


def without(part):
    return {name: c for name, c in published().items() if not name.startswith(part)}


def with_annotations(*change):
    files = published()
    files["val/val_annotations.txt"] = files["val/val_annotations.txt"].replace(*change)
    return files


BAD = {
    "train/ and val/: ['n01', 'n02']": without("train/"),
    "both train/ and val/: ['n01', 'n02']": without("val/images/"),
    f"no {NAME}/val/val_annotations.txt": without("val/val_annotations.txt"),
    "['n01', 'n02', 'none of val_0.JPEG']": without("val/val_a") | {"val/val_annotations.txt": b""},
    "'none of val_0.JPEG'": with_annotations(b"val_0.JPEG", b"val_9.JPEG"),
    "['none of val_0.JPEG']": with_annotations(b"0.JPEG\tn02", b"0.JPEG\t../n9"),
    "val/: ['n01']": with_annotations(b"\tn01", b"\tn02"),
    "lies outside": published() | {"train/../../../evil.JPEG": b"evil"},
}


@pytest.mark.parametrize("words", BAD)
def test_archives_with_something_wrong_inside(get, tmp_path, words):
    kind = "tar.gz" if list(BAD).index(words) % 2 else "zip"  # what comes behind is the same code
    source = write_source(kind, tmp_path, BAD[words])
    text = refused(get("--from", source, "--to", "new/place"))
    assert words in text
    assert str(source) in text
    assert not (tmp_path / "new").exists()
    assert not list(tmp_path.rglob("evil*"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-2000])


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def flip_checksum(path):
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # the last eight bytes are checksum and length
    path.write_bytes(content)


def link(path):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"{NAME}/train/n01")
        member.type, member.linkname = tarfile.SYMTYPE, "/tmp"
        archive.addfile(member)


DAMAGED = {
    "cut zip": ("x.zip", cut, "not a zip file"),
    "cut tar.gz": ("x.tar.gz", cut, "end"),
    "flipped bit of a zip": ("x.zip", flip, "Bad CRC-32"),
    "flipped bit of a tar.gz": ("x.tar.gz", flip, ""),
    "wrong checksum of a tar.gz": ("x.tar.gz", flip_checksum, "CRC check failed"),
    "text": ("x.zip", lambda path: path.write_text("<html>" * 200), "not a zip file"),
    "text as tar.gz": ("x.tar.gz", lambda path: path.write_text("<html>"), "not a gzip file"),
    "empty": ("x.zip", lambda path: path.write_bytes(b""), "not a zip file"),
    "absent": ("x.zip", Path.unlink, "No such file or directory"),
    "link": ("x.tar.gz", link, "is a link or lies outside"),
    "other zip": (
        "x.zip",
        lambda p: write_zip(p, published(), ""),
        f"no {NAME}/val/val_annotations.txt in it",
    ),
    "other tar.gz": (
        "x.tar.gz",
        lambda p: write_tar(p, published(), "y/"),
        f"no {NAME}/val/val_annotations.txt in it",
    ),
    "above zip": ("x.zip", lambda p: write_zip(p, published(), "../evil/"), "lies outside"),
    "absolute zip": ("x.zip", lambda p: write_zip(p, published(), "/evil/"), "lies outside"),
    "absolute tar": ("x.tar.gz", lambda p: write_tar(p, published(), "/evil/"), "lies outside"),
    "other folder": (
        "x",
        lambda path: shutil.move(path / NAME, path / "y"),
        f"no {NAME}/val/val_annotations.txt in it",
    ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives(get, tmp_path, case):
    name, damage, words = DAMAGED[case]
    write_source(name[2:] or "folder above", tmp_path, published())
    damage(tmp_path / name)
    text = refused(get("--from", name, "--to", "new/place"))
    assert words in text
    assert text.startswith(f"error: {name}: ")
    assert not (tmp_path / "new").exists()


def test_what_was_there_before_an_error_stays(get, tmp_path):
    write_folder(tmp_path / "to", {"mine": b"1"})
    (tmp_path / "empty").mkdir()
    for place in ("to", "empty"):
        refused(get("--from", write_zip(tmp_path / "x.zip", {}), "--to", place))
    assert read_folder(tmp_path / "to") == {"mine": b"1"}
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--form", "x"], "unrecognized arguments: --form x"),
        (["--fro", "x"], "unrecognized arguments: --fro x"),
        (["x.zip"], "unrecognized arguments: x.zip"),
        (["--from"], "argument --from: expected one argument"),
    ],
)
def test_bad_command_lines(get, tmp_path, words, says):
    text = refused(get(*words))
    assert says in text
    assert "see --help" in text
    assert not list(tmp_path.rglob(NAME))


def test_help(get):
    done = get("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--from FILE_OR_FOLDER" in done.stdout


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_call_that_is_ended_leaves_nothing(checkout, tmp_path, number, code):
    os.mkfifo(tmp_path / "x.tar.gz")  # reading it waits for ever
    call = start(checkout, "--from", "x.tar.gz", "--to", "to")
    handle, until = None, time.monotonic() + 60
    try:
        while handle is None:
            assert time.monotonic() < until
            time.sleep(0.01)
            with suppress(OSError):  # nobody reads it yet
                handle = os.open(tmp_path / "x.tar.gz", os.O_WRONLY | os.O_NONBLOCK)
        assert list(tmp_path.glob(f".{NAME}-*"))
        call.send_signal(number)
        done = ended(call)
    finally:
        call.kill()
        os.close(handle)
    assert (done.returncode, done.stderr) == (code, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a checkout", "x.tar.gz"]


def test_an_archive_does_not_choose_the_modes_of_files(get, tmp_path):
    """torchvision leaves that to tarfile, which obeys the archive unless it is given a filter."""
    if not hasattr(tarfile, "data_filter"):
        pytest.skip("a Python without filters")
    source = write_tar(tmp_path / "x.tar.gz", published(), mode=0o6777)
    assert get("--from", source, "--to", "to").returncode == 0
    image = tmp_path / "to" / NAME / "train" / "n01" / "n01_0.JPEG"
    assert image.stat().st_mode & 0o7777 == 0o755


# The script's download, through a proxy on this machine


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the first `cut` bytes (None: all) of the server's content."""

    def do_GET(self):
        self.server.asked.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(get, monkeypatch):
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked, server.cut = b"", [], None
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_port}")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def checksum(monkeypatch):
    """Let the checksum of the published archive be that of these bytes."""

    def checksum(content):
        real = torchvision.datasets.utils.check_md5
        ours = hashlib.md5(content).hexdigest()
        check = lambda path, md5: real(path, {MD5: ours}[md5])  # noqa: E731
        monkeypatch.setattr(torchvision.datasets.utils, "check_md5", check)

    return checksum


def test_download(get, tmp_path, server, checksum):
    server.content = write_zip(tmp_path / "x.zip", published()).read_bytes()
    checksum(server.content)
    done = get("--to", "to")
    assert done.returncode == 0, done.stderr
    assert {*server.asked} == {URL}
    assert read_folder(tmp_path / "to") == {f"{NAME}/{name}": c for name, c in arranged().items()}
    server.asked.clear()
    assert "nothing to do" in get("--to", "to").stdout
    assert not server.asked


def last_line(done) -> str:
    """The one line of a download that failed, behind its progress."""
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert line == done.stderr.splitlines()[-1]
    return line


@pytest.mark.parametrize("kind", ["page", "cut", "other zip"])
def test_a_bad_download_is_not_kept(get, tmp_path, server, checksum, kind):
    content = write_zip(tmp_path / "x.zip", published()).read_bytes()
    server.content = b"<html>log in</html>" if kind == "page" else content
    server.cut = 5000 if kind == "cut" else None
    if kind == "other zip":
        content += b"!"
    checksum(content)
    text = last_line(get("--to", "to"))
    assert text.startswith(f"error: {URL}: File not found or corrupted.; download it elsewhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.zip"]


def test_offline(get, tmp_path):
    text = refused(get("--to", "to"))
    assert text.startswith(f"error: {URL}: <urlopen error")
    assert "Connection refused" in text
    assert text.endswith("download it elsewhere and give it with --from\n")
    assert list(tmp_path.iterdir()) == []


def test_a_probe_runs_on_it(root, tmp_path, probed):
    accuracy = probed(f"--dataset tinyimagenet --data_dir {tmp_path} --trial 1")
    assert accuracy in (0, 25, 50, 75, 100)  # of four test images
    assert len(list(tmp_path.glob("save/linear_probe/*_to_tinyimagenet_epochs_1_*trial_1"))) == 1
