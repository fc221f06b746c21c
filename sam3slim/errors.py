"""The one exception a user is meant to read."""

from __future__ import annotations


class UserError(Exception):
    """Bad input, told in one line: what was given, what was expected, and the fix.

    Entry points print the message without a traceback and exit with status 2; anything else that
    escapes is a bug and keeps its traceback.
    """
