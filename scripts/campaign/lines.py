"""Command lines that hypothesis makes of the flags that the commands' own parsers have."""

import argparse
import contextlib
import io
import os
import random
from functools import cache
from unittest import mock

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from helper.options import METAVARS, Parser
from models import MODELS
from runs.recorder import Run
from scripts.campaign.ground import Case
from scripts.campaign.sandbox import COMMANDS

BLOCK = 500  # lines that are made at a time; how many decides which
SMALL = "--dataset fake --fake_size 12 --fake_classes 4 --image_size 8 --epochs 1 --device cpu"
START = {
    "train_teacher": f"--model resnet8 --batch_size 5 {SMALL}",
    "train_student": f"--model_s resnet8 --path_t teacher/last.pth --batch_size 5 {SMALL}",
    "transfer_student": f"--path_s teacher/last.pth --batch_size 5 {SMALL}",
    "train": f"--model_s resnet8 --path_t teacher/last.pth --batch_size 5 {SMALL}",
    "eval": f"-c teacher/last.pth {SMALL.replace('--epochs 1 ', '')}",
    "compare": "",
}
WHOLE = [0, 1, 2, 3, 7, 40, -1, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63)]
ODD = [
    "", "-", "--", "---", "=", ",", ".", "on", "off", "none", "nan", "inf", "-inf", "1e400", "-0.0",
    "1e-400", "0x10", "1_000", "1e3", "1.0", "+4", " 5 ", "\u0663", "1,2,", "[1,2]", "2,1", "1;2",
    "()", "9" * 300, "9" * 5000, "x" * 300, "x" * 70_000, "../..", "teacher", "teacher/last.pth",
    "/dev/null", "\n", "\t", "%s", "%", "{}", "$HOME", "~", "*", "\x1b[31m", "caf\u00e9",
    "\U0001f600", "\udcff\udcfe",
]  # fmt: skip
NAMES = {
    "model": MODELS,
    "model_s": MODELS,
    "model_t": MODELS,
    "distill": METHODS,
    "dataset": DATASETS,
}
WRITTEN = {
    "save_dir",
    "json",
    "out",
    "cache_dir",
}  # where only names below the case's folder may be

no_nul = st.binary(max_size=12).map(lambda raw: os.fsdecode(raw.replace(b"\0", b"")))
odd = st.sampled_from(ODD) | st.text(st.characters(codec="utf-8", exclude_characters="\0")) | no_nul
whole = (st.integers(0, 9) | st.integers(1, 9) | st.sampled_from(WHOLE)).map(str)
number = (st.floats(0, 10) | st.floats(0, 1) | st.floats()).map(repr)
lists = st.lists(st.integers(1, 5), max_size=4).map(lambda parts: ",".join(map(str, sorted(parts))))
KINDS = {
    METAVARS[int]: whole,
    METAVARS[float]: number,
    METAVARS[tuple]: lists,
    METAVARS[bool]: st.sampled_from(["on", "off"]),
    **dict.fromkeys(("PATH_T", "PATH_S", "CKPT"), st.just("teacher/last.pth")),
}
EDGES = {
    METAVARS[int]: [0, 2**31 - 1, 2**63 - 1],
    METAVARS[float]: ["5e-324", "1e-30", "1e30", "3e38", "1e308"],
    METAVARS[tuple]: [f"1,{2**31 - 1}", f"1,{2**63 - 1}"],
}
seldom = st.sampled_from(range(12)).map(lambda drawn: drawn == 7)


