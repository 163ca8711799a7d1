"""The pictures of a report. Every method keeps its colour in all of them, and all share a scale."""

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from cli.plan import ALONE
from reporting.measure import BINS, Looks, calibration_error
from reporting.networks import confusion_of
from reporting.table import Cell, Column, Difference, Table
from runs.logs import accuracy, measured_on
from runs.table import Spread, spread

WIDTH = 10.8  # inches
ACROSS = 6  # panels in a row, at most
# Two themes share a picture: the page turns these into its own, see reporting/page.py.
INK, MUTED, LINE, PAPER = "#1c2024", "#6a737d", "#dfe2e6", "#fefefe"
GREY = "#8b929a"
# Seen on white and on black; past ten methods paler, past twenty dotted.
COLOURS = (
    "#3b82c4", "#e08a1e", "#2a9d76", "#c55a9d", "#d1495b", "#7c6fd0", "#8a9a2f", "#2fa8b8",
    "#a9714b", "#5f7fa3",
)  # fmt: skip
PALER = (
    "#86b9e6", "#eeb466", "#74c9a9", "#e3a0c8", "#ea8f98", "#b3a9ec", "#b5c364", "#7fcfdb",
    "#cfa37f", "#9db5cf",
)  # fmt: skip
LOOKS = (
    *(("-", colour) for colour in COLOURS),
    *(((0, (5, 1.5)), colour) for colour in PALER),
    *(((0, (1.5, 1.2)), colour) for colour in COLOURS),
)
MARKERS = "osD^vPX*<>hp"
SHARE = "viridis"  # colour map of shares
NAMED = 12  # classes whose numbers or names stand in a matrix, at most
MATRIX = 30  # classes of which a confusion matrix is drawn, at most
# Of differences and of counts: none is no colour, on white and on black.
REDS = [(0.70, 0.13, 0.17, 1), (0.84, 0.38, 0.30, 0.7), (0.9, 0.5, 0.4, 0)]
BLUES = [(0.4, 0.66, 0.8, 0), (0.26, 0.58, 0.76, 0.7), (0.13, 0.4, 0.67, 1)]
GAIN = LinearSegmentedColormap.from_list(
    "gain", list(zip((0, 0.25, 0.499, 0.501, 0.75, 1), REDS + BLUES))
)
COUNT = LinearSegmentedColormap.from_list("count", BLUES)
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Verdana", "Arial"],
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.7,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.dpi": 150,
    "savefig.dpi": 150,
    "svg.fonttype": "none",  # text stays text: it is found, and read aloud
    "svg.hashsalt": "report",  # the same picture has the same bytes
    "pdf.fonttype": 42,
}

Panel = Callable[[Axes], Any]


@contextmanager
def style() -> Iterator[None]:
    with mpl.rc_context(STYLE):
        yield


class Colours:
    """Colour and line of each row of a table, the same in every picture."""

    def __init__(self, labels: Sequence[str]):
        methods = [label for label in labels if label != ALONE]
        self._looks = dict(zip(methods, itertools.cycle(LOOKS)))

    def of(self, label: str) -> str:
        return GREY if label == ALONE else self._looks[label][1]

    def line(self, label: str) -> Any:
        return "-" if label == ALONE else self._looks[label][0]


# ---- several panels


def rows_of(n: int, height: float = 0.28, least: float = 1.7) -> float:
    """Height in inches of a picture with a line for each of n rows."""
    return max(least, 0.75 + height * n)


def small_multiples(panels: Mapping[str, Panel], most: int = ACROSS, **shared: Any) -> Figure:
    """A panel for each name in rows of nearly the same number, `most` of all."""
    down = math.ceil(len(panels) / most)
    across = math.ceil(len(panels) / down)
    size = WIDTH / max(across, min(most, 4))
    titles = [wrapped(name, int(11 * size)) for name in panels]
    height = size + 0.17 * max(title.count("\n") + 1 for title in titles)
    figure = Figure(figsize=(size * across, height * down))
    axes = figure.subplots(down, across, squeeze=False, **shared).flat
    for axis, title, draw in zip(axes, titles, panels.values()):
        draw(axis)
        axis.set_title(title)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis in figure.axes[: len(panels)][-across:]:
        axis.tick_params(labelbottom=True)  # nothing stands below, though axes are shared
    return figure


