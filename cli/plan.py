"""A plan: data, pairs, methods and trials in YAML -> the runs of a whole table.

    dataset: cifar100
    pairs: [resnet32x4 resnet8x4, wrn_40_2 wrn_16_2]
    methods: {KD: kd, KD+LS: kd --logit_stand, CRD+KD: crd -a 1}
    trials: 3
    flags: --amp bf16

A file is one such block, or a list of them. Every run is resolved before any of them starts.
"""

import contextlib
import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cli.choice import choose
from cli.flags import BankOptions, RunOptions
from cli.job import Job, check_fit, make_job
from cli.networks import is_published
from cli.parse import NEEDS, parse_student
from cli.words import read_choices
from dataset import DATASETS
from helper import config
from helper.errors import UserError
from helper.options import Parser
from runs import checkpoint

ALONE = "alone"  # label of networks by themselves, teachers as well
TRAIN = "train"  # in `teachers`: not the published one

Words = tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """What a plan says of one data set."""

    dataset: str
    pairs: tuple[tuple[str, str], ...]  # teacher, student
    methods: Mapping[str, Words]  # label -> the method and its flags
    trials: int = 1  # numbered from 1 on
    flags: Words = ()  # of every command
    teacher_flags: Words = ()  # of teachers that are trained first, once
    student_flags: Words = ()  # of students, alone and with a teacher
    teachers: Mapping[str, str] = field(default_factory=dict)  # network -> checkpoint, or TRAIN
    transfer: tuple[Words, ...] = ()  # data sets, with flags, on which students are probed


