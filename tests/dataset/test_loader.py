"""The loader against torchvision's pipeline, and its randomness against itself."""

from dataclasses import replace

import pytest
import torch
from PIL import Image

from dataset.augment import (
    AUGMENTATION_VERSION,
    STRONG,
    Views,
    balanced_order,
    choose_views,
    crop_and_flip,
    draw,
    hash_32,
    new_canvas,
    normalise,
    permutation,
    scale_and_shift,
)
from dataset.autoaugment import auto_augment
from dataset.base import DataSet, Split
from dataset.loader import CHUNK_BYTES, Loader, Loading, group_sizes, rank_shares
from dataset.randaugment import rand_augment
from helper.errors import UserError
from helper.vision import torchvision

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def make(n=300, size=8, tall=None, padding=2, flip=True, test=50, classes=5):
    """Random images; every pixel differs from its neighbours."""
    generator = torch.Generator().manual_seed(n)

    def split(count):
        shape = (count, 3, tall or size, size)
        images = torch.randint(1, 256, shape, dtype=torch.uint8, generator=generator)
        return Split(images, torch.randint(classes, (count,), generator=generator))

    names = tuple(map(str, range(classes)))
    return DataSet("random", split(n), split(test), names, MEAN, STD, padding, flip)


def epoch_of(loader, epoch=0):
    """All batches of an epoch as one: images (N, 3, H, W), labels (N,), index (N,)."""
    return tuple(torch.cat(parts) for parts in zip(*loader.batches(epoch)))


def torchvision_image(pixels, top, left, mirror, padding):
    """The same choice through PIL and torchvision: (3, H, W) uint8 -> (3, H, W) float32."""
    functional = torchvision.transforms.functional
    image = functional.pad(Image.fromarray(pixels.permute(1, 2, 0).numpy()), padding)
    image = functional.crop(image, top, left, *pixels.shape[1:])
    image = functional.hflip(image) if mirror else image
    return functional.normalize(functional.to_tensor(image), MEAN, STD)


@pytest.mark.parametrize(("size", "tall", "padding"), [(32, 32, 4), (7, 5, 3), (8, 8, 0)])
def test_train_images_equal_torchvision_pipeline(size, tall, padding):
    data = make(120, size, tall, padding)
    images, labels, index = epoch_of(Loader(data, "train", 32, Loading(3)), epoch=2)
    views = choose_views(3, 2, index, padding, flip=True)
    assert set(views.flip.tolist()) == {0, 1}
    assert torch.equal(labels, data.train.labels[index])
    for image, i, *view in zip(images, index, *(v.tolist() for v in views)):
        expected = torchvision_image(data.train.images[i], *view, padding)
        torch.testing.assert_close(image, expected, atol=1e-6, rtol=0)


def test_every_offset_and_mirror_image():
    pixels = make(1, size=6, padding=2).train.images
    grid = torch.cartesian_prod(torch.arange(5), torch.arange(5), torch.arange(2))
    canvas = new_canvas(pixels, 60, 2)  # larger than needed
    crops = crop_and_flip(pixels.expand(50, 3, 6, 6), Views(*grid.T), canvas)
    padded = torch.nn.functional.pad(pixels[0], (2, 2, 2, 2))
    for (top, left, mirror), got in zip(grid.tolist(), crops):
        expected = padded[:, top : top + 6, left : left + 6]
        assert torch.equal(got, expected.flip(2) if mirror else expected)


def test_a_canvas_is_as_good_as_new_after_use():
    data = make(40)
    views = choose_views(0, 0, torch.arange(40), 2, flip=True)
    used = new_canvas(data.train.images, 40, 2)
    first = crop_and_flip(data.train.images, views, used)
    crop_and_flip(255 - data.train.images, views, used)
    assert torch.equal(crop_and_flip(data.train.images, views, used), first)


def test_test_split_is_in_order_and_untouched():
    data = make(test=70)
    images, labels, index = epoch_of(Loader(data, "test", 32, Loading()), epoch=5)
    assert torch.equal(index, torch.arange(70))
    assert torch.equal(labels, data.test.labels)
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    expected = (data.test.images.float() / 255 - mean) / std
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