def wrapped(text: str, width: int) -> str:
    """Words in lines of so many letters, beside those that it has."""
    lines = (textwrap.wrap(line, width, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join(itertools.chain.from_iterable(lines))


def colour_bar(figure: Figure, image: Any, label: str) -> None:
    bar = figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.02, aspect=25)
    bar.set_label(label)
    bar.outline.set_visible(False)


def heat_map(axis: Axes, values: np.ndarray, text: np.ndarray | None = None, **how: Any):
    """Cells of colour, with words in them where `text` has them; nan is left empty."""
    image = axis.imshow(values, aspect="auto", interpolation="nearest", **how)
    axis.grid(False)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for place, word in np.ndenumerate(text) if text is not None else ():
        *colour, alpha = image.cmap(image.norm(values[place]))
        light = np.dot(colour, (0.299, 0.587, 0.114)) > 0.55
        on_colour = "#000000" if light else "#ffffff"
        axis.text(*reversed(place), word, ha="center", va="center", fontsize=8,
                  color=on_colour if alpha > 0.72 else INK)  # fmt: skip
    return image


def frame(axis: Axes) -> None:
    axis.spines[:].set(visible=True, color=LINE)


# ---- accuracies


def curves(cells: Sequence[Cell], colours: Colours, teacher: float | None) -> Figure:
    """Accuracy by epoch, mean and deviation over the trials: all of it, and its end."""
    figure = Figure(figsize=(WIDTH, legend_height(len(cells) + 1)))
    whole, end = figure.subplots(1, 2, width_ratios=(3, 2))
    ordered = sorted(cells, key=lambda cell: -cell.last.mean)
    lowest, highest = [], []
    for cell in ordered:
        values = [list(map(accuracy, trial.history)) for trial in cell.trials if trial.history]
        if not values:
            continue
        values = np.array([line[: min(map(len, values))] for line in values])
        epochs, mean = np.arange(1, values.shape[1] + 1), values.mean(axis=0)
        band = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
        for axis in (whole, end):
            own = {"color": colours.of(cell.label), "gid": f"m-{cell.label}"}
            axis.fill_between(epochs, mean - band, mean + band, alpha=0.15, lw=0, **own)
            axis.plot(epochs, mean, ls=colours.line(cell.label), lw=1.6, label=cell.label, **own)
        late = slice(max(0, min(int(0.75 * len(mean)), len(mean) - 2)), None)
        lowest.append((mean - band)[late].min())
        highest.append((mean + band)[late].max())
        end.set_xlim(epochs[late][0], max(epochs[-1], 2))
    for axis in (whole, end):
        if teacher is not None:
            axis.axhline(teacher, color=INK, lw=1, ls=(0, (4, 3)), label="teacher")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(mpl.ticker.MaxNLocator(integer=True))
    if lowest:
        top = max([*highest, *([teacher] if teacher is not None else [])])
        room = 0.05 * (top - min(lowest)) or 1
        end.set_ylim(min(lowest) - room, top + room)
    whole.set_ylabel(f"{measured_split(cells)} accuracy in %")
    whole.set_title("all epochs")
    end.set_title("the last quarter")
    whole.margins(x=0.01)
    figure.legend(handles=end.get_legend_handles_labels()[0], loc="outside right center")
    return figure


def measured_split(cells: Sequence[Cell]) -> str:
    """What the epochs of a column were measured on."""
    epochs = (trial.history[-1] for cell in cells for trial in cell.trials if trial.history)
    return {"val": "held-out"}.get(name := measured_on(next(epochs, {})), name)


def forest(cells: Sequence[Cell], baseline: str, colours: Colours) -> Figure:
    """Differences to the student alone and to the KD row with their intervals."""
    titles = {"over_alone": "gain over the student alone", "over_baseline": f"gain over {baseline}"}
    against = {k: title for k, title in titles.items() if any(getattr(c, k) for c in cells)}
    figure = Figure(figsize=(WIDTH, rows_of(len(cells), 0.3)))
    axes = figure.subplots(1, len(against), sharey=True, squeeze=False)[0]
    for axis, (name, title) in zip(axes, against.items(), strict=True):
        for place, cell in enumerate(cells):
            if difference := getattr(cell, name):
                draw_difference(axis, place, difference, cell.label, colours.of(cell.label))
        axis.axvline(0, color=INK, lw=0.9)
        axis.set_title(title)
        axis.set_xlabel("points of accuracy, 95 % interval")
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(cells)), [cell.label for cell in cells])
    axes[0].set_ylim(len(cells) - 0.5, -0.5)
    return figure


