"""A table of numbers and words, as text, Markdown or CSV."""

import csv
import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple


class Spread(NamedTuple):
    """Of several values."""

    mean: float
    std: float | None  # sample standard deviation; None of one value


class Column(NamedTuple):
    name: str
    values: Sequence[str | int | float | Spread | None]  # one a row; None where there is none
    spec: str = ""  # how a number is formatted; empty for words, which stand to the left


def spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def filled(*columns: Column) -> list[Column]:
    """Those of the columns that have a value in any row."""
    return [c for c in columns if any(value not in ("", None) for value in c.values)]


def formatted(value: str | int | float | Spread | None, spec: str) -> str:
    """'91.20', or '91.20 +- 0.31' of several values."""
    if value is None:
        return ""
    if isinstance(value, str):
        return " ".join(value.split())
    if isinstance(value, Spread):
        mean = format(value.mean, spec)
        return mean if value.std is None else f"{mean} +- {value.std:{spec}}"
    return format(value, spec)


def lines_of(columns: Sequence[Column]) -> list[tuple[str, ...]]:
    """The head and every row, as text."""
    cells = ([c.name, *(formatted(value, c.spec) for value in c.values)] for c in columns)
    return list(zip(*cells, strict=True))


def text_table(columns: Sequence[Column]) -> str:
    """Words to the left, numbers to the right."""
    lines = lines_of(columns)
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    sides = [str.rjust if column.spec else str.ljust for column in columns]
    head, *body = (
        "  ".join(side(cell, n) for side, cell, n in zip(sides, line, widths, strict=True)).rstrip()
        for line in lines
    )
    return "\n".join([head, "-" * max(map(len, (head, *body))), *body])


def markdown_table(columns: Sequence[Column]) -> str:
    head, *body = ([escaped(cell) for cell in line] for line in lines_of(columns))
    rule = ["---:" if column.spec else "---" for column in columns]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *body))


def escaped(text: str) -> str:
    """Text that Markdown shows as it is: '0.1*CE + 9*KD' would lose its asterisks."""
    return re.sub(r"([\\|*`<~\[\]])", r"\\\1", text)


def csv_table(columns: Sequence[Column]) -> str:
    """Plain numbers; mean and standard deviation in columns of their own."""
    table = []
    for column in columns:
        name = column.name.removesuffix(" %").replace(" ", "_")
        if isinstance(column.values[0], Spread):
            table.append([f"{name}_mean", *(value.mean for value in column.values)])
            table.append([f"{name}_std", *(value.std for value in column.values)])
        else:
            table.append([name, *column.values])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(zip(*table, strict=True))
    return text.getvalue()


def in_cell(options: Mapping[str, Any], name: str) -> str:
    """An option's value as the command line has it; empty where it is not in force."""
    value = options.get(name, "")
    if value is None:
        return "default"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, (tuple, list)):
        return ",".join(map(str, value)) or "none"
    if isinstance(value, float):
        short = f"{value:g}"
        return short if float(short) == value else repr(value)
    return str(value)


def by_number(name: str) -> list:
    """A sorting key that puts vgg8 before vgg11."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
