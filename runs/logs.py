"""What a run writes down: TensorBoard, a line of JSON an epoch, the console, optionally wandb."""

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helper.errors import UserError
from helper.files import write_whole


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl; what follows a line that a crash cut short is left out."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            break
        if not isinstance(content, dict) or not isinstance(content.get("epoch"), int):
            break
        lines.append(content)
    return lines


def import_wandb():
    """The wandb package; UserError where it is not installed."""
    try:
        return importlib.import_module("wandb")
    except ImportError:
        raise UserError("--wandb needs the wandb package: pip install wandb") from None


def start_wandb(name: str, run_id: str | None, config: Mapping[str, Any]):
    """A Weights & Biases run; with the id of an earlier one it goes on there."""
    how = {"id": run_id, "resume": "allow"} if run_id else {}
    return import_wandb().init(project="distillation", name=name, config=config, **how)


class Logger:
    """Numbers of each epoch, to every place where somebody looks for them."""

    def __init__(self, folder: Path, after_epoch: int, tb_freq: int, wandb_run=None):
        """Keep what was logged up to `after_epoch`, drop what a killed run logged beyond it.

        `tb_freq`: steps between two points within an epoch.
        """
        from torch.utils.tensorboard import SummaryWriter  # takes a second to import

        self.lines, self.wandb, self.tb_freq = folder / "metrics.jsonl", wandb_run, tb_freq
        kept = [line for line in read_lines(self.lines) if line["epoch"] <= after_epoch]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(self.lines, lambda file: file.write(text.encode()))
        resumed = {"purge_step": after_epoch + 1} if after_epoch else {}
        self.board = SummaryWriter(str(folder / "tensorboard"), **resumed)
        self._logged_until = 0

    def epoch(self, epoch: int, numbers: Mapping[str, float]) -> None:
        with self.lines.open("a") as file:
            file.write(json.dumps({"epoch": epoch, **numbers}) + "\n")
        for name, value in numbers.items():
            self.board.add_scalar(name, value, epoch)
        self.board.flush()
        if self.wandb:
            self.wandb.log({"epoch": epoch, **numbers})

    def step(self, step: int, means: Mapping[str, float]) -> None:
        """Means so far of an epoch after `step` steps of all; at most one point in `tb_freq`."""
        if step // self.tb_freq == self._logged_until // self.tb_freq:
            return
        self._logged_until = step
        for name, value in means.items():
            self.board.add_scalar(f"step/{name}", value, step)

    def close(self) -> None:
        self.board.close()
        if self.wandb:
            self.wandb.finish()


def console_line(epoch: int, epochs: int, numbers: Mapping[str, float]) -> str:
    """One epoch in one line: the weighted total, then its plain terms."""
    total = {"train_loss", "train_acc"}
    terms = [
        f"{name.removeprefix('train_')} {value:.4f}"
        for name, value in numbers.items()
        if name.startswith("train_") and name not in total
    ]
    parts = f"({', '.join(terms)})  " if len(terms) > 1 else " "
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  lr {numbers['lr']:g}  "
        f"loss {numbers['train_loss']:.4f} {parts}"
        f"train {numbers['train_acc']:.2f} %  test {numbers['test_acc']:.2f} % "
        f"(top-5 {numbers['test_acc_top5']:.2f})  "
        f"{numbers['seconds']:.1f} s  {numbers['images_per_s']:,.0f} images/s"
    )
