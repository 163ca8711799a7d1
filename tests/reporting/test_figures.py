"""reporting/figures.py: what of a picture would be cut or lie over something else."""

from matplotlib.text import Text

from reporting import figures


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
