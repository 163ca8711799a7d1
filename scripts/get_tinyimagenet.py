"""Fetch Tiny ImageNet and arrange it as <DIR>/tiny-imagenet-200/train/<class>/ and val/<class>/.

data/get_tinyimagenet.sh starts this with any Python 3: the standard library has to be enough. The
images are arranged in a temporary folder that is renamed at the end. Of an archive only regular
files with a known place are read; none is unpacked to where its name says.
"""

import argparse
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath

NAME = "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{NAME}.zip"
ANNOTATIONS = "val/val_annotations.txt"
KEPT = ("wnids.txt", "words.txt")  # what the classes are
# A partial download is gone on with; a dead connection ends in an error and not in waiting.
TOOLS = {
    "curl": "curl --fail --location --continue-at - --connect-timeout 30 --speed-limit 1 "
    "--speed-time 60 --retry 3 --output",
    "wget": "wget --continue --timeout=60 --tries=3 --output-document",
}
QUIET = {"curl": ["--silent", "--show-error"], "wget": ["--no-verbose"]}
DAMAGE = (  # what zipfile and tarfile raise about a file
    EOFError,
    NotImplementedError,
    RuntimeError,
    UnicodeError,
    gzip.BadGzipFile,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


class BadInput(Exception):
    """What was given cannot be used: the message is one line."""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise BadInput(f"{message}; see --help")


def path(text):
    """A path; an empty word is none, though Path takes it for the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return Path(text)


def parse(argv):
    about = f"Download Tiny ImageNet and arrange it as DIR/{NAME}/train/CLASS/ and val/CLASS/."
    parser = Parser(prog="get_tinyimagenet.sh", description=about, allow_abbrev=False)
    parser.add_argument(
        "--from",
        dest="source",
        type=path,
        metavar="FILE_OR_FOLDER",
        help=f"{NAME} as published: a .zip, a .tar.gz or a folder, which is copied (default: "
        f"{URL}, 250 MB)",
    )
    parser.add_argument(
        "--to",
        type=path,
        metavar="DIR",
        default=Path(__file__).resolve().parent.parent / "data",
        help="where to put it (default: data/ of this checkout)",
    )
    return parser.parse_args(argv)


def main(argv):
    """From a command line to the arranged folder; BadInput or OSError where that is impossible."""
    options = parse(argv)
    target = options.to / NAME
    state = state_of(target)
    if state == "arranged":
        print(f"{target} is there: nothing to do")
        return
    if state == "published" and not options.source:
        rearrange(target)
    elif state != "absent":
        hint = ", or leave out --from to arrange it" if state == "published" else ""
        raise BadInput(f"{target} is there and not arranged by class: move it away{hint}")
    elif options.source:
        with new_folder(options.to):
            arrange(options.source, target)
    else:
        with new_folder(options.to):
            fetch(target)
    images = {part: sum(1 for _ in target.glob(f"{part}/*/*")) for part in ("train", "val")}
    classes = len(subfolders(target / "train"))
    print(f"{target}: {classes} classes, {images['train']} + {images['val']} images")


def state_of(target):
    """What lies under the final name: absent, arranged, published (val/ not arranged), unknown."""
    if not os.path.lexists(str(target)):
        return "absent"
    if (target / "val" / "images").is_dir() and (target / ANNOTATIONS).is_file():
        return "published"
    classes = subfolders(target / "train")
    return "arranged" if classes and classes == subfolders(target / "val") else "unknown"


def subfolders(folder):
    return {p.name for p in folder.iterdir() if p.is_dir()} if folder.is_dir() else set()


@contextmanager
def new_folder(folder):
    """Make a folder and those above it; take away again what is still empty after an error."""
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for p in made:
            if not any(p.iterdir()):
                p.rmdir()
        raise


def rearrange(target):
    """Arrange a folder that was unpacked by hand; the published one stays under another name."""
    kept = target.with_name(f"{NAME}.published")
    if kept.exists():
        raise BadInput(f"{target} and {kept} are both there: move one away")
    target.rename(kept)
    try:
        arrange(kept, target)
    except BaseException:
        kept.rename(target)
        raise
    print(f"{kept} is what {target} was: it is no longer needed")


def fetch(target):
    """Download the archive, arrange it and remove it."""
    archive = target.with_name(f"{NAME}.zip")
    if archive.exists():  # put there by hand, or by a run that was stopped: not ours to remove
        arrange(archive, target)
        return
    download(archive)
    try:
        arrange(archive, target)
    except BadInput:
        archive.unlink()  # else the next run would use it again
        raise
    archive.unlink()


def download(archive):
    """Write the published archive under another name and rename it when it is whole."""
    tool = next(filter(shutil.which, TOOLS), None)
    way_out = "download it elsewhere and give it with --from"
    if not tool:
        raise BadInput(f"neither {' nor '.join(TOOLS)} is there to fetch {URL}: {way_out}")
    part = archive.with_name(f"{archive.name}.part")
    if not complete(part):  # a server may refuse to go on with a file of which nothing is left
        print(f"fetching {URL}", flush=True)
        shown = sys.stderr.isatty()
        command = [*TOOLS[tool].split(), str(part), *([] if shown else QUIET[tool]), URL]
        done = subprocess.run(command, stderr=None if shown else subprocess.PIPE)
        if part.exists() and not part.stat().st_size:
            part.unlink()
        if done.returncode:
            lines = (done.stderr or b"").decode(errors="replace").split("\n")
            reason = next(filter(str.strip, reversed(lines)), f"{tool} ended with an error")
            so_far = f"; what came is kept in {part}" if part.exists() else ""
            raise BadInput(f"cannot fetch {URL} ({reason.strip()}): {way_out}{so_far}")
    if not complete(part):
        part.unlink()
        raise BadInput(f"what came from {URL} is no .zip archive: {way_out}")
    part.rename(archive)


def complete(archive):
    """Whether this is a whole .zip: its directory is at the end."""
    return archive.is_file() and zipfile.is_zipfile(str(archive))


def arrange(source, target):
    """Copy the images of an archive or a folder to train/<class>/ and val/<class>/ of `target`."""
    if not source.exists():
        raise BadInput(f"no file or folder {source}")
    prefix = f".{NAME}-"
    with tempfile.TemporaryDirectory(prefix=prefix, dir=str(target.parent)) as work:
        made = Path(work) / NAME  # within: the temporary folder itself is for one user only
        annotations = {}
        try:
            copy(source, made, annotations)
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise BadInput(f"{source} is damaged or no archive ({reason})") from None
        sort_val(source, made, annotations)
        made.rename(target)


def copy(source, made, annotations):
    """Copy what is needed, val/ still in one folder, and fill in name of image -> class."""
    top = False
    for name, reader in entries(source):
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts:
            raise BadInput(f"{source} holds {name!r}, which lies outside of it: do not trust it")
        if parts[:1] != [NAME] or len(parts) < 2:
            continue
        top = True
        inner = "/".join(parts[1:])
        if inner == ANNOTATIONS:
            with reader() as file:
                annotations.update(read_annotations(source, file.read()))
        elif place := place_of(inner):
            out = made / place
            out.parent.mkdir(parents=True, exist_ok=True)
            try:
                with reader() as file, open(str(out), "xb") as copied:
                    shutil.copyfileobj(file, copied)
            except FileExistsError:
                raise BadInput(f"{source} holds {place} twice") from None
    if not top:
        raise BadInput(f"no {NAME}/ in {source}")


def place_of(inner):
    """Where a file of the published folder goes, or None: test/ and boxes are not needed."""
    if inner in KEPT:
        return inner
    image = r"[^./][^/]*\.JPEG"
    if found := re.fullmatch(rf"train/([^./][^/]*)/(?:images/)?({image})", inner):
        return "train/{}/{}".format(*found.groups())
    return inner if re.fullmatch(rf"val/images/{image}", inner) else None


def read_annotations(source, content):
    """Lines of image, class and a box, between tabs -> {image: class}"""
    lines = [line.split("\t") for line in content.decode().splitlines() if line.strip()]
    if any(len(line) < 2 for line in lines):
        raise BadInput(f"{ANNOTATIONS} of {source} is not a table of images and classes")
    return {line[0]: line[1] for line in lines}


def sort_val(source, made, annotations):
    """Move the images of val/ into a folder a class."""
    images, classes = made / "val" / "images", subfolders(made / "train")
    if not classes:
        raise BadInput(f"no train/CLASS/*.JPEG in {NAME}/ of {source}")
    if not images.is_dir():
        raise BadInput(f"no val/images/*.JPEG in {NAME}/ of {source}")
    if not annotations:
        raise BadInput(f"no {ANNOTATIONS}, or an empty one, in {NAME}/ of {source}")
    for name in sorted(os.listdir(str(images))):
        if annotations.get(name) not in classes:  # so a class is a name that train/ has
            given = annotations.get(name, "none")
            raise BadInput(f"{source}: val/images/{name} has class {given!r}, which train/ lacks")
        folder = made / "val" / annotations[name]
        folder.mkdir(exist_ok=True)
        (images / name).rename(folder / name)
    images.rmdir()
    if bare := sorted(classes - subfolders(made / "val")):
        raise BadInput(f"{source} has no val images of {len(bare)} classes ({bare[0]} is one)")


def entries(source):
    """(name, function that opens it) of each file, in the order in which they lie there."""
    if source.is_dir():
        return folder_entries(source)
    if zipfile.is_zipfile(str(source)):
        return zip_entries(source)
    return tar_entries(source)


def folder_entries(folder):
    root = folder if (folder / "train").is_dir() else folder / NAME
    for where, folders, files in os.walk(str(root), followlinks=True):
        folders.sort()
        for file in sorted(files):
            inner = PurePosixPath(where).relative_to(PurePosixPath(root)) / file
            yield f"{NAME}/{inner}", partial(open, os.path.join(where, file), "rb")


def zip_entries(source):
    with zipfile.ZipFile(str(source)) as archive:
        for member in archive.infolist():
            if not member.is_dir():
                yield member.filename, partial(archive.open, member)


def tar_entries(source):
    with gzip.open(str(source)) as unzipped, tarfile.open(fileobj=unzipped, mode="r:") as archive:
        for member in archive:
            if member.issym() or member.islnk():
                raise BadInput(f"{source} holds the link {member.name!r}: do not trust it")
            if member.isreg():
                yield member.name, partial(archive.extractfile, member)
        while unzipped.read(1 << 20):  # up to the checksum, which tarfile does not ask for
            pass


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # else temporary files would stay
    try:
        main(sys.argv[1:])
    except (BadInput, OSError) as problem:
        print("error: " + " ".join(str(problem).split()), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
