"""Pickles are never loaded: reading one runs whatever code it holds. They are told by name and by first bytes."""

from __future__ import annotations

from pathlib import Path

from hwprofiles.bounded import no_file
from hwprofiles.errors import UserError

SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".bin", ".joblib", ".distcp")
ZIPPED = b"PK\x03\x04"  # what torch.save writes, and npz
_PICKLE = b"\x80"  # first byte of pickle protocols 2 and later


def refuse_pickle(path: str, remedy: str) -> bytes:
    """The first 8 bytes of a file. Raises UserError where it is, or may be, a pickle, or cannot be read.

    remedy: how to write the same as data. An npz is a zip as torch's files are: only the name tells them apart.
    """
    try:
        if said := no_file(path):
            raise UserError(f"{said}; give the path of a file", where=path)
        with Path(path).open("rb") as file:
            first = file.read(8)
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from None
    suffix = Path(path).suffix.lower()
    if suffix in SUFFIXES or first[:1] == _PICKLE or (first[:4] == ZIPPED and suffix != ".npz"):
        raise UserError(f"refused: a pickle, which can run code when it is read; {remedy}", where=path)
    return first
