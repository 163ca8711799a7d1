"""train_student.py under the command line of DSKD and the logit-standardization code base.

python tools/train.py --cfg configs/cifar100/sdd_kd/resnet32x4_resnet8x4.yaml --M [1,2] --gpu 0

Every flag of train_student.py works; beside them --gpu N is --device cuda:N, and --same-t, the
temperature that RLD has by itself, may be said.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.main import main
from helper.options import Parser, count
from train_student import train_student


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
    return words


def train(argv: Sequence[str]):
    """Command line -> the run's summary."""
    return train_student(translated(argv))


if __name__ == "__main__":
    main(train)
