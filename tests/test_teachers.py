"""Fetching published teachers, from folders and from a server of this machine."""

import fcntl
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

from helper import teachers
from helper.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["resnet56", "vgg13"]
CONTENT = {name: b"PK" + name.encode() * 30_000 for name in NAMES}  # begins as checkpoints do
TAR = "/archive/cifar_teachers.tar"


class Handler(BaseHTTPRequestHandler):
    """Answers with `server.files`, in the ways that the server's other attributes say."""

    def do_GET(self):
        server, asked = self.server, self.headers.get("Range")
        server.seen.append((self.path, asked, self.headers.get("If-Range")))
        if self.path not in server.files:
            return self.send_error(404)
        body = server.files[self.path]
        unchanged = self.headers.get("If-Range") in (None, *server.version.values())
        start = int(asked[6:-1]) if asked and server.ranges and unchanged else 0
        if start and start >= len(body):
            self.send_response(416)
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            first = start + server.shift
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        for key, value in server.version.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        server.sent += len(body[start : server.cut])
        return self.wfile.write(body[start : server.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server in the place of both published sources, no mirror, and a lock file of its own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.seen, server.sent = {}, [], 0
    server.ranges, server.cut, server.shift = True, None, 0
    server.version = {"ETag": '"one"'}
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
    """All there is, links too, but no folders."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())


def has_exactly(save, *names):
    """The teachers are whole under their names, and nothing else is there, not even a folder."""
    assert files_in(save) == sorted(f"models/{teachers.inner_path(name)}" for name in names)
    for name in names:
        assert teachers.path_of(name, save).read_bytes() == CONTENT[name]
    assert not (save / "downloads").exists()


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
    assert server.seen == [(TAR, None, None)]
    assert len(teachers.LOCK.read_text().splitlines()) == 2


def test_what_the_archive_lacks_comes_as_a_single_file(server, save):
    server.files = {
        TAR: archive_of({"./" + member("vgg13"): CONTENT["vgg13"]}),
        single("resnet56"): CONTENT["resnet56"],
    }
    teachers.fetch([*NAMES, "resnet56"], save)
    has_exactly(save, *NAMES)
    assert [seen[0] for seen in server.seen] == [TAR, single("resnet56")]


DATE = {"Last-Modified": "Wed, 21 Oct 2015 07:28:00 GMT"}
CASES = {  # name: (attributes of the second server, whether the rest is asked for and taken)
    "ranges": ({}, True),
    "no ranges": ({"ranges": False}, False),
    "a changed file": ({"version": {"ETag": '"two"'}}, False),
    "by date": ({"version": DATE}, True),
    "a weak ETag": ({"version": {"ETag": 'W/"one"', **DATE}}, True),
    "no version": ({"version": {}}, False),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("path", [TAR, single("vgg13")])
def test_an_interrupted_download(server, save, path, case):
    attributes, goes_on = CASES[case]
    old = WHOLE if path == TAR else CONTENT["vgg13"]
    changed = case == "a changed file"
    if not changed:
        server.version = attributes.get("version", server.version)
    # The old version of a changed file differs in all bytes, so a mixture would be noticed.
    server.files[path] = bytes(b ^ 255 for b in old) if changed else old
    server.cut = 70_000
    with pytest.raises(UserError, match=f"broke off after 70000 of {len(old)} bytes"):
        teachers.fetch(["vgg13"], save)
    left = files_in(save)
    part = next(save.rglob("*.part"))
    assert part.stat().st_size == 70_000
    assert [Path(p).suffix for p in left] == [".part", ".note"], "nothing has a final name"

    server.files[path], server.cut = old, None
    vars(server).update(attributes)
    server.seen.clear()
    server.sent = 0
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")
    [(_, asked, if_range)] = [seen for seen in server.seen if seen[0] == path]
    if case == "no version":
        assert asked is None, "nothing tells whether it is still the same file"
    else:
        version = '"one"' if "version" not in attributes or changed else DATE["Last-Modified"]
        assert (asked, if_range) == ("bytes=70000-", version)
    assert server.sent == len(old) - (70_000 if goes_on else 0)


def fetch_interrupted(names, save, monkeypatch):
    """Ctrl-C when all has come, before the first teacher has its name."""

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(teachers, "install", interrupt)
        with pytest.raises(KeyboardInterrupt):
            teachers.fetch(names, save)


def test_a_part_that_is_whole_is_not_asked_for_again(server, save, monkeypatch):
    server.files[single("vgg13")] = CONTENT["vgg13"]
    fetch_interrupted(["vgg13"], save, monkeypatch)
    server.seen.clear()
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")
    asked = [seen[1] for seen in server.seen if seen[0] == single("vgg13")]
    assert asked == [f"bytes={len(CONTENT['vgg13'])}-"]


def test_a_part_that_is_longer_than_the_file_is_dropped(server, save):
    server.files[single("vgg13")] = CONTENT["vgg13"]
    server.cut = 50
    with pytest.raises(UserError):
        teachers.fetch(["vgg13"], save)
    part = next(save.rglob("*.part"))
    part.write_bytes(CONTENT["vgg13"] + b"more")
    server.cut = None
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")


def test_another_range_than_the_one_asked_for(server, save):
    server.files[single("vgg13")] = CONTENT["vgg13"]
    server.cut = 50
    with pytest.raises(UserError):
        teachers.fetch(["vgg13"], save)
    server.cut, server.shift = None, 7
    with pytest.raises(UserError, match="another range than from byte 50"):
        teachers.fetch(["vgg13"], save)
    teachers.fetch(["vgg13"], save)  # anew
    has_exactly(save, "vgg13")


def test_a_part_from_elsewhere_is_not_gone_on_with(server, save, monkeypatch):
    """Two servers may give different files the same date."""
    server.files[TAR] = WHOLE
    server.cut = 600
    with pytest.raises(UserError):
        teachers.fetch(["vgg13"], save)
    server.files["/other.tar"], server.cut = WHOLE, None
    monkeypatch.setattr(teachers, "ARCHIVE", teachers.ARCHIVE.replace(TAR, "/other.tar"))
    teachers.fetch(["vgg13"], save)
    assert server.seen[-1] == ("/other.tar", None, None)
    has_exactly(save, "vgg13")


def test_a_part_of_an_archive_that_is_no_longer_needed_goes(server, save):
    server.files[TAR], server.cut = WHOLE, 600
    with pytest.raises(UserError):
        teachers.fetch(["vgg13"], save)
    assert (save / "downloads").exists()
    server.files, server.cut = {single("vgg13"): CONTENT["vgg13"]}, None
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")


def test_half_a_copy_is_not_gone_on_with_as_a_download(server, save):
    """What was downloaded is overwritten by a copy from elsewhere, which is interrupted."""
    server.files[single("vgg13")], server.cut = CONTENT["vgg13"], 50
    with pytest.raises(UserError):
        teachers.fetch(["vgg13"], save)
    blocks = iter([b"PK from elsewhere"])
    copied = type("Interrupted", (), {"read": lambda *_: next(blocks)})()
    with pytest.raises(StopIteration):
        teachers.write_part(copied, teachers.path_of("vgg13", save))
    server.cut = None
    teachers.fetch(["vgg13"], save)
    has_exactly(save, "vgg13")


def test_copying_that_was_interrupted_needs_no_second_download(server, save, monkeypatch):
    server.files[TAR] = WHOLE
    fetch_interrupted(NAMES, save, monkeypatch)
    assert (save / "downloads" / teachers.TAR).read_bytes() == WHOLE
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
    said = f"removed: sha256 is {digest(wrong)}, not {recorded[:64]}: another file or damaged"
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
    with pytest.raises(UserError, match=r"removed: what came is no checkpoint \(vgg13\)"):
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
    assert f"vgg13 has sha256 {digest(CONTENT['vgg13'])}" in capsys.readouterr().out


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
    with pytest.raises(UserError, match=r"refused: a link or another odd entry.*\(vgg13\)"):
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
    with pytest.raises(UserError, match="refused"):
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
        ask = teachers.ask
        monkeypatch.setattr(teachers, "ask", lambda url, head: asked.append(url) or ask(url, head))
        with pytest.raises(UserError) as error:
            teachers.fetch(NAMES, save)
    assert len(asked) == 2, "once a source, not once a teacher"
    assert len(re.findall(r"Connection refused \(resnet56, vgg13\)", str(error.value))) == 2
    (save / "file").touch()
    for folder in (save, save / "file"):  # nor can a folder be made
        with pytest.raises(UserError, match="cannot be fetched here .*fetch_pretrained_teachers"):
            teachers.find_or_fetch("vgg13", folder)


@pytest.mark.parametrize(
    ("mirror", "name", "said"),
    [
        ("", "resnet8", "no published teacher 'resnet8'; there are: resnet32x4,.*wrn_40_2"),
        ("nowhere", "vgg13", "DISTILL_MIRROR is nowhere: no such folder"),
        ("ftp://elsewhere", "vgg13", "DISTILL_MIRROR is ftp://elsewhere: .* nor an http"),
        (".", "vgg13", r"no source gave vgg13: \.: no such file \(vgg13\);"),
    ],
)
def test_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, mirror, name, said):
    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("urllib.request.urlopen", offline)
    monkeypatch.setenv("DISTILL_MIRROR", mirror)
    monkeypatch.setattr(sys, "argv", ["teachers", name])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(teachers.__file__, run_name="__main__")
    assert stop.value.code == 2
    assert re.fullmatch(f"error: {said}.*\n", capsys.readouterr().err)


def test_two_processes_do_not_write_the_same_part(server, save, capsys):
    server.files[TAR] = WHOLE
    save.mkdir()
    other = os.open(save, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    second = threading.Thread(target=teachers.fetch, args=(["vgg13"], save))
    second.start()
    second.join(0.2)
    waited = second.is_alive() and not server.seen
    path = teachers.path_of("vgg13", save)
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT["vgg13"])  # by the first
    os.close(other)
    second.join(5)
    assert waited
    assert "waiting for another process" in capsys.readouterr().out
    assert not server.seen


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
