"""scripts/compare.py: which runs are found, which share a row, and what the table says of them."""

import csv
import io
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from cli.job import make_job
from cli.objective import describe_objective
from cli.parse import parse_student
from helper.errors import UserError
from runs import collect
from runs.results import read_result
from scripts import compare
from tests.conftest import only

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = ROOT / "scripts" / "compare.py"
TEACHER = {"model": "resnet32x4", "sha256": "a" * 64}


def summary_of(last, best, trial=1, objective="0.9*KD(T=4)", model="resnet8", **others):
    """What run.json of both releases has; `others` are more options."""
    return {
        "status": "finished",
        "model": model,
        "data": "fake",
        "objective": objective,
        "parameters": 78042,
        "seconds": 10.0 + trial,
        "last": {"epoch": 20, "test_acc": last},
        "best": {"epoch": 19, "test_acc": best},
        "seed": trial,
        "options": {"trial": trial, "seed": None, "epochs": 20, **others},
    }


def write(folder, summary):
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps(summary))
    return str(folder)


def old(folder, last, best, trial=1, **others):
    """A finished run of the first release."""
    return write(folder, summary_of(last, best, trial, **others))


def new(folder, last, best, trial=1, images="f" * 64, teacher=TEACHER, **others):
    """A finished student of this release; `images` is the fingerprint of its data."""
    summary = summary_of(last, best, trial, **others)
    in_force = {"distill": "kd", "model_s": summary["model"], **summary["options"], "seed": trial}
    del in_force["trial"]
    experiment = {
        "kind": "student",
        "options": in_force,
        "data": images,
        "source": teacher["sha256"],
        "code": {"augmentation": "1"},
        "title": "S_resnet8",
        "unusual": [],
        "trial": trial,
    }
    return write(folder, {**summary, "schema": 2, "experiment": experiment, "teacher": teacher})


def change(folder, **facts):
    path = Path(folder) / "run.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **facts}))


@pytest.fixture
def table(capsys):
    """Run the script -> its rows as dicts, from the CSV; the notes beside it are in `.notes`."""

    def table(*words):
        capsys.readouterr()  # of the runs before
        compare.compare([*map(str, words), "--format", "csv"])
        out, table.notes = capsys.readouterr()
        return list(csv.DictReader(io.StringIO(out)))

    return table


def column(rows, name):
    return [row[name] for row in rows]


# ---- rows


@pytest.mark.parametrize("make", [old, new])
def test_runs_that_differ_in_their_seed_share_a_row(make, tmp_path, capsys):
    one = make(tmp_path / "a", 90.0, 91.0, trial=1)
    other = make(tmp_path / "b", 80.0, 80.0, objective="0.5*KD(T=4)", alpha=0.5)
    two = make(tmp_path / "c", 92.0, 93.5, trial=2)
    compare.compare([one, other, two])
    head, _, first, second = capsys.readouterr().out.splitlines()[:4]
    assert head.split()[:2] == ["network", "data"]
    assert " ".join(first.split()).endswith(
        "fake " + ("resnet32x4 " if make is new else "") + "0.9*KD(T=4) 78,042 20 2 "
        "91.00 +- 1.41 92.25 +- 1.77 12 +- 1"
    )
    assert second.split()[-6:] == ["78,042", "20", "1", "80.00", "80.00", "11"]


def test_releases_are_never_in_one_row(tmp_path, table):
    old(tmp_path / "a", 90.0, 91.0, trial=1, distill="kd")
    new(tmp_path / "b", 92.0, 93.0, trial=2)
    assert column(table(tmp_path), "runs") == ["1", "1"]


def test_processes_of_the_first_release_make_another_row(tmp_path, table):
    for trial, name in enumerate("abc", start=1):
        old(tmp_path / name, 90.0, 91.0, trial=trial, sync_bn=name == "c")
    change(tmp_path / "b", processes=2)
    change(tmp_path / "c", processes=2)  # with synchronised BatchNorm they change nothing
    rows = table(tmp_path)
    assert column(rows, "runs") == ["2", "1"]
    assert column(rows, "processes") == ["1", "2"]


