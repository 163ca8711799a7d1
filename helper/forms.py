"""What an entry of a file has to be: files are edited by hand, and come from strangers."""

from collections.abc import Callable, Mapping
from typing import Any

LONGEST = 5000  # characters; no path is longer
LARGEST = 1e300  # every number below is a float

Form = Callable[[Any], bool]


def wrong_in(content: Any, forms: Mapping[str, Form], complete: bool = True) -> str:
    """What is wrong, as 'last is 5' or 'it lacks last'; "" where every entry has its form.

    Where `complete` is False entries may be missing.
    """
    if not isinstance(content, dict):
        return f"it is a {type(content).__name__}"
    for name, fits in forms.items():
        if name not in content:
            if complete:
                return f"it lacks {name}"
        elif not fits(content[name]):
            return f"{name} is {shown(content[name])}"
    return ""


def shown(value: Any) -> str:
    """A few words for a value that may be of any size."""
    if value is None or isinstance(value, (bool, str)) or is_number(value):
        return repr(value)[:60]
    return f"such a {type(value).__name__}"


def is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def is_name(value: Any) -> bool:
    """Whether it is a text that can be shown in a line as it is."""
    return is_text(value) and value.isprintable()


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no bool."""
    return type(value) in (int, float) and abs(value) < LARGEST


def is_percentage(value: Any) -> bool:
    return is_number(value) and 0 <= value <= 100


def is_count(value: Any) -> bool:
    """Whether it is a whole number above 0 that fits anywhere."""
    return type(value) is int and 0 < value < 2**31


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that fits into 64 bits."""
    return type(value) is int and abs(value) < 2**63


def is_crop_pct(value: Any) -> bool:
    """Whether it can be a center crop's side as a share of the image's."""
    return is_number(value) and 0.01 <= value <= 1


def is_dict(value: Any) -> bool:
    return isinstance(value, dict)


def are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


def are_numbers(value: Any) -> bool:
    """Whether it is a dict of numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def are_channels(value: Any) -> bool:
    """Whether it is a number for each of red, green and blue."""
    return isinstance(value, list) and len(value) == 3 and all(map(is_number, value))


def are_options(value: Any) -> bool:
    """Whether it is a dict of options: each a word, a number, None, or a list of these."""
    return isinstance(value, dict) and all(
        one is None or isinstance(one, bool) or is_text(one) or is_whole(one) or is_number(one)
        for entry in value.values()
        for one in (entry if isinstance(entry, list) else [entry])
    )
