"""Files that somebody else wrote, to run code here, to hang or to crash who reads them."""

import json
import math
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cli import published as published_numbers
from scripts.campaign.ground import FAKE, RUNS, STUDENT, Case, run_below

CALLED = "called"  # the file that is there once somebody's code has run
MODULE = f"open({CALLED!r}, 'w')\n\n\ndef make(num_classes):\n    open({CALLED!r}, 'w')\n"
FINISHES = (0, 1, 2)


def attack(case: Case) -> None:
    """Have a hostile file read: at most one line comes of it."""
    kinds = [checkpoint, checkpoint, resume, pickled, zipped, config, images, run, run, bank]
    kind = case.chance.choice(kinds)
    case.enter("stopped", "student")
    (case.folder / "stranger.py").write_text(MODULE)
    (case.folder / "save" / "stranger.py").write_text(MODULE)
    kind(case)
    made = [path.name for path in case.folder.rglob(CALLED)]
    case.expect(not made, "somebody's code has run")


# ---- values that nobody expects


def nested(depth: int) -> list:
    return [nested(depth - 1)] if depth else []


ODD: list[Callable[[], Any]] = [
    lambda: None,
    lambda: True,
    lambda: -1,
    lambda: 5,
    lambda: 10**9,
    lambda: 10**30,
    lambda: 1e300,
    lambda: math.nan,
    lambda: math.inf,
    lambda: "",
    lambda: "x" * 10**6,
    lambda: "\0\n\x1b[2J",
    lambda: "\ud800",
    lambda: "../../../etc/passwd",
    lambda: "stranger:make",
    lambda: "save.stranger:make",
    lambda: "os:abort",
    lambda: "torchvision:../x",
    lambda: "resnet8x4",
    lambda: "cifar100",
    list,
    dict,
    lambda: [None] * 4,
    lambda: ["a", "a", "a", "a"],
    lambda: list(range(4)),
    lambda: (0.5,) * 3,
    lambda: [0.0, 0.0, 0.0],
    lambda: [math.nan] * 3,
    lambda: {1: 2, None: 3, (1, 2): 4},
    lambda: nested(90),
    lambda: b"bytes",
    lambda: torch.tensor(3.0),
    lambda: torch.zeros(0),
    lambda: torch.zeros(4, 3),
    lambda: torch.full((64,), math.nan),
    lambda: torch.ones(64, dtype=torch.int64),
    lambda: torch.ones(64, dtype=torch.bool),
    lambda: torch.ones(64, dtype=torch.complex64),
    lambda: torch.ones(64, dtype=torch.float64),
    lambda: torch.ones(64).to_sparse(),
    lambda: torch.empty(64, device="meta"),
    lambda: torch.zeros(1).expand(10**12),
    lambda: torch.zeros(1).expand(64),
    lambda: torch.quantize_per_tensor(torch.ones(64), 0.1, 0, torch.qint8),
    lambda: torch.nn.Parameter(torch.ones(64)),
]


def altered(case: Case, content: Any) -> Any:
    """The same nested content with one entry removed, renamed, doubled or replaced."""
    if not isinstance(content, (dict, list, tuple)) or not content or case.chance.random() < 0.15:
        return case.chance.choice(ODD)()
    if isinstance(content, (list, tuple)):
        parts = list(content)
        place = case.chance.randrange(len(parts))
        parts[place] = altered(case, parts[place])
        return type(content)(parts)
    key = case.chance.choice(list(content))
    how = case.chance.choice(["alter", "alter", "alter", "alter", "remove", "rename", "add"])
    changed = dict(content)
    case.log.append(f"{how} {key!r}")
    if how == "alter":
        changed[key] = altered(case, changed[key])
    elif how == "add":
        changed[case.chance.choice(["spare", 7, None, ("a", 1), b"x"])] = case.chance.choice(ODD)()
    else:
        value = changed.pop(key)
        if how == "rename":
            changed[case.chance.choice(["spare", 7, None, ("a", 1), b"x"])] = value
    return changed


# ---- checkpoints


def use(case: Case, file: str) -> None:
    """Give a checkpoint to a command that takes one."""
    lines = [
        f"eval -c {file} --device cpu",
        f"eval -c {file} {FAKE}",
        f"{STUDENT} --save_dir other".replace("teacher/last.pth", file),
        f"{STUDENT} --save_dir other --model_t resnet8".replace("teacher/last.pth", file),
        f"{RUNS['probe']} --save_dir other".replace("teacher/last.pth", file),
    ]
    case.run(case.chance.choice(lines), FINISHES)


def checkpoint(case: Case) -> None:
    file = case.folder / "teacher" / "last.pth"
    content = torch.load(file, weights_only=True)
    torch.save(altered(case, content), file)
    use(case, "teacher/last.pth")


def resume(case: Case) -> None:
    file = run_below(case.folder) / "resume.pth"
    torch.save(altered(case, torch.load(file, weights_only=True)), file)
    case.run(f"{RUNS['student']} --resume", FINISHES)


