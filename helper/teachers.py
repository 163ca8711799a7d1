"""The published CIFAR-100 teachers: where they lie here, and how to fetch them.

python -m helper.teachers resnet32x4 vgg13
"""

import http.client
import os
import re
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from tqdm import tqdm

from helper.errors import UserError
from helper.files import sha256

DATASET, DEFAULT = "cifar100", "resnet32x4"
PUBLISHED = ("resnet32x4", "resnet56", "resnet110", "ResNet50", "vgg13", "wrn_40_2")
TAR = "cifar_teachers.tar"
ARCHIVE = f"https://github.com/megvii-research/mdistiller/releases/download/checkpoints/{TAR}"
SINGLE = "http://shape2prog.csail.mit.edu/repo"
LOCK = Path(__file__).resolve().parent.parent / "scripts" / "teachers.sha256"
TIMEOUT = 20  # seconds without an answer
BLOCK = 1 << 16  # bytes; an interruption loses the block that is under way
CHECKPOINT_STARTS = (b"PK", b"\x80\x02")  # what torch.save writes now (zip), and wrote in 2019
NO_FILE = (OSError, ValueError, http.client.HTTPException, tarfile.TarError)

Reasons = dict[str, list[str]]  # what went wrong -> the teachers that it kept away


def inner_path(name: str) -> str:
    return f"{name}_vanilla/ckpt_epoch_240.pth"


def path_of(name: str, save_dir: Path) -> Path:
    return save_dir / "models" / inner_path(name)


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.part")


def find_or_fetch(name: str, save_dir: Path) -> Path:
    """Path of a published teacher, fetched when it is not there.

    Raises UserError that says both ways out where it can neither be found nor fetched.
    """
    path = path_of(name, save_dir)
    if path.exists():
        return path
    train = f"train one with train_teacher.py --model {name} and give it with --path_t"
    if name not in PUBLISHED:
        raise UserError(f"no teacher {path}, and {name} is not among the published ones: {train}")
    try:
        fetch([name], save_dir)
    except (UserError, OSError) as error:
        raise UserError(
            f"no teacher {path} and it cannot be fetched here ({error}): fetch it where there is "
            f"a network, with sh scripts/fetch_pretrained_teachers.sh {name}, or {train}"
        ) from None
    return path


def fetch(names: list[str], save_dir: Path) -> None:
    """Bring the named teachers into save_dir, each from the first source that has it.

    UserError that lists what each source answered when one is still missing.
    """
    failures = []
    mirrors = sources()
    with alone(save_dir):
        for where, bring in mirrors:
            if wanted := missing(names, save_dir):
                print(f"fetching {', '.join(wanted)} from {where}", flush=True)
                for reason, kept_away in bring(where, wanted, save_dir).items():
                    failures.append(f"{where}: {reason} ({', '.join(kept_away)})")
                    print(failures[-1], flush=True)
        if left := missing(names, save_dir):
            raise UserError(f"no source gave {', '.join(left)}: {'; '.join(failures)}")
        remove(save_dir / "downloads" / TAR)


def missing(names: list[str], save_dir: Path) -> list[str]:
    return [name for name in dict.fromkeys(names) if not path_of(name, save_dir).exists()]


@contextmanager
def alone(folder: Path):
    """Wait until no other process fetches into the folder: two would write the same .part."""
    folder.mkdir(parents=True, exist_ok=True)
    if os.name != "posix":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("waiting for another process that fetches teachers", flush=True)
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def sources() -> list[tuple[str, Callable[[str, list[str], Path], Reasons]]]:
    """(where, function that brings teachers from there), in the order to try them."""
    published = [(ARCHIVE, from_archive), (SINGLE, from_files)]
    mirror = os.environ.get("DISTILL_MIRROR", "").rstrip("/")
    if not mirror:
        return published
    folder = local(mirror)
    if folder and not folder.is_dir():
        raise UserError(f"DISTILL_MIRROR is {mirror}: no such folder, nor an http(s) or file URL")
    return [(mirror, from_files), (f"{mirror}/{TAR}", from_archive), *published]


