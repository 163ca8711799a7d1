"""tools/plan.py: what a plan needs, its commands, its sbatch script."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from helper.errors import UserError
from tools import plan

ROOT = Path(__file__).resolve().parent.parent.parent
PLAN = """\
dataset: fake
pairs: [resnet14 resnet8]
methods: {KD: kd}
trials: 2
flags: --epochs 1
"""


@pytest.fixture(autouse=True)
def _plan(tmp_path, monkeypatch):
    (tmp_path / "a.yaml").write_text(PLAN)
    monkeypatch.chdir(tmp_path)


def test_counts(capsys):
    plan.plan(["a.yaml"])
    said = "a.yaml: 5 runs, 3 of networks alone, 2 of a teacher; 0 are finished\n"
    assert capsys.readouterr().out == said


def test_methods_without_a_teacher_count_apart_and_train_none(capsys, tmp_path):
    (tmp_path / "b.yaml").write_text(PLAN.replace("kd}", "kd, Tf: tfkd}"))
    plan.plan(["b.yaml"])
    assert ": 7 runs, 3 of networks alone, 2 of a teacher, 2 by methods without a teacher; " in (
        capsys.readouterr().out
    )
    (tmp_path / "c.yaml").write_text(PLAN.replace("KD: kd}", "Tf: tfkd}"))
    plan.plan(["c.yaml", "--dry_run"])
    assert "--model resnet14" not in capsys.readouterr().out


def test_commands_are_those_a_user_types(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    plan.plan(["plans/digits.yaml", "--dry_run", "--flags", "--save_dir 'a b'"])
    first, *others = capsys.readouterr().out.splitlines()
    assert first == (
        "python train_teacher.py --model wrn_16_2 --dataset digits --trial 1 --image_size 16 "
        "--save_dir save/digits --save_dir 'a b' --epochs 20"
    )
    teacher = "'a b/models/wrn_16_2_digits_epochs_20_image_size_16_trial_1/wrn_16_2_last.pth'"
    assert sum(f"--path_t {teacher} " in line for line in others) == 12


def test_from_elsewhere_the_scripts_are_named_where_they_are(capsys):
    plan.plan(["a.yaml", "--dry_run"])
    script = capsys.readouterr().out.split()[1]
    assert Path(script).resolve() == ROOT / "train_teacher.py"


def sh(script, **variables):
    done = subprocess.run(
        ["sh", script, "--gpus", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, **variables},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_array_submits_its_stages_and_runs_one_command_a_task(tmp_path):
    plan.plan(["a.yaml", "--array", "a.sh"])
    sbatch = tmp_path / "bin" / "sbatch"
    sbatch.parent.mkdir()
    sbatch.write_text('#!/bin/sh\necho "$@" >> submitted; echo 7$(wc -l < submitted)\n')
    sbatch.chmod(0o755)
    sh("a.sh", PATH=f"{sbatch.parent}:{os.environ['PATH']}", SLURM_ARRAY_TASK_ID="")
    assert (tmp_path / "submitted").read_text().splitlines() == [
        "--parsable --array=0-2 --gpus 1 a.sh",
        "--parsable --array=3-4 --dependency=afterany:71 --gpus 1 a.sh",
    ]
    tasks = [sh("a.sh", PYTHON="echo", SLURM_ARRAY_TASK_ID=str(n)) for n in range(5)]
    assert all(len(task) == 1 and task[0].endswith(" --resume") for task in tasks)
    assert "train_student.py --distill kd" in tasks[4][0]
    assert "--trial 2" in tasks[4][0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("", "required: PLAN"),
        ("a.yaml --dryrun", "unknown argument --dryrun: did you mean --dry_run"),
        ("a.yaml --array .", "--array . is a folder"),
        ("b.yaml", "no plan b.yaml"),
    ],
)
def test_bad_words(line, words):
    with pytest.raises(UserError, match=words):
        plan.plan(line.split())


def test_one_line_and_exit_code_2():
    done = subprocess.run(
        [sys.executable, ROOT / "tools/plan.py", "a.yaml", "--flags", "--epochs x"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: a.yaml: resnet14: argument --epochs: 'x' is " \
        "no whole number\n"  # fmt: skip


def test_help(capsys):
    plan.plan(["--help"])
    assert "--dry_run" in capsys.readouterr().out
