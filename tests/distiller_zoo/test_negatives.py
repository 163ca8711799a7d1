import warnings

import pytest
import torch

from crd.memory import Negatives

LABELS = torch.tensor([2, 0, 0, 2, 4, 2, 0, 4, 2, 2])  # of 10 samples; 1 and 3 have none


def test_all_samples_of_other_classes_are_drawn_alike():
    torch.manual_seed(0)
    of = torch.tensor([0, 2, 4])
    index = Negatives(LABELS, 3)(of, torch.zeros(3, dtype=torch.long))
    assert index.shape == (3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        index = Negatives(LABELS, 40000)(of, torch.zeros(3, dtype=torch.long))
    for row, label in zip(index[:, 1:], of, strict=True):
        share = row.bincount(minlength=len(LABELS)) / len(row)
        others = label != LABELS
        torch.testing.assert_close(share, others / others.sum(), atol=0.01, rtol=0)


def test_a_positive_is_of_the_class_and_may_be_any_of_it():
    torch.manual_seed(0)
    negatives = Negatives(LABELS, 2)
    for label in (0, 2, 4):
        drawn = negatives.same_class(torch.full((500,), label)).unique()
        assert drawn.tolist() == (label == LABELS).nonzero().flatten().tolist()


def test_the_positive_comes_first_and_a_seed_repeats_the_draw():
    negatives, positive = Negatives(LABELS, 5), torch.arange(10)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(negatives(LABELS, positive))
    assert torch.equal(draws[0][:, 0], positive)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_draws_come_from_a_generator_where_one_is_given():
    negatives = Negatives(LABELS, 5, torch.Generator().manual_seed(1))
    torch.manual_seed(1)
    positive = Negatives(LABELS, 5).same_class(LABELS)
    wanted = Negatives(LABELS, 5)(LABELS, positive)
    before = torch.get_rng_state()
    assert torch.equal(negatives.same_class(LABELS), positive)
    assert torch.equal(negatives(LABELS, positive), wanted)
    assert torch.equal(torch.get_rng_state(), before)


def test_more_negatives_than_there_are_is_said():
    with pytest.warns(UserWarning, match="--nce_k 6 is more than the 5 samples of other classes"):
        negatives = Negatives(LABELS, 6)
    assert negatives(LABELS, torch.arange(10)).shape == (10, 7)


def test_one_class_alone_has_no_negatives():
    with pytest.raises(ValueError, match="all 4 samples are of class 3.*at least two"):
        Negatives(torch.full((4,), 3), 2)
