"""Which teacher is taken for the student's data."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli.networks import check_same_data


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"fingerprint": "shown so", "images_fingerprint": "others"}, False),
        ({"fingerprint": "shown otherwise", "images_fingerprint": "these"}, False),
        ({"fingerprint": "shown otherwise", "images_fingerprint": "others"}, True),
        ({"fingerprint": "of an older release"}, True),
        ({}, False),
    ],
)
def test_other_images_are_said_and_other_views_of_the_same_are_not(known, said):
    data = SimpleNamespace(name="set", image_size=8, classes=("a", "b"))
    setting = SimpleNamespace(data=data, fingerprint="shown so", images="these")
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        check_same_data(Path("t.pth"), known, setting)
    assert ["other images" in str(w.message) for w in found] == [True] * said