def test_last_batch_is_kept_and_every_sample_comes_once():
    loader = Loader(make(300), "train", 64, Loading())
    batches = list(loader.batches(0))
    assert [len(batch.labels) for batch in batches] == [64, 64, 64, 64, 44]
    assert len(loader) == 5
    index = torch.cat([batch.index for batch in batches])
    assert torch.equal(index.sort().values, torch.arange(300))


@pytest.mark.parametrize("batch_size", [1, 64, 300, 1000])
def test_chunks_do_not_show(batch_size, monkeypatch):
    """How many images are augmented at once changes nothing."""
    data = make(300)
    assert CHUNK_BYTES > 300 * 3 * 8 * 8
    whole = epoch_of(Loader(data, "train", batch_size, Loading(1)), 4)
    monkeypatch.setattr("dataset.loader.CHUNK_BYTES", 20 * 3 * 8 * 8)
    assert all(map(torch.equal, epoch_of(Loader(data, "train", batch_size, Loading(1)), 4), whole))


def test_a_resumed_run_sees_the_same_pixels_and_global_rng_stays():
    data = make()
    loader = Loader(data, "train", 64, Loading(5))
    state = torch.get_rng_state()
    seen = [epoch_of(loader, epoch) for epoch in range(4)]
    resumed = epoch_of(Loader(data, "train", 64, Loading(5)), 3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, resumed, seen[3]))
    assert not torch.equal(seen[2][2], seen[3][2])


@pytest.mark.parametrize("ranks", [2, 3, 7])
@pytest.mark.parametrize("split", ["train", "test"])
def test_ranks_together_see_the_batches_of_one(ranks, split):
    data = make(301, test=100)
    alone = list(Loader(data, split, 40, Loading(1)).batches(2))
    loaders = [Loader(data, split, 40, Loading(1, "cpu", rank, ranks)) for rank in range(ranks)]
    assert {len(loader) for loader in loaders} == {len(alone)}
    for whole, *parts in zip(alone, *(loader.batches(2) for loader in loaders)):
        sizes = [len(part.images) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) > 0
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        for part in parts:  # every rank knows whose the others' are
            assert torch.equal(part.labels, whole.labels)
            assert torch.equal(part.index, whole.index)


def uneven(sizes=(3, 40, 0, 158)):
    """Classes of these sizes, in random order."""
    data = make(sum(sizes), classes=len(sizes))
    labels = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    labels = labels[permutation(9, 9, len(labels))]
    return replace(data, train=Split(data.train.images, labels))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_balanced_epoch_draws_each_class_alike(ranks):
    data = uneven()
    hows = [Loading(1, "cpu", rank, ranks, balanced=True) for rank in range(ranks)]
    parts = [list(Loader(data, "train", 67, how).batches(2)) for how in hows]
    labels, index = (torch.cat([batch[i] for batch in parts[0]]) for i in (1, 2))
    assert all(torch.equal(a.index, b.index) for some in parts for a, b in zip(some, parts[0]))
    assert torch.equal(labels, data.train.labels[index])
    assert sorted(labels.bincount(minlength=4).tolist()) == [0, 67, 67, 67]
    drawn = index.bincount(minlength=201)  # of each sample
    assert [sorted(set(drawn[data.train.labels == k].tolist())) for k in (0, 1, 3)] == [
        [22, 23], [1, 2], [0, 1]
    ]  # fmt: skip
    assert labels[:100].bincount().max() < 50  # no class comes first
    images = torch.cat([torch.cat([part.images for part in step]) for step in zip(*parts)])
    views = choose_views(1, 2, index, 2, True)
    pixels = data.train.images[index]
    shown = crop_and_flip(pixels, views, new_canvas(pixels, 201, 2))
    assert torch.equal(images, normalise(shown, *scale_and_shift(data.mean, data.std, "cpu")))


