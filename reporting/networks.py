"""What of trained networks the page has as tables: size and speed, confusions, worst images.

K classes, n images.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from reporting.measure import Arrays, Looks, Measured, confusion_shares
from reporting.table import Column, Table

PAIRS = 20  # of classes that are confused most


class Cost(NamedTuple):
    """What a network takes."""

    name: str
    parameters: int | None  # None: not known
    flops: int  # of one image
    milliseconds: tuple[float, ...]  # of each of measure.TIMED


def costs_of(table: Table, column: Column, looks: Measured, teacher: Looks | None) -> list[Cost]:
    """The teacher of a column, where it is known, and each network among its students once."""
    costs = {}
    if teacher:
        parameters = table.teacher_facts(column).get("parameters")
        costs["teacher"] = cost(f"teacher {column.teacher}", parameters, teacher)
    for cell in table.of(column):
        for look in looks.get((cell.label, column), [])[:1]:
            more = f", {cell.label}" if len(costs) > bool(teacher) else ""
            name = f"student {cell.trials[0].run.model}{more}"
            costs.setdefault(cell.parameters, cost(name, cell.parameters, look))
    return list(costs.values())


def cost(name: str, parameters: int | None, look: Looks) -> Cost:
    milliseconds = tuple(look.latency["milliseconds"].tolist())
    return Cost(name, parameters, int(look.alone["flops"]), milliseconds)


class Confused(NamedTuple):
    """Images of a class that are taken for another one."""

    label: str
    answer: str
    shares: list[float]  # of each network, in % of the images of the class


def most_confused(
    looks: Mapping[str, Sequence[Looks]], classes: Sequence[str], students: Sequence[str]
) -> list[Confused]:
    """The pairs of classes that the `students` confuse most, in the mean over them."""
    shares = {name: confusion_of(each) for name, each in looks.items()}
    mean = np.mean([shares[name] for name in students], axis=0)
    np.fill_diagonal(mean, 0)
    order = mean.argsort(axis=None, kind="stable")[::-1][:PAIRS]
    places = zip(*np.unravel_index(order, mean.shape))
    return [
        Confused(classes[i], classes[j], [float(share[i, j]) for share in shares.values()])
        for i, j in places
        if mean[i, j]
    ]


def confusion_of(looks: Sequence[Looks]) -> np.ndarray:
    """What each class is taken for in % of its images, all trials together: (K, K)"""
    return confusion_shares(sum(look.alone["confusion"] for look in looks))


class Shown(NamedTuple):
    """A test image with what networks take it for."""

    address: str  # a data: URL
    label: str
    answers: list[tuple[str, float]]  # of student and teacher, with their probabilities


def worst_images(worst: Arrays, classes: Sequence[str]) -> list[Shown]:
    """What `measure.worst` found, in words."""
    return [
        Shown(
            png(pixels),
            classes[label],
            [(classes[i], float(share)) for i, share in zip(answers, shares, strict=True)],
        )
        for pixels, label, answers, shares in zip(
            *(worst[name] for name in ("pixels", "labels", "answers", "shares")), strict=True
        )
    ]


def png(pixels: np.ndarray) -> str:
    """An image (H, W, 3) uint8 as a data: URL."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
