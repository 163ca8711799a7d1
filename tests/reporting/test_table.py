"""reporting/table.py and export.py: what shares a cell, what rows are called, what files say."""

import csv
import hashlib
import io
import json
import shutil
import subprocess

import pytest

from cli.published import Published
from helper.errors import UserError
from reporting import figures
from reporting.export import (
    caption,
    column_names,
    csv_of,
    interval,
    latex,
    latex_table,
    markdown_of,
    protocol_words,
    verdict,
)
from reporting.page import mean_ranks, write_page
from reporting.statistics import Difference
from reporting.table import make_table
from runs.collect import read_runs, run_folders
from tests.scripts.test_compare import change, new

KD = {"gamma": 0.1, "alpha": 0.9, "beta": 0}


@pytest.fixture
def made(tmp_path):
    """Runs that were put into tmp_path -> their table."""

    def made(jobs=(), known=(), baseline=""):
        notes = []
        runs = read_runs(run_folders([str(tmp_path)], notes), notes)
        assert not notes
        return make_table(runs, jobs, known, baseline)

    return made


def put(path, last, trial=1, typed=(), **others):
    """A student whose `typed` flags were typed -> its folder."""
    folder = path / f"run_{len(list(path.iterdir()))}"
    new(folder, last, last + 1, trial, **{**KD, **others})
    change(folder, origin=dict.fromkeys(typed, "typed"), classes=["a", "b"])
    return folder


def untaught(path, last, trial=1, kind="student", **others):
    """A student without a teacher."""
    file = put(path, last, trial, teacher={"sha256": ""}, **others) / "run.json"
    summary = json.loads(file.read_text())
    summary["experiment"]["kind"] = kind
    del summary["teacher"]
    file.write_text(json.dumps(summary))


def alone(path, last, trial=1, **others):
    """A student that was trained by itself."""
    untaught(path, last, trial, "teacher", **others)


def test_trials_share_a_cell_and_another_protocol_never_does(tmp_path, made):
    put(tmp_path, 70.0, 1)
    put(tmp_path, 72.0, 2)
    put(tmp_path, 90.0, 1, aug=True)
    put(tmp_path, 91.0, 1, epochs=40)
    put(tmp_path, 92.0, 1, val_fraction=0.1)
    table = made()
    assert [table.cells["kd", c].n for c in table.columns] == [2, 1, 1, 1]
    own = [protocol_words(table.own(column)) for column in table.columns]
    assert len(set(own)) == 4
    assert "40 epochs" in own[2]
    assert "0.1 of the training images held out" in own[3]
    cell = table.cells["kd", table.columns[0]]
    assert (cell.last.mean, cell.best.mean) == (71, 72)
    assert cell.last.std == pytest.approx(2**0.5)


def test_what_most_columns_share_is_said_once_and_heads_say_what_differs(tmp_path, made):
    put(tmp_path, 70.0, aug=False, momentum=0.9, lr_decay_epochs=[13, 15, 18])
    put(tmp_path, 71.0, aug=False, momentum=0.9, lr_decay_epochs=[38, 45, 53], epochs=60)
    put(tmp_path, 72.0, aug=False, momentum=0.9, lr_decay_epochs=[10, 20], epochs=60)
    put(tmp_path, 73.0, aug=False, momentum=0.9, lr_decay_epochs=[25, 30, 35], epochs=40,
        randaugment=True)  # fmt: skip
    put(tmp_path, 74.0, aug=False, epochs=60, optimizer="adamw", schedule="cosine")
    table = made()
    pair = "resnet32x4 → resnet8"
    assert column_names(table) == [
        f"{pair} (20 epochs)",
        pair,
        f"{pair} (decays after 10, 20)",
        f"{pair} (40 epochs, RandAugment)",
        f"{pair} (optimizer adamw, schedule cosine)",
    ]
    assert caption(table).endswith(
        "1 trial; where a head says nothing else: 60 epochs, standard augmentation, "
        "decays after 5/8, 3/4, 7/8 of the epochs, momentum 0.9."
    )