def test_a_balanced_epoch_follows_from_seed_and_epoch():
    labels = uneven((3, 40, 0, 159)).train.labels
    first = balanced_order(1, 2, labels)
    assert torch.equal(balanced_order(1, 2, labels), first)
    assert labels[first].bincount().sort().values.tolist() == [0, 67, 67, 68]
    for other in (balanced_order(2, 2, labels), balanced_order(1, 3, labels)):
        assert not torch.equal(other, first)
        assert set(other[labels[other] == 3].tolist()) != set(first[labels[first] == 3].tolist())
    one_more = {balanced_order(1, e, labels).tolist().count(0) for e in range(20)}
    assert len(one_more) > 1  # the same class is not always the one that comes once more


@pytest.mark.parametrize("ranks", [1, 3])
def test_auto_augment_comes_behind_crop_and_flip(ranks):
    data = make(301)
    plain = epoch_of(Loader(data, "train", 40, Loading(1)), 2)
    loaders = [
        Loader(data, "train", 40, Loading(1, "cpu", rank, ranks, aug=True)) for rank in range(ranks)
    ]
    parts = zip(*(loader.batches(2) for loader in loaders))
    shown = torch.cat([part.images for batch in parts for part in batch])
    scale, shift = scale_and_shift(data.mean, data.std, "cpu")
    pixels = ((plain[0] - shift) / scale).round().to(torch.uint8)
    wanted = normalise(auto_augment(pixels, 1, 2, plain[2]), scale, shift)
    torch.testing.assert_close(shown, wanted, rtol=0, atol=1e-4)
    assert not torch.equal(shown, plain[0])
    tests = [epoch_of(Loader(data, "test", 40, Loading(1, aug=aug)), 2)[0] for aug in (True, False)]
    assert torch.equal(*tests)


@pytest.mark.parametrize("aug", [False, True])
@pytest.mark.parametrize("ranks", [1, 3])
def test_a_strong_view_is_another_crop_and_flip_with_randaugment_behind(ranks, aug):
    data = make(301)
    plain = epoch_of(Loader(data, "train", 40, Loading(1, aug=aug)), 2)
    hows = [Loading(1, "cpu", rank, ranks, aug=aug, strong=True) for rank in range(ranks)]
    loaders = [Loader(data, "train", 40, how) for how in hows]
    for _ in range(2):  # an epoch is what it is, whatever came before
        parts = zip(*(loader.batches(2) for loader in loaders))
        weak, strong = torch.cat([part.images for batch in parts for part in batch], dim=1)
    assert torch.equal(weak, plain[0])
    views = choose_views(1, 2, plain[2], 2, True, STRONG)
    assert not torch.equal(views.top, choose_views(1, 2, plain[2], 2, True).top)
    images = data.train.images[plain[2]]
    pixels = crop_and_flip(images, views, new_canvas(images, 301, 2))
    pixels = auto_augment(pixels, 1, 2, plain[2], STRONG) if aug else pixels
    scale, shift = scale_and_shift(data.mean, data.std, "cpu")
    assert torch.equal(strong, normalise(rand_augment(pixels, 1, 2, plain[2]), scale, shift))
    (batch, *_) = loaders[0].batches(2)
    assert [x.shape for x in batch.views] == [batch.images.shape[1:]] * 2
    test = Loader(data, "test", 40, Loading(1, strong=True))
    assert torch.equal(epoch_of(test)[0], epoch_of(Loader(data, "test", 40, Loading(1)))[0])
    assert len(next(test.batches()).views) == 1


def test_a_training_batch_too_small_for_the_ranks():
    with pytest.raises(UserError, match="last batch of 1 of the 301 training images"):
        Loader(make(301), "train", 100, Loading(rank=0, ranks=2))
    with pytest.raises(UserError, match="too few for 4 processes"):
        Loader(make(300), "train", 3, Loading(rank=0, ranks=4))
    empty = Loader(make(test=101), "test", 100, Loading(rank=0, ranks=2))
    assert [len(batch.images) for batch in empty.batches()] == [50, 0]  # a test batch may be


