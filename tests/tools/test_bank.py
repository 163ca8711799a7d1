"""--teacher_bank of train_student.py, and tools/bank.py."""

import json
import multiprocessing
import os
import random
import re
import runpy
import signal
import sys
import time
from pathlib import Path

import pytest
import torch

from engine.bank import Bank, RowFile
from engine.teacher import BankedTeacher
from helper.errors import UserError
from models import MODELS
from runs import checkpoint
from tests.conftest import only
from tools import bank

DATA = "--dataset fake --fake_size 48 --fake_classes 4 --image_size 8"
ALWAYS = f"--model_s resnet8 --epochs 2 --batch_size 16 {DATA} --any_teacher --path_t t.pth"


@pytest.fixture(scope="module")
def weights():
    torch.manual_seed(0)
    return {"model": MODELS["resnet14"](4).state_dict(), "model_name": "resnet14"}


@pytest.fixture
def train(run, weights, tmp_path):
    """Train a student with a bank, in a folder with a teacher's checkpoint -> its run.json."""
    checkpoint.save(tmp_path / "t.pth", weights)

    def train(line, where="save"):
        run(f"train_student {ALWAYS} --save_dir {where} {line}")
        folder = only(tmp_path / where / "student_model")
        rows = (folder / "metrics.jsonl").read_text().splitlines()
        return json.loads((folder / "run.json").read_text()), [json.loads(row) for row in rows]

    return train


@pytest.fixture
def refused(monkeypatch, capsys):
    """Run the script with words that it cannot do -> its exit code and its one error line."""

    def refused(words):
        monkeypatch.setattr(sys, "argv", ["bank.py", *words.split()])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(bank.__file__, run_name="__main__")
        said = capsys.readouterr()
        assert said.out == ""
        (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
        return stop.value.code, error

    return refused


def losses(rows):
    return [(row["train_loss"], row["test_loss"]) for row in rows]


def test_a_second_run_finds_every_row_and_is_the_same(train, monkeypatch, capsys):
    _, live = train("--distill kd", "live")
    first, missing = train("--distill kd --teacher_bank bank", "first")
    assert [row["bank_missing"] for row in missing][0] == 1
    assert re.search(r"bank/resnet14_fake_\S+ .*, 0\.01 MB when complete", capsys.readouterr().out)
    monkeypatch.setattr("engine.teacher.BankedTeacher.compute", never_with_rows)
    monkeypatch.setattr("cli.training.evaluate", None)  # the teacher's accuracy is known
    second, there = train("--distill kd --teacher_bank bank", "second")
    assert [row["bank_missing"] for row in there] == [0, 0]
    assert losses(there) == losses(missing)
    for one, other in zip(losses(live), losses(there), strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert second["teacher"] == first["teacher"]
    assert second["digest"] == first["digest"]  # a bank makes no other experiment
    assert second["provenance"][0]["options"]["teacher_bank"] == "bank"


def never_with_rows(self, rows, place=0):
    assert not len(rows)
    return {kind: torch.zeros(0, width) for kind, width in self.widths.items()}


@pytest.mark.parametrize(
    ("line", "kinds"),
    [
        ("--distill dkd --logit_stand", {"logits"}),
        ("--distill rkd", {"logits", "pooled"}),
        ("--distill kd --sdd 1,2", {"logits", "regions_1-2"}),
        ("--distill kd --tekap", {"logits"}),
        ("--distill pkt --tekap", {"logits", "pooled"}),
    ],
)
def test_what_is_kept_is_what_the_objective_reads(train, tmp_path, line, kinds):
    train(f"--epochs 1 --teacher_bank bank {line}")
    assert {file.stem for file in tmp_path.glob("bank/*/*.rows")} == kinds


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("--distill attention", "Attention reads stages"),
        ("--distill kd --bank_limit 0.0000001", "logits of all views take"),
    ],
)
def test_where_a_bank_cannot_be_the_teacher_runs(train, tmp_path, capsys, line, why):
    train(f"--epochs 1 --teacher_bank bank {line}")
    assert f"the teacher runs in every step: {why}" in capsys.readouterr().out
    assert not (tmp_path / "bank").exists()


def test_autoaugment_computes_rows_ahead(train, tmp_path, capsys):
    _, live = train("--distill kd --aug", "live")
    _, ahead = train("--distill kd --aug --teacher_bank bank", "ahead")
    assert "before each epoch" in capsys.readouterr().out
    assert not (tmp_path / "bank").exists()
    for one, other in zip(losses(live), losses(ahead), strict=True):
        assert one == pytest.approx(other, rel=1e-4)


def test_another_teacher_data_or_type_has_rows_of_its_own(train, weights, tmp_path):
    train("--epochs 1 --teacher_bank bank")
    for i, line in enumerate(
        ["--bank_type float16", "--fake_size 52", "--amp bf16", "--train_fraction 0.5"]
    ):
        train(f"--epochs 1 --teacher_bank bank {line}", f"save{i}")
    weights["model"]["fc.bias"][0] += 1e-3
    checkpoint.save(tmp_path / "t.pth", weights)
    train("--epochs 1 --teacher_bank bank", "other")
    assert len(list(tmp_path.glob("bank/*/bank.json"))) == 6


