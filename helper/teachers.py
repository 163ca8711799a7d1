"""The published CIFAR-100 teachers; python -m helper.teachers [NAMES] fetches them into save/."""

import os
import re
import shutil
import sys
import tarfile
from itertools import product
from pathlib import Path
from urllib.request import urlretrieve

from helper.errors import UserError

DATASET, DEFAULT = "cifar100", "resnet32x4"
PUBLISHED = ("resnet32x4", "resnet56", "resnet110", "ResNet50", "vgg13", "wrn_40_2")
TAR = "cifar_teachers.tar"
ARCHIVE = f"https://github.com/megvii-research/mdistiller/releases/download/checkpoints/{TAR}"
SINGLE = "http://shape2prog.csail.mit.edu/repo"
LOCK = Path(__file__).resolve().parent.parent / "scripts" / "teachers.sha256"
CHECKPOINT_STARTS = (b"PK", b"\x80\x02")  # what torch.save writes now (zip), and wrote in 2019


def inner_path(name: str) -> str:
    return f"{name}_vanilla/ckpt_epoch_240.pth"


def path_of(name: str, save_dir: Path) -> Path:
    return save_dir / "models" / inner_path(name)


def find_or_fetch(name: str, save_dir: Path) -> Path:
    """Path of a published teacher, fetched when it is not there; UserError with both ways out."""
    path = path_of(name, save_dir)
    if path.exists():
        return path
    train = f"train one with train_teacher.py --model {name} and give it with --path_t"
    if name not in PUBLISHED:
        raise UserError(f"no teacher {path}, and {name} is not among the published ones: {train}")
    try:
        fetch([name], save_dir)
    except (UserError, OSError, ImportError) as error:
        raise UserError(
            f"no teacher {path} and it cannot be fetched here ({error}): fetch it where there is "
            f"a network, with sh scripts/fetch_pretrained_teachers.sh {name}, or {train}"
        ) from None
    return path


def sources() -> list[str]:
    """URLs of archives (.tar) and of folders with a file a teacher, in the order to try them."""
    mirror = os.environ.get("DISTILL_MIRROR", "").rstrip("/")
    if mirror and not re.match("https?://|file:", mirror):
        if not Path(mirror).is_dir():
            raise UserError(f"DISTILL_MIRROR is {mirror}: no such folder, nor an http or file URL")
        mirror = Path(mirror).absolute().as_uri()
    return [mirror, f"{mirror}/{TAR}", ARCHIVE, SINGLE] if mirror else [ARCHIVE, SINGLE]


def fetch(names: list[str], save_dir: Path) -> None:
    """Bring teachers, each from the first source that has it; UserError says what each answered."""
    import pooch
    from filelock import FileLock

    pooch.get_logger().setLevel("ERROR")  # else it tells of each file
    failures, silent, archives = [], set(), save_dir.absolute() / ".teachers"
    save_dir.mkdir(parents=True, exist_ok=True)
    print(f"wanted in {save_dir}, one process at a time: {', '.join(names)}", flush=True)
    with FileLock(save_dir / ".teachers.lock", mode=0o666):  # for all who share the folder
        for where, name in product(sources(), names):
            path = path_of(name, save_dir)
            if path.exists() or where in silent:
                continue
            try:
                install(name, path, where, archives)
                print(f"{path} came from {where}", flush=True)
            except (OSError, ValueError, tarfile.TarError) as error:
                failures.append(f"{where}: {in_words(error)} ({name})")
                print(failures[-1], flush=True)
                silence = getattr(error, "response", 0) is None  # a request without whole answer
                if silence or (where.endswith(".tar") and not isinstance(error, ValueError)):
                    silent.add(where)  # for other names it would be the same, and take as long
        shutil.rmtree(archives, ignore_errors=True)  # it stays after Ctrl-C
    if left := [name for name in names if not path_of(name, save_dir).exists()]:
        raise UserError(f"no source gave {', '.join(left)}: {'; '.join(failures)}")


def install(name: str, path: Path, where: str, archives: Path) -> None:
    """Let pooch bring a checkpoint: whole, with the checksum on record, or that is put there."""
    import pooch

    def bring(_, output: str, __) -> None:
        if where.endswith(".tar"):
            archive = pooch.retrieve(where, None, path=archives, downloader=download)
            copy_member(archive, f"cifar_teachers/{inner_path(name)}", output)
        else:
            download(f"{where}/{inner_path(name)}", output)
        with open(output, "r+b") as file:
            if file.read(2) not in CHECKPOINT_STARTS:
                raise ValueError("what came is no checkpoint")
            os.fsync(file.fileno())  # else a power cut after the rename leaves half a file
        os.chmod(output, 0o644)  # a temporary file is for its owner alone

    known = dict(reversed(line.split()) for line in LOCK.read_text().splitlines() if line.strip())
    pooch.retrieve(where, known.get(name), path.name, path.parent.absolute(), downloader=bring)
    if name not in known:
        line = f"{pooch.file_hash(path)}  {name}\n"
        try:
            with LOCK.open("a") as lock:
                lock.write(line)
        except OSError as error:  # a checkout that others own; the teacher is there all the same
            print(f"cannot put on record ({error}): {line}", end="", flush=True)


def download(url: str, output: str, _=None) -> None:
    from pooch import HTTPDownloader

    if url.startswith("file:"):
        urlretrieve(url, output)
    else:  # 20 seconds without an answer are none
        HTTPDownloader(sys.stderr.isatty(), 1 << 16, timeout=20)(url, output, None)


def copy_member(archive: str, member: str, output: str) -> None:
    """Copy a plain file out of an archive, which is never unpacked: no entry says where."""
    with tarfile.open(archive, "r:") as file:
        entry = {entry.name.removeprefix("./"): entry for entry in file}.get(member)
        if not entry or not entry.isfile() or entry.issparse():
            raise ValueError(f"no plain file {member} in the archive")
        with file.extractfile(entry) as source, open(output, "wb") as copied:
            shutil.copyfileobj(source, copied)


def in_words(error: BaseException) -> str:
    """One line for what went wrong: of a failed connection, what the system said."""
    kind = "no archive, or a damaged one: " if isinstance(error, tarfile.TarError) else ""
    while error.__context__:
        error = error.__context__
    return kind + (" ".join(str(error).split()) or type(error).__name__)


if __name__ == "__main__":
    try:
        if unknown := [name for name in sys.argv[1:] if name not in PUBLISHED]:
            raise UserError(f"no teacher {unknown[0]!r}; published are: {', '.join(PUBLISHED)}")
        fetch(sys.argv[1:] or list(PUBLISHED), Path("save"))
    except (UserError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