def test_rand_augment_of_the_weak_view_is_drawn_apart_from_the_strong_ones():
    data = make(40)
    plain = epoch_of(Loader(data, "train", 40, Loading(1, strong=True)), 2)[0]
    both = epoch_of(Loader(data, "train", 40, Loading(1, randaugment=True, strong=True)), 2)[0]
    alone = epoch_of(Loader(data, "train", 40, Loading(1, randaugment=True)), 2)[0]
    assert torch.equal(plain[1], both[1])
    assert torch.equal(alone, both[0])
    assert not torch.equal(plain[0], both[0])
    test = [Loader(data, "test", 40, Loading(1, randaugment=on)) for on in (False, True)]
    assert torch.equal(*(epoch_of(loader)[0] for loader in test))


def test_no_flip_and_no_padding_show_the_image_itself():
    data = make(flip=False, padding=0)
    images, _, index = epoch_of(Loader(data, "train", 64, Loading()))
    mean, std = (torch.tensor(x)[:, None, None] for x in (MEAN, STD))
    expected = (data.train.images[index].float() / 255 - mean) / std
    torch.testing.assert_close(images, expected, atol=1e-6, rtol=0)


def chi_square(values, bins):
    expected = len(values) / bins
    return float(((torch.bincount(values, minlength=bins) - expected) ** 2).sum() / expected)


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (0, 1), (1, 0), (-3, 239), (2**40, 7)])
def test_offsets_and_flips_are_uniform_and_independent(seed, epoch):
    views = choose_views(seed, epoch, torch.arange(50_000), padding=4, flip=True)
    assert int(views.top.min()) == int(views.left.min()) == 0
    assert int(views.top.max()) == int(views.left.max()) == 8
    together = (views.top * 9 + views.left) * 2 + views.flip
    # 161 degrees of freedom: mean 161, standard deviation 18; 6 deviations either way
    assert 53 < chi_square(together, 162) < 269
    assert abs(float(views.flip.double().mean()) - 0.5) < 0.012  # 5 deviations