def fuzz(case: Case) -> None:
    """Any command line: it works, or one line says what is wrong with it."""
    words = block(case.seed, case.number // BLOCK)[case.number % BLOCK]
    case.enter("empty")
    case.run(words, (0, 1, 2), prepare=stop_after_2_epochs)


def bound(case: Case) -> None:
    """One flag of a method or a command at the edge of what numbers may be."""
    words = at_bounds()[case.number % len(at_bounds())]
    case.enter("empty")
    case.run(words, (0, 1, 2), prepare=stop_after_2_epochs)


@cache
def at_bounds() -> list[list[str]]:
    """Command lines with each flag of each method, view and command at each edge, in any order."""
    chosen = [(command,) for command in ("train_teacher", "transfer_student", "eval")]
    chosen += [("train_student", f"--distill={method}") for method in METHODS]
    chosen += [("train_student", f"--{view}={value(view)}") for view in VIEWS]
    general = {action.dest for action in flags_of("train_teacher")}
    lines = [
        [words[0], *START[words[0]].split(), *words[1:], f"{action.option_strings[0]}={edge}"]
        for words in chosen
        for action in flags_of(*words)
        if words[1:] == () or action.dest not in general
        for edge in EDGES.get(action.metavar, ())
    ]
    return random.Random(0).sample(lines, len(lines))


def stop_after_2_epochs() -> None:
    """Long runs are none of this part's concern."""
    finish = Run.finish_epoch

    def finish_or_stop(run, stage, epoch, numbers):
        finish(run, stage, epoch, numbers)
        if epoch == 2:
            raise SystemExit(0)

    Run.finish_epoch = finish_or_stop


@cache
def block(of: int, number: int) -> list[list[str]]:
    """BLOCK command lines, the same ones for the same seed and number."""
    found: list[list[str]] = []

    @seed(f"{of} {number}")
    @settings(
        database=None,
        deadline=None,
        max_examples=BLOCK,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(command_lines())
    def collect(words: list[str]) -> None:
        found.append(words)

    collect()
    return found


@st.composite
def command_lines(draw) -> list[str]:
    """A command, its usual flags, some of all its flags with any values, sometimes any word."""
    command = draw(st.sampled_from([*START, *["train_student"] * 4]))
    chosen = []
    if command in ("train_student", "train"):
        chosen = [f"--distill={draw(st.sampled_from(list(METHODS)))}"]
        chosen += [f"--{view}={value(view)}" for view in draw(some(list(VIEWS), 2))]
    words = [command, *START[command].split(), *chosen]
    for action in draw(some(flags_of(command, *chosen), 4)):
        words += draw(typed(action))
    if draw(seldom):
        words.insert(draw(st.integers(1, len(words))), draw(odd))
    return words


def value(view: str) -> str:
    """What switches a view on."""
    return "1,2" if view == "sdd" else "on"


def some(choices: list, most: int) -> st.SearchStrategy:
    return st.lists(st.sampled_from(choices), max_size=most)


@cache
def flags_of(command: str, *words: str) -> list[argparse.Action]:
    """Every flag of the parsers that a command line meets: those that its --help would show."""
    parsers: list[Parser] = []
    with (
        mock.patch.object(Parser, "format_help", lambda parser: parsers.append(parser) or ""),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.suppress(SystemExit),
    ):
        COMMANDS[command]([*words, "--help"])
    return [action for parser in parsers for action in parser._actions if action.option_strings]


@st.composite
def typed(draw, action: argparse.Action) -> list[str]:
    """A flag in one of its spellings, mostly with a value that it may have."""
    flag = draw(st.sampled_from(action.option_strings))
    if action.dest == "compile":  # takes a minute
        return [f"{flag}=off"]
    if (action.nargs in ("?", 0) and draw(st.booleans())) or (draw(seldom) and draw(seldom)):
        return [flag]
    if action.dest in NAMES:
        usual = st.sampled_from([*NAMES[action.dest]])
    elif action.choices:
        usual = st.sampled_from(list(action.choices))
    else:
        usual = KINDS.get(action.metavar, odd)
    text = draw(odd if draw(seldom) else usual)
    if action.dest in WRITTEN:
        text = text.replace("/", "_").replace("..", "_")
    return draw(st.sampled_from([[f"{flag}={text}"], [flag, text]]))
