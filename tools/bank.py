"""The bank of what a teacher says of each crop and flip of each training image.

python tools/bank.py fill --teacher_bank DIR --path_t ...   # all that this student would read
python tools/bank.py check --teacher_bank DIR --path_t ...  # compare many rows with the teacher
python tools/bank.py info DIR                               # whose rows are there, how many
python tools/bank.py drop DIR/NAME                          # delete one

`fill` and `check` take the flags of train_student.py.
"""

import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli  # noqa: F401 - it says so where a package is missing

# isort: split
from cli.main import main
from cli.networks import load_teacher
from cli.parse import parse_student
from cli.parts import make_parts
from cli.setting import make_setting
from engine.bank import KEY_FILE, describe_folder
from engine.teacher import BankedMean, BankedTeacher
from helper.errors import UserError

CHECKED = 4096  # rows that `check` computes again


def command(argv: Sequence[str]) -> None:
    """Command line -> a filled, checked, described or deleted bank."""
    commands = {"fill": fill, "check": check, "info": info, "drop": drop}
    name, rest = (argv[0], argv[1:]) if argv else ("", [])
    if name in ("-h", "--help"):
        print(__doc__)
        return
    if name not in commands:
        known = f"one of {', '.join(commands)}"
        raise UserError(f"{name} is not {known}; see --help" if name else f"give {known}")
    commands[name](rest)


def fill(argv: Sequence[str]) -> None:
    """Compute and keep every row that is missing; a fill that was stopped goes on."""
    for teacher in banked_teachers(argv):
        computed = teacher.fill()
        print(f"{computed:,} rows computed; {teacher.bank.describe()}")


def check(argv: Sequence[str]) -> None:
    """Compare rows with the teacher; UserError for one that is not what it says."""
    for teacher in banked_teachers(argv):
        rows = teacher.check_bank(CHECKED)
        print(f"{rows:,} rows are the teacher's; {teacher.bank.describe()}")


def banked_teachers(argv: Sequence[str]) -> list[BankedTeacher]:
    """The teachers of a command line of train_student.py, one or several, each with a bank."""
    if argv and not argv[0].startswith("-"):
        raise UserError(
            f"{argv[0]} stands alone: give the flags of train_student.py, the folder with "
            "--teacher_bank"
        )
    options = parse_student(argv)
    if not options.teacher_bank:
        raise UserError("no --teacher_bank: give the folder of the bank")
    setting = make_setting(options, options.model_s)
    teacher = load_teacher(setting)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "--nce_k")  # no negative is drawn here
        parts = make_parts(setting, teacher)
    teacher = parts.teacher
    teachers = [*teacher.members] if isinstance(teacher, BankedMean) else [teacher]
    if any(not isinstance(one, BankedTeacher) or one.bank is None for one in teachers):
        raise UserError(parts.bank)
    return teachers


def info(argv: Sequence[str]) -> None:
    """Describe the banks of folders; a folder may be a bank itself."""
    for folder in paths(argv):
        banks = sorted(file.parent for file in folder.glob(f"*/{KEY_FILE}"))
        banks = [folder] if (folder / KEY_FILE).exists() else banks
        if not banks:
            raise UserError(f"{folder} holds no bank: train_student.py --teacher_bank makes one")
        for bank in banks:
            print(describe_folder(bank))


def drop(argv: Sequence[str]) -> None:
    """Delete banks."""
    folders = paths(argv)
    for folder in folders:
        if not (folder / KEY_FILE).is_file():
            raise UserError(f"{folder} is no bank: `info` names those of a folder")
        if folder.is_symlink():
            raise UserError(f"{folder} is a link: give the folder that it leads to")
    for folder in folders:
        shutil.rmtree(folder)
        print(f"{folder} is deleted")


def paths(argv: Sequence[str]) -> list[Path]:
    """The folders of a command line; UserError for one that is not there."""
    if not argv:
        raise UserError("no folder: give that of the bank")
    for word in argv:
        if not Path(word).is_dir():
            raise UserError(f"there is no folder {word}")
    return [Path(word) for word in argv]


if __name__ == "__main__":
    main(command, on="the same command goes on")