def test_the_default_is_said_where_most_columns_have_another_value(tmp_path, made):
    for epochs in (20, 40):
        put(tmp_path, 70.0, aug=False, epochs=epochs, mixup=0.2)
    put(tmp_path, 71.0, aug=False, epochs=40)
    assert [name.split(" (")[1:] for name in column_names(made())] == [
        ["20 epochs)"], [], ["mixup 0)"],
    ]  # fmt: skip


def test_images_that_changed_tell_columns_apart(tmp_path, made):
    put(tmp_path, 70.0)
    put(tmp_path, 70.0, images="e" * 64)
    assert [name.split("images ")[1] for name in column_names(made())] == ["ffffffff)", "eeeeeeee)"]


def test_strong_views_are_a_protocol_of_their_own(tmp_path, made):
    put(tmp_path, 70.0)
    put(tmp_path, 71.0, distill="mlkd", beta=0.9)
    put(tmp_path, 80.0, distill="mlkd", beta=0.9, mlkd_strong=True, typed=["mlkd_strong"])
    put(tmp_path, 81.0, distill="crld", beta=1)
    table = made()
    assert sorted(table.cells[label, table.columns[0]].last.mean for label in ("kd", "mlkd")) == [
        70, 71,
    ]  # fmt: skip
    words = [protocol_words(table.own(column)) for column in table.columns]
    assert ["strong view" in text for text in words] == [False, True]
    assert table.cells["crld", table.columns[1]].last.mean == 81


@pytest.mark.parametrize(
    "other", [{"divergence": "ab"}, {"ctkd": True}, {"dot": 0.05}, {"sdd": [1, 2]}]
)
def test_another_loss_or_optimizer_is_no_plain_kd(other, tmp_path, made):
    put(tmp_path, 70.0, typed=list(other), **other)
    assert made().baseline == ""


def test_rows_are_called_by_what_was_typed_of_the_method(tmp_path, made):
    put(tmp_path, 70.0, typed=["epochs", "trial"])
    put(tmp_path, 71.0, typed=["alpha", "kd_T", "batch_size"], kd_T=8, alpha=1)
    put(tmp_path, 72.0, typed=["logit_stand"], logit_stand=True)
    assert set(made().labels) == {"kd", "kd -a 1 --kd_T 8", "kd --logit_stand"}


def test_different_runs_of_one_name_are_told_apart(tmp_path, made):
    put(tmp_path, 70.0)
    put(tmp_path, 71.0, kd_T=8)
    table = made()
    assert len(table.labels) == 2
    assert all(label.startswith("kd #") for label in table.labels)
    assert len(table.notes) == 2


def test_the_student_alone_stands_beside_every_teacher_of_it(tmp_path, made):
    other = {"model": "resnet56", "sha256": "b" * 64}
    for trial in (1, 2):
        put(tmp_path, 70.0 + trial, trial)
        put(tmp_path, 75.0 + 2 * trial, trial, teacher=other)
        alone(tmp_path, 60.0, trial)
    table = made()
    assert [column.pair for column in table.columns] == [
        "resnet32x4 → resnet8",
        "resnet56 → resnet8",
    ]
    gains = [table.cells["kd", column].over_alone.mean for column in table.columns]
    assert gains == [11.5, 18]
    assert [table.cells["alone", c].rank for c in table.columns] == [2, 2]


def test_a_run_alone_that_taught_nobody_is_in_the_table_though_a_teacher_is_called_like_it(
    tmp_path, made
):
    weights = b"of a teacher"
    teacher = {"model": "resnet32x4", "sha256": hashlib.sha256(weights).hexdigest()}
    put(tmp_path, 70.0, teacher=teacher)
    alone(tmp_path, 75.0, model="resnet32x4", epochs=240)
    alone(tmp_path, 73.0, model="resnet32x4", epochs=240, mixup=0.2)
    (tmp_path / "run_1" / "resnet32x4_last.pth").write_bytes(weights)
    (tmp_path / "run_2" / "resnet32x4_last.pth").write_bytes(b"of another network")
    table = made()
    assert [trial.run.folder.name for trial in table.teachers] == ["run_1"]
    assert [column.pair for column in table.columns] == ["resnet32x4 → resnet8", "resnet32x4"]
    assert table.cells["alone", table.columns[1]].last.mean == 73
    assert len(table.trials) == 3


