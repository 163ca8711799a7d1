"""Which value of a flag is best on held-out images."""

import json
from pathlib import Path

import pytest

from helper.errors import UserError
from sweeps.search import Search
from sweeps.table import Status, Sweep

PLAN = """\
dataset: fake
pairs: [resnet14 resnet8, resnet20 resnet8]
methods: {KD: kd, PKT: pkt, RKD+KD: rkd -a 1}
trials: 2
transfer: [digits]
flags: --epochs 1
"""


@pytest.fixture
def plan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("a.yaml")
    path.write_text(PLAN)
    return path


def test_the_runs_of_a_search(plan):
    search = Search.read("-b 0.1,3")
    jobs = search.jobs("a.yaml", "")
    teachers, students = jobs[:2], jobs[2:]
    assert [job.model for job in teachers] == ["resnet14", "resnet20"]
    assert {job.kind for job in students} == {"student"}
    labels = [f"{name} -b {value}" for name in ("PKT", "RKD+KD") for value in ("0.1", "3")]
    assert list(dict.fromkeys(job.label for job in students)) == labels
    assert len(students) == 4 * 2 * 2
    assert all("--val_fraction 0.1" in job.command() for job in students)
    assert not any("--val_fraction" in job.command() for job in teachers)
    assert students[0].command().endswith("-b 0.1")


def test_the_plan_says_what_is_held_out(plan):
    plan.write_text(PLAN + "student_flags: --val-fraction 0.3\n")
    jobs = Search.read("-b 0.1,3").jobs("a.yaml", "")
    assert {dict(job.experiment.options).get("val_fraction") for job in jobs} == {None, 0.3}


def test_a_flag_that_no_method_takes(plan):
    with pytest.raises(UserError, match=r"no method of the plan takes --nce_k: .*a flag of --dis"):
        Search.read("--nce_k 4,8").jobs("a.yaml", "")


def test_the_best_value_is_that_of_the_mean_over_pairs(plan, monkeypatch):
    search = Search.read("-b 0.1,3")
    table = Sweep(search.jobs("a.yaml", ""), retries=0)
    accuracy = {("resnet14", "0.1"): 60.0, ("resnet14", "3"): 65.0, ("resnet20", "0.1"): 70.0,
                ("resnet20", "3"): 64.0}  # fmt: skip
    for number, task in enumerate(table.tasks.values()):
        task.status = Status.FINISHED
        words = task.job.argv
        if task.job.kind == "student":
            teacher, value = words[words.index("--model_t") + 1], words[-1]
            write(Path(f"{number}"), accuracy[teacher, value] + task.job.experiment.trial)
    folders = {task.job: Path(str(n)) for n, task in enumerate(table.tasks.values())}
    monkeypatch.setattr(type(task.job), "finished", lambda job: folders[job])
    said = search.result(table)
    assert "PKT: -b 0.1 (66.50 % held-out)\nRKD+KD: -b 0.1 (66.50 % held-out)" in said
    assert "resnet14 resnet8" in said
    assert "61.50 +- 0.71" in said


def test_values_are_compared_on_what_all_of_them_have(plan):
    search = Search("-b", ("1", "3"), {"M -b 1": ("M", "1"), "M -b 3": ("M", "3")})
    found = {"M -b 1": {"easy": [90.0, 91.0], "hard": [60.0]}, "M -b 3": {"easy": [85.0, 84.0]}}
    assert list(search.best(found)) == ["M: -b 1 (90.50 % held-out so far)"]
    found["M -b 3"] = {"hard": [61.0, 62.0]}
    (line,) = search.best(found)
    assert line == "M: no pair is finished for every value, so none is the best"


def write(folder, accuracy):
    """What a table needs of a finished run, of which the test set says nothing."""
    folder.mkdir()
    epoch = {"epoch": 1, "val_acc": accuracy, "test_acc": 1.0}
    summary = {
        "status": "finished", "model": "resnet8", "data": "fake", "objective": "CE", "seed": 1,
        "parameters": 1, "seconds": 1.0, "last": epoch, "best": epoch,
        "options": {"epochs": 1, "trial": 1},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(summary))


def test_nothing_is_finished(plan):
    search = Search.read("-b 0.1,3")
    assert search.result(Sweep(search.jobs("a.yaml", ""), 0)) == "no run of the search is finished"
