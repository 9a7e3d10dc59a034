"""Errors that a person can act on."""

from __future__ import annotations


class NeonatalSegError(Exception):
    """Something a user can mend: the message says what was wrong, with which file, what was expected, what to do.

    The command line prints the message alone and ends with status 2; the widget shows it as it is.
    """


class Cancelled(Exception):  # noqa: N818  # not a failure
    """The user asked to stop; raised from inside a progress callback and never reported as a failure."""


def reason_of(error: Exception) -> str:
    """Why a file could not be written, without its path; torch tells of a full disk at the end of a RuntimeError."""
    return (isinstance(error, OSError) and error.strerror) or str(error).strip().splitlines()[-1]


def is_out_of_memory(error: BaseException) -> bool:
    """True for the ways in which torch, OpenVINO and Python say that memory ran out."""
    texts = ("out of memory", "can't allocate memory", "not enough memory", "bad_alloc", "failed to allocate")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in texts)
