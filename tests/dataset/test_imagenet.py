"""Images that are read from disk as a run trains."""

import json
import pickle
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from cli import parse
from dataset import DATASETS
from dataset.augment import STRONG, balanced_order, draw
from dataset.folder import DECODING_VERSION, open_image, resize_and_center_crop
from dataset.imagenet import MEAN, STD
from dataset.layout import Paths
from dataset.loader import Loading
from dataset.stream import CROP, ImageFiles, StreamLoader
from dataset.subset import hold_out, part_of
from helper.errors import UserError
from tests.conftest import only

BAD = "train/n02/broken.JPEG"
HOW = "--dataset imagenet --data_dir images --image_size 32 --batch_size 4 --num_workers 0"


@pytest.fixture
def root(tmp_path):
    """Three classes of JPEGs, no two of one size."""
    rng = np.random.default_rng(0)
    for split, n in (("train", 4), ("val", 3)):
        for c, name in enumerate(("n01", "n02", "n03")):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 60, (40 + 7 * i, 90 - 9 * i, 3)) + 80 * c
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.JPEG")
    return tmp_path / "images"


@pytest.fixture
def broken(root):
    (root / BAD).write_bytes(b"\xff\xd8 no image")
    return root


def load(root, **options):
    entry = DATASETS["imagenet"]
    where = {"data_dir": str(root), "cache_dir": str(root.parent / "cache")}
    return entry.load(entry.Options(**where, image_size=32, **options))


def batches(data, split="train", epoch=1, batch_size=4, **how):
    loading = Loading(**{"seed": 3} | how)
    return list(StreamLoader(data, split, batch_size, loading).batches(epoch))


def test_what_is_shown_follows_from_seed_epoch_and_sample(root):
    data = load(root)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, workers = batches(data), batches(data), batches(data, workers=1)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(first, again, workers, strict=True):
        assert all(map(torch.equal, a, b))
        assert all(map(torch.equal, a, c))
    seen = {epoch: torch.cat([b.images for b in batches(data, epoch=epoch)]) for epoch in (1, 2)}
    assert not torch.equal(seen[1], seen[2])
    assert sorted(torch.cat([b.index for b in first]).tolist()) == list(range(12))


def test_held_out_images_are_shown_as_test_images_are(root):
    data = hold_out(load(root), 0.25, seed=0)
    shown = torch.cat([batch.images for batch in batches(data, "val")])
    as_test = batches(replace(data, test=data.val), "test")
    assert torch.equal(shown, torch.cat([batch.images for batch in as_test]))
    assert len(shown) == 3
    trained = torch.cat([batch.index for batch in batches(data, batch_size=5)])
    assert sorted(trained.tolist()) == list(range(9))


def test_crops_are_torchvisions_and_the_gpus_generator_is_left_alone(root, monkeypatch):
    data = load(root)
    files = ImageFiles(data.train.paths, data, True, Loading(3, aug=True, strong=True))
    assert "RandAugment" in str(files.transforms[CROP + STRONG])
    expected = []
    for index, path in enumerate(data.train.paths):
        views = []
        for purpose in (CROP, CROP + STRONG):
            torch.manual_seed(draw(3, 2, purpose, torch.tensor([index])).item())
            views.append(files.transforms[purpose](open_image(path)))
        expected.append(torch.stack(views))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeds the GPU"))
    assert all(torch.equal(files[2, i], image) for i, image in enumerate(expected))


def test_auto_augment_changes_training_images_alone(root):
    data = load(root)
    for split, same in (("train", False), ("test", True)):
        plain, more, again = (batches(data, split, aug=aug) for aug in (False, True, True))
        for a, b, c in zip(plain, more, again, strict=True):
            assert torch.equal(a.images, b.images) == same
            assert torch.equal(b.images, c.images)