def draw_difference(
    axis: Axes, place: int, difference: Difference, label: str, colour: str
) -> None:
    """A filled mark is significant, a hollow one is not."""
    how = {"color": colour, "gid": f"m-{label}"}
    if difference.half is not None:
        low, high = difference.mean - difference.half, difference.mean + difference.half
        axis.plot((low, high), (place, place), lw=1.8, solid_capstyle="butt", **how)
    face = colour if difference.significant else PAPER
    axis.plot(difference.mean, place, "o", ms=6, mfc=face, mec=colour, mew=1.5, **how)


def gains(table: Table, name: str, names: Sequence[str]) -> Figure:
    """Gain over another row: methods x columns; in brackets where it is not significant, grey where
    one trial claims nothing."""
    found = {
        (cell.label, cell.column): difference
        for cell in table.cells.values()
        if (difference := getattr(cell, name))
    }
    labels = [label for label in table.labels if any(label == key[0] for key in found)]
    columns = [column for column in table.columns if any(column == key[1] for key in found)]
    heads = [head for head, c in zip(names, table.columns, strict=True) if c in columns]
    values = np.full((len(labels), len(columns)), np.nan)
    text = np.full(values.shape, "–", dtype=object)
    single = []
    for place in np.ndindex(values.shape):
        if difference := found.get((labels[place[0]], columns[place[1]])):
            word = f"{difference.mean:+.2f}"
            text[place] = word if difference.significant else f"({word})"
            if difference.half is None:
                single.append(place)
            else:
                values[place] = difference.mean
    return draw_gains(values, text, labels, heads, single)


def draw_gains(
    values: np.ndarray,
    text: np.ndarray,
    labels: Sequence[str],
    heads: Sequence[str],
    single: Iterable[tuple[int, int]],
) -> Figure:
    """Coloured `values` with their `text`; grey cells at the places `single`."""
    known = np.abs(values[~np.isnan(values)])
    most = known.max(initial=0) or 1
    many = len(heads) > 6
    lines = [wrapped(head.replace(" → ", "\n→ "), 30 if many else 18) for head in heads]
    letters = max(len(line) for head in lines for line in head.splitlines())
    tall = 0.07 * letters if many else 0.14 * max(head.count("\n") + 1 for head in lines)
    wide = max(4, min(WIDTH, 3 + 1.3 * len(heads)))
    figure = Figure(figsize=(wide, rows_of(len(labels), 0.3) + tall))
    axis = figure.subplots()
    image = heat_map(axis, values, text, cmap=GAIN, vmin=-most, vmax=most)
    for row, place in single:
        axis.add_patch(mpl.patches.Rectangle((place - 0.5, row - 0.5), 1, 1, color=LINE))
    tilt = {"rotation": 60, "ha": "left", "rotation_mode": "anchor"} if many else {}
    axis.set_xticks(range(len(heads)), lines, **tilt)
    axis.set_yticks(range(len(labels)), labels)
    axis.xaxis.tick_top()
    if known.size:
        colour_bar(figure, image, "points of accuracy")
    return figure


class Point(NamedTuple):
    """A network in the picture of costs: accuracy, and what it costs (None: not known)."""

    accuracy: Spread
    costs: tuple[float | None, ...]  # of COSTS
    column: Column
    colour: str


COSTS = ("seconds of training", "parameters", "FLOPs of an image")


def costs(points: Sequence[Point], colours: Mapping[str, str]) -> Figure:
    """Accuracy against the seconds of training, parameters and FLOPs; `colours` by name."""
    known = [i for i in range(len(COSTS)) if any(point.costs[i] is not None for point in points)]
    marks = dict(zip(dict.fromkeys(p.column for p in points), itertools.cycle(MARKERS)))
    entries = len(colours) + (len(marks) if len(marks) > 1 else 0)
    figure = Figure(figsize=(WIDTH, legend_height(entries)))
    axes = figure.subplots(1, len(known), sharey=True, squeeze=False)[0]
    for axis, place in zip(axes, known, strict=True):
        for point in points:
            if (x := point.costs[place]) is not None:
                axis.errorbar(
                    x, point.accuracy.mean, yerr=None if place else point.accuracy.std,
                    fmt=marks[point.column], ms=6, color=point.colour, mec=PAPER, mew=0.6,
                    elinewidth=1, alpha=0.9,
                )  # fmt: skip
        axis.set_xlabel(COSTS[place])
        spread_axis(axis)
    axes[0].set_ylabel("test accuracy in %")
    handles = [Line2D([], [], color=c, marker="o", ls="", label=x) for x, c in colours.items()]
    if len(marks) > 1:
        handles += [
            Line2D([], [], mfc="none", mec=MUTED, marker=mark, ls="", label=column.pair)
            for column, mark in marks.items()
        ]
    figure.legend(handles=handles, loc="outside right center")
    return figure


