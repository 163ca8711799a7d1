"""What a run logs, and what a resumed one makes of it."""

import json
import shutil

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from runs.logs import Logger, console_line, read_lines


def epoch(number):
    return {"epoch": number, "test_acc": 50.0 + number}


def log(folder, epochs, steps=10):
    """Log epochs of 10 steps, of which the last is cut off after `steps`; as a run does."""
    history = [epoch(number) for number in range(1, epochs[0])]
    logger = Logger(folder, history, tb_freq=2)
    for number in epochs:
        for step in range(1, (steps if number == epochs[-1] else 10) + 1):
            logger.step(10 * (number - 1) + step, {"loss": 1 / number})
        if step == 10:
            logger.epoch(number, {"test_acc": 50.0 + number})
    return logger


def curve(folder, tag):
    points = EventAccumulator(str(folder)).Reload().Scalars(tag)
    return {point.step: point.value for point in points}


def test_a_resumed_run_keeps_its_curves(tmp_path):
    """Killed in epoch 4, and resumed after 2: what is beyond is dropped, in both."""
    log(tmp_path, [1, 2, 3, 4], steps=6)
    log(tmp_path, [3, 4])
    assert curve(tmp_path / "tensorboard", "test_acc") == {1: 51, 2: 52, 3: 53, 4: 54}
    steps = curve(tmp_path / "tensorboard" / "steps", "step/loss")
    assert list(steps) == list(range(2, 41, 2))
    assert steps[10] == 1
    assert steps[20] == 0.5
    assert read_lines(tmp_path / "metrics.jsonl") == [epoch(number) for number in (1, 2, 3, 4)]


def test_a_run_goes_on_without_curves(tmp_path):
    (tmp_path / "tensorboard").write_text("no folder")
    with pytest.warns(UserWarning, match="no curves for TensorBoard in .*the run goes on") as said:
        log(tmp_path, [1, 2])
    assert len(said) == 2, "one of the epochs, one of the steps"
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2


def test_a_run_goes_on_where_curves_are_taken_away(tmp_path, recwarn):
    logger = log(tmp_path, [1])
    shutil.rmtree(tmp_path / "tensorboard")
    logger.step(12, {"loss": 1.0})
    logger.epoch(2, {"test_acc": 52.0})
    logger.close()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 2
    assert not recwarn.list


def test_a_full_disk_ends_the_curves_alone(tmp_path, monkeypatch):
    logger = log(tmp_path, [1])

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logger.epochs, "_write", full)
    with pytest.warns(UserWarning, match=r"\(No space left on device\): the run goes on"):
        logger.epoch(2, {"test_acc": 52.0})
    logger.epoch(3, {"test_acc": 53.0})
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 3


def test_lines_end_at_newlines_and_at_the_first_that_is_not_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    texts = [json.dumps(epoch(number)) for number in (1, 2, 3)]
    odd = '{"epoch": 2, "test_acc": 52.0, "a\u2028b\x85c": 1}'
    for lines, count in [
        (texts, 3),
        ([texts[0], odd, texts[2]], 3),
        ([texts[0], texts[0], texts[1]], 1),
        (texts[1:], 0),
        ([texts[0], "[" * 100_000], 1),
        ([texts[0], '{"epoch": 2}'], 1),
        ([texts[0], '{"epoch": 2, "test_acc": NaN}'], 1),
    ]:
        path.write_text("\n".join(lines), encoding="utf-8")
        assert len(read_lines(path)) == count
    path.write_bytes(texts[0].encode() + b"\n\xff\n")
    assert len(read_lines(path)) == 1


def test_balanced_accuracy_is_printed_where_it_differs():
    numbers = {"lr": 0.1, "train_loss": 1.0, "train_acc": 50.0, "test_acc": 90.0}
    numbers |= {"test_acc_top5": 99.0, "seconds": 1.0, "images_per_s": 5.0}
    assert "(top-5 99.00)" in console_line(1, 2, numbers)  # of an older release
    assert "(top-5 99.00)" in console_line(1, 2, {**numbers, "test_acc_balanced": 90.0})
    assert "(balanced 61.20, top-5" in console_line(1, 2, {**numbers, "test_acc_balanced": 61.2})