def test_padded_crops_are_of_the_scaled_image(root):
    data = load(root, crop="padded", flip=False)
    resized = load(root)
    chain = ImageFiles(Paths([]), data, True, Loading()).transforms[CROP].transforms
    assert [type(step).__name__ for step in chain[1:]] == ["RandomCrop", "PILToTensor"]
    shown = torch.cat([batch.images for batch in batches(data, "test")])
    image = resize_and_center_crop(open_image(data.test.paths[4]), 32)
    wanted = (np.asarray(image, dtype=np.float64) / 255 - MEAN) / STD
    torch.testing.assert_close(shown[4].permute(1, 2, 0), torch.tensor(wanted).float())
    assert not torch.equal(shown, torch.cat([b.images for b in batches(resized, "test")]))


def test_rand_augment_is_torchvisions(root):
    data = load(root)
    with_it = ImageFiles(Paths([]), data, True, Loading(randaugment=True)).transforms[CROP]
    assert "RandAugment" in str(with_it)
    assert "RandAugment" not in str(
        ImageFiles(Paths([]), data, False, Loading(randaugment=True)).transforms
    )


def test_a_strong_view_is_read_beside_the_weak_one(root):
    data = load(root)
    plain, both, workers = (
        batches(data, strong=strong, workers=n) for strong, n in ((False, 0), (True, 0), (True, 1))
    )
    for a, b, c in zip(plain, both, workers, strict=True):
        assert torch.equal(a.images, b.views[0])
        assert b.images.shape == (2, *a.images.shape)
        assert not torch.equal(*b.views)
        assert torch.equal(b.images, c.images)
    assert len(batches(data, "test", strong=True)[0].views) == 1


def test_a_balanced_epoch_is_that_of_images_in_memory(root):
    data = load(root)
    few = part_of(data.train, torch.arange(6))
    shown = batches(replace(data, train=few), balanced=True)
    index = torch.cat([batch.index for batch in shown])
    assert torch.equal(index, balanced_order(3, 1, few.labels))
    images = torch.cat([batch.images for batch in shown])
    twice = (index == index[:, None]).triu(1).nonzero()
    assert len(twice) == 1
    assert torch.equal(*images[twice[0]])  # one view an epoch


def test_processes_together_read_the_batches_of_one(root):
    data = load(root)
    alone = batches(data, "train", 2)
    shares = [batches(data, "train", 2, rank=rank, ranks=3) for rank in range(3)]
    for whole, *parts in zip(alone, *shares, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert all(torch.equal(part.labels, whole.labels) for part in parts)


def test_a_training_batch_too_small_for_the_processes(root):
    with pytest.raises(UserError, match="last batch of 2 of the 12 training images, too few for 3"):
        batches(load(root), "train", batch_size=5, rank=0, ranks=3)


def test_an_empty_share_has_the_shape_of_images(root):
    shares = [batches(load(root), "test", batch_size=8, rank=rank, ranks=3) for rank in range(3)]
    sizes = [[tuple(batch.images.shape) for batch in share] for share in shares]
    assert sizes[0] == [(2, 3, 32, 32), (0, 3, 32, 32)]
    assert sizes[2] == [(3, 3, 32, 32), (1, 3, 32, 32)]


def test_workers_share_the_paths():
    names = [f"train/\udcff\udc80é/{i}.png" for i in range(9999)]  # as from bytes b"\xff\x80"
    paths = Paths(names)
    assert len(paths) == 9999
    assert [paths[i] for i in (0, 1, 5000, 9998)] == [names[i] for i in (0, 1, 5000, 9998)]
    assert len(ForkingPickler.dumps(paths)) < 10_000  # of 300,000 bytes
    received = pickle.loads(ForkingPickler.dumps(paths))
    assert received[5000] == names[5000]


def test_a_test_image_is_the_middle_of_the_scaled_one(root):
    data = load(root)
    image = Image.open(root / "val" / "n02" / "1.JPEG").convert("RGB")  # 81 x 47
    scale = 37 / 47  # 32 / (224 / 256), rounded
    image = image.resize((int(37 * 81 / 47), 37), Image.Resampling.BILINEAR)
    left, top = round((image.width - 32) / 2), round((37 - 32) / 2)
    pixels = np.asarray(image.crop((left, top, left + 32, top + 32)), dtype=np.float64) / 255
    wanted = torch.tensor((pixels - MEAN) / STD).permute(2, 0, 1).float()
    shown = torch.cat([batch.images for batch in batches(data, "test")])[3 + 1]
    assert scale < 1
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-5)


