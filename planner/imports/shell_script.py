"""A launch script with the files it sources, read and never run.

Only files in the script's own folder are followed, a few and a few deep; every other one is named in a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hwprofiles.errors import UserError
from planner.imports.shell_words import MAX_SCRIPT_BYTES, Words, directives_of, read_text

MAX_SOURCED = 16
MAX_DEPTH = 4
# What stands before the file's name where a script finds its own folder: `$(dirname "$0")/`, `${HERE}/`.
_FOLDER = re.compile(r"^(?:\$\([^/]*\)|\$\{[^}/]*\}|\$\w+)/+")


@dataclass(frozen=True, kw_only=True)
class Script:
    """words: of the script with those of the sourced files in their place. notes: what was not read, and why.

    directives: options of `#SBATCH` lines. unsure: what a test decides that only a shell can (name or flag, value,
    test); used: names that stand in what counts.
    """

    words: Sequence[str]
    notes: tuple[str, ...]
    directives: Mapping[str, list[str]]
    unsure: tuple[tuple[str, str, str], ...]
    used: tuple[str, ...]


class _Reader:
    def __init__(self, path: str) -> None:
        self.root = Path(path).resolve().parent
        self.open = [Path(path).resolve()]
        self.count = self.bytes = 0
        self.notes: list[str] = []
        self.words = Words(self.follow)

    def read(self, path: str) -> None:
        text = read_text(path)
        self.bytes += len(text.encode())
        if self.bytes > MAX_SCRIPT_BYTES:
            raise UserError(
                f"the script and what it sources are beyond {MAX_SCRIPT_BYTES // 2**10} KiB; give the file that holds "
                "the flags",
                where=path,
            )
        self.words.read(text)

    def _found(self, name: str) -> Path | None:
        """The file beside the one that is read, or beside the script; None for what cannot be a file's name."""
        places = [folder / name for folder in dict.fromkeys((self.open[-1].parent, self.root))]
        try:
            return next((place for place in places if place.is_file()), places[-1]).resolve()
        except (OSError, RuntimeError, ValueError):  # too long, a loop of links, a null byte
            return None

    def follow(self, name: str) -> None:
        """Take in a sourced file, or say why not. Raises UserError beyond the limits or for what is no text."""
        shown = "".join(c if c.isprintable() else "?" for c in name)[:80]
        local = _FOLDER.sub("", name)
        if not local or any(c in local for c in "$`<>*?[("):
            self.notes.append(f"source {shown}: which file this is, only a shell can say; its flags are not read")
            return
        path = self._found(local)
        if path is None:
            self.notes.append(f"source {shown}: no name of a file; its flags are not read")
        elif not path.is_relative_to(self.root):
            self.notes.append(f"source {shown}: outside the folder of the script; its flags are not read")
        elif not path.is_file():
            self.notes.append(f"source {shown}: no such file beside the script; its flags are not read")
        elif path in self.open:
            self.notes.append(f"source {shown}: it is being read already")
        else:
            self.count += 1
            if self.count > MAX_SOURCED or len(self.open) > MAX_DEPTH:
                raise UserError(
                    f"it sources more than {MAX_SOURCED} files, or deeper than {MAX_DEPTH}; give the file that holds "
                    "the flags",
                    where=str(path),
                )
            self.open.append(path)
            self.read(str(path))
            self.open.pop()


def read_script(path: str) -> Script:
    """The script at `path`. Raises UserError where it, or a file it sources, cannot be read or is too large."""
    reader = _Reader(path)
    reader.read(path)
    unused = [f"{name}: nothing uses it, so its flags are not read" for name in reader.words.unused()]
    found = reader.words
    return Script(
        words=found.words(), notes=(*reader.notes, *unused), directives=directives_of(read_text(path)),
        unsure=tuple(found.unsure), used=tuple(sorted(found.used | found.within)),
    )  # fmt: skip
