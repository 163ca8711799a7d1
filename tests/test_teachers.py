"""Fetching published teachers, from a mirror that is a folder of this machine."""

import hashlib
import tarfile

import pytest
import torch

from helper import teachers
from helper.errors import UserError


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A mirror with a resnet56, no other source, and a lock file of its own."""
    path = tmp_path / "mirror" / "resnet56_vanilla" / "ckpt_epoch_240.pth"
    path.parent.mkdir(parents=True)
    torch.save({"model": {"a": torch.zeros(2)}}, path)
    monkeypatch.setenv("DISTILL_MIRROR", (tmp_path / "mirror").as_uri())
    monkeypatch.setattr(teachers, "ARCHIVE", (tmp_path / "absent.tar").as_uri())
    monkeypatch.setattr(teachers, "SINGLE", (tmp_path / "absent").as_uri())
    monkeypatch.setattr(teachers, "LOCK", tmp_path / "teachers.sha256")
    teachers.LOCK.write_text("")
    return path


def test_fetched_once_and_put_on_record(mirror, tmp_path):
    path = teachers.find_or_fetch("resnet56", tmp_path / "save")
    assert path == tmp_path / "save" / "models" / "resnet56_vanilla" / "ckpt_epoch_240.pth"
    assert path.read_bytes() == mirror.read_bytes()
    digest = hashlib.sha256(mirror.read_bytes()).hexdigest()
    assert teachers.LOCK.read_text() == f"{digest}  resnet56\n"
    mirror.unlink()
    assert teachers.find_or_fetch("resnet56", tmp_path / "save") == path


def test_another_file_than_the_one_on_record_is_refused(mirror, tmp_path):
    teachers.LOCK.write_text(f"{'0' * 64}  resnet56\n")
    with pytest.raises(UserError, match="sha256 is .*, not 0000.*another or damaged"):
        teachers.find_or_fetch("resnet56", tmp_path / "save")
    assert not list((tmp_path / "save").rglob("*.pth"))


def test_a_member_of_the_archive(mirror, tmp_path, monkeypatch):
    monkeypatch.delenv("DISTILL_MIRROR")
    with tarfile.open(tmp_path / "absent.tar", "w") as archive:
        archive.add(mirror, "cifar_teachers/resnet56_vanilla/ckpt_epoch_240.pth")
    path = teachers.find_or_fetch("resnet56", tmp_path / "save")
    assert path.read_bytes() == mirror.read_bytes()
    with pytest.raises(UserError, match="no cifar_teachers/vgg13_vanilla/.* in the archive"):
        teachers.fetch("vgg13", tmp_path / "vgg13.pth")


def test_nowhere(mirror, tmp_path):
    with pytest.raises(
        UserError, match=r"cannot be fetched here .*fetch_pretrained_teachers.sh vgg13"
    ):
        teachers.find_or_fetch("vgg13", tmp_path / "save")
    with pytest.raises(UserError, match="no published teacher 'resnet8'"):
        teachers.main(["resnet8"])


def test_the_lock_file_of_the_repository():
    known = dict(reversed(line.split()) for line in teachers.LOCK.read_text().splitlines())
    assert known["resnet32x4"].startswith("22aa12e2b632")
