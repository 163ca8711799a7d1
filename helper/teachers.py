"""The published CIFAR-100 teachers: where they lie here, and how to fetch them.

python -m helper.teachers resnet32x4 vgg13
"""

import os
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm
from tqdm.utils import CallbackIOWrapper

from helper.checkpoint import sha256, write_whole
from helper.errors import UserError

DATASET, DEFAULT = "cifar100", "resnet32x4"
PUBLISHED = ("resnet32x4", "resnet56", "resnet110", "ResNet50", "vgg13", "wrn_40_2")
ARCHIVE = (
    "https://github.com/megvii-research/mdistiller/releases/download/checkpoints/cifar_teachers.tar"
)
SINGLE = "http://shape2prog.csail.mit.edu/repo"
LOCK = Path(__file__).resolve().parent.parent / "scripts" / "teachers.sha256"
TIMEOUT = 20  # seconds without an answer


def path_of(name: str, save_dir: Path) -> Path:
    return save_dir / "models" / f"{name}_vanilla" / "ckpt_epoch_240.pth"


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
        fetch(name, path)
    except UserError as error:
        raise UserError(
            f"no teacher {path} and it cannot be fetched here ({error}): fetch it where there is "
            f"a network, with sh scripts/fetch_pretrained_teachers.sh {name}, or {train}"
        ) from None
    return path


def fetch(name: str, path: Path) -> None:
    """Download one teacher from the first source that has it; UserError when none does.

    The file must have the checksum in scripts/teachers.sha256; the checksum of a teacher that is
    not listed there yet is added.
    """
    failures = []
    for where, read in sources(name):
        print(f"fetching {name} from {where}", flush=True)
        try:
            write_whole(path, read)
            check(name, path)
            return
        except (OSError, EOFError, tarfile.TarError, ValueError) as error:
            path.unlink(missing_ok=True)
            failures.append(f"{where}: {error}")
    raise UserError("; ".join(failures))


def sources(name: str) -> list[tuple[str, Callable]]:
    """(where, function that writes the teacher to a file), in the order to try them."""
    member = f"{name}_vanilla/ckpt_epoch_240.pth"
    found = [
        (ARCHIVE, lambda file: copy_member(ARCHIVE, f"cifar_teachers/{member}", file)),
        (f"{SINGLE}/{member}", lambda file: copy_url(f"{SINGLE}/{member}", file)),
    ]
    if mirror := os.environ.get("DISTILL_MIRROR"):
        url = f"{mirror.rstrip('/')}/{member}"
        found.insert(0, (url, lambda file: copy_url(url, file)))
    return found


def copy_url(url: str, file) -> None:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        shutil.copyfileobj(with_bar(answer), file)


def copy_member(url: str, member: str, file) -> None:
    """Copy one member of a tar archive that is read as a stream, never unpacked."""
    with (
        urllib.request.urlopen(url, timeout=TIMEOUT) as answer,
        tarfile.open(fileobj=with_bar(answer), mode="r|*") as archive,
    ):
        for entry in archive:
            if entry.name.removeprefix("./") == member and entry.isfile():
                shutil.copyfileobj(archive.extractfile(entry), file)
                return
    raise ValueError(f"no {member} in the archive")


def with_bar(answer):
    """The answer with a progress bar on its `read`."""
    size = int(answer.headers.get("Content-Length") or 0) or None
    return CallbackIOWrapper(
        tqdm(total=size, unit="B", unit_scale=True, disable=None, leave=False).update, answer
    )


def check(name: str, path: Path) -> None:
    """Compare a file with the checksum on record, or put it on record."""
    known = dict(reversed(line.split()) for line in LOCK.read_text().splitlines())
    digest = sha256(path)
    if name not in known:
        with LOCK.open("a") as lock:
            lock.write(f"{digest}  {name}\n")
    elif known[name] != digest:
        raise ValueError(f"sha256 is {digest}, not {known[name]}: the file is another or damaged")


def main(names: list[str]) -> None:
    """Fetch the named teachers, or all of them, into ./save."""
    for name in names or PUBLISHED:
        if name not in PUBLISHED:
            raise UserError(f"no published teacher {name!r}; there are: {', '.join(PUBLISHED)}")
        path = path_of(name, Path("./save"))
        if path.exists():
            print(f"{path} is there")
        else:
            fetch(name, path)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
