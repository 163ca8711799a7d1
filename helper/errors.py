"""The one exception that a user, not a programmer, has to act on."""


class UserError(ValueError):
    """Something the user gave cannot work: the message is one line, says what and what to do.

    The scripts print it on stderr without a traceback and exit with code 2.
    """


def one_line(text) -> str:
    """A text without line breaks; what would steer a terminal is written as an escape: \\x1b."""
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """A text in which line breaks and what would steer a terminal are escapes: \\n, \\x1b."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
