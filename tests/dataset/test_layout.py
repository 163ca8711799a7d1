"""Which files a data set on disk has: folders with a split or without, and CSV files."""

import os

import pytest
import torch

from dataset import DATASETS
from dataset.fingerprint import fingerprint
from dataset.layout import SplitOptions, find_files, name_of
from helper.errors import UserError

HOW = SplitOptions()


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names_of(files):
    return [os.path.relpath(path, files.root) for path in files.paths]


def refused(data_dir, how=HOW) -> str:
    with pytest.raises(UserError) as error:
        find_files(str(data_dir), how)
    return str(error.value)


@pytest.fixture
def photos(tmp_path):
    """20 images of ants and 10 of cats, without a split."""
    ants, cats = ([f"{name}/{i}.jpg" for i in range(n)] for name, n in (("ant", 20), ("cat", 10)))
    return touch(tmp_path / "photos", *ants, *cats)


def test_a_folder_without_a_split_is_split_by_class(photos, capsys):
    layout = find_files(str(photos), HOW)
    assert layout.classes == ("ant", "cat")
    assert layout.val is None
    assert layout.test.labels.bincount().tolist() == [4, 2]
    every = [*layout.train.paths, *layout.test.paths]
    assert sorted(every) == sorted(map(str, photos.rglob("*.jpg")))
    err = capsys.readouterr().err
    assert "has no split: 24 images to train and 6 to test on" in err
    assert "--test_fraction 0.2 --test_seed 0" in err


def test_the_split_follows_from_the_seed_and_the_names(photos, tmp_path):
    first = find_files(str(photos), HOW)
    other = find_files(str(photos), SplitOptions(test_seed=1))
    assert [*first.test.paths] != [*other.test.paths]
    half = find_files(str(photos), SplitOptions(test_fraction=0.5))
    assert {*first.test.paths} < {*half.test.paths}
    assert len(half.test.paths) == 15
    moved = photos.rename(tmp_path / "elsewhere")
    assert names_of(find_files(str(moved), HOW).test) == names_of(first.test)
    before = {*names_of(first.test)}
    touch(moved, "ant/20.jpg", "cat/10.jpg")
    after = {*names_of(find_files(str(moved), HOW).test)}
    assert len(before - after) <= 2  # one a class at most gives its place away


def test_folders_without_images_are_no_classes_there(photos, capsys):
    (photos / "cache").mkdir()
    (photos / "loop").symlink_to("loop")
    assert find_files(str(photos), HOW).classes == ("ant", "cat")
    assert "cache: it is no class" in capsys.readouterr().err


def test_what_is_no_data_set(photos, tmp_path):
    assert "20 images lie there, and no folder of images" in refused(photos / "ant")
    touch(photos, "dog/0.jpg")
    message = refused(photos)
    assert f"class dog has one image ({photos}/dog/0.jpg)" in message
    single = touch(tmp_path / "single", "a/1.png", "a/2.png")
    assert "one class in" in refused(single)
    nested = touch(tmp_path / "nested", "set/train/a/1.png")
    assert f"but in set/: --data_dir {nested}/set" in refused(nested)


def test_a_share_for_data_that_has_a_split(tmp_path):
    names = [f"{split}/{label}/1.png" for split in ("train", "test") for label in "ab"]
    root = touch(tmp_path / "set", *names)
    assert names_of(find_files(str(root), HOW).test) == ["a/1.png", "b/1.png"]
    for name, how in {"test_fraction": 0.3, "test_seed": 1}.items():
        message = refused(root, SplitOptions(**{name: how}))
        assert message.startswith(f"--{name}: ")
        assert "has a split (train, test)" in message


# CSV files


def listed(root, text, name="list.csv"):
    root.mkdir(exist_ok=True)
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def test_a_csv_file_says_which_files_are_of_which_class_and_split(tmp_path):
    rows = ["split,label,path", "train,b,x/1.png", 'train,a,"x/2,\n.png"', "test,a,4.png"]
    rows += ["test,b,/abs/5.png", "val,a,6.png", "val,b,7.png"]
    layout = find_files(str(listed(tmp_path, "\ufeff" + "\r\n".join(rows))), HOW)
    assert layout.classes == ("a", "b")
    assert [*layout.train.paths] == [f"{tmp_path}/x/2,\n.png", f"{tmp_path}/x/1.png"]
    assert layout.train.labels.tolist() == [0, 1]
    assert [*layout.test.paths] == [f"{tmp_path}/4.png", "/abs/5.png"]
    assert names_of(layout.val) == ["6.png", "7.png"]
    assert name_of(f"{tmp_path}/list.csv") == "list"


def test_a_csv_file_without_a_split_is_split_like_a_folder(photos):
    rows = [f"{label}/{i}.jpg,{label}" for label, n in (("cat", 10), ("ant", 20)) for i in range(n)]
    file = listed(photos, "path,label\n" + "\n".join(rows))
    by_list, by_folder = find_files(str(file), HOW), find_files(str(photos), HOW)
    assert by_list.classes == by_folder.classes
    for ours, theirs in zip(by_list[1:3], by_folder[1:3]):
        assert ([*ours.paths], ours.root) == ([*theirs.paths], theirs.root)
        assert torch.equal(ours.labels, theirs.labels)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "begins with '': its first line has to be path,label or"),
        ("a.png,cat\nb.png,dog\n", "begins with 'a.png,cat'"),
        ("path,label\n", "names no images"),
        ("path,label\na.png\n", "line 2: it needs path,label, a value each"),
        ("path,label\na.png,b,c\n", "line 2: it needs path,label, a value each"),
        ("path,label\na.png,\n", "line 2: it needs path,label, a value each"),
        ("path,label\na.png,a\na.png,b\n", "line 3: a.png is there twice"),
        ("path,label\na.png,a\nb/.././a.png,b\n", "line 3: b/.././a.png is there twice"),
        ("path,label\na.png,a\n.,b\n", "line 3: '.' is a folder"),
        ("path,label\na\0.png,a\n", "line 2: 'a\\x00.png' is no name of a file"),
        ("path,label,split\na.png,a,dev\n", "line 2: split is 'dev', and none of train, val"),
        ("path,label,split\na.png,a,train\n", "has split train alone"),
        ("path,label,split\na.png,a,val\nb.png,a,test\n", "has split val, test alone"),
        ("path,label,split\na,a,train\nb,b,val\n", "only in train: a; only in val: b"),
        ("path,label\na.png,a\n", "class a has one image"),
        (b"path,label\n\xff\xfe,a\n", "is no CSV file in UTF-8"),
        ('path,label\n"a.png,a\n', "is no CSV file in UTF-8"),
    ],
)
def test_a_csv_file_that_is_wrong(text, words, tmp_path):
    message = refused(listed(tmp_path, text))
    assert words in message
    assert "list.csv" in message or "one image" in message


def test_a_csv_file_that_is_absent(tmp_path):
    assert "cannot read" in refused(tmp_path / "no.csv")


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_a_data_set_knows_its_split(name, tmp_path):
    from PIL import Image

    for label in "ab":
        for i in range(4):
            path = tmp_path / "set" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (9 * i, 0, 0)).save(path)
    Source = DATASETS[name]

    def load(**how):
        where = {"data_dir": str(tmp_path / "set"), "cache_dir": str(tmp_path / "cache")}
        return Source.load(Source.Options(**where, image_size=16, **how))

    data = load()
    assert (len(data.train.labels), len(data.test.labels)) == (6, 2)
    assert fingerprint(data) == fingerprint(load()) != fingerprint(load(test_seed=3))