def test_a_method_without_a_teacher_stands_beside_every_teacher_of_its_student(tmp_path, made):
    for trial in (1, 2):
        put(tmp_path, 70.0 + trial, trial)
        put(tmp_path, 75.0 + trial, trial, teacher={"model": "resnet56", "sha256": "b" * 64})
        untaught(tmp_path, 66.0 + 2 * trial, trial, distill="tfkd")
        untaught(tmp_path, 50.0, trial, distill="tfkd", epochs=40)  # of no pair
        alone(tmp_path, 60.0, trial)
    table = made()
    assert [column.pair for column in table.columns] == [
        "resnet32x4 → resnet8", "resnet56 → resnet8", "resnet8",
    ]  # fmt: skip
    cells = [table.cells["tfkd", column] for column in table.columns]
    assert [cell.last.mean for cell in cells] == [69, 69, 50]
    assert [cell.over_alone and cell.over_alone.mean for cell in cells] == [9, 9, None]
    assert [cell.over_baseline and cell.over_baseline.mean for cell in cells] == [-2.5, -7.5, None]
    for text in (markdown_of(table), latex_table(table)):
        assert text.count("tfkd (no teacher)") == text.count("tfkd")
        assert "kd (no teacher)" not in text.replace("tfkd", "")
    lines = csv.DictReader(io.StringIO(csv_of(table, {})))
    assert {(line["method"], line["has_teacher"]) for line in lines} == {
        ("kd", "True"), ("tfkd", "False"), ("alone", "False"),
    }  # fmt: skip


def test_kd_is_the_baseline_or_what_is_named(tmp_path, made):
    put(tmp_path, 70.0)
    put(tmp_path, 71.0, typed=["logit_stand"], logit_stand=True)
    put(tmp_path, 73.0, distill="dkd")
    table = made()
    column = table.columns[0]
    assert table.baseline == "kd"
    assert table.cells["dkd", column].over_baseline == Difference(3, None, 1)
    assert made(baseline="dkd").cells["kd", column].over_baseline.mean == -3
    with pytest.raises(UserError, match="--baseline x is none of the rows: kd"):
        made(baseline="x")


def test_kd_with_the_fewest_flags_is_the_baseline(tmp_path, made):
    put(tmp_path, 71.0, typed=["kd_T"], kd_T=8)
    put(tmp_path, 70.0)
    assert made().baseline == "kd"


def test_one_trial_has_no_rank_and_no_claim(tmp_path, made):
    put(tmp_path, 70.0)
    put(tmp_path, 90.0, distill="dkd")
    table = made()
    cell = table.cells["dkd", table.columns[0]]
    assert (cell.rank, cell.half) == (None, None)
    assert verdict(cell.over_baseline) == "one trial: no claim"
    assert r"\textbf" not in latex_table(table)


def test_how_many_differences_were_tested_is_said_where_any_was(tmp_path, made):
    for trial in (1, 2):
        put(tmp_path, 70.0 + trial, trial)
        put(tmp_path, 90.0 - trial, trial, distill="dkd")
        text = write_page("title", made(), [], [])
        assert ("1 was tested" in text) == (trial == 2)
        assert "would be by chance" in text or trial == 1
        assert "0 were tested" not in text


def test_what_n_trials_can_show_is_said():
    assert verdict(Difference(2.0, 1.0, 3)) == "better"
    assert verdict(Difference(-2.0, 1.0, 3)) == "worse"
    assert verdict(Difference(0.5, 4.302653 / 3**0.5, 3)) == (
        "not significant; 3 trials show ≥ 2.48; about 18 would show this"
    )


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((1.0, 0.5, "+"), "[+0.50, +1.50]"),
        ((-4.95, 4.9491, "+"), "[-9.899, -0.001]"),
        ((0.0, 0.0, "+"), "[+0.00, +0.00]"),
        ((71.0, 1.5), "[69.50, 72.50]"),
        ((71.0, None), ""),
    ],
)
def test_an_interval_shows_on_which_side_of_0_it_ends(numbers, expected):
    assert interval(*numbers) == expected


