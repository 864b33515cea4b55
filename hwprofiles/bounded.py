"""Files of users, read up to a limit: a device or a pipe has no size to ask for, and may never end."""

from __future__ import annotations

import errno
from pathlib import Path


def read_bounded(path: str | Path, limit: int) -> bytes:
    """All bytes of a file of at most `limit` bytes. Raises OSError, also where it is larger.

    >>> read_bounded("/dev/zero", 10)
    Traceback (most recent call last):
    OSError: [Errno 27] larger than 10 bytes
    """
    with Path(path).open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit} bytes")
    return data


def no_file(path: str | Path) -> str:
    """Why a path is no file one can read whole, in words; empty where it is one.

    >>> no_file("/dev/null"), no_file("/"), no_file("/nowhere/at/all")
    ('a device or a pipe, not a file', 'a folder, not a file', 'no such file')
    """
    at = Path(path)
    if at.is_file():
        return ""
    if at.is_dir():
        return "a folder, not a file"
    return "a device or a pipe, not a file" if at.exists() else "no such file"
