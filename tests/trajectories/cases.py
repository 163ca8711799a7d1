"""Golden trajectories: short trainings by published code, and how far a replay is from them."""

import json
import runpy
from dataclasses import dataclass, field
from fnmatch import fnmatch
from types import SimpleNamespace
from typing import Any

import numpy as np

from tests.adapters import GOLDEN

FOLDER = GOLDEN / "trajectories"
INDEX = json.loads((FOLDER / "index.json").read_text())
NETWORKS, CHECKS = INDEX["networks"], INDEX["checks"]
recipe = SimpleNamespace(**runpy.run_path(str(FOLDER / "recipe.py")))
CROSS_ENTROPY = {"ce", "loss_ce"}
# Tensors by method that are otherwise on purpose: the published OFD moves the teacher's statistics.
OTHERWISE_HERE = {"ofd": ["teacher.*"]}
LEAST_LARGEST = 1e-5  # tensors below are compared as if this were their largest value

Case = dict[str, Any]  # an entry of the index
Rows = dict[str, np.ndarray]  # summaries of tensors by their published names


@dataclass
class Result:
    """What a training gives; losses are weighted, a number a step."""

    losses: dict[str, list[float]] = field(default_factory=dict)  # as STAGE/NAME
    rows: dict[str, Rows] = field(default_factory=dict)  # at "start", "between" stages, "final"


def names_of(case: Case, when: str) -> list[str]:
    """Published names of the tensors whose rows are stored for a moment."""
    student = [f"student.{name}" for name, *_ in NETWORKS[case["student"]]]
    names = student + [entry["name"] for entry in case["extra"]]
    return names + case["final_also"] if when == "final" else names


def stored(case: Case) -> Result:
    """The numbers of the published code, its terms called ce, kd and method as in a replay.

    Where its terms are no kd and method, the sum of all but cross-entropy is called rest.
    """
    result = Result()
    with np.load(FOLDER / case["file"]) as arrays:
        for name in ("start", "between", "final"):
            if name in arrays:
                result.rows[name] = dict(zip(names_of(case, name), arrays[name], strict=True))
        for name in ("first/total", "main/total"):
            if name in arrays:
                result.losses[name] = arrays[name]
        rest = []
        for term in case["terms"]:
            if term in CROSS_ENTROPY:
                result.losses["main/ce"] = arrays[f"main/{term}"]
            elif term in ("kd", "method"):
                result.losses[f"main/{term}"] = arrays[f"main/{term}"]
            else:
                rest.append(arrays[f"main/{term}"])
        if rest:
            result.losses["main/rest"] = sum(rest)
    return result


def deviations(case: Case, got: Result) -> dict[str, float]:
    """What is compared -> its largest deviation in shares of the tolerance; above 1 is too far."""
    wanted, tolerance = stored(case), case["tolerance"]
    free = [*case.get("may_differ", ()), *OTHERWISE_HERE.get(case["method"], ())]
    found = {}
    for name, losses in wanted.losses.items():
        losses = np.asarray(losses)
        found[name] = share_of(got.losses[name], losses, tolerance["loss"] * np.abs(losses))
    for when, rows in wanted.rows.items():
        for name, row in rows.items():
            if when == "final" and any(fnmatch(name, pattern) for pattern in free):
                continue
            allowed = tolerance["weights"] * max(row[10], LEAST_LARGEST)
            found[f"{when} {name}"] = share_of(got.rows[when][name], row, allowed)
    return found


def share_of(got, wanted: np.ndarray, allowed: np.ndarray | float) -> float:
    """Largest |got - wanted| / allowed; NaN equals NaN, and where 0 is allowed only 0 is near."""
    got = np.asarray(got, dtype=np.float64)
    if got.shape != wanted.shape or (np.isnan(got) != np.isnan(wanted)).any():
        return np.inf
    known = ~np.isnan(wanted)
    distance = np.abs(got - wanted)[known]
    allowed = np.broadcast_to(allowed, wanted.shape)[known]
    off = np.full(distance.shape, np.inf)
    np.divide(distance, allowed, out=off, where=allowed > 0)
    return float(np.where(distance == 0, 0.0, off).max(initial=0.0))