@pytest.mark.parametrize("lag", [1, 2, 3, 64, 1024])
def test_neighbouring_samples_are_uncorrelated(lag):
    views = choose_views(0, 0, torch.arange(50_000), padding=4, flip=True)
    for choice in views:
        pair = torch.stack([choice[:-lag], choice[lag:]]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.023  # 5 deviations
    pairs = views.top[:-lag] * 9 + views.top[lag:]
    assert chi_square(pairs[:: 2 * lag], 81) < 80 + 6 * 12.7


@pytest.mark.parametrize("other", [(1, 0), (0, 1), (-1, 0), (1 << 32, 0), (7, 9)])
def test_other_seeds_and_epochs_are_unrelated(other):
    index = torch.arange(50_000)
    for purpose in range(4):
        pair = torch.stack([draw(0, 0, purpose, index), draw(*other, purpose, index)]).double()
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.023
    same = (permutation(0, 0, 50_000) == permutation(*other, 50_000)).sum()
    assert same < 10  # one is expected


def test_order_is_a_permutation_without_trend():
    places = permutation(0, 0, 50_000)
    assert torch.equal(places.sort().values, torch.arange(50_000))
    pair = torch.stack([places, torch.arange(50_000)]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.023
    pair = torch.stack([places[:-1], places[1:]]).double()
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.023


def test_the_hash_is_murmur3_and_the_same_for_ints_and_tensors():
    """Known answers; int64 products wrap, and their low 32 bits have to be exact."""
    known = {0: 0, 1: 0x514E28B7, 2: 0x30F4C306, 0xFFFFFFFF: 0x81F16F39}
    assert {x: hash_32(x) for x in known} == known
    numbers = torch.tensor([0, 1, 2**31, 2**32 - 1, 123_456_789])
    assert hash_32(numbers).tolist() == [hash_32(x) for x in numbers.tolist()]


def test_the_choices_of_this_version_are_kept():
    """A checkpoint resumed later has to go on with the same pixels; others need a new version."""
    assert AUGMENTATION_VERSION == 1
    assert permutation(1, 2, 10).tolist() == [3, 6, 1, 7, 9, 4, 5, 0, 8, 2]
    top, left, mirror = choose_views(1, 2, torch.arange(6), padding=4, flip=True)
    assert top.tolist() == [0, 2, 4, 3, 0, 8]
    assert left.tolist() == [2, 5, 2, 4, 2, 6]
    assert mirror.tolist() == [1, 1, 0, 1, 0, 1]


def test_shares_differ_by_at_most_one_and_touch():
    for n, batch_size, ranks in [(10, 4, 3), (7, 7, 4), (5, 8, 2)]:
        bounds = [rank_shares(n, batch_size, rank, ranks) for rank in range(ranks)]
        for parts in zip(*bounds):
            sizes = [hi - lo for lo, hi in parts]
            assert max(sizes) - min(sizes) <= 1
            assert all(before[1] == after[0] for before, after in zip(parts, parts[1:]))
        assert bounds[-1][-1][1] == n


def test_chunks_group_sizes():
    assert list(group_sizes([4, 4, 4, 2], 8)) == [[4, 4], [4, 2]]
    assert list(group_sizes([9, 1], 8)) == [[9], [1]]


def test_what_breaks_the_contract_is_named():
    good = make()
    floats = Split(good.train.images.float(), good.train.labels)
    grey = Split(good.train.images[:, :1], good.train.labels)
    short = Split(good.train.images, good.train.labels[:-1])
    none = Split(good.train.images[:0], good.train.labels[:0])
    outside = Split(good.train.images, good.train.labels + 1)
    for bad, words in [
        (floats, r"train split of data set 'random': images are \(300, 3, 8, 8\) torch.float32"),
        (grey, r"images are \(300, 1, 8, 8\)"),
        (short, r"labels are \(299,\) torch.int64, not \(300,\)"),
        (none, "at least one sample"),
        (outside, r"outside 0\.\.4"),
    ]:
        data = DataSet("random", bad, good.test, good.classes, MEAN, STD)
        with pytest.raises(ValueError, match=words):
            Loader(data, "train", 8, Loading())
    with pytest.raises(ValueError, match="there are 'train' and 'test'"):
        Loader(good, "val", 8, Loading())
    for size, how in [(0, Loading()), (8, Loading(rank=2, ranks=2)), (8, Loading(rank=-1))]:
        with pytest.raises(ValueError, match="at least one image"):
            Loader(good, "train", size, how)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_sees_the_same_images():
    data = make()
    cpu, gpu = (
        epoch_of(Loader(data, "train", 64, Loading(device=device)), 1) for device in ("cpu", "cuda")
    )
    assert torch.equal(cpu[2], gpu[2].cpu())
    torch.testing.assert_close(cpu[0], gpu[0].cpu(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_split_that_does_not_fit_on_the_device_stays_in_host_memory(ranks, monkeypatch, capsys):
    data = make(300)

    def batches():
        each = [Loading(seed=1, rank=rank, ranks=ranks, aug=True) for rank in range(ranks)]
        loaders = [Loader(data, "train", 64, how) for how in each]
        return [batch for loader in loaders for batch in loader.batches(2)]

    inside = batches()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("dataset.loader.free_bytes", lambda _: 99_000)
    for batch, expected in zip(batches(), inside, strict=True):
        assert all(map(torch.equal, batch, expected))
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line == "train split of random: 0.1 MB of images stay in host memory, cpu has 0.1 MB free"
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_cuda_sees_the_same_images_from_host_memory(monkeypatch):
    data = make()
    inside = epoch_of(Loader(data, "train", 64, Loading(device="cuda")), 1)
    monkeypatch.setattr("dataset.loader.free_bytes", lambda _: 0)
    loader = Loader(data, "train", 64, Loading(device="cuda"))
    assert loader.images.device.type == "cpu"
    assert all(map(torch.equal, epoch_of(loader, 1), inside))
