import re
import subprocess
import sys
from pathlib import Path

import pytest

from distiller_zoo import METHODS
from scripts import docs

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_readme_is_current_and_a_change_is_noticed():
    text = docs.README.read_text()
    assert docs.filled(text) == text
    for old, new in (("`--dist_tau`", "`--dist_temperature`"), ("<!-- methods -->", "\\g<0>9")):
        broken = re.sub(old, new, text)
        assert broken != text
        assert docs.filled(broken) == text


def test_every_method_is_in_one_generation():
    found = re.findall(r"^\| (\d+) \| `(\w+)`", "\n".join(docs.methods()), re.MULTILINE)
    assert sorted(name for _, name in found) == sorted(METHODS)
    assert [year for year, _ in found] == sorted(year for year, _ in found)


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
