"""What is printed of odd names, and of processes that read images and are killed."""

import io
import os
import signal
import sys
import warnings

import numpy as np
import pytest
from PIL import Image

from cli.main import main
from dataset.stream import ImageFiles
from helper.errors import UserError

HOW = "--data_dir images --image_size 16 --batch_size 2 --epochs 1"


@pytest.mark.parametrize(
    ("how", "printed"),
    [
        (("ascii",), rb"\udcff \xe9"),
        (("ascii", "surrogateescape"), rb"\udcff \xe9"),  # the locale C
        (("utf-8",), b"\\udcff \xc3\xa9"),
    ],
)
def test_any_name_can_be_printed(how, printed, monkeypatch):
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, *how))
    main(lambda _: print("\udcff é", flush=True))
    assert bytes_out.getvalue() == printed + b"\n"


def test_names_of_any_bytes_are_printed_as_such_where_the_terminal_takes_them(monkeypatch):
    bytes_out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_out, "utf-8", "surrogateescape"))
    main(lambda _: print("\udcff", flush=True))
    assert bytes_out.getvalue() == b"\xff\n"


def test_a_strangers_text_does_not_steer_the_terminal(capsys):
    stranger = "\x1b]0;mine\x07\x9b2J\u202eé"  # a terminal's title, its screen, its direction

    def command(_):
        warnings.warn(stranger, stacklevel=1)
        raise UserError(stranger)

    with pytest.raises(SystemExit):
        main(command)
    written = r"\x1b]0;mine\x07\x9b2J\u202eé"
    assert capsys.readouterr().err == f"warning: {written}\nerror: {written}\n"


@pytest.fixture
def images(tmp_path):
    for name in ("train/a", "train/b", "val/a", "val/b"):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(folder / "0.png")
    return tmp_path / "images"


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("dataset", ["folder", "imagenet --num_workers 1"])
def test_a_killed_reader_of_images_is_told(dataset, images, run, capsys, monkeypatch):
    monkeypatch.setattr("dataset.folder.open_image", killed)
    monkeypatch.setattr(ImageFiles, "__getitem__", killed)
    with pytest.raises(SystemExit) as stop:
        run(f"train_teacher --model resnet8 --dataset {dataset} {HOW}")
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    (line,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert line == (
        "error: a process that reads images was killed: free memory, or give fewer --num_workers; "
        "--resume goes on after the last whole epoch"
    )
