"""Words of a shell script, read without a shell: comments, quotes, line ends, plain variables and arrays.

Nothing is executed. A variable that is assigned a plain value, and an array, are put in where they are used; what comes
from elsewhere (`$(...)`, the environment) is left as it is written.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from hwprofiles.bounded import no_file
from hwprofiles.errors import UserError
from planner.imports.shell_logic import Flow, statements, summed, without_texts

MAX_SCRIPT_BYTES = 2**20
MAX_WORDS = 50_000
MAX_GROWN = 2**16  # characters that all uses of variables may stand for
MAX_INNER = 3  # commands in quotes within commands in quotes
MAX_PIECES = 16  # that the name of a sourced file may fall into
_HEAD = r"^\s*(?:export\s+|local\s+|readonly\s+|declare\s+(?:-\w+\s+)?)?([A-Za-z_]\w*)="
_ASSIGN = re.compile(_HEAD + r"([^\s()`$;|&]*|\"(?:[^\"`$]|\$(?!\())*\"|'[^']*')\s*(?:[;#].*)?$")
_OPEN = re.compile(_HEAD + r"\"[^\"`]*$")  # a text in quotes that another line closes
_DEFINES = re.compile(_HEAD.replace("=", r"\+?="))
_GZIP = b"\x1f\x8b"  # first bytes of a compressed file
_KEY = r"\[[\"']?[\w.-]+[\"']?\]"  # of an associative array
_KEYED = re.compile(r"(\[[\w.-]+\])=(.*)", re.DOTALL)
_USE = re.compile(rf"\$\{{([A-Za-z_]\w*(?:{_KEY})?|\d)(?::?[-=]([^{{}}$`]*))?\}}|\$([A-Za-z_]\w*)")
_NESTED = 4  # defaults within defaults
_SET = re.compile(rf"([A-Za-z_]\w*(?:{_KEY})?)=([^(].*|)", re.DOTALL)
_PREFIX = ("export", "local", "readonly", "declare", "typeset")
_SHOWN = ("echo", "printf", "logger", "die")  # what follows is text for people
_COMMAND = re.compile(r"\s--[a-z]")  # in one quoted word: a command that another shell gets
_ENDS = re.compile(r"[|&;]+|\d?[<>]+.*|\d>&\d")
_ARRAY = re.compile(r"([A-Za-z_]\w*)(\+?)=\((.*)$", re.DOTALL)
_SPREAD = re.compile(r"\$\{([A-Za-z_]\w*)\[[@*]\][^}]*\}")
_BEFORE = ("&&", "||", "then", "do", "else", "{")  # after these a command begins
_REST = ("$@", "$*", "${@}")  # what the caller adds


def read_text(path: str, limit: int = MAX_SCRIPT_BYTES) -> str:
    """Text of a file. Raises UserError where it is missing, too large or no text."""
    try:
        file = Path(path)
        if said := no_file(file):
            raise UserError(f"{said}; give the path of a text file", where=path)
        if file.stat().st_size > limit:
            raise UserError(f"larger than {limit // 2**10} KiB; give the script itself", where=path)
        data = file.read_bytes()
        if data.startswith(_GZIP):
            raise UserError("compressed; unpack it first, with gunzip", where=path)
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from None
    except UnicodeDecodeError:
        raise UserError("not a text file; give one in UTF-8", where=path) from None


class Words:
    """What a script says, line by line. source: called with the file of every `source FILE` and `. FILE`.

    Flags in an array or in a quoted variable count where it is used. Where none is used (a file that only defines
    them) all count; where some are, the others do not, and `unused` names them.
    """

    def __init__(self, source: Callable[[str], None] | None = None) -> None:
        self.source = source
        self.known: dict[str, str] = {}
        self.arrays: dict[str, list[str]] = {}
        self.used: set[str] = set()
        self.within: set[str] = set()  # those that stand in the value of another
        self.out: list[str] = []
        self._inside: list[str] | None = None  # words of the array whose parenthesis is open
        self._name = ""  # its name
        self._count = self._grown = 0  # words taken in; characters put in for variables
        self._flow = Flow()
        self._depth = 0  # of commands within quotes
        self.unsure: list[tuple[str, str, str]] = []  # name or flag, its value, the test that nobody can decide

    def read(self, text: str) -> Words:
        """Take in the lines of one file. Raises UserError where they, or what variables stand for, grow too long."""
        outer, self._flow = self._flow, Flow()
        for line in _joined(text):
            if self._inside is not None:
                self._line(line)
                continue
            for statement in statements(line):
                self._statement(statement)
        self._close()
        self._flow = outer
        return self

    def _statement(self, statement: str) -> None:
        first = statement.partition(" ")[0]
        if first in ("if", "elif", "case"):
            statement = self._filled(statement, set())
        left = self._flow.taken(statement)
        if left and left.split()[0] not in _SHOWN:
            self._line(left)

    def _filled(self, text: str, into: set[str]) -> str:
        """The text with known variables and sums put in; names go to `into`."""
        for _ in range(_NESTED):
            filled = summed(_USE.sub(lambda found: self._value(found, into), text), self.known)
            if filled == text or "$" not in filled:
                return filled
            text = filled
        return text

    def words(self) -> list[str]:
        """All words that count, in order."""
        groups = self._groups()
        if self.used & set(groups):
            return self.out
        return [word for group in groups.values() for word in group] + self.out

    def unused(self) -> list[str]:
        """Names of arrays and variables with flags that nothing uses, while others are used."""
        groups = self._groups()
        return [name for name in groups if name not in self.used] if self.used & set(groups) else []

    def _groups(self) -> dict[str, list[str]]:
        texts = {name: value.split() for name, value in self.known.items()}
        whole = {k: v for k, v in {**texts, **self.arrays}.items() if k not in self.within or k in self.used}
        return {k: v for k, v in whole.items() if any(word[:2] == "--" for word in v)}

    def _line(self, line: str) -> None:
        into = self.within if self._inside is not None or _DEFINES.match(line) else self.used
        filled = self._filled(line, into)
        assigned = _ASSIGN.match(filled) if self._inside is None else None
        if assigned:
            self._set(assigned[1], assigned[2].strip("\"'"))
        try:
            pieces = shlex.split(filled, comments=True)
        except ValueError:  # a quote that another line closes
            pieces = filled.replace('"', " ").replace("'", " ").split()
        if self._inside is None and not assigned and self._sets(pieces):
            return
        skip = 0
        for i, piece in enumerate(pieces):
            if skip:
                skip -= 1
            elif self._inside is None and piece in ("source", ".") and self._begins(pieces, i):
                file, skip = _one(pieces[i + 1 :])
                if file and self.source is not None:
                    self.source(file)
            elif self._inside is None and _COMMAND.search(piece) and not pieces[i - 1].startswith("--"):
                self._within(piece)
            else:
                self._piece(piece)

    def _sets(self, pieces: list[str]) -> bool:
        """Whether the line only assigns, several names perhaps; they are known then."""
        rest = pieces[1:] if pieces and pieces[0] in _PREFIX else pieces
        found = [_SET.fullmatch(piece) for piece in rest if not piece.startswith("-")]
        if not found or not all(found):
            return False
        for one in found:
            if one is not None:
                self._set(one[1], one[2])
        return True

    def _set(self, name: str, value: str) -> None:
        if self._flow.condition:
            self.unsure.append((name, value, self._flow.condition))
        self.known[name] = value

    def _within(self, command: str) -> None:
        """A command in quotes, for another shell (`bash -c "..."`), is read as a line of this one."""
        if _SET.fullmatch(command) or self._depth >= MAX_INNER:
            self._piece(command)
            return
        self._depth += 1
        for part in re.split(r"&&|\|\|", command.replace("\n", ";")):
            for statement in statements(part):
                self._statement(statement)
        self._depth -= 1

    @staticmethod
    def _begins(pieces: list[str], i: int) -> bool:
        return i == 0 or pieces[i - 1] in _BEFORE or pieces[i - 1].endswith(";")

    def _piece(self, piece: str) -> None:
        found = _ARRAY.match(piece) if self._inside is None else None
        if found:
            self._name, piece = found[1], found[3]
            self._inside = self.arrays.get(self._name, []) if found[2] else []
        spread = _SPREAD.fullmatch(piece.rstrip(")") if self._inside is not None else piece)
        target = self.out if self._inside is None else self._inside
        closes = self._inside is not None and piece.count(")") > piece.count("(")
        if spread:
            (self.used if target is self.out else self.within).add(spread[1])
            self._take(target, self.arrays.get(spread[1], []))
        elif piece not in _REST and piece.strip("()"):
            balanced = piece.count("(") == piece.count(")")
            word = piece if balanced else piece[:-1] if closes else piece.strip("()")
            if self._flow.condition and word.startswith("--"):
                self.unsure.append((word.partition("=")[0], "", self._flow.condition))
            self._take(target, [word])
        if closes:
            self._close()

    def _take(self, target: list[str], words: list[str]) -> None:
        self._count += len(words)
        if self._count > MAX_WORDS:
            raise UserError(f"more than {MAX_WORDS} words; give the launch script itself", where="script")
        target += words

    def _close(self) -> None:
        """The open array counts from its end on: until then its name stands for what it was."""
        if self._inside is not None:
            self.arrays[self._name] = self._inside
            for one in map(_KEYED.fullmatch, self._inside):
                if one is not None:
                    self._set(self._name + one[1], one[2])
            self._inside = None

    def _value(self, found: re.Match[str], into: set[str]) -> str:
        name = re.sub("[\"']", "", found[1] or found[3])
        into.add(name)
        value = self.known.get(name, found[2] if found[2] is not None else found[0])
        self._grown += len(value)
        if self._grown > MAX_GROWN:
            raise UserError(
                f"its variables stand for more than {MAX_GROWN // 2**10} KiB; write the flags themselves",
                where="script",
            )
        return value


def _joined(text: str) -> list[str]:
    """Lines, with continued ones and texts in quotes over several lines made one; comments do not continue."""
    lines: list[str] = []
    going = False
    for line in without_texts(text.splitlines()):
        if line.lstrip().startswith("#"):
            continue
        bare = line[:-1] + " " if line.endswith("\\") else line
        if going:
            lines[-1] += bare
        else:
            lines.append(bare)
        going = line.endswith("\\")
    out: list[str] = []
    i = 0
    while i < len(lines):
        line = lines[i]
        end = i
        if _OPEN.match(line):
            end = next((n for n in range(i + 1, len(lines)) if '"' in lines[n]), i)
        out.append(" ".join(lines[i : end + 1]))
        i = end + 1
    return out


def _one(pieces: list[str]) -> tuple[str, int]:
    """(the first word, how many pieces it takes): `$(dirname $0)/a.sh` without quotes falls into several."""
    for n in range(1, min(len(pieces), MAX_PIECES) + 1):
        word = " ".join(pieces[:n])
        if word.count("(") == word.count(")"):
            return word.rstrip(";"), n
    return "", 0


def words_of(text: str) -> list[str]:
    """Words in order, of one text that sources nothing.

    >>> words_of('TP=2\\nARGS=(\\n  --tensor-model-parallel-size ${TP} # two\\n)\\npretrain.py "${ARGS[@]}"')
    ['TP=2', 'pretrain.py', '--tensor-model-parallel-size', '2']
    """
    return Words().read(text).words()


def directives_of(text: str) -> dict[str, list[str]]:
    """Options of the `#SBATCH` lines of a batch script.

    >>> directives_of("#!/bin/bash\\n#SBATCH --nodes=4\\n#SBATCH -N 8 # more\\n")
    {'nodes': ['4'], 'N': ['8']}
    """
    out: dict[str, list[str]] = {}
    for line in re.findall(r"(?m)^#SBATCH\s+(.*)$", text):
        for name, value in re.findall(r"(?:^|\s)--?([A-Za-z][\w-]*)(?:[=\s]+([^\s#-]\S*))?", line):
            out[name] = [value] if value else []
    return out


def flags_of(words: Sequence[str]) -> dict[str, list[str]]:
    """Flag without dashes -> its values; of a flag given twice the last counts, as argparse has it."""
    out: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, _, value = word[2:].partition("=")
            current = [value] if value else []
            out[name] = current
        elif current is not None and not re.match(r"^[A-Za-z_]\w*=", word) and not _ENDS.fullmatch(word):
            current.append(word)
        else:
            current = None
    return out
