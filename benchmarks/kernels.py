"""How many operations a training step issues: on a GPU each is a launch at least.

python benchmarks/kernels.py [--methods kd crd] [--pair resnet32x4,resnet8x4] [--most]

A step is forward, backward and SGD, with the batch and the bank's rows on the device. Counted is
what PyTorch's dispatcher is asked to compute; views and empty tensors cost no launch and are left
out. `loss` is forward and backward of the loss alone, beside its paper's formula as it is written
(benchmarks/literal). --most names the operations that a banked step issues most often.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks import gpu, losses
from distiller_zoo import METHODS
from engine.device import Numerics
from engine.teacher import RowsRead, rows_read

IMAGES, BATCH, NEGATIVES = 104, 8, 16  # few, since no count depends on them
UNCOUNTED = (  # no launch
    "aten::detach", "aten::alias", "aten::empty", "aten::new_empty", "aten::_unsafe_view",
    "profiler::",
)  # fmt: skip


class Counting(TorchDispatchMode):
    """Counts the operations that compute something, by name."""

    def __init__(self):
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        returned = [r.alias_info for r in function._schema.returns]
        is_view = any(alias and not alias.is_write for alias in returned)
        if not is_view and not name.startswith(UNCOUNTED):
            self.found[name] += 1
        return function(*args, **(kwargs or {}))


def counted(function: Callable[[], object]) -> Counter[str]:
    """The operations of a call; of the second one, when all is set up."""
    function()
    with Counting() as mode:
        function()
    return mode.found


def parts_of(name: str, pair: Sequence[str]) -> gpu.Parts:
    """What `--distill name` trains, with the method's own weights."""
    line = f"--distill {name} --model_s {pair[1]} --dataset fake --beta 1"
    line += f" --model_t {pair[0]}" if METHODS[name].has_teacher else ""
    line += f" --batch_size {BATCH}"
    if name == "kd":
        line = line.replace("--beta 1", "")
    if hasattr(METHODS[name].Options, "nce_k"):
        line += f" --nce_k {NEGATIVES}"
    return gpu.make_parts(line, Numerics(torch.device("cpu")), IMAGES)


def steps_of(name: str, pair: Sequence[str]) -> dict[str, Counter[str]]:
    """Operations of a step with the live teacher and, where the method reads rows, a bank."""
    parts = parts_of(name, pair)
    found = {"live": of_step(gpu.live(parts))}
    in_bank = parts.teacher and not parts.train.strong
    if in_bank and isinstance(rows_read([parts.method]), RowsRead):
        found["banked"] = of_step(gpu.banked(parts_of(name, pair)))
    return found


def of_step(way: gpu.Way) -> Counter[str]:
    """Operations of a step of one of the ways to train."""
    return counted(lambda: way(1))


def losses_of(name: str, scene: losses.Scene) -> dict[str, Counter[str]]:
    """Operations of our form of a loss and of the literal one, where there is one."""
    row = name if name in losses.ROWS else f"{name}, queue"
    if row not in losses.ROWS:
        return {}
    return {which: counted(step) for which, step in losses.steps(row, scene).items()}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--pair", default="resnet32x4,resnet8x4", help="teacher,student")
    parser.add_argument("--most", action="store_true", help="name the most frequent operations")
    options = parser.parse_args(argv)
    pair = options.pair.split(",")
    scene = losses.Scene(*pair, "cpu")
    print(f"torch {torch.__version__}, {options.pair}\n")
    print("| method | live | banked | loss | literal loss |\n| --- | --- | --- | --- | --- |")
    for name in options.methods:
        found = {**steps_of(name, pair), **losses_of(name, scene)}
        totals = [found[k].total() if k in found else "-" for k in ("live", "banked", "ours")]
        print(f"| {name} | {' | '.join(map(str, totals))} | {total(found.get('literal'))} |")
        if options.most:
            most = found.get("banked", found["live"]).most_common(12)
            print("  " + ", ".join(f"{n.removeprefix('aten::')} {count}" for n, count in most))


def total(found: Counter[str] | None) -> int | str:
    return "-" if found is None else found.total()


if __name__ == "__main__":
    main()
