"""One HTML page of a table: everything in the file, nothing fetched."""

import io
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cli.plan import ALONE
from reporting import figures
from reporting.export import (
    best_mean,
    caption,
    column_names,
    full_protocol,
    interval,
    plus_minus,
    published_words,
    verdict,
)
from reporting.measure import PASSES, TIMED, WARM_UP
from reporting.networks import Confused, Cost, Shown
from reporting.table import Column, Table, Trial

HERE = Path(__file__).resolve().parent
# Colours of a picture that the page sets, light or dark.
THEME = {
    figures.INK: "var(--ink)",
    figures.MUTED: "var(--muted)",
    figures.LINE: "var(--line)",
    figures.PAPER: "var(--paper)",
}


@dataclass
class Picture:
    """A figure with its words, drawn."""

    name: str  # of its files
    title: str
    text: str  # what it shows
    svg: Markup


@dataclass
class Section:
    """A column with its pictures and what its networks are like."""

    column: Column
    name: str
    pictures: list[Picture]
    costs: list[Cost] = field(default_factory=list)
    networks: list[str] = field(default_factory=list)  # the heads of `confused`
    confused: list[Confused] = field(default_factory=list)  # where there are many classes
    worst: dict[str, list[Shown]] = field(default_factory=dict)  # by row


def draw(folder: Path, name: str, title: str, text: str, figure: Figure) -> Picture:
    """Write a figure as .svg and .pdf -> what the page shows."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    plain = stream.getvalue()
    (folder / f"{name}.svg").write_text(with_paper(plain))
    figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})
    return Picture(name, title, text, Markup(inline(plain, name, title)))


def with_paper(svg: str) -> str:
    """White behind a picture that stands by itself."""
    start = svg.index("<svg")
    end = svg.index(">", start) + 1
    return f'{svg[:end]}<rect width="100%" height="100%" fill="{figures.PAPER}"/>{svg[end:]}'


def inline(svg: str, name: str, title: str) -> str:
    """An SVG file as an element of a page: its ids are its own, its colours the page's."""
    svg = re.sub(r"^.*?(?=<svg)", "", svg, flags=re.DOTALL)
    svg = re.sub(r" <metadata>.*?</metadata>\n", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="m-([^"]*)">', r'<g class="of" data-label="\1">', svg)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in THEME.items():
        svg = svg.replace(colour, variable)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{Markup.escape(title)}" ', 1)


