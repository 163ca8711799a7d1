"""Random resized crops of images in memory, against torchvision's."""

from dataclasses import replace

import pytest
import torch

from dataset.augment import STRONG, normalise, scale_and_shift
from dataset.base import DataSet, Split
from dataset.loader import Loader, Loading
from dataset.resized import Boxes, choose_boxes, crop_resize_and_flip
from helper.vision import torchvision

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make(n=60, size=(16, 16)):
    images = torch.randint(256, (n, 3, *size), dtype=torch.uint8)
    split = Split(images, torch.arange(n) % 3)
    return DataSet("random", split, split, ("a", "b", "c"), MEAN, STD, 2, resized=True)


def epoch_of(data, epoch=2, **how):
    loader = Loader(data, "train", 16, Loading(1, **how))
    return tuple(torch.cat(parts) for parts in zip(*loader.batches(epoch)))


@pytest.mark.parametrize("size", [(16, 16), (9, 14)])
def test_pixels_are_torchvisions(size):
    images = make(60, size).train.images
    boxes = choose_boxes(3, 2, torch.arange(60), size, flip=True)
    assert set(boxes.flip.tolist()) == {0, 1}
    shown = crop_resize_and_flip(images, boxes)
    resized_crop = torchvision.transforms.functional.resized_crop
    for image, got, *box, flip in zip(images, shown, *(x.tolist() for x in boxes)):
        wanted = resized_crop(image, *box, list(size), antialias=False)
        wanted = wanted.flip(2) if flip else wanted
        assert (wanted.int() - got.int()).abs().max() <= 1  # rounding
        assert (wanted != got).double().mean() < 0.02


def test_the_whole_image_and_one_pixel():
    images = make(2).train.images
    whole, corner = torch.tensor([0, 0]), torch.tensor([15, 15])
    same = Boxes(whole, whole, corner + 1, corner + 1, whole)
    assert torch.equal(crop_resize_and_flip(images, same), images)
    pixel = Boxes(corner, whole, whole + 1, whole + 1, whole)
    wanted = images[:, :, 15:, :1].expand(-1, -1, 16, 16)
    assert torch.equal(crop_resize_and_flip(images, pixel), wanted)


def test_boxes_are_distributed_as_torchvisions():
    n, size = 20_000, (32, 48)
    own = choose_boxes(0, 0, torch.arange(n), size, flip=True)
    torch.manual_seed(0)
    crop, image = torchvision.transforms.RandomResizedCrop, torch.zeros(3, *size)
    theirs = torch.tensor([crop.get_params(image, (0.08, 1), (3 / 4, 4 / 3)) for _ in range(4000)])
    for found, wanted in zip(own, theirs.double().T):
        found = found.double()
        assert found.mean().item() == pytest.approx(wanted.mean().item(), abs=0.6)
        assert found.std().item() == pytest.approx(wanted.std().item(), abs=0.5)
        shares = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        assert (found.quantile(shares) - wanted.quantile(shares)).abs().max() <= 1
    assert own.flip.double().mean().item() == pytest.approx(0.5, abs=0.02)
    assert not choose_boxes(0, 0, torch.arange(n), size, flip=False).flip.any()


def test_an_image_that_no_part_fits_is_shown_whole():
    boxes = choose_boxes(0, 0, torch.arange(50), (2, 64), flip=False)
    assert ((boxes.height <= 2) & (boxes.width <= 64)).all()
    whole = (boxes.height == 2) & (boxes.width == 64)
    assert whole.any()
    assert torch.equal(boxes.left[whole], torch.zeros_like(boxes.left[whole]))


@pytest.mark.parametrize("ranks", [1, 3])
def test_what_is_shown_follows_from_seed_epoch_and_sample(ranks, monkeypatch):
    data = make()
    images, labels, index = epoch_of(data)
    boxes = choose_boxes(1, 2, index, (16, 16), flip=True)
    shown = crop_resize_and_flip(data.train.images[index], boxes)
    assert torch.equal(images, normalise(shown, *scale_and_shift(MEAN, STD, "cpu")))
    monkeypatch.setattr("dataset.loader.CHUNK_BYTES", 5 * 3 * 16 * 16)
    hows = [Loading(1, "cpu", rank, ranks) for rank in range(ranks)]
    steps = zip(*(Loader(data, "train", 16, how).batches(2) for how in hows))
    again = torch.cat([part.images for step in steps for part in step])
    assert torch.equal(again, images)
    assert not torch.equal(epoch_of(data, epoch=3)[0], images)


def test_a_strong_view_is_another_part():
    data = replace(make(), flip=False)
    batches = list(Loader(data, "train", 16, Loading(1, strong=True)).batches(2))
    weak, strong = torch.cat([batch.images for batch in batches], dim=1)
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(weak, epoch_of(data)[0])
    own, other = (choose_boxes(1, 2, index, (16, 16), False, salt) for salt in (0, STRONG))
    assert not torch.equal(own.top, other.top)
    assert not torch.equal(weak, strong)


def test_test_images_are_as_they_are():
    data = make()
    shown = [
        torch.cat([batch.images for batch in Loader(some, "test", 16, Loading()).batches()])
        for some in (data, replace(data, resized=False))
    ]
    assert torch.equal(*shown)
