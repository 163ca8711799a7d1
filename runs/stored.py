"""What a run wrote of itself, read back: run.json and resume.pth, of any release."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.files import read_regular
from helper.forms import (
    Form,
    are_numbers,
    are_options,
    are_texts,
    is_count,
    is_dict,
    is_number,
    is_text,
    is_whole,
    wrong_in,
)
from runs import checkpoint
from runs.logs import is_epoch, read_lines

SCHEMA = 2  # of run.json and resume.pth; files without one are of the first release
STOPPED, FINISHED = "running", "finished"  # status of a run
START_ANEW = "--overwrite to start it anew"


def read_summary(path: Path) -> dict[str, Any]:
    """What a run.json says, of any release; UserError where no run can have written it."""
    try:
        summary = json.loads(read_regular(path))
        wrong = wrong_in(summary, SUMMARY, complete=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        wrong = f"it is no JSON: {error}"
    if wrong:
        raise UserError(f"{path} is broken ({wrong}): start that run anew with --overwrite")
    return summary


def read_state(path: Path, metrics: Path) -> dict[str, Any]:
    """What a resume.pth says; UserError where no run can have written it.

    `metrics` has the epochs that one of an earlier release lacks.
    """
    state = checkpoint.load(path)
    if isinstance(state, dict):
        state.setdefault("average", {})
    if isinstance(state, dict) and "history" not in state:
        state["history"] = read_history(state, metrics)
    if wrong := wrong_in(state, STATE) or wrong_in_progress(state):
        raise UserError(f"{path} is no resume file ({wrong}): {START_ANEW}")
    return state


def read_history(state: Mapping[str, Any], metrics: Path) -> list[dict[str, float]]:
    """The epochs that are done, of a resume file that has no more than the best and the last."""
    ends = [state.get("best"), state.get("last")]
    if not all(are_numbers(end) and is_count(end.get("epoch")) for end in ends):
        return []
    done = ends[-1]["epoch"]
    lines = read_lines(metrics)[:done]
    epochs = {line["epoch"]: line for line in (*lines, *ends)}
    if len(epochs) < done:
        warnings.warn(
            f"{metrics} lacks {done - len(epochs)} of {done} epochs, which are lost", stacklevel=2
        )
    return [epochs[number] for number in sorted(epochs)]


def wrong_in_progress(state: Mapping[str, Any]) -> str:
    """What does not fit together in a resume file; "" where all does."""
    done = state["epoch"] if state["stage"] == "main" else 0
    last, best, history = state["last"], state["best"], state["history"]
    epochs = [line.get("epoch") for line in history]
    if not all(map(is_epoch, history, epochs)) or epochs != sorted(set(epochs)):
        return "its history is not one of epochs in order"
    if last != (history[-1] if history else {}) or last.get("epoch", 0) != done:
        return f"its last epoch is not {done}"
    if (done and best not in history) or (best and not done):
        return "its best epoch is none of these"
    return ""


def are_starts(value: Any) -> bool:
    """Whether it is the provenance of a run: of each start what was known."""
    return isinstance(value, list) and all(
        isinstance(start, dict) and is_dict(start.get("options", {})) for start in value
    )


OPTIONS: dict[str, Form] = {"epochs": is_count, "trial": is_whole}
EXPERIMENT: dict[str, Form] = {
    "kind": is_text,
    "options": are_options,
    "data": is_text,
    "source": is_text,
    "code": lambda value: isinstance(value, dict) and all(map(is_text, value.values())),
    "title": is_text,
    "unusual": are_texts,
    "trial": is_whole,
}
# What run.json and resume.pth have to say where they say it; resume.pth says all of it.
SUMMARY: dict[str, Form] = {
    "status": lambda value: value in (STOPPED, FINISHED),
    "model": is_text,
    "data": is_text,
    "objective": is_text,
    "parameters": is_whole,
    "seed": is_whole,
    "seconds": is_number,
    "last": are_numbers,
    "best": are_numbers,
    "others": lambda value: isinstance(value, dict) and all(map(is_dict, value.values())),
    "options": lambda value: not wrong_in(value, OPTIONS) and are_options(value),
    "teacher": is_dict,
    "source": is_dict,
    "provenance": are_starts,
    "wandb_id": lambda value: value is None or is_text(value),
}
STATE: dict[str, Form] = {
    "schema": lambda value: is_count(value) and value == SCHEMA,
    "stage": lambda value: isinstance(value, str) and value in ("first", "main"),
    "epoch": is_count,
    "last": are_numbers,
    "best": are_numbers,
    "seconds": is_number,
    "history": lambda value: isinstance(value, list) and all(map(are_numbers, value)),
    "task": is_dict,
    "optimizer": is_dict,
    "average": is_dict,
    "scaler": are_numbers,
    "experiment": lambda value: not wrong_in(value, EXPERIMENT),
}