def write_page(
    title: str, table: Table, sections: Sequence[Section], shared: Sequence[Picture]
) -> str:
    """The text of the page."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(
        plus_minus=plus_minus, verdict=verdict, published=published_words, protocol=full_protocol,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title,
        table=table,
        names=column_names(table),
        caption=caption(table),
        best={column: best_mean(table.of(column)) for column in table.columns},
        ranks=mean_ranks(table),
        sections=sections,
        shared=shared,
        runs=runs_of(table),
        counted=count_claims(table),
        chosen=chosen_on(table),
        alone=ALONE,
        interval=interval,
        zip=zip,
        timed=TIMED,
        passes=PASSES,
        warm_up=WARM_UP,
        threads=torch.get_num_threads(),
        colours=figures.Colours(table.labels),
    )


def chosen_on(table: Table) -> str:
    """On which images the best epochs were chosen."""
    held_out = [dict(column.protocol).get("val_fraction") for column in table.columns]
    if any(held_out) and not all(held_out):
        return "held-out training images where the column says so, else on the test set"
    return "held-out training images" if any(held_out) else "the test set"


def mean_ranks(table: Table) -> dict[str, float]:
    """Of each row with a rank in every one of several columns, its mean."""
    found = {}
    if len(table.columns) < 2:
        return found
    for label in table.labels:
        cells = [table.cells.get((label, column)) for column in table.columns]
        if all(cell and cell.rank is not None for cell in cells):
            found[label] = sum(cell.rank for cell in cells) / len(cells)
    return found


def count_claims(table: Table) -> dict[str, int]:
    """How many differences were looked at, and how many are significant."""
    every = {  # once, though a method without a teacher stands in several columns
        (cell.trials, d)
        for cell in table.cells.values()
        for d in (cell.over_alone, cell.over_baseline if cell.label != ALONE else None)
        if d and d.half is not None
    }
    return {"compared": len(every), "significant": sum(d.significant for _, d in every)}


# ---- a run


def runs_of(table: Table) -> list[dict[str, Any]]:
    """Every run once, in the order of the table."""
    called = {trial: f"teacher {trial.run.model}" for trial in table.teachers}
    for name, column in zip(column_names(table), table.columns, strict=True):
        for cell in table.of(column):
            for trial in cell.trials:
                networks = name if cell.taught else trial.run.model
                called.setdefault(trial, f"{cell.label}, {networks}, seed {trial.seed}")
    return [details(trial, name) for trial, name in called.items()]


def details(trial: Trial, name: str) -> dict[str, Any]:
    """What `<details>` has of a run."""
    run, starts = trial.run, trial.started
    last = starts[-1] if starts else {}
    return {
        "name": name,
        "folder": str(run.folder),
        "last": run.last["test_acc"],
        "best": run.best,
        "seconds": run.seconds,
        "command": shlex.join(["python", *last.get("command", [])]) if last else "",
        "objective": run.objective,
        "terms": trial.summary.get("terms", {}),
        "environment": environment_of(last),
        "warnings": warnings_of(trial),
        "curves": [(name, *sparkline(values)) for name, values in losses(trial).items()],
    }


def environment_of(start: Mapping[str, Any]) -> dict[str, str]:
    """Where a run ran last."""
    versions = start.get("versions") or {}
    facts = {
        "device": start.get("device"),
        "GPU": start.get("gpu"),
        "machine": start.get("machine"),
        "commit": start.get("git_commit"),
        "Python": versions.get("python"),
        "PyTorch": versions.get("torch"),
        "CUDA": versions.get("cuda"),
        "started": start.get("started"),
    }
    return {name: str(value) for name, value in facts.items() if value}


def warnings_of(trial: Trial) -> list[str]:
    """What of a run's history a reader of its number should know."""
    starts, run, found = trial.started, trial.run, []
    if len(starts) > 1:
        found.append(f"it was resumed {len(starts) - 1} times")
    for name, what in (("git_commit", "commits"), ("device", "devices")):
        several = list(dict.fromkeys(str(start.get(name)) for start in starts))
        if len(several) > 1:
            found.append(f"it ran under several {what}: {', '.join(several)}")
    if any(str(start.get("git_commit")).endswith("+") for start in starts):
        found.append("files differed from the commit")
    if run.best["test_acc"] - run.last["test_acc"] > 1:
        gap = run.best["test_acc"] - run.last["test_acc"]
        found.append(f"its best epoch ({run.best['epoch']}) is {gap:.2f} points above its last")
    return found


def losses(trial: Trial) -> dict[str, list[float]]:
    """Training losses by epoch: the total first, then its unweighted terms."""
    epochs = trial.history
    names = [name for name in epochs[-1] if name.startswith("train_")] if epochs else []
    names = sorted(set(names) - {"train_acc"}, key=lambda name: name != "train_loss")
    return {name.removeprefix("train_"): [e[name] for e in epochs if name in e] for name in names}


def sparkline(values: Sequence[float]) -> tuple[float, float, str]:
    """First and last value, and the points of a line in a box of 120 x 28: about 40 of them."""
    low, high = min(values), max(values)
    scale, step = (high - low) or 1, 120 / max(len(values) - 1, 1)
    chosen = range(0, len(values), max(1, len(values) // 40))
    points = (f"{i * step:.0f},{26 - 24 * (values[i] - low) / scale:.0f}" for i in chosen)
    return values[0], values[-1], " ".join(points)