def legend_height(entries: int) -> float:
    """Inches of a picture with so many lines in the legend at its side."""
    return max(3.6, 0.35 + 0.185 * entries)


def spread_axis(axis: Axes) -> None:
    """A logarithmic axis where there is more than one size, with plain numbers on it."""
    low, high = axis.dataLim.intervalx
    if high > 3 * low > 0:
        axis.set_xscale("log")
    elif high < 1.05 * low:  # one size: it stands in the middle
        axis.set_xlim(0.8 * low, 1.2 * low)
    axis.xaxis.set_major_locator(mpl.ticker.LogLocator(subs=(1, 2, 5)) if high > 3 * low > 0
                                 else mpl.ticker.MaxNLocator(4))  # fmt: skip
    axis.xaxis.set_minor_locator(mpl.ticker.NullLocator())
    axis.xaxis.set_major_formatter(mpl.ticker.EngFormatter(sep=""))


# ---- what networks show


def embeddings(looks: Mapping[str, Looks]) -> Figure:
    """t-SNE of the pooled vectors of the same test images, a panel each, coloured by class."""
    points = {name: look.points for name, look in looks.items() if look.points}
    return small_multiples({name: embedding_panel(p) for name, p in points.items()})


def embedding_panel(p: Mapping[str, np.ndarray]) -> Panel:
    reach = 1.05 * np.abs(p["points"]).max() or 1

    def draw(axis: Axes) -> None:
        _, places = np.unique(p["labels"], return_inverse=True)
        axis.scatter(*p["points"].T, c=[COLOURS[i] for i in places], s=3, lw=0, rasterized=True)
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), xticks=[], yticks=[], aspect="equal")
        axis.grid(False)
        frame(axis)

    return draw


def correlations(looks: Mapping[str, Looks], teacher: Looks, classes: Sequence[str]) -> Figure:
    """Correlation of the classes' logits, the student's minus the teacher's; few classes are named.

    Tian et al., Contrastive Representation Distillation, ICLR 2020 (figure 2).
    """
    theirs = teacher.alone["correlation"]
    apart = {name: look.alone["correlation"] - theirs for name, look in looks.items()}
    most = max(np.abs(d).max() for d in apart.values()) or 1
    images = []

    def panel(d: np.ndarray) -> Panel:
        def draw(axis: Axes) -> None:
            images.append(heat_map(axis, d, cmap=GAIN, vmin=-most, vmax=most))
            axis.set_aspect("equal")
            if len(classes) <= NAMED:
                name_classes(axis, classes)
            else:
                axis.set(xticks=[], yticks=[])
            frame(axis)

        return draw

    named = {f"{name}\nmean |Δ| {np.abs(d).mean():.3f}": panel(d) for name, d in apart.items()}
    figure = small_multiples(named, sharex=True, sharey=True)
    colour_bar(figure, images[0], "student - teacher")
    return figure


def name_classes(axis: Axes, classes: Sequence[str]) -> None:
    """At the rows and columns of a matrix."""
    size = min(8, 180 / len(classes))
    tilt = 90 if max(map(len, classes)) > 2 else 0
    axis.set_xticks(range(len(classes)), classes, fontsize=size, rotation=tilt)
    axis.set_yticks(range(len(classes)), classes, fontsize=size)


def stage_similarity(looks: Mapping[str, Looks]) -> Figure:
    """Debiased linear CKA of each stage of the student with each of the teacher."""
    images = []

    def panel(stages: Mapping[str, np.ndarray], first: bool) -> Panel:
        def draw(axis: Axes) -> None:
            words = np.vectorize("{:.2f}".format)(stages["cka"])
            image = heat_map(axis, stages["cka"], words, cmap=SHARE, vmin=0, vmax=1)
            images.append(image)
            short = [
                [n.removeprefix("stage ") for n in stages[who]] for who in ("student", "teacher")
            ]
            axis.set_yticks(range(len(short[0])), short[0])
            axis.set_xticks(range(len(short[1])), short[1])
            if first:
                axis.set(xlabel="teacher's stage", ylabel="student's stage")

        return draw

    shown = {name: look.stages for name, look in looks.items() if look.stages}
    panels = {name: panel(s, number == 0) for number, (name, s) in enumerate(shown.items())}
    figure = small_multiples(panels)
    colour_bar(figure, images[0], "CKA")
    return figure


