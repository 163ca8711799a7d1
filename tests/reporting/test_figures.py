"""reporting/figures.py: what of a picture would be cut or lie over something else."""

import warnings

import numpy as np
import pytest
from matplotlib.patches import Rectangle
from matplotlib.text import Text

from reporting import figures
from reporting.measure import Looks
from reporting.statistics import Difference
from reporting.table import Cell, Column, Table


def gains(differences, heads):
    """The picture of gains of one method in columns of these differences."""
    columns = [Column("fake", "f", "a", "b" * 64, str(i), ()) for i in range(len(differences))]
    cells = {
        ("dkd", column): Cell("dkd", column, (), over_baseline=difference)
        for column, difference in zip(columns, differences, strict=True)
    }
    with figures.style():
        return figures.gains(Table(["dkd"], columns, cells, "kd"), "over_baseline", heads)


@pytest.mark.parametrize("count", [2, 20])
def test_long_heads_of_gains_are_whole(count):
    heads = [f"resnet32x4 → resnet8 ({i} epochs, resized crops, weight decay 0.0001)"
             for i in range(count)]  # fmt: skip
    figure = gains([Difference(1.0, 0.5, 3)] * count, heads)
    with warnings.catch_warnings(), figures.style():
        warnings.simplefilter("error")  # of a layout that does not fit
        figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(boxes) == count
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(box.y0 >= 0 and box.y1 <= figure.bbox.y1 for box in boxes)


def test_gains_have_no_column_without_any_and_no_colour_for_one_trial():
    figure = gains([None, Difference(-8.0, None, 1), Difference(1.0, 0.5, 3)], ["x", "y", "z"])
    axis = figure.axes[0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["y", "z"]
    assert np.isnan(np.ma.filled(axis.images[0].get_array(), np.nan)[0]).tolist() == [True, False]
    assert [patch.get_x() for patch in axis.patches if isinstance(patch, Rectangle)] == [-0.5]


def test_each_network_has_its_own_scale_in_tsne():
    points = {"points": np.array([[1.0, 1.0], [-1.0, 0.5]]), "labels": np.array([0, 1])}
    near, far = (Looks({}, points={**points, "points": n * points["points"]}) for n in (1, 1000))
    figure = figures.embeddings({"kd": near, "teacher": far})
    assert [axis.get_xlim()[1] for axis in figure.axes] == pytest.approx([1.05, 1050])


@pytest.mark.parametrize(("classes", "named"), [(["cat", "dog"], True), (["c"] * 40, False)])
def test_few_classes_are_named_beside_their_correlation(classes, named):
    look = Looks({"correlation": np.eye(len(classes))})
    axis = figures.correlations({"kd": look}, look, classes).axes[0]
    assert [label.get_text() for label in axis.get_yticklabels()] == classes * named


def test_long_titles_of_panels_do_not_overlap():
    panels = {f"kd --kd_T 8 --logit_stand -a {i}": lambda axis: None for i in range(6)}
    with figures.style():
        figure = figures.small_multiples(panels)
        figure.draw_without_rendering()
    titles = [
        title for axis in figure.axes for title in axis.findobj(Text) if "kd" in title.get_text()
    ]
    boxes = [title.get_window_extent() for title in titles]
    assert len(boxes) == 6
    assert all(left.x1 < right.x0 for left, right in zip(boxes, boxes[1:]))


def test_panels_with_nothing_below_have_their_numbers_though_axes_are_shared():
    panels = dict.fromkeys("abcde", lambda axis: axis.plot((0, 1), (0, 1)))
    figure = figures.small_multiples(panels, most=3, sharex=True)
    figure.draw_without_rendering()
    ticks = [axis.xaxis.get_major_ticks() for axis in figure.axes[: len(panels)]]
    below = [any(tick.label1.get_visible() for tick in each) for each in ticks]
    assert below == [False, False, True, True, True]
