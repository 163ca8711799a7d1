"""A sample of the campaign, and that it notices what is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scripts.campaign.__main__ import PARTS
from scripts.campaign.ground import Case, differences, same
from scripts.campaign.sandbox import Outcome

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_sample_of_every_part():
    done = subprocess.run(
        [sys.executable, "-m", "scripts.campaign", "--cases", "1", "--seed", "2"],
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    rows = re.findall(r"^\| ([a-z]+) \| (\d+) \| (\d+) \| (\d+) \|$", done.stdout, re.MULTILINE)
    total = str(len(PARTS))
    assert rows == [*((part, "1", "1", "0") for part in PARTS), ("all", total, total, "0")]


ENDS = [
    (Outcome(0, "", "warning: odd", 1), []),
    (Outcome(2, "", "warning: odd\nerror: no such", 1), []),
    (Outcome(1, "", "Traceback (most recent call last):", 1), ["a traceback", "0 error lines"]),
    (Outcome(2, "", "error: this\nerror: that", 1), ["2 error lines"]),
    (Outcome(0, "", "error: this", 1), ["1 error lines"]),
    (Outcome(-11, "", "", 1), ["exit code -11, not 0 or 1 or 2"]),
    (Outcome(-9, "", "", 60, timed_out=True), ["it did not end within 60 s"]),
]


@pytest.mark.parametrize(("outcome", "problems"), ENDS)
def test_what_is_not_as_it_should_be(outcome, problems):
    assert outcome.problems((0, 1, 2)) == problems


def test_runs_that_differ(tmp_path):
    a, b = ({"model": {"w": torch.ones(2)}, "optimizer": [torch.zeros(1), 0.1]} for _ in range(2))
    assert same(a, b)
    b["model"]["w"][1] += 1e-7
    assert not same(a, b)
    for name, content in (("a", a), ("b", b)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"epoch": 1, "seconds": {ord(name)}}}\n')
        summary = '{"status": "finished", "last": {}, "best": {}}'
        (tmp_path / name / "run.json").write_text(summary)
        torch.save(content, tmp_path / name / "x_last.pth")
    assert differences(tmp_path / "a", tmp_path / "b") == ["x_last.pth: model differs"]
    (tmp_path / "b" / "x_last.pth").write_bytes(b"half")
    assert differences(tmp_path / "a", tmp_path / "b") == ["x_last.pth is broken"]
    (tmp_path / "b" / "x_last.pth").unlink()
    assert differences(tmp_path / "a", tmp_path / "b") == ["other checkpoints"]


def test_a_case_is_the_same_one_again(tmp_path):
    draws = [Case("kills", 7, 3, None, tmp_path).chance.random() for _ in range(2)]
    assert draws[0] == draws[1] != Case("kills", 8, 3, None, tmp_path).chance.random()
