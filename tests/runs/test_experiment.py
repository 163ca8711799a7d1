"""Two experiments are equal exactly if they give the same numbers."""

import dataclasses
import json
import pickle
import re

import pytest

from cli.flags import (
    BankOptions,
    EvalOptions,
    StartOptions,
    StudentOptions,
    TeacherOptions,
    TransferOptions,
)
from cli.parse import COMMON
from dataset import DATASETS
from distiller_zoo import METHODS, VIEWS
from helper.errors import UserError
from helper.options import GENERAL
from runs.experiment import LONGEST_NAME, NO_NUMBER, ROUNDING, Experiment, identity_of

ONE = Experiment(
    "student",
    (("kd_T", 4.0), ("sdd", (1, 2)), ("seed", 1)),
    data="abc",
    source="def",
    title="S_a_T_b_set_kd",
    unusual=("kd_T",),
    trial=3,
)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "teacher"}, "a student there and a teacher here"),
        (
            {"options": (("kd_T", 20.0), ("sdd", (1, 2)), ("seed", 1))},
            "kd_T is 4 there and 20 here",
        ),
        ({"options": (("kd_T", 4.0), ("seed", 1))}, "sdd is .1, 2. there and not in force here"),
        ({"data": "xyz"}, "the images or labels of the data set are others"),
        ({"source": "xyz"}, "the teacher is another file"),
        ({"code": (("augmentation", "2"),)}, "the code of augmentation has changed"),
    ],
)
def test_whatever_changes_a_number_changes_the_digest(change, says):
    other = dataclasses.replace(ONE, **change)
    assert other != ONE
    assert other.digest != ONE.digest
    (difference,) = other.differences(ONE)
    assert re.search(says, difference)


def test_labels_are_no_part_of_the_identity():
    other = dataclasses.replace(ONE, title="renamed", unusual=(), trial=9)
    assert other == ONE
    assert other.digest == ONE.digest
    assert other.differences(ONE) == []


def test_a_row_is_the_experiment_without_its_seed():
    other = dataclasses.replace(ONE, options=(("kd_T", 4.0), ("sdd", (1, 2)), ("seed", 2)))
    assert other.digest != ONE.digest
    assert other.row == ONE.row
    assert dataclasses.replace(ONE, source="xyz").row != ONE.row


def test_it_survives_a_pickle_and_a_file():
    assert pickle.loads(pickle.dumps(ONE)) == ONE
    back = Experiment.from_dict(json.loads(json.dumps(ONE.to_dict())))
    assert back == ONE
    assert (back.name, back.digest) == (ONE.name, ONE.digest)
    with pytest.raises(dataclasses.FrozenInstanceError):
        ONE.kind = "teacher"


def test_what_an_earlier_release_counted_and_changes_no_number():
    stored = ONE.to_dict()
    stored["options"]["skip_corrupt"] = False
    assert Experiment.from_dict(stored) == ONE


@pytest.mark.parametrize("stored", [None, {}, {"kind": "student", "options": 3}, [1], "text"])
def test_what_describes_no_experiment(stored):
    with pytest.raises(UserError, match="no experiment is described"):
        Experiment.from_dict(stored)


def test_the_name_says_what_is_unusual_and_is_never_too_long():
    assert ONE.name == "S_a_T_b_set_kd_kd_T_4_trial_3"
    long = dataclasses.replace(ONE, title="x" * 200)
    assert len(long.name) == LONGEST_NAME
    assert long.name.endswith(f"_{ONE.digest[:12]}_trial_3")
    other = dataclasses.replace(long, source="xyz")
    assert other.name != long.name
    assert dataclasses.replace(ONE, title="a:b/c").name.startswith("a-b-c_")


def test_the_lists_of_options_name_only_options_that_exist():
    """A renamed option would silently become, or cease to be, part of the identity."""
    classes = [TeacherOptions, StudentOptions, TransferOptions, BankOptions, StartOptions]
    classes += [EvalOptions, *COMMON]
    general = {f.name for cls in classes for f in dataclasses.fields(cls)}
    entries = [registry[name] for registry in (METHODS, VIEWS, DATASETS) for name in registry]
    known = general | {f.name for entry in entries for f in dataclasses.fields(entry.Options)}
    assert known >= NO_NUMBER | ROUNDING
    assert not NO_NUMBER & ROUNDING
    of_eval = {f.name for f in dataclasses.fields(EvalOptions)}
    trained = {f.name for cls in (*classes[:5], *COMMON) for f in dataclasses.fields(cls)}
    assert trained == GENERAL, "helper.options.GENERAL is what no method may call its options"
    assert of_eval - trained == {"ckpt", "json", "per_class"}


def test_identity_of_options():
    options = {"trial": 2, "kd_T": 4.0, "amp": "bf16", "save_dir": "x", "alpha": 1.0}
    assert set(identity_of(options)) == {("alpha", 1.0), ("kd_T", 4.0)}


VALUES = [1, 1.0, -0.0, 0, 0.1, 0.10000001, 1e-30, True, False, None, "None", "1", (1, 2), [1, 2]]


@pytest.mark.parametrize("one", VALUES, ids=repr)
@pytest.mark.parametrize("other", VALUES, ids=repr)
def test_equal_digests_equal_experiments_and_no_differences_are_the_same(one, other):
    a, b = (Experiment("teacher", identity_of({"x": value}), data="") for value in (one, other))
    same = a.digest == b.digest
    if isinstance(one, bool) == isinstance(other, bool):  # True equals 1 in Python alone
        assert same == (a == b)
        assert same == (a.differences(b) == [])
    assert same == (kind_and_value(one) == kind_and_value(other))


def kind_and_value(value):
    """What tells two values apart: 1 and 1.0 are one number, True and "1" are none."""
    if isinstance(value, (list, tuple)):
        return "list", list(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value), value


def test_a_name_of_wide_letters_is_short_in_bytes():
    wide = dataclasses.replace(ONE, title="\u6f22" * 90)
    assert len(wide.name.encode()) <= LONGEST_NAME
    assert wide.name.endswith("_trial_3")


@pytest.mark.parametrize(
    ("option", "code", "said"),
    [
        (2, {}, ["x is 1 there and 2 here"]),
        (2, {"decoding": "3", "augmentation": "2"}, ["x is 1", "the code of augmentation has"]),
        (1, {"decoding": "3", "augmentation": "1"}, ["the code of decoding has changed"]),
    ],
)
def test_code_that_one_experiment_alone_has_is_told_where_nothing_else_differs(option, code, said):
    there = Experiment("teacher", (("x", 1),), "", code=(("augmentation", "1"),))
    here = Experiment("teacher", (("x", option),), "", code=tuple(sorted(code.items())))
    found = here.differences(there)
    assert len(found) == len(said)
    assert all(line.startswith(begin) for line, begin in zip(found, said, strict=True))