def read_plan(
    path: str, more: str = "", change: Callable[[Block], Block] = lambda block: block
) -> list[Job]:
    """The jobs of a plan, each behind those that it waits for; `more` are flags of every command.

    `change` makes of each block the one that is expanded.

    UserError, before anything runs, for whatever could not run.
    """
    if not os.path.isfile(path):
        raise UserError(f"no plan {path}: give the path of a .yaml file")
    jobs: dict[str, Job] = {}  # by folder
    node = config.read_yaml(Path(path))
    with config.in_file(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # each run says its own
        content = config.plain(node)
        blocks = content if content and isinstance(content, list) else [content]
        for number, block in enumerate(blocks, 1):
            with naming(f"block {number}" if len(blocks) > 1 else ""):
                for job in expand(change(read_block(block)), words(more)):
                    add(job, jobs)
    return list(jobs.values())


def add(job: Job, jobs: dict[str, Job]) -> None:
    """Put a job among others; UserError where another label has the same run."""
    other = jobs.setdefault(f"{job.root}/{job.place}", job)
    if other.label != job.label:
        raise UserError(f"{other.label} and {job.label} are the same run: {job.command()}")


@contextlib.contextmanager
def naming(what: str) -> Iterator[None]:
    """Say which part of a plan a mistake is in."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{what}: {error}" if what else str(error)) from None


# ---- reading


def read_block(content: Any) -> Block:
    """A block as YAML has it, checked; UserError that names what is wrong."""
    if not isinstance(content, dict):
        raise UserError("a plan has lines such as 'dataset: cifar100'")
    readers = {
        "dataset": text, "pairs": read_pairs, "methods": table_of_words, "trials": read_count,
        "flags": words, "teacher_flags": words, "student_flags": words, "teachers": table,
        "transfer": list_of_words,
    }  # fmt: skip
    if unknown := [name for name in content if name not in readers]:
        raise UserError(f"{unknown[0]} is none of {', '.join(readers)}")
    if missing := [name for name in ("dataset", "pairs", "methods") if name not in content]:
        raise UserError(f"there is no {missing[0]}")
    values = {}
    for name, value in content.items():
        with naming(name):
            values[name] = readers[name](value)
    block = Block(**values)
    known = {teacher for teacher, _ in block.pairs}
    if strange := [name for name in block.teachers if name not in known]:
        raise UserError(f"teachers: {strange[0]} is the teacher of no pair")
    return block


def text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError("expected a word")
    return value.strip()


def words(value: Any) -> Words:
    """'--amp bf16' -> ('--amp', 'bf16')"""
    if not isinstance(value, str):
        raise UserError("expected flags as they are typed")
    try:
        return tuple(shlex.split(value))
    except ValueError as error:
        raise UserError(f"{value}: {error}") from None


def listed(value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError("expected a list")
    return value


def table(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not value:
        raise UserError("expected names with values")
    return {name: text(entry) for name, entry in value.items()}


def named_words(value: Any) -> Words:
    """'kd --logit_stand': a name and its flags."""
    found = words(value)
    if not found or found[0].startswith("-"):
        raise UserError(f"{value!r} begins with no name")
    return found


def table_of_words(value: Any) -> dict[str, Words]:
    labels = {label: named_words(entry) for label, entry in table(value).items()}
    if ALONE in labels:
        raise UserError(f"{ALONE} is the label of students without a teacher")
    return labels


def list_of_words(value: Any) -> tuple[Words, ...]:
    return tuple(map(named_words, listed(value)))


def read_pairs(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = []
    for entry in listed(value):
        names = tuple(words(entry))
        if len(names) != 2:
            raise UserError(f"{entry!r} is no 'teacher student'")
        if names in pairs:
            raise UserError(f"{entry} is there twice")
        pairs.append(names)
    return tuple(pairs)


def read_count(value: Any) -> int:
    if not isinstance(value, str) or not value.isdecimal() or int(value) < 1:
        raise UserError(f"{value} is no number of at least 1")
    return int(value)


# ---- expanding


def expand(block: Block, more: Words) -> Iterator[Job]:
    """The jobs of a block: teachers, students alone, students of teachers, probes."""
    DATASETS[block.dataset]  # UserError that names those there are
    block = replace(block, flags=(*block.flags, *more))
    teachers = {name: find_teacher(name, block) for name, _ in dict.fromkeys(block.pairs)}
    trials, students = range(1, block.trials + 1), []
    for network in dict.fromkeys(student for _, student in block.pairs):
        students += [alone(network, trial, block.student_flags, block) for trial in trials]
    for label, fragment in block.methods.items():
        for teacher, student in block.pairs:
            with naming(f"{label}, {teacher} {student}"):
                made = [
                    distilled(label, fragment, (teacher, student), teachers[teacher], trial, block)
                    for trial in trials
                ]
                check_fit(parse_student(made[0].argv))
                students += made
    needed = {need for student in students for need in student.needs}
    yield from (job for job in teachers.values() if job in needed)
    yield from students
    for fragment in block.transfer:
        with naming(f"transfer, {fragment[0]}"):
            yield from (probe(student, fragment, block) for student in students)


def find_teacher(name: str, block: Block) -> Job | str:
    """The job that trains a teacher, or the path of its checkpoint; "" for the published one."""
    given = block.teachers.get(name, "")
    if given == TRAIN or not (given or is_published(block.dataset, name)):
        return alone(name, 1, block.teacher_flags, block)
    if given and not checkpoint.is_there(given):
        raise UserError(f"teachers: {name}: there is no checkpoint {given}")
    return given


def alone(network: str, trial: int, flags: Words, block: Block) -> Job:
    """A network by itself."""
    set_here = {"model": network, "dataset": block.dataset, "trial": trial}
    with naming(network):
        return make_job(ALONE, "teacher", set_here, [*block.flags, *flags])


def distilled(
    label: str,
    fragment: Words,
    pair: tuple[str, str],
    source: Job | str,
    trial: int,
    block: Block,
) -> Job:
    """A student of a teacher, by one method; of none, where the method has none."""
    teacher, student = pair
    path = source.checkpoint if isinstance(source, Job) else source
    of_teacher = {"model_t": teacher, **({"path_t": path} if path else {})}
    more = [*block.flags, *block.student_flags, *fragment[1:]]
    _, chosen = read_choices(["--distill", fragment[0], *more], students=True)
    has_teacher = choose(chosen).method.has_teacher
    more += bank_of(more) if has_teacher else ()
    set_here = {
        "distill": fragment[0],
        **(of_teacher if has_teacher else {}),
        "model_s": student,
        "dataset": block.dataset,
        "trial": trial,
    }
    needs = [source] if has_teacher and isinstance(source, Job) else []
    return make_job(label, "student", set_here, more, needs)


def bank_of(flags: Sequence[str]) -> Words:
    """The bank that tools/sweep.py has for a run, where its flags speak of one and name none."""
    parser = Parser()
    parser.add(BankOptions, RunOptions)
    said = vars(parser.parse_known_args(flags)[0])
    if "teacher_bank" in said or not any(NEEDS.get(name) == "teacher_bank" for name in said):
        return ()
    return "--teacher_bank", f"{said.get('save_dir', RunOptions.save_dir)}/bank"


def probe(student: Job, fragment: Words, block: Block) -> Job:
    """The linear probe of a student on other data."""
    set_here = {
        "path_s": student.checkpoint,
        "model_s": student.model,
        "dataset": fragment[0],
        "trial": student.experiment.trial,
    }
    return make_job(student.label, "probe", set_here, [*block.flags, *fragment[1:]], [student])