def local(where: str) -> Path | None:
    """What a source names on this machine; None when it is an http(s) URL."""
    if re.match("https?://", where):
        return None
    if where.startswith("file:"):
        return Path(urllib.request.url2pathname(urlsplit(where).path))
    return Path(where)


def from_files(where: str, names: list[str], save_dir: Path) -> Reasons:
    """Bring teachers that lie there as one file each."""
    reasons: Reasons = {}
    for name in names:
        url, path = f"{where}/{inner_path(name)}", path_of(name, save_dir)
        try:
            if file := local(url):
                with file.open("rb") as source:
                    write_part(source, path)
            else:
                download(url, part_of(path))
            install(name, path)
        except NO_FILE as error:
            if type(error) is URLError:  # nobody answers: the next file would wait as long
                return {**reasons, in_words(error): names[names.index(name) :]}
            reasons.setdefault(in_words(error), []).append(name)
    return reasons


def from_archive(where: str, names: list[str], save_dir: Path) -> Reasons:
    """Bring teachers that lie there in an archive, which is downloaded once for all of them."""
    try:
        if archive := local(where):
            return copy_members(archive, names, save_dir)
        archive = save_dir / "downloads" / TAR
        if not archive.exists():  # else a run was interrupted after the download
            download(where, part_of(archive))
            part_of(archive).replace(archive)
        reasons = copy_members(archive, names, save_dir)
    except NO_FILE as error:
        return {in_words(error): names}
    remove(archive)  # also when it lacks a teacher: the next run would find the same in it
    return reasons


def remove(archive: Path) -> None:
    """Remove a downloaded archive, what came of it, and its folder when nothing else is there."""
    for path in (archive, part_of(archive), note_of(part_of(archive))):
        path.unlink(missing_ok=True)
    with suppress(OSError):
        archive.parent.rmdir()


def copy_members(archive: Path, names: list[str], save_dir: Path) -> Reasons:
    """Copy the teachers out of a tar archive, which is never unpacked.

    An entry with another name than a teacher's is passed over, so none says where a file goes.
    """
    reasons: Reasons = {}
    try:
        with tarfile.open(archive, "r:") as file:
            entries = {entry.name.removeprefix("./"): entry for entry in file}
            for name in names:
                try:
                    write_part(open_member(file, entries, name), path_of(name, save_dir))
                    install(name, path_of(name, save_dir))
                except (ValueError, tarfile.TarError) as error:
                    reasons.setdefault(in_words(error), []).append(name)
    except tarfile.TarError as error:
        return {f"no archive, or a damaged one: {error}": names}
    return reasons


def open_member(file: tarfile.TarFile, entries: dict[str, tarfile.TarInfo], name: str):
    """The file of a teacher in an archive, for reading; ValueError when it is not a plain file."""
    entry = entries.get(f"cifar_teachers/{inner_path(name)}")
    if not entry:
        raise ValueError("not in the archive")
    if not entry.isfile() or entry.issparse():
        raise ValueError("refused: a link or another odd entry of the archive")
    return file.extractfile(entry)


