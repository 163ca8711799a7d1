"""From finished runs to a page, its tables and its figures."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from tqdm import tqdm

from cli.job import Job
from cli.published import Published
from engine.device import Numerics, pick_device
from helper.errors import UserError, one_line
from helper.files import write_whole
from reporting import figures, page
from reporting.export import column_names, csv_of, latex_table, markdown_of
from reporting.figures import TEACHER, Colours, Point
from reporting.measure import (
    COMPARED,
    SHOWN_CLASSES,
    Cache,
    Data,
    Looks,
    Measured,
    Network,
    last_checkpoint,
    measure,
)
from reporting.networks import costs_of, most_confused, worst_images
from reporting.page import Picture, Section
from reporting.table import Column, Table, make_table
from runs import checkpoint
from runs.results import Result
from runs.table import Spread

Teachers = dict[Column, Looks]
ROUNDING = 0.1  # points by which another device or number of threads may change an accuracy


def write_report(
    runs: Sequence[Result],
    jobs: Sequence[Job],
    known: Sequence[Published],
    options: Any,
    notes: Sequence[str],
) -> str:
    """Write everything into options.out -> what is said of it."""
    out = Path(options.out)
    table = make_table(runs, jobs, known, options.baseline)
    if not table.columns:
        raise UserError("no finished run belongs to the table: " + "; ".join(table.notes[:1]))
    table.notes[:0] = notes
    looks, teachers = ({}, {}) if options.quick else measure_all(table, out, options)
    with figures.style():
        shared = draw_shared(table, looks, teachers, out / "figures")
        sections = [
            make_section(
                table, column, name, looks, teachers.get(column), Pen(out / "figures", f"{n}-")
            )
            for n, (column, name) in enumerate(zip(table.columns, column_names(table)), start=1)
        ]
    data = ", ".join(dict.fromkeys(column.data for column in table.columns))
    plan = f" ({Path(options.plan).stem})" if options.plan else ""
    title = f"Knowledge distillation on {data}{plan}"
    texts = {
        "table.tex": latex_table(table),
        "table.csv": csv_of(table, looks),
        "table.md": markdown_of(table),
        "index.html": page.write_page(title, table, sections, shared),
    }
    for name, text in texts.items():
        write_whole(out / name, lambda file, text=text: file.write(text.encode()))
    return f"{out / 'index.html'}: {len(table.cells)} cells, {len(table.trials)} runs"


# ---- networks


def measure_all(table: Table, out: Path, options: Any) -> tuple[Measured, Teachers]:
    """What the runs of each cell show, and the teacher of each column; what fails is noted."""
    where = ("--data_dir", options.data_dir) if options.data_dir else ()
    data, cache = Data(Numerics(pick_device(options.device)), where), Cache(out / ".cache")
    files = teacher_files(table)
    looks: Measured = {}
    teachers: Teachers = {}
    total = sum(cell.n for cell in table.cells.values()) + len(table.columns)
    with tqdm(total=total, desc="networks", leave=False, disable=None, delay=1) as bar:
        for column in table.columns:
            teacher = Network(files[column.source], data) if column.source in files else None
            if teacher:
                with noting(table.notes, teacher.path):
                    teachers[column] = measure(teacher, None, cache, pictures=True)
            elif column.teacher:
                table.notes.append(
                    f"left out: what needs the teacher of {column.pair}: its checkpoint "
                    f"({column.source[:8]}) is not among the runs"
                )
            bar.update()
            teacher = teacher if column in teachers else None
            for cell in table.of(column):
                for trial in cell.trials:
                    with noting(table.notes, trial.run.folder):
                        network = Network(last_checkpoint(trial.run), data)
                        first = (cell.label, column) not in looks
                        look = measure(network, teacher, cache, pictures=first)
                        looks.setdefault((cell.label, column), []).append(look)
                        check_accuracy(float(look.alone["accuracy"]), trial.run, table.notes)
                    bar.update()
    return looks, teachers


@contextlib.contextmanager
def noting(notes: list[str], what: Path) -> Iterator[None]:
    """Note what cannot be read, and go on."""
    try:
        yield
    except (UserError, OSError, RuntimeError) as error:  # RuntimeError: of torch, out of memory
        notes.append(f"left out of the pictures: {what} ({one_line(error)})")


def check_accuracy(here: float, run: Result, notes: list[str]) -> None:
    """Note where a checkpoint does not have the accuracy that its run wrote down."""
    then = run.last["test_acc"]
    if abs(here - then) > ROUNDING:
        notes.append(f"{run.folder}: its weights have {here:.2f} % here, run.json says {then:.2f}")


def teacher_files(table: Table) -> dict[str, Path]:
    """Checkpoints of teachers, by sha256: where the runs say they lay, else of the runs."""
    said = [
        Path(str((trial.summary.get("teacher") or {}).get("path", ""))) for trial in table.trials
    ]
    names = {column.teacher for column in table.columns}
    kept = [
        path for trial in table.trials if trial.run.model in names for path in trial.checkpoints
    ]
    wanted = {column.source for column in table.columns if column.teacher}
    found: dict[str, Path] = {}
    for path in dict.fromkeys([*said, *kept]):
        if wanted <= found.keys():
            break
        if checkpoint.is_there(path):
            found.setdefault(checkpoint.digest(path), path)
    return found


# ---- pictures


class Pen:
    """Draws the figures of one part of the page, each in files of its own."""

    def __init__(self, folder: Path, prefix: str = ""):
        self.folder, self.prefix = folder, prefix
        self.pictures: list[Picture] = []

    def draw(self, name: str, title: str, text: str, figure: Figure) -> None:
        self.pictures.append(page.draw(self.folder, self.prefix + name, title, text, figure))


def draw_shared(table: Table, looks: Measured, teachers: Teachers, folder: Path) -> list[Picture]:
    """The pictures of all columns."""
    pen, names, colours = Pen(folder), column_names(table), Colours(table.labels)
    cells = list(table.cells.values())
    for name, over in (("over_baseline", table.baseline), ("over_alone", "the student alone")):
        if any(getattr(cell, name) for cell in cells):
            pen.draw(
                name.replace("_", "-"), f"Gain over {over}",
                "Points of test accuracy, last epoch, paired by seed; in brackets where not "
                "significant, grey where one trial claims nothing.",
                figures.gains(table, name, names),
            )  # fmt: skip
    for data in dict.fromkeys(column.data for column in table.columns):
        points = cost_points(table, data, looks, teachers)
        shown = {label: colours.of(label) for label in table.labels}
        if any(point.colour == figures.INK for point in points):
            shown[TEACHER] = figures.INK
        pen.draw(
            f"cost-{re.sub(r'[^a-zA-Z0-9_]', '-', data)}", f"Accuracy against cost, {data}",
            "Last epoch, mean (and deviation). Seconds are those of training on the machines of "
            "the runs; FLOPs of the forward pass of one image, 2 for a multiplication with its "
            "addition.",
            figures.costs(points, shown),
        )  # fmt: skip
    return pen.pictures


def cost_points(table: Table, data: str, looks: Measured, teachers: Teachers) -> list[Point]:
    """Students and teachers of a data set."""
    colours, points = Colours(table.labels), []
    for column in table.columns:
        if column.data != data:
            continue
        for cell in table.of(column):
            flops = flops_of(next(iter(looks.get((cell.label, column), [])), None))
            spent = (cell.seconds.mean, cell.parameters, flops)
            points.append(Point(cell.last, spent, column, colours.of(cell.label)))
        if teacher := table.teacher_facts(column):
            spent = (None, teacher.get("parameters"), flops_of(teachers.get(column)))
            points.append(Point(Spread(teacher["acc"], None), spent, column, figures.INK))
    return points


def flops_of(look: Looks | None) -> float | None:
    return float(look.alone["flops"]) if look else None


def make_section(
    table: Table, column: Column, name: str, looks: Measured, teacher: Looks | None, pen: Pen
) -> Section:
    """The pictures of a column, and what its networks are like."""
    cells, colours = table.of(column), Colours(table.labels)
    accuracy = table.teacher_accuracy(column)
    if any(cell.over_alone or cell.over_baseline for cell in cells):
        pen.draw(
            "differences", "Differences",
            "Paired by seed, with 95 % intervals (Student's t). Filled: significant; hollow: not.",
            figures.forest(cells, table.baseline, colours),
        )  # fmt: skip
    if any(trial.history for cell in cells for trial in cell.trials):
        pen.draw(
            "curves", "Learning curves", "Accuracy by epoch, mean and deviation over the trials.",
            figures.curves(cells, colours, accuracy),
        )  # fmt: skip
    here = {
        cell.label: looks[cell.label, column] for cell in cells if (cell.label, column) in looks
    }
    section = Section(column, name, pen.pictures)
    if here:
        count = len(next(iter(here.values()))[0].alone["confusion"])
        classes = list(map(str, cells[0].trials[0].summary.get("classes", range(count))))
        draw_networks(here, teacher, colours, pen, classes)
        section.costs = costs_of(table, column, looks, teacher)
        section.worst = {
            label: worst_images(each[0].worst, classes) for label, each in here.items()
        }
        if len(classes) > figures.MATRIX:
            every = {TEACHER: [teacher], **here} if teacher else here
            section.networks, section.confused = (
                list(every),
                most_confused(every, classes, list(here)),
            )
    return section


def draw_networks(
    here: Mapping[str, list[Looks]],
    teacher: Looks | None,
    colours: Colours,
    pen: Pen,
    classes: Sequence[str],
) -> None:
    """The pictures of what networks show: of all trials where that is a number, else of one."""
    first = {label: each[0] for label, each in here.items()}
    all_of_them = {TEACHER: [teacher], **here} if teacher else here
    if teacher:
        pen.draw(
            "closeness", "Closeness to the teacher",
            "Share of the test images of which both predict the same class, and the mean KL of the "
            "student's prediction from the teacher's (Stanton et al., NeurIPS 2021); mean and "
            "deviation over the trials.",
            figures.closeness(here, colours),
        )  # fmt: skip
    pen.draw(
        "reliability", "Calibration",
        "Accuracy of the test images by confidence, in 15 bins, all trials together; hatched: the "
        "gap to the diagonal. ECE: expected calibration error (Guo et al., ICML 2017).",
        figures.reliability(all_of_them, colours),
    )  # fmt: skip
    pen.draw(
        "classes", "Accuracy per class", "Mean of the trials.",
        figures.class_accuracies(all_of_them, classes),
    )  # fmt: skip
    if len(classes) <= figures.MATRIX:
        pen.draw(
            "confusion", "Confusion matrix",
            "What the test images of each class are taken for, in % of them, all trials together.",
            figures.confusions(all_of_them, classes),
        )  # fmt: skip
    if teacher:
        images = int(teacher.alone["confusion"].sum())
        pen.draw(
            "correlation", "Correlation of classes, student minus teacher",
            "Difference of the correlation matrices of the logits over the test images, first "
            "trial (Tian et al., ICLR 2020); the fainter, the more the student has of how the "
            "teacher relates classes.",
            figures.correlations(first, teacher, classes),
        )  # fmt: skip
        pen.draw(
            "cka", "Similarity of stages",
            f"Debiased linear CKA of {min(COMPARED, images)} test images, first trial (Kornblith "
            "et al., ICML 2019; Nguyen et al., ICLR 2021).",
            figures.stage_similarity(first),
        )  # fmt: skip
    pen.draw(
        "tsne", "Test features",
        "t-SNE of the pooled vectors of the same test images, first trial; a colour a class, "
        f"{SHOWN_CLASSES} classes at most; each panel has a scale of its own.",
        figures.embeddings({label: each[0] for label, each in all_of_them.items()}),
    )  # fmt: skip
