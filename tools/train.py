"""train_student.py under the command line of DSKD and the logit-standardization code base.

python tools/train.py --cfg configs/cifar100/sdd_kd/resnet32x4_resnet8x4.yaml --M [1,2] --gpu 0

Every flag of train_student.py works. Beside them --gpu N is --device cuda:N; --same-t, the
temperature that RLD has by itself, may be said; and --base-temp and --kd-weight are passed over
without --logit-stand, as they are there.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.main import main
from cli.words import read_choices, strip_help
from helper.options import Parser, count
from train_student import train_student

STANDARDIZING = ("--base-temp", "--kd-weight")


def translated(argv: Sequence[str]) -> list[str]:
    """The same command line in the words of train_student.py. With --help, its own flags first."""
    parser = Parser(usage="tools/train.py [flags below, and those of train_student.py]")
    parser.add_argument("--gpu", type=count, metavar="N", help="the same as --device cuda:N")
    same = "the temperature of RLD's masked part is that of the rest: so it is by default here"
    parser.add_argument("--same-t", "--same_t", action="store_true", help=same)
    own, words = parser.parse_known_args(argv)
    if {"-h", "--help"} & set(argv):
        print(parser.format_help())
    if "gpu" in own:
        words += ["--device", f"cuda:{own.gpu}"]
    return without_effect(words)


def without_effect(words: Sequence[str]) -> list[str]:
    """The command line without flags that the published tool passes over; a warning names them."""
    if read_choices(strip_help(words), students=True)[1].get("logit_stand"):
        return list(words)
    parser = Parser()
    for flag in STANDARDIZING:
        parser.add_argument(flag, flag.replace("-", "_").replace("__", "--"))
    found, kept = parser.parse_known_args(words)
    if vars(found):
        named = " and ".join(f"--{name.replace('_', '-')}" for name in vars(found))
        warnings.warn(f"{named}: no effect without --logit-stand, as published", stacklevel=2)
    return kept


def train(argv: Sequence[str]) -> None:
    """Command line -> a run in save/student_model/."""
    train_student(translated(argv))


if __name__ == "__main__":
    main(train)
