"""What stands beside exported weights: config.json in timm's layout, and a model card."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from deploy.network import Deployed
from helper.errors import one_line


def config_of(deployed: Deployed, normalised: bool, sha256: str) -> dict[str, Any]:
    """config.json as timm's folders on the hub have it, and what `runs.exported` reads."""
    size = deployed.image_size
    features = deployed.network.features(torch.zeros(2, 3, size, size))
    return {
        "architecture": deployed.name.removeprefix("timm:"),
        "model_name": deployed.name,
        "num_classes": len(deployed.classes),
        "num_features": features.pooled.shape[1],
        "label_names": list(deployed.classes),
        "checkpoint_sha256": sha256,
        "normalisation_inside": normalised,  # of the graphs; the weights know of none
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "fixed_input_size": True,
            "interpolation": "bilinear",
            "crop_pct": deployed.crop_pct,
            "crop_mode": "center",
            "mean": list(deployed.mean),
            "std": list(deployed.std),
            "num_classes": len(deployed.classes),
            "classifier": deployed.network.head_name,
        },
    }


def card_of(
    deployed: Deployed, run: Mapping[str, Any], source: str, files: list[str], normalised: bool
) -> str:
    """The text of README.md. `run` is the run.json of the weights; empty where there is none."""
    rows = {name: value for name, value in facts(deployed, run, source).items() if value}
    table = "\n".join(f"| {name} | {cell(value)} |" for name, value in rows.items())
    size = deployed.image_size
    shorter = round(size / deployed.crop_pct)
    cut = "" if shorter == size else f" (the center, the shorter side resized to {shorter})"
    inside = "; the graphs do that themselves" if normalised else ""
    return f"""---
library_name: pytorch
tags: [image-classification, knowledge-distillation]
---

# {deployed.name}, {len(deployed.classes)} classes

| | |
| --- | --- |
{table}

Files: {", ".join(f"`{name}`" for name in files)}. Images are {size}x{size}{cut},
RGB, from 0 to 1, less the mean, over the standard deviation{inside}.

Limits: it knows these classes alone and answers with one of them whatever it is shown; it was
measured on images like those that it was trained on, and on no others. Nothing is known of how it
treats people.
"""


def facts(deployed: Deployed, run: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Rows of the card; those that are not known are empty."""
    teacher = run.get("teacher") or {}
    last, best = run.get("last") or {}, run.get("best") or {}
    origin = (run.get("provenance") or [{}])[-1]
    parameters = sum(p.numel() for p in deployed.network.parameters())
    accuracy = ", ".join(
        f"{name} epoch {row['test_acc']:.2f} %"
        for name, row in (("last", last), ("best", best))
        if "test_acc" in row
    )
    names = deployed.classes[:10]
    return {
        "parameters": f"{parameters:,}",
        "classes": ", ".join(names) + (", ..." if len(deployed.classes) > len(names) else ""),
        "mean, std": f"{in_short(deployed.mean)}; {in_short(deployed.std)}",
        "trained on": run.get("data", ""),
        "test accuracy": accuracy,
        "objective": run.get("objective", ""),
        "teacher": " ".join(
            map(str, (teacher.get("model", ""), teacher.get("sha256", "")))
        ).strip(),
        "started from": run.get("start", ""),
        "seed": str(run.get("seed", "")),
        "command": f"`{' '.join(origin['command'])}`" if origin.get("command") else "",
        "code": origin.get("git_commit") or "",
        "checkpoint": source,
    }


def cell(value: Any) -> str:
    """A value as one cell of a table in Markdown, whatever its characters are."""
    return one_line(value).replace("|", "\\|")


def in_short(values: Iterable[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
