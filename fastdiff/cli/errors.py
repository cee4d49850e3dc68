"""What the user can put right is one line on stderr; anything else stays a traceback, for it is a bug."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST_MESSAGE = 400


class CommandError(Exception):
    """Ends a command with exit code 1. The message names what was given and what is wrong with it."""


@contextmanager
def as_command_error(*types: type[Exception], doing: str = "") -> Iterator[None]:
    """Turn errors of these types into a :class:`CommandError`, prefixed by what was being done."""
    try:
        yield
    except BrokenPipeError:
        raise  # an OSError, but about stdout
    except types as error:
        raise CommandError(f"{doing}: {one_line(error)}" if doing else one_line(error)) from error


def one_line(error: Exception) -> str:
    """The error's message on one line; torch lists every key of a state_dict on many."""
    message = " ".join(str(error).split()) or type(error).__name__
    return message if len(message) <= LONGEST_MESSAGE else message[: LONGEST_MESSAGE - 3] + "..."
