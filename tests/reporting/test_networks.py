"""reporting/networks.py: pairs of classes that are confused, worst images in words."""

import base64
import io

import numpy as np
from PIL import Image

from reporting.measure import Looks
from reporting.networks import most_confused, worst_images


def confused(*rows):
    return Looks({"confusion": np.array(rows)})


def test_the_pairs_that_students_confuse_most_are_named_with_the_share_of_each_network():
    looks = {
        "teacher": [confused([4, 0, 6], [0, 9, 1], [0, 0, 5])],
        "kd": [
            confused([9, 1, 0], [4, 6, 0], [0, 0, 5]),
            confused([9, 1, 0], [2, 8, 0], [0, 0, 5]),
        ],
        "dkd": [confused([10, 0, 0], [0, 10, 0], [1, 0, 4])],
    }
    found = most_confused(looks, "abc", ["kd", "dkd"])
    assert [(pair.label, pair.answer, pair.shares) for pair in found] == [
        ("b", "a", [0, 30, 0]), ("c", "a", [0, 0, 20]), ("a", "b", [0, 10, 0]),
    ]  # fmt: skip


def test_a_worst_image_is_in_the_page_with_its_classes():
    pixels = np.arange(2 * 8 * 8 * 3, dtype=np.uint8).reshape(2, 8, 8, 3)
    worst = {
        "pixels": pixels,
        "labels": np.array([0, 1]),
        "answers": np.array([[1, 0], [2, 1]]),
        "shares": np.array([[0.75, 0.5], [1.0, 0.25]]),
    }
    first, second = worst_images(worst, ["cat", "dog", "owl"])
    assert (first.label, first.answers) == ("cat", [("dog", 0.75), ("cat", 0.5)])
    assert (second.label, second.answers) == ("dog", [("owl", 1.0), ("dog", 0.25)])
    file = io.BytesIO(base64.b64decode(first.address.removeprefix("data:image/png;base64,")))
    assert np.array_equal(np.array(Image.open(file)), pixels[0])
