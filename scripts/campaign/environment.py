"""Commands in odd surroundings: locales, variables, descriptors, folders, limits.

Here each command is a process of its own, for what the interpreter itself reads when it starts.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from scripts.campaign.ground import FAKE, RUNS, STUDENT, Case
from scripts.campaign.sandbox import LIMIT, Outcome

ROOT = Path(__file__).resolve().parent.parent.parent
PLACES = {"eval": "tools/eval.py", "train": "tools/train.py", "compare": "scripts/compare.py"}
TRAIN = f"train_teacher --model resnet8 {FAKE} --epochs 1"
C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ALL, WORKS, REFUSED = (0, 1, 2), (0,), (2,)


class Surrounding(NamedTuple):
    """A command line, what is odd around it, and how it may end."""

    line: str
    codes: tuple[int, ...] = WORKS
    environment: dict[str, str | None] = {}  # None: the variable is taken away
    shell: str = 'exec "$@"'  # what starts it


def locales() -> list[Surrounding]:
    """Names and texts beyond ASCII where the locale has nothing but that."""
    lines = [
        (f"{TRAIN} --save_dir éß中", WORKS),
        (f"{TRAIN} --model résnet", REFUSED),
        (f"{STUDENT} --epochs 1 --cfg été.yaml", WORKS),
        (f"{STUDENT} --epochs 1 --methods_dir été", WORKS),
        ("compare übungen", WORKS),
        ("compare übungen --format markdown --out größe.md", WORKS),
        (f"eval {FAKE} -c übungen/last.pth --per_class --json größe.json", WORKS),
        ("train_teacher --model resnet8 --dataset folder --data_dir bilder --epochs 1 "
         "--image_size 8 --batch_size 3 --num_workers 0 --device cpu", WORKS),
    ]  # fmt: skip
    places = [C, {"LC_ALL": "nowhere"}, {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}]
    return [Surrounding(line, codes, place) for line, codes in lines for place in places]


def variables() -> list[Surrounding]:
    """Variables that are missing, or that say what they cannot."""
    works: list[dict[str, str | None]] = [
        {"HOME": None}, {"HOME": "/nowhere"}, {"HOME": ""}, {"TMPDIR": "/nowhere"}, {"TMPDIR": ""},
        {"PATH": "/nowhere"}, {"PATH": ""}, {"USER": None, "LOGNAME": None}, {"TERM": "dumb"},
        {"TZ": "nowhere"}, {"TZ": ""}, {"COLUMNS": "0"}, {"COLUMNS": "-1"}, {"COLUMNS": "x"},
        {"COLUMNS": "1"}, {"LINES": "x"}, {"PYTHONWARNINGS": "always"}, {"PYTHONHASHSEED": "7"},
        {"OMP_NUM_THREADS": "0"}, {"OMP_NUM_THREADS": "x"}, {"CUDA_VISIBLE_DEVICES": "x"},
        {"LANG": None, "LC_ALL": None}, {"PYTHONOPTIMIZE": "2"}, {"PYTHONDONTWRITEBYTECODE": "1"},
        {"GIT_DIR": "/nowhere"}, {"DISTILL_MIRROR": "nowhere"}, {"TQDM_DISABLE": "x"},
        {"WORLD_SIZE": "1"}, {"RANK": "0"}, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"},
    ]  # fmt: skip
    refused = [
        {"RANK": "1"}, {"RANK": "x"}, {"RANK": "-1"}, {"LOCAL_RANK": "x"}, {"WORLD_SIZE": "x"},
        {"WORLD_SIZE": "0"}, {"WORLD_SIZE": "-1"}, {"WORLD_SIZE": "2"}, {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "2", "RANK": "5"},
    ]  # fmt: skip
    return [
        *(Surrounding(TRAIN, WORKS, variables) for variables in works),
        *(Surrounding(TRAIN, REFUSED, variables) for variables in refused),
    ]


def descriptors() -> list[Surrounding]:
    """Standard streams and folders that are closed, full, gone or may not be written."""
    compare = "compare finished"
    return [
        Surrounding(TRAIN, shell='exec "$@" <&-'),
        Surrounding(TRAIN, ALL, shell='exec "$@" >&-'),
        Surrounding(TRAIN, shell='exec "$@" 2>&-'),
        Surrounding(TRAIN, ALL, shell='exec "$@" <&- >&-'),
        Surrounding(TRAIN, (1,), shell='exec "$@" >/dev/full'),
        Surrounding(compare, (1,), shell='exec "$@" >/dev/full'),
        Surrounding(compare, ALL, shell='exec "$@" >&-'),
        Surrounding(f"{compare} --out /dev/full", (1, 2)),
        Surrounding(f"{compare} --out /dev/null"),
        Surrounding(f"{compare} --out /dev/stdout"),
        Surrounding(f"eval {FAKE} -c teacher/last.pth --json /dev/full", (1, 2)),
        Surrounding(f"eval {FAKE} -c teacher/last.pth --json /dev/stdout"),
        Surrounding(f"{TRAIN} --save_dir /dev/null", REFUSED),
        Surrounding(f"{TRAIN} --save_dir teacher/last.pth", REFUSED),
        Surrounding(f"{TRAIN} --save_dir /proc/nowhere", REFUSED),
        Surrounding(f"{TRAIN} --save_dir {'x' * 255}"),
        Surrounding(f"{TRAIN} --save_dir {'x' * 256}", REFUSED),
        Surrounding(f"{TRAIN} --save_dir {'y/' * 2100}", REFUSED),
        Surrounding(TRAIN, ALL, shell='mkdir gone; cd gone; rmdir ../gone; exec "$@"'),
        Surrounding(TRAIN, REFUSED, shell='cd /proc; exec "$@"'),
        Surrounding(TRAIN, ALL, shell='umask 777; exec "$@"'),
        Surrounding(TRAIN, shell='umask 000; exec "$@"'),
        Surrounding(TRAIN, ALL, shell='ulimit -f 8; exec "$@"'),
        Surrounding(TRAIN, ALL, shell='ulimit -n 12; exec "$@"'),
        Surrounding(TRAIN, shell='trap "" PIPE HUP; exec "$@"'),
        Surrounding(f"{TRAIN} --help", shell='exec "$@" | head -1'),
        Surrounding(f"{TRAIN} --help", (1,), shell='exec "$@" >/dev/full'),
        Surrounding(f"{RUNS['teacher']} --resume", shell='cd stopped && exec "$@"'),
    ]


def surroundings() -> list[Surrounding]:
    return [*locales(), *variables(), *descriptors()]


def surround(case: Case) -> None:
    """One of the list, in order: the command works, or one line says what is wrong."""
    place = surroundings()[case.number % len(surroundings())]
    make_folders(case)
    script, *words = place.line.split()
    environment = {**os.environ, **place.environment, "OMP_NUM_THREADS": "1", **place.environment}
    command = [sys.executable, ROOT / PLACES.get(script, f"{script}.py"), *words]
    case.log.append(f"{place.environment} {place.shell} {place.line}")
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", place.shell, "sh", *map(str, command)],
            cwd=case.folder,
            capture_output=True,
            env={name: value for name, value in environment.items() if value is not None},
            timeout=2 * LIMIT,
        )
    except subprocess.TimeoutExpired:
        case.problems.append(f"it did not end within {2 * LIMIT:.0f} s")
        return
    said = [stream.decode(errors="replace") for stream in (done.stdout, done.stderr)]
    outcome = Outcome(done.returncode, *said, seconds=0)
    case.judge(outcome, place.codes)


def make_folders(case: Case) -> None:
    """What the command lines name."""
    case.enter("empty")
    for state in ("finished", "stopped"):
        shutil.copytree(case.ground.place(state, "teacher"), case.folder / state)
    shutil.copytree(case.folder / "finished" / "save", case.folder / "übungen")
    shutil.copy(case.folder / "teacher" / "last.pth", case.folder / "übungen" / "last.pth")
    (case.folder / "été.yaml").write_text("# Glühwürmchen 萤火虫\ndistill: kd\n", "utf-8")
    (case.folder / "été").mkdir()
    (case.folder / "été" / "méthode.py").write_text('"""Élan."""\n', "utf-8")
    for split in ("train", "val"):
        for name in ("größe", "猫"):
            folder = case.folder / "bilder" / split / name
            folder.mkdir(parents=True)
            for number in range(3):
                (folder / f"{number} é.ppm").write_bytes(b"P6 8 8 255\n" + bytes(192))
