"""The one exception that a user can cause: a tool prints it as a single line and exits with 2."""

from __future__ import annotations


class UserError(Exception):
    """Bad input from outside: says what is wrong, where (file, sample, key), and what to do."""