def test_intervals_are_bounds_in_every_file(tmp_path, made):
    for trial in (1, 2, 3):
        put(tmp_path, 70.0 + trial, trial)
        alone(tmp_path, 60.0, trial)
    table = made()
    half = table.cells["kd", table.columns[0]].half
    bounds = [f"{72 - half:.2f}", f"{72 + half:.2f}"]
    (line,) = (x for x in markdown_of(table).splitlines() if x.startswith("| kd | 3 "))
    assert rf" \[{', '.join(bounds)}\] " in line
    row = next(x for x in csv.DictReader(io.StringIO(csv_of(table, {}))) if x["method"] == "kd")
    assert [f"{float(row[name]):.2f}" for name in ("last_low", "last_high")] == bounds
    assert float(row["over_alone_high"]) - float(row["over_alone"]) == pytest.approx(half)


def test_a_mean_rank_is_one_of_several_columns(tmp_path, made):
    for epochs in (20, 40):
        for trial in (1, 2):
            put(tmp_path, 70.0 + trial, trial, epochs=epochs)
        assert mean_ranks(made()) == ({} if epochs == 20 else {"kd": 1.0})


def test_epochs_are_whole_on_the_axis_of_a_learning_curve(tmp_path, made):
    put(tmp_path, 70.0)
    lines = [json.dumps({"epoch": n, "test_acc": 70.0, "test_loss": 1.0}) for n in (1, 2)]
    (tmp_path / "run_0" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    table = made()
    figure = figures.curves(table.of(table.columns[0]), figures.Colours(table.labels), None)
    for axis in figure.axes:
        assert all(tick == round(tick) for tick in axis.get_xticks())


def test_a_published_number_stands_beside_its_run_alone(tmp_path, made, monkeypatch):
    entry = Published("fake", "resnet8", "kd", 73.3, "240 epochs", "a paper", "resnet32x4")
    monkeypatch.setattr(Published, "is_of", lambda self, run: run.options["distill"] == "kd")
    put(tmp_path, 70.0)
    put(tmp_path, 71.0, distill="dkd")
    table = made(known=[entry])
    lines = markdown_of(table).splitlines()
    assert any("73.30 (-3.30), a paper (240 epochs" in line for line in lines if "| kd " in line)
    assert any("nothing published" in line for line in lines if line.startswith("| dkd"))


def test_csv_has_the_numbers_of_run_json(tmp_path, made):
    put(tmp_path, 70.123456789, 1)
    put(tmp_path, 71.5, 2)
    (line,) = csv.DictReader(io.StringIO(csv_of(made(), {})))
    assert float(line["last_mean"]) == (70.123456789 + 71.5) / 2
    assert float(line["best_mean"]) == (71.123456789 + 72.5) / 2
    assert (line["seeds"], line["trials"]) == ("1 2", "2")
    assert line["published"] == ""


def test_latex_has_no_character_of_its_own():
    assert latex("a_b & 50% #1 {x} --y") == r"a\_b \& 50\% \#1 \{x\} -{}-y"


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex")
def test_latex_compiles(tmp_path, made):
    (tmp_path / "runs").mkdir()
    for trial in (1, 2):
        put(tmp_path / "runs", 70.0 + trial, trial, typed=["logit_stand"], logit_stand=True)
        alone(tmp_path / "runs", 60.0, trial)
    table = latex_table(made())
    assert r"\textbf{71.50} $\pm$ 0.71" in table
    (tmp_path / "a.tex").write_text(
        "\\documentclass{article}\\usepackage{booktabs}\\begin{document}\n"
        + table
        + "\\end{document}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "a.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (tmp_path / "a.pdf").stat().st_size > 0
