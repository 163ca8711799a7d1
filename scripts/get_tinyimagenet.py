"""Fetch Tiny ImageNet and arrange it as DIR/tiny-imagenet-200/train/<class>/ and val/<class>/."""

import argparse
import http.client
import os
import re
import shutil
import signal
import socket
import sys
import tarfile
import tempfile
import zipfile
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from helper.errors import UserError

NAME, ANNOTATIONS = "tiny-imagenet-200", "val/val_annotations.txt"
URL, MD5 = f"http://cs231n.stanford.edu/{NAME}.zip", "90528d7ca1a48142e341f4ef8d21d0de"
DATA = Path(__file__).resolve().parent.parent / "data"
DAMAGE = (EOFError, RuntimeError, UnicodeError, tarfile.TarError, zipfile.BadZipFile, zlib.error)


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(f"{message}; see --help")


def main(argv: list[str]) -> None:
    """From a command line to the arranged folder; UserError or OSError where that is impossible."""
    parser = Parser(prog="get_tinyimagenet.sh", description=__doc__, allow_abbrev=False)
    about = f"{NAME} as published: a .zip, a .tar.gz or a folder (default: {URL}, 250 MB)"
    parser.add_argument("--from", dest="source", type=Path, metavar="FILE_OR_FOLDER", help=about)
    parser.add_argument("--to", type=Path, metavar="DIR", default=DATA, help=f"default: {DATA}")
    options = parser.parse_args(argv)
    target = options.to / NAME
    if classes_of(target):
        print(f"{target} is there: nothing to do")
    elif os.path.lexists(target):
        raise UserError(f"{target} is there and not arranged by class: move it away")
    else:
        bring(options.source, target)
        print(f"{target}: {classes_of(target)} classes, {len([*target.glob('*/*/*')])} images")


def classes_of(folder: Path) -> int:
    """How many classes it has, 0 unless they are the same in train/ and val/."""
    train, val = ({p.name for p in folder.glob(f"{part}/*/")} for part in ("train", "val"))
    return len(train) if train == val else 0


def bring(source: Path | None, target: Path) -> None:
    """Make `target` in a temporary folder, of a copied folder, an archive, or (None) a download."""
    near = next(folder for folder in target.parents if folder.exists())  # on the same disk
    with tempfile.TemporaryDirectory(prefix=f".{NAME}-", dir=near) as work:
        arranged, published = Path(work) / NAME, Path(work) / "published" / NAME
        try:
            if source and source.is_dir():
                published = source if (source / "train").is_dir() else source / NAME
                arrange(published, arranged, shutil.copyfile)
            else:
                unpack(source, published.parent)
                arrange(published, arranged, os.rename)
        except (UserError, OSError, http.client.HTTPException, *DAMAGE) as error:
            way_out = "" if source else "; download it elsewhere and give it with --from"
            raise UserError(f"{source or URL}: {error}{way_out}") from None
        target.parent.mkdir(parents=True, exist_ok=True)
        arranged.rename(target)


def unpack(source: Path | None, folder: Path) -> None:
    if not sys.stderr.isatty():
        os.environ["TQDM_DISABLE"] = "1"  # read when tqdm is imported
    from helper.vision import torchvision

    if source:
        check_entries(source)
        # torchvision asks for no filter: the archive would choose the owners and modes of files.
        tarfile.TarFile.extraction_filter = staticmethod(getattr(tarfile, "data_filter", None))
        torchvision.datasets.utils.extract_archive(source, folder)
    else:
        print(f"fetching {URL}", flush=True)
        socket.setdefaulttimeout(60)  # torchvision would wait for ever
        torchvision.datasets.utils.download_and_extract_archive(URL, folder.parent, folder, md5=MD5)


def check_entries(archive: Path) -> None:
    """Refuse links and entries that lie elsewhere: zipfile would put these somewhere inside."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as file:
            entries = [(name, True) for name in file.namelist()]
    else:
        with tarfile.open(archive, "r:gz") as file:
            entries = [(entry.name, entry.isreg() or entry.isdir()) for entry in file]
            file.fileobj.read()  # up to the checksum of the .gz
    for name, plain in entries:
        if not plain or name.startswith("/") or ".." in name.split("/"):
            raise UserError(f"{name!r} in it is a link or lies outside of it: do not trust it")


def arrange(published: Path, target: Path, put) -> None:
    """Put (copy or move) images to train/<class>/ and val/<class>/; test/ and boxes are left."""
    if not (published / ANNOTATIONS).is_file():
        raise UserError(f"no {NAME}/{ANNOTATIONS} in it")
    given = dict(re.findall(r"(?m)^(.+?)\t(\w+)", (published / ANNOTATIONS).read_text("utf-8")))
    train, val = published.glob("train/*/**/[!.]*.JPEG"), published.glob("val/images/[!.]*.JPEG")
    train = {image: image.relative_to(published).parts[1] for image in train}
    val = {image: given.get(image.name, f"none of {image.name}") for image in val}
    if (odd := set(train.values()) ^ set(val.values())) or not train:
        raise UserError(f"not every class has images in both train/ and val/: {sorted(odd)[:3]}")
    places = dict.fromkeys(published.glob("*.txt"), target)  # what the classes are
    places |= {image: target / "train" / wnid for image, wnid in train.items()}
    places |= {image: target / "val" / wnid for image, wnid in val.items()}
    for file, folder in places.items():
        folder.mkdir(parents=True, exist_ok=True)
        put(file, folder / file.name)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else temporary files would stay
    try:
        main(sys.argv[1:])
    except (UserError, OSError) as problem:
        print("error: " + " ".join(str(problem).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
