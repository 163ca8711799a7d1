"""reporting/report.py: what of a page goes on where a network cannot be run."""

from pathlib import Path

import pytest

from helper.errors import UserError
from reporting.report import noting


@pytest.mark.parametrize(
    "error", [UserError("no weights"), OSError("torn"), RuntimeError("DefaultCPUAllocator: full")]
)
def test_what_cannot_be_measured_is_noted(error):
    notes = []
    with noting(notes, Path("save/a")):
        raise error
    assert notes == [f"left out of the pictures: save/a ({error})"]
