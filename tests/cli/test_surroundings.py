"""Odd surroundings: closed standard streams, too little memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cli.main import main

ROOT = Path(__file__).resolve().parent.parent.parent


def shell(script: str, folder: Path, *words) -> subprocess.CompletedProcess:
    command = ["sh", "-c", script, "sh", sys.executable, *words]
    environment = {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_file_never_takes_the_place_of_a_closed_stream(closed, tmp_path):
    code = "import cli, sys; n = open('a', 'w').fileno(); print(file=sys.stderr); sys.exit(n)"
    assert shell(f'exec "$@" {closed}', tmp_path, "-c", code).returncode > 2


def runs_out(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has ...")


def runs_out_in_cpp(*_):
    raise RuntimeError("std::bad_alloc")


@pytest.mark.parametrize(
    ("command", "lacks"),
    [
        (lambda _: torch.empty(1 << 50), "too little memory for another 4503599627370496 bytes"),
        (lambda _: bytes(1 << 60), "too little memory"),
        (runs_out, "too little memory for another 2.50 GiB"),
        (runs_out_in_cpp, "too little memory"),
    ],
    ids=["torch", "python", "cuda", "c++"],
)
def test_too_little_memory(command, lacks, capsys):
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(
        f"error: {lacks}: give smaller sizes or a smaller --batch_size; --resume"
    )
