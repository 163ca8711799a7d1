import json
import subprocess
import sys
from pathlib import Path

import pytest

from helper.errors import UserError
from scripts import compare, docs

ROOT = Path(__file__).resolve().parent.parent.parent


def finished(folder, trial, last, best, model="resnet8", alpha=0.9, **options):
    summary = {
        "status": "finished",
        "model": model,
        "objective": f"{alpha}*KD",
        "parameters": 78042,
        "seconds": 10.0 + trial,
        "last": {"epoch": 20, "test_acc": last},
        "best": {"epoch": 19, "test_acc": best},
        "data": "fake",
        "options": {"trial": trial, "alpha": alpha, **options},
    }
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(summary))
    return str(folder)


def test_runs_that_differ_in_their_trial_share_a_row(tmp_path, capsys):
    one = finished(tmp_path / "a", 1, 90.0, 91.0)
    two = finished(tmp_path / "b", 2, 92.0, 93.0)
    other = finished(tmp_path / "c", 1, 80.0, 80.0, alpha=0.5)
    compare.main([one, other, two])
    head, _, first, second = capsys.readouterr().out.splitlines()[:4]
    assert head.split()[:3] == ["network", "trained", "on"]
    assert first.split()[2:] == ["78,042", "20", "2", "91.00", "+-", "1.41", "92.00", "+-", "1.41",
                                 "12", "+-", "1"]  # fmt: skip
    assert second.split()[2:] == ["78,042", "20", "1", "80.00", "80.00", "11"]


def test_what_was_published_stands_beside_it(tmp_path, capsys, monkeypatch):
    table = tmp_path / "published.yaml"
    table.write_text(
        "- {data: fake, model: vgg13, accuracy: 74.64}\n"
        "- {data: fake, model: vgg8, distill: kd, accuracy: 73.0}\n"
        "- {data: cifar10, model: resnet8, accuracy: 10.0}\n"
    )
    monkeypatch.setattr(compare, "PUBLISHED", table)
    runs = [
        finished(tmp_path / "a", 1, 74.0, 75.0, model="vgg13"),
        finished(tmp_path / "b", 2, 75.0, 75.0, model="vgg13"),
        finished(tmp_path / "c", 1, 73.5, 74.0, model="vgg8", distill="kd"),
        finished(tmp_path / "d", 1, 70.0, 74.0, model="vgg8"),  # alone: another thing
        finished(tmp_path / "e", 1, 90.0, 91.0),
    ]
    compare.main(runs)
    head, _, *rows = capsys.readouterr().out.splitlines()[:6]
    assert "last %  published %    gap" in head
    assert rows[0].split()[5:11] == ["74.50", "+-", "0.71", "74.64", "-0.14", "75.00"]
    assert rows[1].split()[5:9] == ["73.50", "73.00", "+0.50", "74.00"]
    assert rows[2].split()[5:7] == ["70.00", "74.00"]
    assert rows[3].split()[5:7] == ["90.00", "91.00"]
    compare.main(runs[-1:])
    assert "published %" not in capsys.readouterr().out


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match="no run to compare"):
        compare.main([])
    with pytest.raises(UserError, match="no run in nowhere"):
        compare.main(["nowhere"])
    folder = Path(finished(tmp_path / "a", 1, 90.0, 91.0))
    summary = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**summary, "status": "running"}))
    with pytest.raises(UserError, match="is not finished: go on with it with --resume"):
        compare.main([str(folder)])


def test_the_readme_is_current_and_a_change_is_noticed():
    text = docs.README.read_text()
    assert docs.filled(text) == text
    broken = text.replace("`--kd_T`", "`--kd_temperature`")
    assert broken != text
    assert docs.filled(broken) == text


def test_bad_input_on_a_real_command_line():
    done = subprocess.run(
        [sys.executable, ROOT / "train_student.py", "--distill", "kdd"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: no method 'kdd' (did you mean kd?)")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "path", [*ROOT.glob("*.sh"), *ROOT.glob("*/*.sh")], ids=lambda path: path.name
)
def test_shell_scripts_parse(path):
    subprocess.run(["sh", "-n", path], check=True)


def test_setup_says_what_it_needs(tmp_path):
    done = subprocess.run(
        ["sh", ROOT / "scripts" / "setup.sh"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": "/nowhere/python"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: /nowhere/python is not there or older than Python 3.11")
