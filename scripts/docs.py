"""Write the README's tables of methods, views, networks, data sets and flags from the registries.

python scripts/docs.py          write them
python scripts/docs.py --check  exit 1 when they are not current
"""

import re
import sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cli.flags import StudentOptions
from cli.parse import COMMON
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from helper.options import title_of
from models import MODELS
from runs.table import by_number

GENERATIONS = {  # by their last year
    2018: "2015 to 2018: soft labels, hints, statistics of maps",
    2021: "2019 to 2021: relations, contrast, overhauls",
    2023: "2022 and 2023: logits decoupled and correlated",
    9999: "Since 2024: transport, refined and local logits",
}
README = Path(__file__).resolve().parent.parent / "README.md"


def first_line(entry) -> str:
    """The docstring's first sentence line: what the entry is and where it is from."""
    return (entry.__doc__ or "").strip().splitlines()[0].rstrip(".")


def flags(cls: type) -> str:
    return " ".join(f"`--{f.name}`" for f in fields(cls))


def table(head: tuple[str, ...], rows) -> list[str]:
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]


def year(name: str) -> str:
    """In which a method was published."""
    return re.findall(r"\b20[12]\d\b", first_line(METHODS[name]))[-1]


def methods() -> list[str]:
    """A table for each generation, under its heading."""
    lines, first = [], 0
    for last, heading in GENERATIONS.items():
        names = [name for name in METHODS if first < int(year(name)) <= last]
        rows = [row_of(name) for name in sorted(names, key=year)]
        head = ("year", "`--distill`", "paper", "r, a, b", "flags")
        lines += ["", f"### {heading}", "", *table(head, rows)]
        first = last
    return [*lines, ""]


def row_of(name: str) -> tuple[str, ...]:
    """Of a method."""
    recipe = METHODS[name].recipe
    weights = f"{recipe.gamma:g}, {recipe.alpha:g}, {recipe.beta:g}"
    weights += f" (after {recipe.warmup} epochs)" if recipe.warmup else ""
    about, own = first_line(METHODS[name]), flags(METHODS[name].Options)
    return year(name), f"`{name}`", about, weights, own


def views() -> list[str]:
    rows = [(flags(VIEWS[name].Options), first_line(VIEWS[name])) for name in VIEWS]
    return table(("flags", "paper"), rows)


def networks() -> list[str]:
    rows = []
    for name in sorted(MODELS, key=by_number):
        network = MODELS[name](100)
        size = sum(p.numel() for p in network.parameters())
        rows.append((f"`{name}`", f"{size:,}", f"{network.learning_rate:g}"))
    return table(("network", "parameters (100 classes)", "learning rate"), rows)


def data_sets() -> list[str]:
    rows = [
        (f"`{name}`", first_line(DATASETS[name]), flags(DATASETS[name].Options))
        for name in DATASETS
    ]
    return table(("`--dataset`", "what", "flags"), rows)


def general() -> list[str]:
    rows = []
    for cls in (StudentOptions, *COMMON):
        for f in fields(cls):
            spelled = ", ".join(f"`{s}`" for s in (*f.metadata["flags"], f"--{f.name}"))
            default = "" if f.default in (None, "", ()) else f"`{f.default}`"
            choices = f.metadata["choices"]
            about = f.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
            rows.append((title_of(cls), spelled, default, about))
    return table(("of", "flag", "default", "what"), rows)


BLOCKS = {
    "methods": methods,
    "views": views,
    "networks": networks,
    "data sets": data_sets,
    "flags": general,
}


def filled(text: str) -> str:
    """The README with every block between its two markers, and the number of methods, anew."""
    for name, block in BLOCKS.items():
        start, end = f"<!-- {name}: written by scripts/docs.py -->", f"<!-- end of {name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        if not after:
            raise SystemExit(f"README.md lacks the markers of {name!r}")
        text = "\n".join([before + start, *block(), end + after])
    count = len({METHODS.canonical(name) for name in METHODS})
    return re.sub(r"(<!-- methods -->)\d+", rf"\g<1>{count}", text)


def main() -> None:
    now = README.read_text()
    wanted = filled(now)
    if "--check" not in sys.argv:
        README.write_text(wanted)
    elif wanted != now:
        raise SystemExit("README.md is not current: run python scripts/docs.py")


if __name__ == "__main__":
    main()