def test_a_folder_given_in_several_ways_is_one_run(tmp_path, table, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new(tmp_path / "save/models/a", 90.0, 91.0)
    (tmp_path / "link").symlink_to("save/models/a")
    (tmp_path / "save/again").symlink_to(tmp_path / "save")  # in a circle
    (row,) = table("save/models/a", "save/models/a/", "link", tmp_path / "save", "save")
    assert row["runs"] == "1"
    assert table.notes == ""
    assert table() == [row], "without an argument, the runs in save/"


def test_a_place_given_twice_is_named_once(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    new(tmp_path / "a", 90.0, 91.0)
    compare.compare(["a", "a", "a/"])
    below = capsys.readouterr().out.partition("Checkpoints and logs are in\n")[2]
    assert below.splitlines() == ["  a", "TensorBoard: .venv/bin/tensorboard --logdir a"]


def test_runs_in_hidden_folders_are_said_to_be_left_out(tmp_path, capsys):
    new(tmp_path / ".hidden" / "a", 90.0, 91.0)
    with pytest.raises(UserError, match="no run.json in it or below; hidden folders were left out"):
        compare.compare([str(tmp_path)])
    compare.compare([str(tmp_path / ".hidden")])
    assert "90.00" in capsys.readouterr().out


def test_links_in_a_circle_are_followed_once(tmp_path):
    new(tmp_path / "runs/a", 90.0, 91.0)
    (tmp_path / "runs/again").symlink_to(tmp_path)
    notes = []
    assert list(collect.search(tmp_path, notes)) == [tmp_path / "runs/a"]
    assert notes == []


def test_a_copy_of_a_run_counts_once_and_is_named(tmp_path, table):
    one = new(tmp_path / "a", 90.0, 91.0)
    shutil.copytree(one, tmp_path / "b")
    new(tmp_path / "c", 92.0, 93.0)  # the same again, with other rounding
    rows = table(tmp_path)
    assert column(rows, "runs") == ["1"]
    assert column(rows, "last_mean") == ["90.0"]
    assert table.notes.splitlines() == [
        f"counted once: {tmp_path}/b (same experiment as {one})",
        f"counted once: {tmp_path}/c (same experiment as {one}, "
        "last 90.00 % there and 92.00 % here)",
    ]


def test_a_finished_copy_counts_where_the_first_is_unfinished(tmp_path, table):
    one = new(tmp_path / "a", 90.0, 91.0)
    shutil.copytree(one, tmp_path / "b")
    change(one, status="running")
    assert column(table(tmp_path), "runs") == ["1"]
    assert table.notes.startswith(f"unfinished: {one} ")


def test_the_search_stops_at_a_run_and_leaves_out_hidden_folders(tmp_path, table):
    new(tmp_path / "a", 90.0, 91.0)
    new(tmp_path / "a/copies/b", 10.0, 10.0, trial=2)
    new(tmp_path / ".trash/c", 10.0, 10.0, trial=3)
    assert column(table(tmp_path), "last_mean") == ["90.0"]
    assert len(table(tmp_path, tmp_path / "a/copies")) == 1
    assert column(table(tmp_path, tmp_path / "a/copies"), "runs") == ["2"]


# ---- columns


def test_only_options_that_differ_have_a_column(tmp_path, table):
    crd = {"distill": "crd", "objective": "1*CE + 0.8*crd", "feat_dim": 128}
    new(tmp_path / "a", 70.0, 71.0, nce_k=4096, **crd)
    new(tmp_path / "b", 71.0, 72.0, nce_k=16384, **crd)
    new(tmp_path / "c", 72.0, 73.0, trial=2, kd_T=4.0)
    rows = table(tmp_path)
    assert column(rows, "nce_k") == ["4096", "16384", ""]
    assert not {"distill", "kd_T", "feat_dim", "seed", "trial"} & rows[0].keys()
    assert "nce_k" not in table(tmp_path / "a", tmp_path / "c")[0]


def test_what_the_objective_says_has_no_column_of_its_own(tmp_path, table):
    new(tmp_path / "a", 70.0, 71.0, objective="0.9*KD(T=4)", alpha=0.9, kd_T=4.0)
    new(tmp_path / "b", 70.0, 71.0, objective="0.5*KD(T=8)", alpha=0.5, kd_T=8.0)
    assert not {"alpha", "kd_T"} & table(tmp_path)[0].keys()
    # but DKD has a temperature too, of which the objective does not speak
    new(tmp_path / "c", 70.0, 71.0, objective="1*CE + 2*dkd", distill="dkd", beta=2.0, kd_T=2.0)
    assert column(table(tmp_path), "kd_T") == ["4", "8", "2"]


def test_weights_that_the_objective_rounds_away_have_a_column(tmp_path, table):
    new(tmp_path / "a", 70.0, 71.0, alpha=0.12345678, objective="0.123457*KD(T=4)")
    new(tmp_path / "b", 70.0, 71.0, alpha=0.12345679, objective="0.123457*KD(T=4)")
    assert column(table(tmp_path), "alpha") == ["0.12345678", "0.12345679"]


def test_a_method_without_weight_is_told_from_kd(tmp_path, table):
    """AB trains a first stage, and its objective may be KD alone."""
    new(tmp_path / "a", 70.0, 71.0, distill="abound")
    new(tmp_path / "b", 70.0, 71.0, distill="kd")
    assert column(table(tmp_path), "distill") == ["abound", "kd"]


def test_decays_in_proportion_to_the_epochs_have_no_column(tmp_path, table):
    new(tmp_path / "a", 70.0, 71.0, epochs=240, lr_decay_epochs=[150, 180, 210])
    new(tmp_path / "b", 71.0, 72.0, epochs=20, lr_decay_epochs=[13, 15, 18])
    new(tmp_path / "60", 71.0, 72.0, epochs=60, lr_decay_epochs=[38, 45, 53])
    new(tmp_path / "15", 71.0, 72.0, epochs=15, lr_decay_epochs=[9, 11, 13])
    new(tmp_path / "1", 71.0, 72.0, epochs=1, lr_decay_epochs=[])
    rows = table(tmp_path)
    assert column(rows, "epochs") == ["1", "15", "60", "240", "20"]
    assert "lr_decay_epochs" not in rows[0]
    new(tmp_path / "c", 71.0, 72.0, epochs=20, lr_decay_epochs=[10])
    expected = ["none", "9,11,13", "38,45,53", "150,180,210", "13,15,18", "10"]
    assert column(table(tmp_path), "lr_decay_epochs") == expected


def test_values_read_as_they_are_typed(tmp_path, table):
    new(tmp_path / "a", 70.0, 71.0, aug=True, learning_rate=None, weight_decay=5e-4, levels=[])
    new(tmp_path / "b", 70.0, 71.0, aug=False, learning_rate=0.05, weight_decay=1e-3, levels=[1, 2])
    rows = table(tmp_path)
    assert column(rows, "aug") == ["on", "off"]
    assert column(rows, "learning_rate") == ["default", "0.05"]
    assert column(rows, "weight_decay") == ["0.0005", "0.001"]
    assert column(rows, "levels") == ["none", "1,2"]


def job_run(folder, last, flags):
    """A finished student whose run.json has the experiment of its command line."""
    words = flags.split()
    own = {"distill": words[0], "model_s": "resnet8", "dataset": "fake"}
    job = make_job("", "student", own, words[1:])
    objective = describe_objective(parse_student(job.argv))
    path = write(folder, summary_of(last, last, objective=objective))
    change(path, schema=2, experiment=job.experiment.to_dict(), teacher=TEACHER)
    return path


@pytest.mark.parametrize(
    ("one", "other", "option", "expected"),
    [
        ("crd", "crd --crd_memory queue", "crd_memory", ["momentum", "queue"]),
        ("kd -r 1 -a 32", "kd --divergence ab", "divergence", ["kl", "ab"]),
        ("kd", "kd --val_fraction 0.2", "val_fraction", ["0", "0.2"]),
        ("kd", "kd --mean_t 0.5,0.5,0.5 --std_t 1,1,1", "mean_t", ["none", "0.5,0.5,0.5"]),
        ("kd --sdd 1", "kd --sdd 1 --sdd_from 4x4", "sdd_from", ["map", "4x4"]),
    ],
)
def test_an_option_that_came_later_has_its_default_in_older_runs(
    one, other, option, expected, tmp_path, table
):
    job_run(tmp_path / "a", 70.0, one)
    job_run(tmp_path / "b", 71.0, other)
    rows = table(tmp_path)
    assert column(rows, option) == expected
    assert "experiment" not in rows[0]


def test_an_option_of_what_has_no_weight_has_no_column(tmp_path, table):
    job_run(tmp_path / "a", 70.0, "crd")
    job_run(tmp_path / "b", 71.0, "kd --divergence ab")
    assert not {"divergence", "crd_memory"} & table(tmp_path)[0].keys()


def test_teachers_have_a_column_where_there_are_any(tmp_path, table):
    new(tmp_path / "a", 70.0, 71.0)
    old(tmp_path / "b", 60.0, 61.0, objective="CE")
    assert column(table(tmp_path), "teacher") == ["resnet32x4", ""]
    assert "teacher" not in table(tmp_path / "b")[0]
    new(tmp_path / "c", 72.0, 73.0, teacher={"model": "resnet32x4", "sha256": "b" * 64})
    expected = ["resnet32x4-aaaaaaaa", "", "resnet32x4-bbbbbbbb"]
    assert column(table(tmp_path), "teacher") == expected, "two checkpoints of one network"


def test_rows_that_look_alike_are_told_apart(tmp_path, table, capsys):
    a = new(tmp_path / "a", 70.0, 71.0, images="1" * 64)
    b = new(tmp_path / "b", 71.0, 72.0, images="2" * 64)
    new(tmp_path / "c", 72.0, 73.0, objective="CE")
    expected = [read_result(a).row[:8], read_result(b).row[:8], ""]
    assert column(table(tmp_path), "experiment") == expected
    compare.compare([str(tmp_path)])
    assert "differ in what no column shows" in capsys.readouterr().out
    compare.compare([a])
    assert "experiment" not in capsys.readouterr().out


def published_run(folder, last, flags, trial=1):
    """A finished student of resnet8x4 that was trained as `flags` say."""
    own = {"distill": flags.split()[0], "model_t": "resnet32x4", "model_s": "resnet8x4"}
    job = make_job("", "student", {**own, "trial": trial}, flags.split()[1:])
    path = write(folder, summary_of(last, last, trial, model="resnet8x4", objective=flags))
    change(path, schema=2, experiment=job.experiment.to_dict(), teacher=TEACHER, data="cifar100")
    return path


def test_what_was_published_stands_beside_it(tmp_path, capsys, table):
    published_run(tmp_path / "a", 73.0, "kd", trial=1)
    published_run(tmp_path / "b", 74.0, "kd", trial=2)
    published_run(tmp_path / "c", 76.0, "crd -a 1")
    shorter = published_run(tmp_path / "d", 70.0, "kd --epochs 200")
    rows = table(tmp_path)
    assert column(rows, "published") == ["73.33", "75.46", ""]
    assert [float(gap) for gap in column(rows, "gap")[:2]] == pytest.approx([0.17, 0.54])
    assert rows[2]["gap"] == ""
    assert "published" not in table(shorter)[0]
    compare.compare([str(tmp_path)])
    head, _, first, *below = capsys.readouterr().out.splitlines()
    assert "last %  published %    gap" in head
    assert "73.50 +- 0.71        73.33  +0.17" in first
    assert [line for line in below if line.startswith("published: ")] == [
        "published: RepDistiller tables (240 epochs, crop and flip; last or best epoch not said)",
        "published: CRD, ICLR 2020 (240 epochs, crop and flip; last or best epoch not said)",
    ]


# ---- order


def test_orders(tmp_path, table):
    new(tmp_path / "1", 70.0, 99.0, model="vgg13")
    new(tmp_path / "2", 80.0, 85.0, model="resnet56")
    new(tmp_path / "3", 75.0, 90.0, model="vgg8")
    given = [tmp_path / "2", tmp_path / "1", tmp_path / "3"]
    orders = {
        "given": ["resnet56", "vgg13", "vgg8"],
        "last": ["resnet56", "vgg8", "vgg13"],
        "best": ["vgg13", "vgg8", "resnet56"],
        "name": ["resnet56", "vgg8", "vgg13"],
    }
    for by, expected in orders.items():
        assert column(table(*given, "--sort", by), "network") == expected, by
    assert column(table(*given), "network") == orders["given"]
    mixed = table(given[0], "--sort", "last", given[2])
    assert column(mixed, "network") == ["resnet56", "vgg8"], "flags may stand between folders"


# ---- what is left out


def test_what_cannot_be_shown_is_listed_below(tmp_path, capsys):
    good = new(tmp_path / "good", 90.0, 91.0)
    begun, fresh = (new(tmp_path / name, 10.0, 10.0, 2) for name in ("begun", "fresh"))
    for folder in (begun, fresh):
        change(folder, status="running", last={}, best={})
    lines = [{"epoch": epoch, "test_acc": 50.0 - epoch} for epoch in (1, 2, 3)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    Path(begun, "metrics.jsonl").write_text(text + '{"epoch": 4, "te')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text('{"status": ')
    foreign = write(tmp_path / "foreign", {"scripts": {"test": "jest"}})
    hollow = new(tmp_path / "hollow", 10.0, 10.0, 3)
    change(hollow, last={})
    wrong = new(tmp_path / "wrong", float("nan"), 10.0, 4)
    (tmp_path / "empty").mkdir()
    arguments = [good, begun, fresh, f"{tmp_path}/broken", foreign, hollow, wrong]
    compare.compare([*arguments, f"{tmp_path}/empty", f"{tmp_path}/nowhere"])
    out = capsys.readouterr().out
    below = out[out.index("Accuracy: ") :].splitlines()[1:]
    notes = below[: below.index("Checkpoints and logs are in")]
    expected = {
        f"unfinished: {begun} (epoch 3 of 20)": "",
        f"unfinished: {fresh} (epoch 0 of 20)": "",
        f"not read: {tmp_path}/broken (": "it is no JSON",
        f"not read: {foreign} (": "is no summary of a run",
        f"not read: {hollow} (": "KeyError('epoch')",
        f"not read: {wrong} (": "last is such a dict",
        f"not read: {tmp_path}/empty (no run.json in it or below; ": "",
        f"not read: {tmp_path}/nowhere (No such file or directory)": "",
    }
    assert len(notes) == len(expected)
    for start, part in expected.items():
        assert any(note.startswith(start) and part in note for note in notes), start


def test_progress_of_an_unfinished_run(tmp_path):
    folder = new(tmp_path / "a", 10.0, 10.0)
    change(folder, status="running", last={}, best={})
    lines = [{"epoch": epoch, "test_acc": 50.0 - epoch} for epoch in (1, 2, 3)]
    Path(folder, "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    result = read_result(folder)
    assert (result.last, result.best) == (lines[2], lines[0])


def test_without_a_finished_run_there_is_one_line_and_exit_code_2(tmp_path):
    for trial, name in enumerate("ab", start=1):
        change(new(tmp_path / name, 10.0, 10.0, trial), status="running")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: no finished run in {tmp_path}: unfinished: {tmp_path}/a (epoch 0 of 20), "
        "and 1 more\n"
    )
    change(tmp_path / "b", status="finished")
    done = subprocess.run([sys.executable, SCRIPT, tmp_path], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_words(tmp_path):
    folder = new(tmp_path / "a", 90.0, 91.0)
    with pytest.raises(UserError, match="--srt: did you mean --sort"):
        compare.compare([folder, "--srt", "last"])
    with pytest.raises(UserError, match="invalid choice: 'loss'"):
        compare.compare([folder, "--sort", "loss"])
    with pytest.raises(UserError, match="is a folder: give the name of a file"):
        compare.compare([folder, "--out", str(tmp_path)])
    with pytest.raises(UserError, match="cannot write to .*: give another --out"):
        compare.compare([folder, "--out", f"{folder}/run.json/table.txt"])


def test_help(capsys):
    with pytest.raises(SystemExit) as stop:
        compare.compare(["nowhere", "--help"])
    assert not stop.value.code
    out = capsys.readouterr().out
    assert "--sort {last,best,name,given}" in out
    assert "RUN_FOLDER_OR_PARENT" in out


# ---- formats


def test_text_ends_with_where_things_are(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one, two = "save/models/a", "save/student_model/b"
    new(tmp_path / one, 90.0, 91.0)
    new(tmp_path / two, 92.0, 93.0, trial=2)
    compare.compare([one, two])
    table, below = capsys.readouterr().out.split("\n\n")
    assert len(table.splitlines()) == 3
    assert below.splitlines() == [
        "Accuracy: epochs are in the table; last is the headline; best is the best epoch on the "
        "test set.",
        "Checkpoints and logs are in",
        f"  {one}",
        f"  {two}",
        "TensorBoard: .venv/bin/tensorboard --logdir save",
    ]


def test_markdown_shows_a_table_and_escapes_what_it_would_take_for_its_own(tmp_path, capsys):
    new(tmp_path / "a", 90.0, 91.0, objective="0.1*CE + 9*KD | x")
    new(tmp_path / "b", 92.0, 93.0, trial=2, objective="0.1*CE + 9*KD | x")
    compare.compare([str(tmp_path), "--format", "markdown"])
    head, rule, row, empty, below = capsys.readouterr().out.splitlines()
    assert head.startswith("| network | data | teacher | trained on | parameters | epochs | runs |")
    assert rule.startswith("| --- | --- | --- | --- | ---: |")
    assert row == (
        r"| resnet8 | fake | resnet32x4 | 0.1\*CE + 9\*KD \| x | 78,042 | 20 | 2 "
        "| 91.00 +- 1.41 | 92.00 +- 1.41 | 12 +- 1 |"
    )
    assert head.count("|") == rule.count("|") == row.count("|") - 1
    assert empty == ""
    assert "last is the headline" in below


def test_csv_has_plain_numbers(tmp_path, table):
    new(tmp_path / "a", 90.25, 91.5)
    new(tmp_path / "b", 92.125, 93.0, trial=2)
    new(tmp_path / "c", 80.0, 80.0, objective='1*"CE", and more', alpha=0.0)
    first, second = table(tmp_path)
    assert (first["parameters"], first["epochs"], first["runs"]) == ("78042", "20", "2")
    assert float(first["last_mean"]) == 91.1875
    assert float(first["last_std"]) == statistics.stdev([90.25, 92.125])
    assert float(first["best_mean"]) == 92.25
    assert float(first["seconds_mean"]) == 11.5
    assert (second["last_mean"], second["last_std"]) == ("80.0", "")
    assert second["trained_on"] == '1*"CE", and more'


@pytest.mark.parametrize("form", ["text", "markdown", "csv"])
def test_a_file_gets_what_would_be_printed(form, tmp_path, capsys):
    words = [new(tmp_path / "a", 90.0, 91.0), "--format", form]
    compare.compare(words)
    printed = capsys.readouterr().out
    out = tmp_path / "tables" / "table"
    compare.compare([*words, "--out", str(out)])
    assert out.read_text() == printed
    assert capsys.readouterr().out == f"{out}: 1 rows, 1 runs\n"


# ---- the real thing


def test_real_runs(run, tmp_path, table):
    data = "--dataset fake --fake_size 24 --image_size 8 --fake_classes 4 --batch_size 8"
    for trial in (1, 2):
        run(f"train_teacher --model resnet8 {data} --epochs 1 --trial {trial} --num_workers 0")
    run(f"train_teacher --model resnet8 {data} --epochs 1 --train_fraction 0.5")
    teacher = only(tmp_path / "save/models", "resnet8_fake_epochs*trial_1") / "resnet8_last.pth"
    student = f"train_student --path_t {teacher} --model_s resnet8 {data} --epochs 1"
    run(f"{student} --distill kd -a 0.9 --kd_T 2")
    alone, half, distilled = table("--sort", "given")
    assert column([alone, half, distilled], "runs") == ["2", "1", "1"]
    assert column([alone, half, distilled], "train_fraction") == ["1", "0.5", "1"]
    assert "KD(T=2)" in distilled["trained_on"]
    assert distilled["teacher"] == "resnet8"
    told = {"network", "data", "teacher", "trained_on", "train_fraction", "parameters", "epochs",
            "runs"}  # fmt: skip
    numbers = {f"{name}_{of}" for name in ("last", "best", "seconds") for of in ("mean", "std")}
    assert alone.keys() == told | numbers
    paths = (tmp_path / "save/models").glob("resnet8_fake_epochs*/run.json")
    ours = [json.loads(path.read_text())["last"]["test_acc"] for path in paths]
    assert len(ours) == 2
    assert float(alone["last_mean"]) == statistics.mean(ours)
    assert table.notes == ""
