"""From options to the objective of a student: KD term, method, views."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from cli.choice import StudentResolved
from dataset.loader import Loader
from distiller_zoo import METHODS
from distiller_zoo.base import Distiller, Setup
from engine.objective import Distillation
from helper.errors import UserError
from helper.options import Resolved, words_in
from models.base import Classifier


@torch.no_grad()
def method_setup(
    student: Classifier, teacher: Classifier | None, image_size: int, train: Loader
) -> Setup:
    """What a method may read before training: the features of two images, the labels."""
    images = torch.zeros(2, 3, image_size, image_size)
    return Setup(
        student.cpu().eval().features(images),
        teacher and teacher.cpu().eval().features(images),
        student,
        teacher,
        train.labels.cpu(),
        generator=torch.Generator(train.labels.device),
    )


def kd_and_method(options: StudentResolved, setup: Setup) -> tuple[Distiller, Distiller]:
    """The KD term and the method of the objective, behind the views that are on."""
    choice, flag = options.choice, f"--distill {options.distill}"
    views = [construct(f"--{n}", view, options, [setup]) for n, view in choice.views.items()]
    setup = replace(setup, views=tuple(views))
    kd = construct("--distill kd", METHODS["kd"], options, [setup])
    method = construct(flag, choice.method, options, [setup])
    for wrapper in choice.wrappers.values():
        method = construct(flag, wrapper, options, [setup, method])
    return kd, method


def construct(flag: str, cls: type, options: Resolved, parts: Sequence[Any]) -> Any:
    """Make a method or a view from its options; what it refuses becomes a line for the user."""
    try:
        return cls(options.read(cls.Options), *parts)
    except ValueError as error:
        raise UserError(f"{flag}: {error}") from error


def describe_objective(options: StudentResolved) -> str:
    """The objective that a student is trained on, in one line."""
    choice = options.choice
    terms = [
        (options.gamma, "CE"),
        (options.alpha, described("KD", METHODS["kd"], options)),
        (options.beta, described(options.distill, choice.method, options)),
    ]
    text = " + ".join(f"{weight:g}*{term}" for weight, term in terms if weight)
    views = {
        name: name if (value := options.values[name]) is True else f"{name}={value}"
        for name in choice.views
    }
    if choice.wrappers and options.beta:
        of_features = ", ".join(views[name] for name in choice.wrappers)
        text += f" with {of_features} on the teacher's features"
    if views and (options.alpha or choice.on_logits):
        text += f" on rows: {', '.join(views.values())}"
    if options.peer:
        text += f", of {options.model_s} and of its peer {options.peer}"
    if choice.views_per_image(options) > 1:
        text += ", on a weak and a strong view of each image"
    if options.warmup:
        text += f", {options.distill} grows over {options.warmup} epochs"
    if options.dot:
        text += f", DOT {options.dot:g}"
    return text


def described(name: str, method: type[Distiller], options: Resolved) -> str:
    """A method's name and, in brackets, what it says of its options."""
    variant = method.variant(options.read(method.Options))
    return f"{name}({variant})" if variant else name


def describe_pair(options: Resolved) -> str:
    """What was set because a paper set it for this pair of networks; empty where nothing was."""
    named = [name for name, origin in options.origin.items() if origin == "pair"]
    settings = ", ".join(f"{name}={options.values[name]}" for name in named)
    pair = f"{' + '.join(words_in(options.model_t))} -> {options.model_s}"
    return f"settings of {pair}: {settings} (--no_pair_defaults leaves them out)" if named else ""


def describe_memories(task: Distillation, save_freq: int) -> str:
    """What a method keeps of training samples, where it is much; empty where it is not."""
    size = sum(buffer.nbytes for buffer in task.method.buffers())
    text = f"memories:  {size / 1e6:,.0f} MB of {type(task.method).__name__}"
    if task.memories():
        text += f"; they and resume.pth are written every {save_freq} epochs (--save_freq)"
    return text if size > 1e7 else ""