def test_a_teacher_is_measured_once_a_run(train, run, monkeypatch, tmp_path):
    train("--epochs 1")
    folder = only(tmp_path / "save" / "student_model")
    summary = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**summary, "status": "running"}))
    monkeypatch.setattr("cli.training.evaluate", None)
    again, _ = train("--epochs 1 --resume")
    assert again["teacher"] == summary["teacher"]


# The tool.


def test_fill_makes_every_row(train, tmp_path, capsys, monkeypatch):
    words = f"--distill rkd --teacher_bank bank {ALWAYS}".split()
    train("--epochs 1 --teacher_bank bank --distill rkd")
    monkeypatch.setattr("engine.teacher.FILLED_AT_ONCE", 100)
    bank.command(["fill", *words])
    rows = 48 * 18  # padding 1: 9 crops, 2 flips
    out = capsys.readouterr().out
    assert f"{rows - 48:,} rows computed" in out
    assert "logits 100.0 %, pooled 100.0 % of 864 views" in out
    bank.command(["fill", *words])
    assert "0 rows computed" in capsys.readouterr().out
    bank.command(["check", *words])
    assert f"{rows} rows are the teacher's" in capsys.readouterr().out
    _, found = train("--teacher_bank bank --distill rkd --seed 9", "other")
    assert [row["bank_missing"] for row in found] == [0, 0]
    bank.command(["info", "bank"])
    out = capsys.readouterr().out
    assert "logits 100.0 %, pooled 100.0 % of 864 views" in out
    assert "resnet14 " in out
    (folder,) = (tmp_path / "bank").iterdir()
    bank.command(["drop", f"bank/{folder.name}"])
    assert not folder.exists()


def test_a_fill_that_is_stopped_goes_on(train, capsys, monkeypatch):
    words = f"--distill kd --teacher_bank bank {ALWAYS}".split()
    monkeypatch.setattr("engine.teacher.FILLED_AT_ONCE", 300)
    add, calls = BankedTeacher.add, []

    def stopped(self, rows, place=0):
        calls.append(rows)
        if len(calls) == 2:  # the third, after it was started again, goes through
            raise KeyboardInterrupt
        return add(self, rows, place)

    monkeypatch.setattr(BankedTeacher, "add", stopped)
    with pytest.raises(KeyboardInterrupt):
        bank.command(["fill", *words])
    bank.command(["fill", *words])
    assert "564 rows computed" in capsys.readouterr().out


def no_space(self, offset, data):
    raise OSError(28, "No space left on device")


def test_a_fill_of_a_full_disk_is_no_success(train, refused, monkeypatch):
    words = f"fill --distill rkd --teacher_bank bank {ALWAYS}"
    monkeypatch.setattr("engine.bank.RowFile._write_at", no_space)
    code, error = refused(words)
    assert code == 1
    assert re.fullmatch(
        "error: bank/resnet14_fake_.*/logits.rows: No space left on device; once that is mended "
        "the same command goes on",
        error,
    )


def row_files(where):
    """The files of the one bank of a folder, opened."""
    folder, widths = only(where), {"logits": 4, "pooled": 64}
    return {kind: RowFile(folder / f"{kind}.rows", 864, n, "float32") for kind, n in widths.items()}


def count_rows(where):
    """How many rows of logits are there."""
    files = list(where.glob("*/logits.rows"))
    return int(row_files(where)["logits"].there.sum()) if files else 0


def slowly(write):
    """So that most kills come while something is written."""

    def write_slowly(*args):
        time.sleep(2e-4)
        write(*args)

    return write_slowly


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="no fork")
def test_a_fill_is_killed_again_and_again(train, tmp_path, monkeypatch):
    monkeypatch.setattr("engine.teacher.FILLED_AT_ONCE", 64)
    words = ["fill", *f"--distill rkd {ALWAYS}".split(), "--teacher_bank"]
    bank.command([*words, "whole"])
    monkeypatch.setattr(RowFile, "_write_at", slowly(RowFile._write_at))
    every = torch.arange(864)
    whole = {kind: file.read(every) for kind, file in row_files(tmp_path / "whole").items()}
    chance, kills, exitcode = random.Random(5), 0, None
    while exitcode != 0:
        known = count_rows(tmp_path / "killed")
        fill = multiprocessing.get_context("fork").Process(
            target=bank.command, args=([*words, "killed"],)
        )
        fill.start()
        while fill.is_alive() and count_rows(tmp_path / "killed") == known:
            time.sleep(0.001)
        if kills < 4:
            time.sleep(0.1 * chance.random())
            fill.kill()
        fill.join()
        exitcode = fill.exitcode
        assert exitcode in (0, -signal.SIGKILL)
        kills += exitcode != 0
        for kind, file in row_files(tmp_path / "killed").items():
            there = every[file.has(every)]
            torch.testing.assert_close(file.read(there), whole[kind][there], rtol=1e-5, atol=1e-5)
    assert kills > 0, "the fill was over before it could be killed"
    assert all(file.has(every).all() for file in row_files(tmp_path / "killed").values())


