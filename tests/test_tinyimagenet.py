"""Tiny ImageNet: the data set, and the script that gets it, from a server that is started here."""

import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cli import parse
from dataset import DATASETS
from dataset.loader import Loader
from helper.errors import UserError
from helper.vision import torchvision

ROOT = Path(__file__).resolve().parent.parent
NAME = "tiny-imagenet-200"
URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
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


def write_tar(path, files, top=f"./{NAME}/"):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
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
    assert len(Loader(data, "train", 2, 0, "cpu")) == 3  # checks shapes and types


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
    assert f"`sh data/get_tinyimagenet.sh --to {tmp_path}`" in text


def test_what_is_missing_is_named(root):
    shutil.rmtree(root / "val" / "n02")
    assert "differ in their class folders (only in train/: n02)" in complaint_of(root.parent)
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
def checkout(tmp_path):
    """The two files of the script in a checkout of their own, without an environment."""
    folder = tmp_path / "a checkout"
    for name in ("data/get_tinyimagenet.sh", "scripts/get_tinyimagenet.py"):
        (folder / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture
def get(checkout, tmp_path):
    """Call the script, with the commands in PATH that it needs and no network -> what it did."""

    def get(*words, tool=None, port=9, wait=True):
        commands = tmp_path / f"commands {tool}"
        commands.mkdir(exist_ok=True)
        needed = {"dirname": shutil.which("dirname"), "python3": sys.executable}
        for name, path in (needed | ({tool: shutil.which(tool)} if tool else {})).items():
            if not (commands / name).exists():
                (commands / name).symlink_to(path)
        env = {"PATH": str(commands), "http_proxy": f"http://127.0.0.1:{port}"}
        script = [shutil.which("sh"), checkout / "data" / "get_tinyimagenet.sh", *words]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        how = {"cwd": tmp_path, "env": env, **pipes}
        return subprocess.run(script, **how) if wait else subprocess.Popen(script, **how)

    return get


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
    assert first.stdout == f"new/place/{NAME}: 2 classes, 6 + 4 images\n"
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


def test_the_default_place_is_beside_the_script(get, checkout, tmp_path):
    source = write_zip(tmp_path / "x.zip", published())
    assert get("--from", source).returncode == 0
    assert len(load(checkout / "data").test.labels) == 4
    shutil.rmtree(checkout / "data" / "cache")
    assert read_folder(checkout / "data" / NAME) == arranged()
    assert sorted(p.name for p in (checkout / "data").iterdir()) == ["get_tinyimagenet.sh", NAME]


def test_train_without_images_folders_and_files_of_other_systems(get, tmp_path):
    files = {name: c for name, c in published().items() if not name.startswith("train/")}
    files |= {name: c for name, c in arranged().items() if name.startswith("train/")}
    files |= {"train/n01/._n01_0.JPEG": b"no image", "val/images/._val_0.JPEG": b"no image"}
    assert get("--from", write_zip(tmp_path / "x.zip", files), "--to", "to").returncode == 0
    assert read_folder(tmp_path / "to" / NAME) == arranged()


def test_a_folder_unpacked_by_hand_is_arranged(get, tmp_path):
    write_folder(tmp_path / "to" / NAME, published())
    source = write_zip(tmp_path / "x.zip", published())
    assert "leave out --from to arrange it" in refused(get("--to", "to", "--from", source))
    done = get("--to", "to")
    assert done.returncode == 0, done.stderr
    assert read_folder(tmp_path / "to" / NAME) == arranged()
    assert read_folder(tmp_path / "to" / f"{NAME}.published") == published()
    assert "nothing to do" in get("--to", "to").stdout


def test_a_folder_that_cannot_be_arranged_stays_as_it_was(get, tmp_path):
    files = published()
    del files["train/n02/images/n02_0.JPEG"]
    files["val/val_annotations.txt"] = b"no table\n"
    write_folder(tmp_path / "to" / NAME, files)
    assert "is not a table of images and classes" in refused(get("--to", "to"))
    assert read_folder(tmp_path / "to") == {f"{NAME}/{name}": c for name, c in files.items()}


def test_something_else_under_the_name_is_left_alone(get, tmp_path):
    write_folder(tmp_path / "to" / NAME, {"train/n01/0.JPEG": b"mine", "val/other/1.JPEG": b""})
    source = write_zip(tmp_path / "x.zip", published())
    for words in (["--from", source], []):
        text = refused(get(*words, "--to", "to"))
        assert f"to/{NAME} is there and not arranged by class: move it away" in text
    assert (tmp_path / "to" / NAME / "train" / "n01" / "0.JPEG").read_bytes() == b"mine"


def without(start):
    return {name: c for name, c in published().items() if not name.startswith(start)}


def with_annotations(*change):
    files = published()
    files["val/val_annotations.txt"] = files["val/val_annotations.txt"].replace(*change)
    return files


BAD = {
    "no train/CLASS": without("train/"),
    "no val/images": without("val/images/"),
    "no val/val_annotations.txt": without("val/val_annotations.txt"),
    "or an empty one": without("val/val_a") | {"val/val_annotations.txt": b"\n"},
    "not a table": without("val/val_a") | {"val/val_annotations.txt": b"val_0.JPEG n02\n"},
    "val_0.JPEG has class 'none'": with_annotations(b"val_0.JPEG", b"val_9.JPEG"),
    "val_0.JPEG has class '../n9'": with_annotations(b"0.JPEG\tn02", b"0.JPEG\t../n9"),
    "no val images of 1 classes (n01": with_annotations(b"\tn01", b"\tn02"),
    "n01_0.JPEG twice": published() | {"train/n01/n01_0.JPEG": b"another"},
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


def link(path):
    with tarfile.open(path, "w:gz") as archive:
        member = tarfile.TarInfo(f"{NAME}/train/n01")
        member.type, member.linkname = tarfile.SYMTYPE, "/tmp"
        archive.addfile(member)


DAMAGED = {
    "cut zip": ("x.zip", cut, "damaged or no archive"),
    "cut tar.gz": ("x.tar.gz", cut, "damaged or no archive"),
    "flipped bit of a zip": ("x.zip", flip, "damaged or no archive"),
    "flipped bit of a tar.gz": ("x.tar.gz", flip, "damaged or no archive"),
    "text": ("x.zip", lambda path: path.write_text("<html>" * 200), "damaged or no archive"),
    "empty": ("x.zip", lambda path: path.write_bytes(b""), "damaged or no archive"),
    "absent": ("x.zip", Path.unlink, "no file or folder"),
    "link": ("x.tar.gz", link, "holds the link"),
    "other zip": ("x.zip", lambda p: write_zip(p, published(), ""), f"no {NAME}/ in"),
    "other tar.gz": ("x.tar.gz", lambda p: write_tar(p, published(), "y/"), f"no {NAME}/ in"),
    "above zip": ("x.zip", lambda p: write_zip(p, published(), "../evil/"), "lies outside"),
    "absolute zip": ("x.zip", lambda p: write_zip(p, published(), "/evil/"), "lies outside"),
    "absolute tar": ("x.tar.gz", lambda p: write_tar(p, published(), "/evil/"), "lies outside"),
    "other folder": ("x", lambda path: shutil.move(path / NAME, path / "y"), f"no {NAME}/ in"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_archives(get, tmp_path, case):
    name, damage, words = DAMAGED[case]
    write_source(name[2:] or "folder above", tmp_path, published())
    damage(tmp_path / name)
    text = refused(get("--from", name, "--to", "new/place"))
    assert words in text
    assert f" {name}" in text
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
        (["--from", ""], "argument --from: the name is empty"),
        (["--to", ""], "argument --to: the name is empty"),
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


def test_without_python(get, tmp_path):
    (tmp_path / "commands None").mkdir()
    (tmp_path / "commands None" / "dirname").symlink_to(shutil.which("dirname"))
    (tmp_path / "commands None" / "python3").mkdir()  # no command, and get() leaves it
    assert "python3 is not there" in refused(get("--to", "to"))


def test_a_call_that_is_ended_leaves_nothing(get, tmp_path):
    os.mkfifo(tmp_path / "x.zip")  # reading it waits for ever
    call = get("--from", "x.zip", "--to", "to", wait=False)
    try:
        until = time.monotonic() + 20
        while not list(tmp_path.glob(f"to/.{NAME}-*")):
            assert time.monotonic() < until
            time.sleep(0.01)
        call.send_signal(signal.SIGTERM)
        _, errors = call.communicate(timeout=20)
    finally:
        call.kill()
    assert (call.returncode, errors) == (143, "")
    assert not (tmp_path / "to").exists()


# The script's download, through a proxy on this machine


class Handler(BaseHTTPRequestHandler):
    """Answers every request with the server's content, from where it is asked to start."""

    def do_GET(self):
        content, span = self.server.content, self.headers.get("Range")
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        self.server.asked.append((self.path, start))
        self.send_response(206 if span else 200)
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.content, server.asked = b"", []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(params=["curl", "wget"])
def tool(request):
    if not shutil.which(request.param):
        pytest.skip(f"no {request.param} here")
    return request.param


@pytest.fixture
def any_tool():
    return next(filter(shutil.which, ("curl", "wget")), None) or pytest.skip("no curl, no wget")


@pytest.mark.parametrize("start", [0, 1000])
def test_download_goes_on_where_it_stopped(get, tmp_path, server, tool, start):
    server.content = write_zip(tmp_path / "x.zip", published()).read_bytes()
    if start:
        write_folder(tmp_path / "to", {f"{NAME}.zip.part": server.content[:start]})
    done = get("--to", "to", tool=tool, port=server.server_port)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.asked == [(URL, start)]
    assert read_folder(tmp_path / "to") == {f"{NAME}/{name}": c for name, c in arranged().items()}
    assert "nothing to do" in get("--to", "to").stdout


def test_a_whole_download_is_not_asked_for_again(get, tmp_path, any_tool):
    """As a run leaves it that is ended before or after it gives the file its name."""
    for name in (f"{NAME}.zip.part", f"{NAME}.zip"):
        (tmp_path / name).mkdir()
        write_zip(tmp_path / name / name, published())
        done = get("--to", name, tool=any_tool)
        assert done.returncode == 0, done.stderr
        assert read_folder(tmp_path / name / NAME) == arranged()


def test_offline(get, tmp_path, tool):
    text = refused(get("--to", "to", tool=tool))
    assert f"cannot fetch {URL} (" in text
    assert "give it with --from" in text
    assert not (tmp_path / "to").exists()

    write_folder(tmp_path / "to", {f"{NAME}.zip.part": b"half"})
    text = refused(get("--to", "to", tool=tool))
    assert f"what came is kept in to/{NAME}.zip.part" in text
    assert read_folder(tmp_path / "to") == {f"{NAME}.zip.part": b"half"}


def test_without_a_tool_to_download_with(get, tmp_path):
    assert "neither curl nor wget is there" in refused(get("--to", "to"))
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("kind", ["page", "other zip", "damaged zip"])
def test_a_bad_download_is_not_kept(get, tmp_path, server, any_tool, kind):
    archive = write_zip(tmp_path / "x.zip", published() if kind == "damaged zip" else {"a": b""})
    if kind == "damaged zip":
        flip(archive)
    server.content = b"<html>log in</html>" if kind == "page" else archive.read_bytes()
    text = refused(get("--to", "to", tool=any_tool, port=server.server_port))
    assert {"page": "is no .zip", "other zip": "no train/", "damaged zip": "damaged"}[kind] in text
    assert len(server.asked) == 1
    assert not (tmp_path / "to").exists()


def test_a_probe_runs_on_it(root, tmp_path, probed):
    accuracy = probed(f"--dataset tinyimagenet --data_dir {tmp_path} --trial 1")
    assert accuracy in (0, 25, 50, 75, 100)  # of four test images
    assert len(list(tmp_path.glob("save/linear_probe/*_to_tinyimagenet_epochs_1_*trial_1"))) == 1