CALL = f"(S'touch {CALLED}'\n"
PICKLES = [
    f"cos\nsystem\n{CALL}tR.".encode(),
    f"cposix\nsystem\n{CALL}tR.".encode(),
    f"csubprocess\ncheck_output\n(S'touch {CALLED}'\nI0\ntR.".encode(),
    f'cbuiltins\nexec\n(S\'open("{CALLED}","w")\'\ntR.'.encode(),
    f'c__builtin__\neval\n(S\'open("{CALLED}","w")\'\ntR.'.encode(),
    b"cstranger\nmake\n(I1\ntR.",
    b"csave.stranger\nmake\n(I1\ntR.",
    f"ctorch.serialization\nos.system\n{CALL}tR.".encode(),
    "\x80\x04cbuiltins\ngetattr\n(cos\n_wrap_close\nS'x'\ntR.".encode("latin-1"),
    b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n(I4\nt(I1\nttR.",
    b"ctorch._utils\n_rebuild_tensor_v2\n(S'x'\nI999999999999\n(I4\nt(I-1\nttR.",
    b"ctorch._utils\n_rebuild_parameter\n(NNNtR.",
    b"ccollections\nOrderedDict\n(I1\nI2\ntR.",
    b"cargparse\nNamespace\n(tR}S'__class__'\nI1\nsb.",
    b"\x80\x02" + b"(" * 200_000 + b".",
    b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f" + b"x" * 100 + b".",
    b"\x80\x02X\xff\xff\xff\xff" + b"x" * 100 + b".",
    b"\x80\x05\x8d" + b"\xff" * 8 + b".",
    b"\x80\x02r\xff\xff\xff\x7f.",
    b"\x80\x02]q\x00h\x00a.",
    b"\x80\x02}q\x00U\x05modelh\x00s.",
    b"\x80\xff.",
    b"",
    b".",
]


def pickled(case: Case) -> None:
    """A pickle that is none of torch's, by itself or in the place of one."""
    content = case.chance.choice(PICKLES)
    case.log.append(repr(content[:80]))
    if case.chance.random() < 0.5:
        case.folder.joinpath("hostile.pth").write_bytes(content)
    else:
        rewrite(
            case.folder / "teacher/last.pth", case.folder / "hostile.pth", {"data.pkl": content}
        )
    use(case, "hostile.pth")


def rewrite(
    source: Path, target: Path, changed: dict[str, bytes], method=zipfile.ZIP_STORED
) -> None:
    """Copy an archive with some members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, changed.get(name.partition("/")[2], old.read(name)))


def zipped(case: Case) -> None:
    """An archive that is not what torch writes."""
    source, target = case.folder / "teacher" / "last.pth", case.folder / "hostile.pth"
    kind = case.chance.choice(
        ["bomb", "deflated", "byteorder", "version", "shorter", "many", "none"]
    )
    case.log.append(kind)
    if kind in ("bomb", "deflated"):
        more = {"data/0": bytes(300 << 20)} if kind == "bomb" else {}
        rewrite(source, target, more, zipfile.ZIP_DEFLATED)
    elif kind in ("byteorder", "version"):
        rewrite(source, target, {kind: case.chance.choice([b"", b"big", b"9999", b"\xff"])})
    elif kind == "shorter":
        rewrite(source, target, {"data/0": b"x"})
    else:
        with zipfile.ZipFile(target, "w") as archive:
            for number in range(20_000 if kind == "many" else 0):
                archive.writestr(f"a/{number}", b"")
    use(case, "hostile.pth")


# ---- text


CONFIGS = [
    b"distill: " + b"[" * 3000,
    b"distill: " + b"[" * 3000 + b"]" * 3000,
    b"{" * 3000,
    b"- " * 3000,
    b"? " * 3000,
    b"".join(b"key%d: 1\n" % n for n in range(200_000)),
    b"distill: " + b"x" * 5_000_000,
    b"a: &a [x,x]\n"
    + b"".join(b"%c: &%c [*%c,*%c]\n" % (n, n, n - 1, n - 1) for n in range(98, 120)),
    b"distill: &a [*a]\n",
    b"<<: {distill: kd}\n",
    f"distill: !!python/object/apply:os.system ['touch {CALLED}']\n".encode(),
    b"distill: !!python/name:stranger.make\n",
    b"model_s: stranger:make\n",
    b"batch_size: 8\nbatch-size: 9\n",
    b"lr: 0.1\nlearning_rate: 0.2\n",
    b"epochs: 1\nepochs: 2\n",
    b"cfg: other.yaml\n",
    b"help: on\n",
    b"--epochs: 3\n",
    b"'': 3\n",
    b"epochs: --\n",
    b"epochs:\n",
    b"epochs: {a: 1}\n",
    b"? [a, b]\n: 3\n",
    b"a\tb: \t3\n",
    b"\xff\xfee\x00p\x00",
    b"\xef\xbb\xbfepochs: 1\n",
    b"epochs: \xff\n",
    b"epochs: \x00\n",
    b"epochs: \xc3\xa9\n",
    b"epochs: 1\n---\nepochs: 2\n",
    b"%YAML 9.9\n---\nepochs: 1\n",
    b"\n" * 100_000,
    b"#" * 100_000,
    b"seed: 0o17\n",
    b"epochs: 1_0\n",
    b"epochs: 1:30\n",
    b"epochs: 9" + b"9" * 5000 + b"\n",
]


def config(case: Case) -> None:
    """A YAML file, or what is no file, as --cfg or as the table of published results."""
    content = case.chance.choice(CONFIGS)
    case.log.append(repr(content[:80]))
    if case.chance.random() < 0.7:
        (case.folder / "odd.yaml").write_bytes(content)
    else:
        place(case, case.folder / "odd.yaml")
    if case.chance.random() < 0.3:
        case.run("compare save", FINISHES, prepare=published(case.folder / "odd.yaml"))
    else:
        case.run(f"{STUDENT} --epochs 1 --save_dir other --cfg odd.yaml", FINISHES)


def published(path: Path) -> Callable[[], None]:
    def replace() -> None:
        published_numbers.FILE = path

    return replace


def place(case: Case, path: Path) -> None:
    """Put what is no plain file, or one that nobody can read, where one is expected."""
    kind = case.chance.choice(["fifo", "folder", "zero", "circle", "nowhere"])
    case.log.append(f"{path.name} is a {kind}")
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to({"zero": "/dev/zero", "circle": path.name, "nowhere": "nowhere"}[kind])


LINES = [
    '{"epoch": 1e400}', '{"epoch": -1}', '{"epoch": 1}', '{"epoch": 10000000000}', "[]", "null",
    '{"epoch": "1"}', '{"epoch": 2, "test_acc": "x"}', '{"epoch": 3, "test_acc": null}', "{", "",
    '{"epoch": true}', '{"epoch": 2, "a\u2028b": 1}', "[" * 100_000, "\x00", "NaN", "1" * 5000,
    '{"epoch":' + "1" * 5000 + "}", "\x1e", "\x0c",
]  # fmt: skip


def run(case: Case) -> None:
    """A run.json or a metrics.jsonl that somebody edited, or something else in a run's place."""
    folder = run_below(case.folder)
    file = folder / case.chance.choice(["run.json", "run.json", "metrics.jsonl"])
    chance = case.chance.random()
    if chance < 0.2:
        name = case.chance.choice(
            ["resume.pth", "run.json", "metrics.jsonl", "tensorboard", ".lock"]
        )
        if (folder / name).is_dir():
            (folder / name).rename(folder / "elsewhere")
        place(case, folder / name)
    elif file.name == "run.json":
        content = altered(case, json.loads(file.read_text()))
        file.write_text(json.dumps(content, default=str, skipkeys=True))
    else:
        lines = file.read_text().split("\n")
        lines.insert(case.chance.randrange(len(lines)), case.chance.choice(LINES))
        file.write_text("\n".join(lines), errors="replace")
    case.run("compare save", FINISHES)
    case.run(f"{RUNS['student']} --resume", FINISHES)


def bank(case: Case) -> None:
    """What describes a bank of the teacher's rows, edited."""
    case.enter("stopped", "bank")
    file = case.chance.choice(sorted(case.folder.glob("bank/**/*.json")))
    if case.chance.random() < 0.2:
        place(case, file)
    else:
        content = altered(case, json.loads(file.read_text()))
        file.write_text(json.dumps(content, default=str, skipkeys=True))
    case.run(f"{RUNS['bank']} --resume", FINISHES)


# ---- images


def png(width: int, height: int, data: bytes) -> bytes:
    """A PNG file of grey pixels whose header says what it likes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


GREY = png(8, 8, (b"\0" + bytes(8)) * 8)
IMAGES = [
    b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n("
    + CALLED.encode()
    + b") (w) file closefile\n",
    png(65_000, 65_000, b""),
    png(2**31 - 1, 2**31 - 1, b""),
    png(0, 0, b""),
    png(20_000, 20_000, bytes(20_001) * 20_000),
    GREY[: len(GREY) // 2],
    GREY[:-1],
    GREY[:33] + b"\xff" * 20,
    b"",
    b"\xff\xd8\xff\xe0",
    b"GIF89a\xff\xff\xff\xff\x00\x00\x00",
    b"BM" + b"\xff" * 60,
    b"P6 99999 99999 255\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    pickle.dumps("an image"),
]


def images(case: Case) -> None:
    """A folder of images of which one is none."""
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            folder = case.folder / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number}.png").write_bytes(GREY)
    path = case.folder / "images" / case.chance.choice(["train", "val"]) / "cat" / "1.png"
    if case.chance.random() < 0.3:
        place(case, path)
    elif case.chance.random() < 0.15:
        path.rename(path.with_name(os.fsdecode(b"\xff\n.png")))
    else:
        content = case.chance.choice(IMAGES)
        case.log.append(repr(content[:80]))
        path.write_bytes(content)
    workers = case.chance.choice([0, 0, 2])
    line = (
        "train_teacher --model resnet8 --dataset folder --data_dir images --image_size 8 --epochs 1"
    )
    case.run(f"{line} --batch_size 3 --num_workers {workers} --device cpu", FINISHES)
