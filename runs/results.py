"""Finished and unfinished runs, read back from their folders: of this release and the first."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.errors import UserError
from runs.experiment import NO_NUMBER, ROUNDING, Experiment
from runs.folder import FINISHED


@dataclass(frozen=True)
class Result:
    """What a table needs of one run."""

    folder: Path
    kind: str  # "teacher", "student" or "probe"
    finished: bool
    model: str
    data: str
    objective: str
    teacher: str  # its network; empty without one
    source: str  # sha256 of the teacher's or the probed checkpoint; empty without one
    parameters: int
    epochs: int
    seed: int
    trial: int
    seconds: float
    last: Mapping[str, float]  # numbers of the last epoch; empty before the first
    best: Mapping[str, float]  # of the best epoch on the test set
    options: Mapping[str, Any]  # those in force that change a number
    row: str  # equal for runs that differ in their seed alone
    digest: str  # equal for the very same experiment


def read_result(folder: str | Path) -> Result:
    """The run in a folder. UserError where there is none, or its run.json is broken."""
    path = Path(folder) / "run.json"
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"no run in {folder}: there is no {path.name}") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is broken ({error}): run it again") from None
    try:
        return result_of(Path(folder), summary)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(f"{path} is no summary of a run ({error!r}): run it again") from None


def result_of(folder: Path, summary: Mapping[str, Any]) -> Result:
    """The same of a summary that was read."""
    options = summary["options"]
    if "experiment" in summary:
        experiment = Experiment.from_dict(summary["experiment"])
        kind, identity = experiment.kind, dict(experiment.options)
        row, digest = experiment.row, experiment.digest
    else:
        kind = old_kind(summary)
        identity = {k: v for k, v in options.items() if k not in NO_NUMBER | ROUNDING}
        row, digest = old_digests(kind, identity, summary)
    source = summary.get("teacher") or summary.get("source") or {}
    return Result(
        folder=folder,
        kind=kind,
        finished=summary["status"] == FINISHED,
        model=summary["model"],
        data=summary["data"],
        objective=summary["objective"],
        teacher=summary.get("teacher", {}).get("model", ""),
        source=source.get("sha256", ""),
        parameters=summary["parameters"],
        epochs=options["epochs"],
        seed=summary["seed"],
        trial=options["trial"],
        seconds=summary["seconds"],
        last=summary["last"],
        best=summary["best"],
        options=identity,
        row=row,
        digest=digest,
    )


def old_kind(summary: Mapping[str, Any]) -> str:
    """What a run of the first release was, which did not say it."""
    return "student" if "teacher" in summary else "probe" if "source" in summary else "teacher"


def old_digests(kind: str, identity: Mapping[str, Any], summary: Mapping[str, Any]):
    """Row and digest of a run of the first release, from what it remembered."""
    known = ("data", "classes", "image_size", "mean", "std", "model", "teacher", "source")
    facts = {name: summary.get(name) for name in known}
    for name in ("teacher", "source"):
        facts[name] = (facts[name] or {}).get("sha256")
    options = {name: value for name, value in identity.items() if name != "seed"}
    row = digest_of([kind, options, facts])
    return row, digest_of([row, summary["seed"]])


def digest_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
