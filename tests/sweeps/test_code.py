"""The copy of the code that a sweep runs."""

import os
import subprocess

import pytest

from runs import code
from sweeps import code as copying


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def toolkit(tmp_path, monkeypatch):
    """A small toolkit in the place of this one."""
    folder = tmp_path / "toolkit"
    for name in ("train.py", "room/__init__.py", "room/gone.py", "notes.txt", "save/run/code.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("old")
    for module in (code, copying):
        monkeypatch.setattr(module, "CODE", folder)
    code.changed_files.cache_clear()
    yield folder
    code.changed_files.cache_clear()


def files(folder):
    paths = [path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts]
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def test_a_repository_is_copied_as_it_is_now(toolkit, tmp_path):
    (toolkit / ".gitignore").write_text("/save\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        git(toolkit, *words)
    (toolkit / "train.py").write_text("new")
    (toolkit / "room" / "added.py").write_text("new")
    (toolkit / "room" / "gone.py").unlink()
    to = toolkit / "save" / ".sweep" / "code"
    to.mkdir(parents=True)
    (to / "older.py").write_text("")
    copying.copy_code(to)
    assert files(to) == {
        ".gitignore": "/save\n", "notes.txt": "old", "train.py": "new", "room/__init__.py": "old",
        "room/added.py": "new",
    }  # fmt: skip
    assert git(to, "rev-parse", "HEAD") == git(toolkit, "rev-parse", "HEAD")
    assert git(to, "status", "--porcelain") == git(toolkit, "status", "--porcelain")


def test_without_a_repository_it_is_the_code_alone(toolkit, tmp_path):
    copying.copy_code(tmp_path / "to")
    assert sorted(files(tmp_path / "to")) == ["room/__init__.py", "room/gone.py", "train.py"]


def test_a_file_whose_name_is_no_text_is_one_of_those_that_changed(toolkit):
    git(toolkit, "init", "-q")
    name = os.fsdecode(b"notes-\xe9.txt")
    (toolkit / name).write_text("new")
    assert toolkit / name in code.changed_files()
    assert toolkit / "notes.txt" in code.changed_files()
