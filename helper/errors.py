"""The one exception that a user, not a programmer, has to act on."""


class UserError(ValueError):
    """Something the user gave cannot work: the message is one line, says what and what to do.

    The scripts print it on stderr without a traceback and exit with code 2.
    """


def one_line(text) -> str:
    return " ".join(str(text).split())
