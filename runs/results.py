"""Finished and unfinished runs, read back from their folders: of this release and the first."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.forms import is_whole
from runs.experiment import NO_NUMBER, ROUNDING, Experiment
from runs.logs import accuracy, is_epoch, read_lines
from runs.stored import FINISHED, read_summary


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
    last: Mapping[str, float]  # numbers of the last epoch so far; empty before the first
    best: Mapping[str, float]  # of the best epoch, on the held-out images or else the test set
    options: Mapping[str, Any]  # those in force that change a number
    all_options: Mapping[str, Any]  # every option, as run.json has it
    row: str  # equal for runs that differ in their seed alone
    digest: str  # equal for the very same experiment


def read_result(folder: str | Path) -> Result:
    """The run in a folder. UserError where there is none, or its run.json is broken."""
    path = Path(folder) / "run.json"
    if not path.exists():
        raise UserError(f"no run in {folder}: there is no {path.name}")
    summary = read_summary(path)
    try:
        return result_of(Path(folder), summary)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror})") from None
    except (LookupError, TypeError, AttributeError, ValueError, RecursionError) as error:
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
        identity = old_identity(options, summary)
        row, digest = old_digests(kind, identity, summary)
    source = summary.get("teacher") or summary.get("source") or {}
    finished = summary["status"] == FINISHED
    last, best = (summary["last"], summary["best"]) if finished else numbers_so_far(folder)
    if finished and not all(is_epoch(x, x["epoch"]) and "test_acc" in x for x in (last, best)):
        raise ValueError("last and best are no epochs")
    decays = identity.get("lr_decay_epochs") or ()
    if not isinstance(decays, (list, tuple)) or not all(map(is_whole, decays)):
        raise ValueError("lr_decay_epochs are no epochs")
    return Result(
        folder=folder,
        kind=kind,
        finished=finished,
        model=summary["model"],
        data=summary["data"],
        objective=summary["objective"],
        teacher=str(summary.get("teacher", {}).get("model", "")),
        source=str(source.get("sha256", "")),
        parameters=summary["parameters"],
        epochs=options["epochs"],
        seed=summary["seed"],
        trial=options["trial"],
        seconds=float(summary["seconds"]),
        last=last,
        best=best,
        options=identity,
        all_options=options,
        row=row,
        digest=digest,
    )


def numbers_so_far(folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Last and best epoch of an unfinished run, of which run.json has none; empty before one."""
    epochs = read_lines(folder / "metrics.jsonl")
    best = max(epochs, key=accuracy, default={})
    return (epochs[-1] if epochs else {}), best


def old_kind(summary: Mapping[str, Any]) -> str:
    """What a run of the first release was, which did not say it."""
    return "student" if "teacher" in summary else "probe" if "source" in summary else "teacher"


def old_identity(options: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a run of the first release that change a number."""
    identity = {k: v for k, v in options.items() if k not in NO_NUMBER | ROUNDING}
    # Without synchronised BatchNorm each process has statistics of its own share.
    synchronised = identity.pop("sync_bn", False)
    return identity | {"processes": 1 if synchronised else summary.get("processes", 1)}


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
