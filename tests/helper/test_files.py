"""Files are whole or what they were; what is no file stays what it is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helper import files
from helper.errors import UserError

ROOT = Path(__file__).resolve().parent.parent.parent


def words(file):
    file.write(b"words")


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    target, link = tmp_path / "there" / "a.json", tmp_path / "link.json"
    link.symlink_to(target)
    for _ in range(2):  # the target is made, then replaced
        files.write_whole(link, words)
        assert link.is_symlink()
        assert target.read_bytes() == b"words"
    assert list(target.parent.iterdir()) == [target]


def test_a_pipe_is_written_into(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(path, words)
    assert os.read(reader, 100) == b"words"
    assert path.is_fifo()
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="a device of Linux")
def test_a_device_stays_a_device(tmp_path):
    link = tmp_path / "link"  # else a failing test could cost the machine its device
    link.symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"No space left on device: '{link}'"):
        files.write_whole(link, words)
    assert link.is_char_device()


def test_standard_output_is_written_on_where_it_is_a_file(tmp_path):
    code = (
        "from pathlib import Path; from helper import files; print('first')\n"
        "files.write_whole(Path('/dev/stdout'), lambda file: file.write(b'words '))\n"
        "print('last')"
    )
    with (tmp_path / "out").open("wb") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=ROOT, check=True)
    assert (tmp_path / "out").read_text() == "first\nwords last\n"


def test_an_error_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))) as error:
            files.write_whole(path, words)
        assert error.value.filename == str(path)


def test_where_nothing_can_be_written(tmp_path):
    files.check_writable(tmp_path / "a" / "b", "--save_dir")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    for name in ("file", "file/a", "lost", "lost/a", "n" * 300, "/proc/a"):
        with pytest.raises(UserError, match="^cannot write to .* give another --save_dir$"):
            files.check_writable(tmp_path / name, "--save_dir")