def closeness(looks: Mapping[str, Sequence[Looks]], colours: Colours) -> Figure:
    """Agreement with the teacher and KL to it, mean and deviation over the trials."""
    names = [name for name, each in looks.items() if any(look.with_teacher for look in each)]
    figure = Figure(figsize=(WIDTH, rows_of(len(names))))
    axes = figure.subplots(1, 2, sharey=True)
    for axis, (what, title) in zip(axes, CLOSENESS.items(), strict=True):
        for place, name in enumerate(names):
            every = spread(float(x.with_teacher[what]) for x in looks[name] if x.with_teacher)
            axis.errorbar(every.mean, place, xerr=every.std, fmt="o", ms=6, capsize=3,
                          color=colours.of(name), elinewidth=1.6)  # fmt: skip
        axis.set_xlabel(title)
        axis.grid(axis="y", visible=False)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    return figure


CLOSENESS = {
    "agreement": "agreement with the teacher in % of the test images",
    "kl": "KL(teacher || student) in nats",
}


def reliability(looks: Mapping[str, Sequence[Looks]], colours: Colours) -> Figure:
    """Accuracy by confidence in 15 bins, all trials together, and the calibration error."""

    def panel(bins: np.ndarray, colour: str) -> Panel:
        def draw(axis: Axes) -> None:
            images, confidence, hits = bins
            full = images > 0
            x = (np.arange(BINS) + 0.5) / BINS
            share = np.divide(hits, images, out=np.zeros(BINS), where=full)
            sure = np.divide(confidence, images, out=np.zeros(BINS), where=full)
            axis.bar(x[full], share[full], 0.92 / BINS, color=colour, alpha=0.85)
            axis.bar(x[full], (sure - share)[full], 0.92 / BINS, bottom=share[full],
                     color="none", edgecolor=MUTED, lw=0.6, hatch="/////", alpha=0.7)  # fmt: skip
            axis.plot((0, 1), (0, 1), color=INK, lw=0.8, ls=(0, (4, 3)))
            axis.set(xlim=(0, 1), ylim=(0, 1), xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))

        return draw

    panels = {}
    for name, each in looks.items():
        colour = INK if name == TEACHER else colours.of(name)
        bins = sum(look.alone["bins"] for look in each)
        panels[f"{name}\nECE {calibration_error(bins):.2f} %"] = panel(bins, colour)
    figure = small_multiples(panels, sharex=True, sharey=True)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    return figure


TEACHER = "teacher"


def confusions(looks: Mapping[str, Sequence[Looks]], classes: Sequence[str]) -> Figure:
    """What each class is taken for, all trials together, a panel each."""
    images = []

    def panel(shares: np.ndarray) -> Panel:
        def draw(axis: Axes) -> None:
            few = len(classes) <= NAMED
            text = np.where(shares > 0, np.vectorize("{:.0f}".format)(shares), "") if few else None
            norm = mpl.colors.PowerNorm(0.5, 0, 100)  # a few images are seen as well
            images.append(heat_map(axis, shares, text, cmap=COUNT, norm=norm))
            name_classes(axis, classes)
            frame(axis)

        return draw

    panels = {name: panel(confusion_of(each)) for name, each in looks.items()}
    figure = small_multiples(panels, most=3, sharex=True, sharey=True)
    figure.supxlabel("predicted class", fontsize=9)
    figure.supylabel("class", fontsize=9)
    colour_bar(figure, images[0], "% of the images of a class")
    return figure


def class_accuracies(looks: Mapping[str, Sequence[Looks]], classes: Sequence[str]) -> Figure:
    """Accuracy per class, mean of the trials; many classes are sorted by the mean of the rows."""
    values = np.array([confusion_of(each).diagonal() for each in looks.values()])
    few = len(classes) <= 20
    if not few:
        values = values[:, values.mean(axis=0).argsort()]
    figure = Figure(figsize=(WIDTH, rows_of(len(looks)) + 0.2))
    axis = figure.subplots()
    text = np.vectorize("{:.0f}".format)(values) if few else None
    image = heat_map(axis, values, text, cmap=SHARE, vmax=100)
    axis.set_yticks(range(len(looks)), list(looks))
    if few:
        tilt = {"rotation": 30, "ha": "right"} if max(map(len, classes)) > 7 else {}
        axis.set_xticks(range(len(classes)), classes, **tilt)
    else:
        axis.set(xticks=[], xlabel=f"the {len(classes)} classes, from the hardest on")
    colour_bar(figure, image, "accuracy in %")
    return figure