def test_fill_warns_of_no_negatives_which_it_does_not_draw(train, recwarn):
    train("--epochs 1 --teacher_bank bank --distill crd --nce_k 40")
    recwarn.clear()
    bank.command(f"fill --distill crd --nce_k 40 --teacher_bank bank {ALWAYS}".split())
    assert not [str(w.message) for w in recwarn if "--nce_k" in str(w.message)]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "^give one of fill, check, info, drop$"),
        ("full", "full is not one of fill"),
        ("check bank", "bank stands alone: give the flags of train_student.py, the folder with --"),
        ("fill --distill kd", "no --teacher_bank"),
        (f"fill --teacher_bank bank --distill attention {ALWAYS}", "Attention reads stages"),
        ("info", "no folder"),
        ("info nowhere", "there is no folder nowhere"),
        ("info .", "holds no bank"),
        ("drop .", "is no bank"),
    ],
)
def test_bad_command_lines(train, words, line):
    with pytest.raises(UserError, match=line):
        bank.command(words.split())


@pytest.fixture
def described(tmp_path, monkeypatch):
    """The folder bank/one of a bank of 8 rows of 3 numbers, one of which is there."""
    monkeypatch.chdir(tmp_path)
    key = {"samples": 4, "views": 2, "type": "float32", "network": "resnet8", "teacher": "1a2b"}
    kept = Bank(tmp_path / "bank/one", {**key, "image_size": 8}, {"logits": 3})
    kept.write(torch.tensor([5]), {"logits": torch.ones(1, 3)})
    kept.close()
    return tmp_path / "bank/one"


@pytest.mark.parametrize("where", ["bank", "bank/one", "link"])
def test_a_bank_is_described(described, capsys, where):
    Path("link").symlink_to(described)
    bank.command(["info", where])
    assert (
        "logits 12.5 % of 8 views\n    resnet8 1a2b, float32, 8 pixels" in capsys.readouterr().out
    )


def torn(file):
    os.truncate(file, 80)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


def a_folder(file):
    file.unlink()
    file.mkdir()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
@pytest.mark.parametrize("befallen", [torn, pipe, a_folder])
def test_what_is_no_whole_file_of_rows_is_named(described, refused, befallen):
    befallen(described / "logits.rows")
    assert refused("info bank") == (
        2,
        "error: bank/one/logits.rows is no whole file of 8 rows: drop bank/one with "
        "tools/bank.py, or delete it",
    )


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("samples", "Infinity", "samples is such a float"),
        ("samples", "0", "samples is 0"),
        ("views", "-5", "views is -5"),
        ("network", r'"\ud800"', r"network is '\ud800'"),
        ("network", r'"\u001b[2J"', r"network is '\x1b[2J'"),
        ("type", "[]", "type is such a list"),
        ("image_size", '"8"', "image_size is '8'"),
    ],
)
def test_a_key_that_was_edited_is_refused(described, refused, name, value, said):
    key = json.loads((described / "bank.json").read_text())
    entries = {**{k: json.dumps(v) for k, v in key.items()}, name: value}
    text = ", ".join(f'"{k}": {v}' for k, v in entries.items())
    (described / "bank.json").write_text(f"{{{text}}}")
    assert refused("info bank") == (
        2,
        f"error: bank/one/bank.json describes no bank ({said}): delete the folder bank/one",
    )


def test_a_link_is_not_dropped(described, refused):
    Path("link").symlink_to(described)
    assert refused("drop link") == (2, "error: link is a link: give the folder that it leads to")
    assert (described / "logits.rows").exists()


def test_a_damaged_row_ends_the_run_before_it_begins(train, fails, tmp_path):
    train("--epochs 1 --teacher_bank bank")
    (file,) = tmp_path.glob("bank/*/*.rows")
    rows = 48 * 18
    file.write_bytes(bytes(rows * 16) + b"\x01" * rows)
    line = fails(f"train_student {ALWAYS} --save_dir other --teacher_bank bank")
    assert "differ from the teacher's" in line
    assert not (tmp_path / "other").exists()
    file.write_bytes(b"torn")
    assert "4 bytes where" in fails(f"train_student {ALWAYS} --save_dir other --teacher_bank bank")


def test_a_bank_that_cannot_be_written_is_said_and_the_run_goes_on(train, monkeypatch, capsys):
    monkeypatch.setattr("engine.bank.RowFile._write_at", no_space)
    _, rows = train("--teacher_bank bank")
    assert [row["bank_missing"] for row in rows] == [1, 1]
    assert capsys.readouterr().err.count("No space left on device): rows that are missing") == 1


def test_a_file_is_no_bank(train, fails, tmp_path):
    train("--epochs 1")
    line = fails(f"train_student {ALWAYS} --save_dir other --teacher_bank t.pth")
    assert line == "error: --teacher_bank t.pth is no folder: give another"