def write_part(source, path: Path) -> None:
    """Copy an open file to the .part of `path`."""
    part = part_of(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    note_of(part).unlink(missing_ok=True)  # what a download left there is overwritten
    with part.open("wb") as file:
        while block := source.read(BLOCK):
            file.write(block)


def install(name: str, path: Path) -> None:
    """Give the whole .part of a teacher its name, if it has the checksum on record.

    A teacher without one has to look like a checkpoint, and its checksum is put on record.
    ValueError, and the file is removed, when it is another.
    """
    part = part_of(path)
    known = dict(reversed(line.split()) for line in LOCK.read_text().splitlines() if line.strip())
    digest = sha256(part)
    with part.open("r+b") as file:
        start = file.read(2)
        os.fsync(file.fileno())  # else a power cut after the rename leaves half a file
    note_of(part).unlink(missing_ok=True)
    if name not in known and start not in CHECKPOINT_STARTS:
        part.unlink()
        raise ValueError("removed: what came is no checkpoint")
    if known.get(name, digest) != digest:
        part.unlink()
        raise ValueError(f"removed: sha256 is {digest}, not {known[name]}: another file or damaged")
    part.replace(path)
    if name not in known:
        try:
            with LOCK.open("a") as lock:
                lock.write(f"{digest}  {name}\n")
        except OSError as error:  # a checkout that others own; the teacher is there all the same
            print(f"{name} has sha256 {digest}, which cannot be put on record: {error}", flush=True)


def download(url: str, part: Path) -> None:
    """Bring what lies at a URL into `part`, going on where an interrupted download stopped.

    OSError when the answer breaks off; what came stays for the next time.
    """
    have, version, size = kept(url, part)
    try:
        answer = ask(url, {"Range": f"bytes={have}-", "If-Range": version} if have else {})
    except HTTPError as error:
        if error.code != 416 or not have:
            raise
        if str(have) == size:
            return
        answer = ask(url, {})
    with answer:
        receive(answer, url, part, have)


def ask(url: str, headers: dict[str, str]) -> http.client.HTTPResponse:
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)


def note_of(part: Path) -> Path:
    """Beside a .part: its URL, what the server calls this version of the file, its size."""
    return part.with_name(f"{part.name}.note")


def kept(url: str, part: Path) -> tuple[int, str, str]:
    """Bytes that an earlier download from this URL left, version and size of the file."""
    note = note_of(part).read_text().split("\n") if note_of(part).exists() else []
    if len(note) == 3 and note[0] == url and note[1] and part.exists():
        return part.stat().st_size, note[1], note[2]
    return 0, "", ""


def version_of(headers) -> str:
    """What If-Range takes: an ETag unless it is a weak one, else the date; empty: neither."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def receive(answer: http.client.HTTPResponse, url: str, part: Path, have: int) -> None:
    """Write an answer to `part`: after what it holds when the answer is the rest, else anew."""
    size = answer.headers.get("Content-Length", "")
    if answer.status == 206:
        found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", answer.headers.get("Content-Range", ""))
        if not found or int(found[1]) != have:
            note_of(part).unlink(missing_ok=True)  # so the next run starts anew
            raise OSError(f"answered with another range than from byte {have}")
        size = found[2]
    else:  # the whole: the server knows no ranges, or the file has changed
        part.parent.mkdir(parents=True, exist_ok=True)
        part.unlink(missing_ok=True)  # first, for the note must not speak of other bytes
        note_of(part).write_text("\n".join((url, version_of(answer.headers), size)))
    start, total = (part.stat().st_size if part.exists() else 0), int(size) if size else None
    shape = {"total": total, "initial": start, "unit": "B", "unit_scale": True}
    with part.open("ab") as file, tqdm(**shape, disable=None, leave=False) as bar:
        while block := answer.read(BLOCK):
            file.write(block)
            bar.update(len(block))
    if total not in (None, part.stat().st_size):
        raise OSError(f"the answer broke off after {part.stat().st_size} of {total} bytes")


def in_words(error: Exception) -> str:
    """One line for what went wrong."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    reason = error.reason if type(error) is URLError else error
    return " ".join(str(reason).split()) or type(reason).__name__


def main(names: list[str]) -> None:
    """Fetch the named teachers, or all of them, into ./save."""
    save_dir, names = Path("./save"), names or list(PUBLISHED)
    for name in names:
        if name not in PUBLISHED:
            raise UserError(f"no published teacher {name!r}; there are: {', '.join(PUBLISHED)}")
    for name in names:
        if path_of(name, save_dir).exists():
            print(f"{path_of(name, save_dir)} is there")
    if missing(names, save_dir):
        fetch(names, save_dir)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
