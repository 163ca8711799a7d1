"""Sweeps of real trainings: runs, workers and a node are killed, a run fails, one begins again."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray")
pytest.importorskip("rich")
pytestmark = pytest.mark.whole

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = """\
dataset: digits
pairs: [resnet14 resnet8]
methods:
  KD: kd
  KD8: kd --kd_T 8
  DKD: dkd --warmup 1
  killed twice: killed --methods_dir methods
  worker killed: orphaned --methods_dir methods
  wrong: wrong --methods_dir methods
flags: --image_size 8 --train_fraction 0.1 --epochs 3
"""
SMALL = """\
dataset: digits
pairs: [resnet14 resnet8]
methods: {KD: kd}
trials: 2
flags: --image_size 8 --train_fraction 0.1
teacher_flags: --epochs 1
student_flags: --epochs 60
"""
METHODS = """\
import os
import signal
from pathlib import Path

from distiller_zoo import METHODS
from distiller_zoo.base import Distiller, Recipe
from helper.errors import UserError


class Dying(Distiller):
    recipe, reads = Recipe(1.0, 0.0, 1.0), frozenset({"logits"})
    deaths = 1

    def begin(self, epoch, epochs):
        marks = [Path(f"{type(self).__name__}.{n}") for n in range(self.deaths)]
        left = [mark for mark in marks if not mark.exists()]
        if left and epoch == 2:
            left[0].touch()
            self.die()

    def forward(self, student, teacher, batch):
        return (student.logits - teacher.logits).square().mean()


@METHODS.register("killed")
class Killed(Dying):
    deaths = 2

    def die(self):
        os.kill(os.getpid(), signal.SIGKILL)


@METHODS.register("orphaned")
class Orphaned(Dying):
    def die(self):
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()


@METHODS.register("wrong")
class Wrong(Dying):
    def begin(self, epoch, epochs):
        raise UserError("nothing can be done")
"""


def sweep(folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, ROOT / "tools" / "sweep.py", "a.yaml", "--retries", "2"],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": ""},
    )


def test_what_is_killed_goes_on_and_nothing_is_trained_twice(tmp_path):
    (tmp_path / "a.yaml").write_text(PLAN)
    (tmp_path / "methods").mkdir()
    (tmp_path / "methods" / "dying.py").write_text(METHODS)
    done = sweep(tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "7 of 8 runs finished, 1 failed" in done.stdout
    assert "\n1 of 8 runs failed:\n  wrong resnet14 -> resnet8, trial 1: error: nothing can be" in (
        "\n" + done.stderr
    )
    assert len(list(tmp_path.glob("save/*/*/*_last.pth"))) == 7
    logs = {log: log.read_text() for log in (tmp_path / "save" / ".sweep" / "logs").iterdir()}
    starts = sorted(text.count("---- ") for text in logs.values())
    assert starts == [1, 1, 1, 1, 1, 1, 2, 3]
    for text in logs.values():
        if text.count("---- ") > 1:
            assert text.count("resumed after epoch 1 of the main stage") == text.count("---- ") - 1
    assert list((tmp_path / "save" / "bank").glob("*/logits.rows"))

    again = sweep(tmp_path)
    assert again.returncode == 1, again.stdout + again.stderr
    assert "7 of 8 runs finished, 1 failed" in again.stdout
    changed = [log.name for log, text in logs.items() if log.read_text() != text]
    assert len(changed) == 1
    assert "wrong" in changed[0]


def test_runs_of_a_lost_node_go_on_at_another(tmp_path):
    (tmp_path / "a.yaml").write_text(SMALL)
    from ray.cluster_utils import Cluster  # imported where Ray is

    here = {"num_cpus": 1, "object_store_memory": 80 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={**here, "include_dashboard": False})
    try:
        other = cluster.add_node(**here)
        words = [
            sys.executable,
            ROOT / "tools" / "sweep.py",
            "a.yaml",
            "--address",
            cluster.address,
        ]
        with open(tmp_path / "out", "w") as out:
            process = subprocess.Popen(words, cwd=tmp_path, stdout=out)
        # Both nodes are busy with students, alone or not, of which there are four.
        while len(begun(tmp_path)) < 3 and process.poll() is None:
            time.sleep(0.1)
        cluster.remove_node(other, allow_graceful=False)
        assert process.wait(300) == 0
    finally:
        cluster.shutdown()
    said = (tmp_path / "out").read_text()
    assert "its worker was lost" in said
    assert "all 5 runs are finished" in said
    logs = [log.read_text() for log in (tmp_path / "save" / ".sweep" / "logs").iterdir()]
    assert sorted(text.count("---- ") for text in logs) == [1, 1, 1, 1, 2]


def begun(folder: Path) -> list[Path]:
    """Runs that have an epoch behind them."""
    return [path for path in folder.glob("save/*/*/metrics.jsonl") if path.stat().st_size]
