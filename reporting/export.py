"""A table as LaTeX, CSV and Markdown."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cli.plan import ALONE
from reporting.measure import TIMED, Measured, calibration_error
from reporting.statistics import Difference
from reporting.table import Cell, Column, Table, unusual
from runs import table as words
from runs.table import Spread, escaped, in_cell, markdown_table, spread

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$", "±": r"$\pm$", "≥": r"$\geq$",
}  # fmt: skip
AUGMENTED = {
    ("aug", True): "AutoAugment",
    ("randaugment", True): "RandAugment",
    ("crop", "resized"): "resized crops",
    ("flip", False): "no flips",
}
WORDS = {
    "augmentation": lambda found: (
        ", ".join(AUGMENTED[one] for one in found) or "standard augmentation"
    ),
    "epochs": lambda epochs: f"{epochs} epoch{'s' * (epochs != 1)}",
    "batch_size": "batch {}".format,
    "learning_rate": "rate {}".format,
    "image_size": "images of {0}x{0}".format,
    "train_fraction": "{} of the training images".format,
    "val_fraction": "{} of the training images held out".format,
    "lr_decay_epochs": lambda epochs: decay_words(epochs),
    "strong_views": lambda on: "a strong view of each image as well (RandAugment)",
    "weight_decay": "weight decay {}".format,
    "processes": "{} processes".format,
}
ORDER = (
    "epochs", "augmentation", "strong_views", "train_fraction", "val_fraction", "batch_size",
    "learning_rate", "lr_decay_epochs", "lr_decay_rate", "momentum", "weight_decay",
)  # fmt: skip


def protocol_words(options: Mapping[str, Any]) -> str:
    """'60 epochs, crop and flip, batch 64': a protocol, the most telling parts first."""
    names = [n for n in ORDER if n in options] + sorted(options.keys() - {*ORDER})
    return ", ".join(
        WORDS[name](options[name]) if name in WORDS else f"{name} {in_cell(options, name)}"
        for name in names
    )


def full_protocol(column: Column) -> str:
    """The same of a column, but for what goes without saying."""
    return protocol_words(unusual(dict(column.protocol)))


def decay_words(epochs: Sequence[int] | None) -> str:
    if epochs is None:
        return "decays after 5/8, 3/4, 7/8 of the epochs"
    return f"decays after {', '.join(map(str, epochs))}" if epochs else "no decay"


def column_names(table: Table) -> list[str]:
    """Of each column: the pair, and what tells it from others of the same pair."""
    names = []
    several = len({column.data for column in table.columns}) > 1
    for column in table.columns:
        same = [c for c in table.columns if (c.pair, c.data) == (column.pair, column.data)]
        more = [column.data] if several else []
        if len({c.source for c in same}) > 1:
            more.append(f"teacher {column.source[:8]}")
        if any(c.images != column.images and table.own(c) == table.own(column) for c in same):
            more.append(f"images {column.images[:8]}")
        more += filter(None, [protocol_words(table.own(column))])
        names.append(column.pair + (f" ({', '.join(more)})" if more else ""))
    return names


def plus_minus(value: Spread, sign: str = "±") -> str:
    return f"{value.mean:.2f}" + ("" if value.std is None else f" {sign} {value.std:.2f}")


def said(difference: Difference | None) -> str:
    """A difference with its interval, and what may be claimed of it."""
    if difference is None:
        return ""
    if difference.half is None:
        return f"{difference.mean:+.2f}, {verdict(difference)}"
    bounds = interval(difference.mean, difference.half, "+")
    return f"{difference.mean:+.2f} {bounds} {verdict(difference)}"


def interval(mean: float, half: float | None, sign: str = "") -> str:
    """'[70.12, 71.30]', with as many digits as show on which side of 0 a bound lies."""
    if half is None:
        return ""
    bounds = mean - half, mean + half
    digits = next((n for n in range(2, 9) if all(round(b, n) for b in bounds)), 2)
    low, high = (f"{bound:{sign}.{digits}f}" for bound in bounds)
    return f"[{low}, {high}]"


def verdict(difference: Difference | None) -> str:
    """What may be claimed of a difference; where nothing, what n trials could show."""
    if difference is None:
        return ""
    if difference.half is None:
        return "one trial: no claim"
    if difference.significant:
        return "better" if difference.mean > 0 else "worse"
    if not difference.half:
        return "no spread: no claim"
    needed = difference.trials_needed
    more = f"; about {needed} would show this" if needed else ""
    return f"not significant; {difference.n} trials show ≥ {difference.half:.2f}{more}"


# ---- LaTeX


def latex(text: str) -> str:
    return "".join(SPECIAL.get(c, c) for c in text).replace("--", "-{}-")  # no dash


def latex_table(table: Table) -> str:
    """A booktabs table: methods x columns, mean and deviation, the best mean bold."""
    count = len(table.columns)
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption(table))}}}",
        rf"\begin{{tabular}}{{l{'c' * count}}}",
        r"\toprule",
    ]
    if any(column.teacher for column in table.columns):
        accuracies = [table.teacher_accuracy(column) for column in table.columns]
        lines += [
            latex_row("Teacher", (latex(column.teacher) for column in table.columns)),
            latex_row("Accuracy", ("" if a is None else f"{a:.2f}" for a in accuracies)),
        ]
    names = (latex(name.split(" → ")[-1]) for name in column_names(table))
    lines += [latex_row("Student", names), r"\midrule"]
    best = {column: best_mean(table.of(column)) for column in table.columns}
    for label in table.labels:
        cells = [table.cells.get((label, column)) for column in table.columns]
        lines.append(
            latex_row(latex(table.name(label)), (latex_cell(cell, best) for cell in cells))
        )
        if label == ALONE and len(table.labels) > 1:
            lines.append(r"\midrule")
    lines += [r"\bottomrule", r"\end{tabular}", r"\end{table}", ""]
    return "\n".join(lines)


def latex_row(head: str, cells: Iterable[str]) -> str:
    return " & ".join([head, *cells]) + r" \\"


def best_mean(cells: Sequence[Cell]) -> float | None:
    """The largest mean among several trials; one trial claims nothing."""
    return max((cell.last.mean for cell in cells if cell.n > 1), default=None)


def latex_cell(cell: Cell | None, best: Mapping[Column, float | None]) -> str:
    if cell is None:
        return "--"
    text = f"{cell.last.mean:.2f}"
    if cell.last.mean == best[cell.column] and cell.n > 1:
        text = rf"\textbf{{{text}}}"
    return text + ("" if cell.last.std is None else rf" $\pm$ {cell.last.std:.2f}")


def caption(table: Table) -> str:
    """What the numbers are."""
    counts = sorted({cell.n for cell in table.cells.values()})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    several = "mean ± sample deviation over " if counts[-1] > 1 else ""
    data = ", ".join(dict.fromkeys(column.data for column in table.columns))
    trials = "trial" if n == "1" else "trials"
    unless = " where a head says nothing else:" if any(map(table.own, table.columns)) else ""
    shared = protocol_words(unusual(table.shared))
    protocol = f";{unless} {shared}" if shared else ""
    return f"Test accuracy in % on {data}, last epoch, {several}{n} {trials}{protocol}."


# ---- CSV


def csv_of(table: Table, looks: Measured) -> str:
    """A line for each cell, with every number that the page has of it."""
    text = io.StringIO()
    lines = [
        csv_line(name, cell, looks)
        for name, column in zip(column_names(table), table.columns, strict=True)
        for cell in table.of(column)
    ]
    writer = csv.DictWriter(text, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def csv_line(name: str, cell: Cell, looks: Measured) -> dict[str, Any]:
    known, theirs = looks.get((cell.label, cell.column), []), cell.published
    return {
        "column": name,
        "data": cell.column.data,
        "teacher": cell.column.teacher,
        "student": cell.column.student,
        "protocol": full_protocol(cell.column),
        "method": cell.label,
        "has_teacher": cell.taught,
        "objective": cell.trials[0].run.objective,
        "trials": cell.n,
        "seeds": " ".join(str(trial.seed) for trial in cell.trials),
        "last_mean": cell.last.mean,
        "last_std": cell.last.std,
        **csv_interval("last", cell.last.mean, cell.half),
        "best_mean": cell.best.mean,
        "best_std": cell.best.std,
        "rank": cell.rank,
        **csv_difference("alone", cell.over_alone),
        **csv_difference("baseline", cell.over_baseline),
        "published": theirs and theirs.accuracy,
        "published_note": theirs and theirs.note,
        "gap": cell.gap,
        "seconds_mean": cell.seconds.mean,
        "parameters": cell.parameters,
        "flops": int(known[0].alone["flops"]) if known else None,
        **{
            f"latency_{n}_ms": float(known[0].latency["milliseconds"][i]) if known else None
            for i, n in enumerate(TIMED)
        },
        "ece": spread(calibration_error(k.alone["bins"]) for k in known).mean if known else None,
        **{
            name: spread(float(k.with_teacher[name]) for k in known).mean
            if known and all(k.with_teacher for k in known)
            else None
            for name in ("agreement", "kl")
        },
    }


def csv_difference(over: str, difference: Difference | None) -> dict[str, Any]:
    mean, half, _ = difference or (None, None, None)
    return {
        f"over_{over}": mean,
        **csv_interval(f"over_{over}", mean, half),
        f"over_{over}_significant": difference and difference.significant,
    }


def csv_interval(name: str, mean: float | None, half: float | None) -> dict[str, float | None]:
    """The bounds of the 95 % interval."""
    low, high = (None, None) if half is None else (mean - half, mean + half)
    return {f"{name}_low": low, f"{name}_high": high}


# ---- Markdown


def markdown_of(table: Table) -> str:
    """Methods x columns, then each column with what may be claimed."""
    names = column_names(table)
    means = [
        words.Column(
            name, [markdown_cell(table.cells.get((label, c))) for label in table.labels], "s"
        )
        for name, c in zip(names, table.columns, strict=True)
    ]
    rows = words.Column("", list(map(table.name, table.labels)))
    parts = [caption(table), "", markdown_table([rows, *means])]
    for name, column in zip(names, table.columns, strict=True):
        parts += ["", f"## {escaped(name)}", "", markdown_table(columns_of(table, column))]
    parts += ["", *(f"- {escaped(note)}" for note in table.notes)]
    return "\n".join(parts).rstrip() + "\n"


def markdown_cell(cell: Cell | None) -> str:
    return plus_minus(cell.last) + f" ({cell.n})" if cell else ""


def columns_of(table: Table, column: Column) -> list[words.Column]:
    """What is known of the cells of a column, a line each."""
    against = {f"over {table.baseline}": lambda c: said(c.over_baseline)} if table.baseline else {}
    shown = {
        "n": lambda c: str(c.n),
        "last": lambda c: plus_minus(c.last),
        "95 % interval": lambda c: interval(c.last.mean, c.half),
        "best": lambda c: plus_minus(c.best),
        "rank": lambda c: "" if c.rank is None else f"{c.rank:g}",
        "over alone": lambda c: said(c.over_alone),
        **against,
        "published": published_words,
    }
    cells = table.of(column)
    names = words.Column("", [table.name(cell.label) for cell in cells])
    return [names, *(words.Column(head, list(map(say, cells)), "s") for head, say in shown.items())]


def published_words(cell: Cell) -> str:
    if not cell.published:
        return "nothing published"
    return f"{cell.published.accuracy:.2f} ({cell.gap:+.2f}), {cell.published.note}"
