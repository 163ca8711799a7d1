"""Fetching published teachers, from folders and from a server of this machine."""

import hashlib
import io
import os
import re
import runpy
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from filelock import FileLock

from helper import teachers
from helper.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ["resnet56", "vgg13"]
CONTENT = {name: b"PK" + name.encode() * 30_000 for name in NAMES}  # begins as checkpoints do
TAR = "/archive/cifar_teachers.tar"


class Handler(BaseHTTPRequestHandler):
    """Answers with the first `server.cut` bytes (None: all) of a file of `server.files`."""

    def do_GET(self):
        server = self.server
        server.seen.append(self.path)
        if self.path not in server.files:
            return self.send_error(404)
        body = server.files[self.path]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        return self.wfile.write(body[: server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in the place of both published sources, no mirror, and a lock file of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.seen, server.cut = {}, [], None
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(teachers, "ARCHIVE", url + TAR)
    monkeypatch.setattr(teachers, "SINGLE", f"{url}/single")
    monkeypatch.setattr(teachers, "LOCK", tmp_path / "teachers.sha256")
    monkeypatch.delenv("DISTILL_MIRROR", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    teachers.LOCK.write_text("")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def save(tmp_path):
    return tmp_path / "save"


def single(name):
    return f"/single/{name}_vanilla/ckpt_epoch_240.pth"


def member(name):
    return f"cifar_teachers/{name}_vanilla/ckpt_epoch_240.pth"


def archive_of(entries):
    """The bytes of an archive with these entries: name -> content, or a TarInfo made elsewhere."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in entries.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                entry = tarfile.TarInfo(name)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def link(name, target, kind=tarfile.SYMTYPE):
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, str(target)
    return entry


def digest(content):
    return hashlib.sha256(content).hexdigest()


def files_in(folder):
    """All there is, links too, but no folders, and without the empty file that is locked."""
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
    return [name for name in files if not name.endswith(".teachers.lock")]


def has_exactly(save, *names):
    """The teachers are whole under their names, and nothing else is there, not even a folder."""
    assert files_in(save) == sorted(f"models/{teachers.inner_path(name)}" for name in names)
    for name in names:
        path = teachers.path_of(name, save)
        assert path.read_bytes() == CONTENT[name]
        assert path.stat().st_mode & 0o777 == 0o644, "others may read it"
    assert not (save / ".teachers").exists()


WHOLE = archive_of({member(name): content for name, content in CONTENT.items()})


@pytest.mark.parametrize("how", ["folder", "file URL", "http", "archive in a folder"])
def test_the_mirror_of_ones_own_comes_first_and_is_recorded(
    server, save, tmp_path, monkeypatch, how
):
    mirror = tmp_path / "a mirror"
    file = mirror / teachers.inner_path("vgg13")
    file.parent.mkdir(parents=True)
    if how.startswith("archive"):
        (mirror / teachers.TAR).write_bytes(WHOLE)
    else:
        file.write_bytes(CONTENT["vgg13"])
    server.files = {"/own/" + teachers.inner_path("vgg13"): CONTENT["vgg13"]}
    own = {"file URL": mirror.as_uri(), "http": f"http://127.0.0.1:{server.server_port}/own/"}
    monkeypatch.setenv("DISTILL_MIRROR", own.get(how, str(mirror)))
    before = files_in(mirror)
    assert teachers.find_or_fetch("vgg13", save) == save / "models" / file.relative_to(mirror)
    has_exactly(save, "vgg13")
    assert files_in(mirror) == before, "what is not ours stays"
    assert teachers.LOCK.read_text() == f"{digest(CONTENT['vgg13'])}  vgg13\n"
    assert len(server.seen) == (how == "http"), "the published sources were not asked"
    monkeypatch.setenv("DISTILL_MIRROR", "nowhere")
    teachers.find_or_fetch("vgg13", save)  # it is there


def test_the_archive_comes_once_for_all(server, save):
    server.files[TAR] = WHOLE
    teachers.fetch(NAMES, save)
    has_exactly(save, *NAMES)
    assert server.seen == [TAR]
    assert len(teachers.LOCK.read_text().splitlines()) == 2


def test_what_the_archive_lacks_comes_as_a_single_file(server, save):
    server.files = {
        TAR: archive_of({"./" + member("vgg13"): CONTENT["vgg13"]}),
        single("resnet56"): CONTENT["resnet56"],
    }
    teachers.fetch([*NAMES, "resnet56"], save)
    has_exactly(save, *NAMES)
    assert server.seen == [TAR, single("resnet56")]


@pytest.mark.parametrize("path", [TAR, single("vgg13")])
def test_a_download_that_breaks_off_leaves_nothing(server, save, path):
    whole = WHOLE if path == TAR else CONTENT["vgg13"]
    server.files[path], server.cut = whole, 70_000
    with pytest.raises(UserError, match=r"IncompleteRead\(70000 bytes read.* \(vgg13\)"):
        teachers.fetch(["vgg13"], save)
    assert files_in(save) == []
    server.cut = None
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")


def test_a_source_that_breaks_off_is_not_asked_for_the_next_teacher(server, save):
    server.files, server.cut = {TAR: WHOLE, single("vgg13"): CONTENT["vgg13"]}, 70_000
    server.files[single("resnet56")] = CONTENT["resnet56"]
    with pytest.raises(UserError, match="no source gave resnet56, vgg13: "):
        teachers.fetch(NAMES, save)
    assert server.seen == [TAR, single("resnet56")]


def test_a_source_without_the_archive_is_asked_once_for_it_and_for_each_single_file(server, save):
    with pytest.raises(UserError, match="404 .* 404 .* 404 "):
        teachers.fetch(NAMES, save)
    assert server.seen == [TAR, *map(single, NAMES)]


def test_copying_that_was_interrupted_needs_no_second_download(server, save, monkeypatch):
    server.files[TAR] = WHOLE

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "copy_member", interrupt)
        with pytest.raises(KeyboardInterrupt):
            teachers.fetch(NAMES, save)
    (archive,) = files_in(save)
    assert (save / archive).read_bytes() == WHOLE
    server.seen.clear()
    teachers.fetch(NAMES, save)
    has_exactly(save, *NAMES)
    assert not server.seen


@pytest.mark.parametrize("path", [TAR, single("vgg13")])
def test_a_wrong_checksum_is_removed_and_the_next_source_tried(
    server, save, tmp_path, monkeypatch, capsys, path
):
    wrong = CONTENT["vgg13"][:-1] + b"!"
    server.files[path] = archive_of({member("vgg13"): wrong}) if path == TAR else wrong
    recorded = f"{digest(CONTENT['vgg13'])}  vgg13\n"
    teachers.LOCK.write_text(recorded)
    said = f"does not match the known hash: expected {recorded[:64]} but got {digest(wrong)}"
    with pytest.raises(UserError, match=said):
        teachers.find_or_fetch("vgg13", save)
    assert files_in(save) == []

    server.files[single("vgg13")] = CONTENT["vgg13"]
    if path != TAR:  # the mirror is the wrong one now, and the archive the next
        mirror = tmp_path / "mirror" / teachers.inner_path("vgg13")
        mirror.parent.mkdir(parents=True)
        mirror.write_bytes(wrong)
        monkeypatch.setenv("DISTILL_MIRROR", str(tmp_path / "mirror"))
        server.files = {TAR: WHOLE}
    capsys.readouterr()
    teachers.find_or_fetch("vgg13", save)
    has_exactly(save, "vgg13")
    assert said in capsys.readouterr().out
    assert teachers.LOCK.read_text() == recorded


def test_a_page_that_is_no_checkpoint_is_not_put_on_record(server, save):
    server.files[single("vgg13")] = b"<html>log in first</html>"
    with pytest.raises(UserError, match=r"what came is no checkpoint \(vgg13\)"):
        teachers.fetch(["vgg13"], save)
    assert files_in(save) == []
    assert teachers.LOCK.read_text() == ""


def test_a_lock_file_that_cannot_be_written_stops_nobody(server, save, monkeypatch, capsys):
    server.files[TAR] = WHOLE

    def refuse(path, *args, **kwargs):
        raise PermissionError("not yours")

    lock = type("ReadOnly", (), {"read_text": lambda _: "", "open": refuse})()
    monkeypatch.setattr(teachers, "LOCK", lock)
    teachers.fetch(NAMES, save)
    has_exactly(save, *NAMES)
    said = f"cannot put on record (not yours): {digest(CONTENT['vgg13'])}  vgg13"
    assert said in capsys.readouterr().out


def test_an_archive_puts_nothing_elsewhere(server, save, tmp_path):
    evil = b"PK evil"
    folder = teachers.path_of("resnet56", save).parent
    server.files[TAR] = archive_of(
        {
            "../../evil.pth": evil,
            f"cifar_teachers/../../{member('vgg13')}": evil,
            str(tmp_path / "absolute.pth"): evil,
            "way out": link("cifar_teachers/resnet56_vanilla", tmp_path),
            member("resnet56"): CONTENT["resnet56"],
            "last": link(member("vgg13"), "/etc/hostname"),
        }
    )
    with pytest.raises(UserError, match=r"no plain file cifar_teachers/vgg13.*\(vgg13\)"):
        teachers.fetch(NAMES, save)
    assert files_in(tmp_path) == [
        f"save/models/{teachers.inner_path('resnet56')}",
        "teachers.sha256",
    ]
    assert not folder.is_symlink()
    assert teachers.path_of("resnet56", save).read_bytes() == CONTENT["resnet56"]


@pytest.mark.parametrize(
    "kind",
    [
        tarfile.SYMTYPE,
        tarfile.LNKTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.FIFOTYPE,
        tarfile.GNUTYPE_SPARSE,
    ],
)
def test_links_and_odd_entries_are_refused(server, save, tmp_path, kind):
    """A link inside the archive could be followed, as tarfile does; it is not."""
    odd = link(member("vgg13"), member("resnet56"), kind)
    server.files[TAR] = archive_of({member("resnet56"): CONTENT["resnet56"], "odd": odd})
    with pytest.raises(UserError, match="no plain file cifar_teachers/vgg13"):
        teachers.fetch(["vgg13"], save)
    assert files_in(save) == []


@pytest.mark.parametrize("content", [b"<html>", WHOLE[:100_000], b""])
def test_a_damaged_archive_is_removed(server, save, content):
    server.files[TAR] = content
    with pytest.raises(UserError, match="no archive, or a damaged one"):
        teachers.fetch(["vgg13"], save)
    assert files_in(save) == []


def test_nobody_answers(save, server, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{free.getsockname()[1]}"  # bound, but nobody listens
        monkeypatch.setattr(teachers, "ARCHIVE", f"{closed}/a.tar")
        monkeypatch.setattr(teachers, "SINGLE", closed)
        asked = []
        get = requests.get
        monkeypatch.setattr(requests, "get", lambda url, **k: asked.append(url) or get(url, **k))
        with pytest.raises(UserError) as error:
            teachers.fetch(NAMES, save)
    assert len(asked) == 2, "once a source, not once a teacher"
    assert str(error.value).startswith("no source gave resnet56, vgg13: ")
    assert len(re.findall(r"Connection refused \(resnet56\)", str(error.value))) == 2
    (save / "file").touch()
    for folder in (save, save / "file"):  # nor can a folder be made
        with pytest.raises(UserError, match="cannot be fetched here .*fetch_pretrained_teachers"):
            teachers.find_or_fetch("vgg13", folder)


@pytest.mark.parametrize(
    ("mirror", "name", "said"),
    [
        ("", "resnet8", "no teacher 'resnet8'; published are: resnet32x4,.*wrn_40_2"),
        ("nowhere", "vgg13", "DISTILL_MIRROR is nowhere: no such folder, nor an http or file URL"),
        ("ftp://elsewhere", "vgg13", "DISTILL_MIRROR is ftp://elsewhere: .* nor an http"),
        (".", "vgg13", r"no source gave vgg13: file://.*: .*No such file.* \(vgg13\);"),
    ],
)
def test_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, mirror, name, said):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("requests.get", offline)
    monkeypatch.setenv("DISTILL_MIRROR", mirror)
    monkeypatch.setattr(sys, "argv", ["teachers", name])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(teachers.__file__, run_name="__main__")
    assert stop.value.code == 2
    assert re.fullmatch(f"error: {said}.*\n", capsys.readouterr().err)


def test_one_process_at_a_time_fetches_into_a_folder(server, save):
    server.files[TAR] = WHOLE
    save.mkdir()
    second = threading.Thread(target=teachers.fetch, args=(["vgg13"], save))
    with FileLock(save / ".teachers.lock"):
        second.start()
        second.join(0.3)
        waited = second.is_alive() and not server.seen
        path = teachers.path_of("vgg13", save)
        path.parent.mkdir(parents=True)
        path.write_bytes(CONTENT["vgg13"])  # by the first
    second.join(5)
    assert waited
    assert not second.is_alive()
    assert not server.seen


def test_importing_it_imports_no_downloader():
    line = "import sys, helper.teachers; print({'pooch', 'filelock', 'requests'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", line], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


def test_the_script_from_another_folder(tmp_path):
    """In a copy of what it needs, for it writes into its own checkout."""
    for part in ("helper", "scripts", "fetch_pretrained_teachers.sh"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / "check out" / part)
    (tmp_path / "check out" / "models").symlink_to(ROOT / "models")
    away = tmp_path / "away"
    file = away / "mirror" / teachers.inner_path("vgg13")
    file.parent.mkdir(parents=True)
    file.write_bytes(CONTENT["vgg13"])
    script = tmp_path / "check out" / "fetch_pretrained_teachers.sh"
    environment = {**os.environ, "PYTHON": sys.executable, "DISTILL_MIRROR": "mirror"}
    done = subprocess.run([script, "vgg13"], cwd=away, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"vgg13" in done.stdout
    save = script.parent / "save"
    has_exactly(save, "vgg13")


def test_the_lock_file_of_the_repository():
    known = dict(reversed(line.split()) for line in teachers.LOCK.read_text().splitlines())
    assert known["resnet32x4"].startswith("22aa12e2b632")