def test_a_broken_file_is_an_error_that_names_it(broken):
    with pytest.raises(UserError, match=rf"{BAD} is no readable image .* --skip_corrupt"):
        batches(load(broken))


def test_a_broken_file_to_test_on_is_found_before_training(root):
    (root / "val/n02/0.JPEG").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"n02/0.JPEG is no readable .*--skip_corrupt; 1 of 9"):
        load(root)


def test_a_broken_file_is_skipped_named_once_and_counted(broken, capsys):
    data = load(broken, skip_corrupt=True)
    assert [*data.train.paths] == sorted(
        set(map(str, broken.glob("train/*/*"))) - {f"{broken}/{BAD}"}
    )
    assert data.train.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    err = capsys.readouterr().err
    assert err.count(f"skipped: {broken / BAD}") == 1
    assert err.count("1 of 13 files are no images and were skipped") == 1
    assert [len(batch.index) for batch in batches(data)] == [4, 4, 4]
    assert len(hold_out(data, 0.25, seed=0).val.labels) == 3


def test_a_set_without_enough_readable_images(root):
    for split, words in (("val", "to test on below .*val"), ("train", "of class n01 to train on")):
        for path in root.glob(f"{split}/*/*"):
            path.write_bytes(b"")
        with pytest.raises(UserError, match=f"no readable image {words}"):
            load(root, skip_corrupt=True)


def test_teacher_and_student_train(run, root, tmp_path, capsys):
    run(f"train_teacher {HOW} --epochs 1")
    path = only(tmp_path / "save/models") / "ckpt_epoch_1.pth"
    run(f"train_student {HOW} --path_t {path} --model_t ResNet18 --model_s MobileNetV1 --epochs 1")
    assert "MobileNetV1: last" in capsys.readouterr().out
    summary = json.loads((path.parent / "run.json").read_text())
    assert summary["experiment"]["code"]["decoding"] == str(DECODING_VERSION)


def test_resumed_as_if_never_stopped(run, root, tmp_path, monkeypatch):
    from runs.recorder import Run

    line = f"train_teacher {HOW} --model MobileNetV1 --epochs 2 --learning_rate 0.01"
    run(f"{line} --save_dir whole")
    finish = Run.finish_epoch

    def stop(self, *arguments):
        finish(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Run, "finish_epoch", stop)
        with pytest.raises(SystemExit):
            run(f"{line} --save_dir stopped")
    run(f"{line} --save_dir stopped --resume")
    ends = [
        json.loads(next(tmp_path.glob(f"{name}/models/*/run.json")).read_text())["last"]
        for name in ("whole", "stopped")
    ]
    for numbers in ends:
        del numbers["seconds"], numbers["images_per_s"]
    assert ends[0] == ends[1]


def test_the_recipe_of_the_field():
    options = parse.parse_student(["--dataset", "imagenet"])
    assert (options.model_t, options.model_s) == ("ResNet34", "ResNet18")
    options = parse.parse_student(
        ["--dataset", "imagenet", "--batch_size", "256", "--epochs", "10"]
    )
    assert (options.learning_rate, options.lr_decay_epochs) == (0.1, (3, 6, 9))
    assert parse.parse_teacher(["--dataset", "imagenet"]).model == "ResNet18"


def test_published_weights_are_found_or_explained(root, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    pretrained = DATASETS["imagenet"].pretrained
    with pytest.raises(UserError, match=r"weights of ResNet34 cannot be fetched \(no network\)"):
        pretrained("ResNet34")
    with pytest.raises(UserError, match="no published weights of MobileNetV1"):
        pretrained("MobileNetV1")
    path = tmp_path / "hub" / "checkpoints" / "resnet34-b627a593.pth"
    path.touch()
    assert pretrained("ResNet34") == path
