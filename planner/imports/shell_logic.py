"""What can be said of a shell script's own decisions without running it: statements, sums, tests and branches.

Sums of whole numbers are worked out; a test is decided where both sides are written out. All else stays undecided.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

MAX_SUM = 200  # characters of a sum
MAX_NUMBER = 10**15
_FLAT = r"[\w\s+\-*/%$]"
_SUM = re.compile(rf"\$\(\(((?:{_FLAT}|\((?:{_FLAT}|\({_FLAT}*\))*\))*)\)\)")
_TOKEN = re.compile(r"\s*(?:(\d+)|\$?([A-Za-z_]\w*)|([+\-*/%()]))")
_HERE = re.compile(r"<<-?\s*(['\"]?)([A-Za-z_]\w*)\1")
_TEST = re.compile(r"^(!\s*)?(?:\[\[?|test)\s+(.*?)\s*\]?\]?$", re.DOTALL)
_COMPARE = re.compile(r"^(\S+)\s+(==?|!=|-eq|-ne|-lt|-le|-gt|-ge)\s+(\S+)$")
_HOW = {
    "-eq": lambda a, b: a == b, "-ne": lambda a, b: a != b, "-lt": lambda a, b: a < b, "-le": lambda a, b: a <= b,
    "-gt": lambda a, b: a > b, "-ge": lambda a, b: a >= b,
}  # fmt: skip


def summed(text: str, known: dict[str, str]) -> str:
    """The text with every `$((...))` of known whole numbers worked out; others stay as they are.

    >>> summed("--global-batch-size $((DP * 8))", {"DP": "16"})
    '--global-batch-size 128'
    """

    def value(found: re.Match[str]) -> str:
        try:
            return str(_Sum(found[1], known).value()) if len(found[1]) <= MAX_SUM else found[0]
        except (ArithmeticError, ValueError, IndexError):
            return found[0]

    return _SUM.sub(value, text)


class _Sum:
    """A sum of whole numbers with + - * / % and brackets, by the rules of a shell."""

    def __init__(self, text: str, known: dict[str, str]) -> None:
        self.words: list[str] = []
        at = 0
        while text[at:].strip():
            found = _TOKEN.match(text, at)
            if not found:
                raise ValueError(text)
            word = found[1] or found[3] or known.get(found[2], "")
            if not word or (found[2] and not re.fullmatch(r"\d{1,15}", word)):
                raise ValueError(text)
            self.words.append(word)
            at = found.end()
        self.at = 0

    def value(self) -> int:
        out = self._terms()
        if self.at != len(self.words):
            raise ValueError("trailing")
        return out

    def _next(self) -> str:
        return self.words[self.at] if self.at < len(self.words) else ""

    def _take(self) -> str:
        self.at += 1
        return self.words[self.at - 1]

    def _terms(self) -> int:
        out = self._factors()
        while self._next() in ("+", "-"):
            out = out + self._factors() if self._take() == "+" else out - self._factors()
        return out

    def _factors(self) -> int:
        out = self._atom()
        while self._next() in ("*", "/", "%"):
            how, right = self._take(), self._atom()
            quotient = abs(out) // abs(right) * (1 if (out < 0) == (right < 0) else -1) if how != "*" else 0
            out = out * right if how == "*" else quotient if how == "/" else out - quotient * right
            if abs(out) > MAX_NUMBER:
                raise ValueError("too large")
        return out

    def _atom(self) -> int:
        word = self._take()
        if word == "-":
            return -self._atom()
        if word == "(":
            out = self._terms()
            if self._take() != ")":
                raise ValueError("not closed")
            return out
        return int(word[:16])


def decided(condition: str) -> bool | None:
    """Whether a test holds, with its variables put in; None where only a shell can say.

    >>> decided('[ "fp8" = "fp8" ]'), decided("[[ 4 -gt 8 ]]"), decided('[ -n "$KEY" ]')
    (True, False, None)
    """
    found = _TEST.match(condition.strip())
    if not found or any(word in found[2] for word in ("&&", "||", " -a ", " -o ", "$", "`", "(")):
        return None
    text = re.sub(r"\"([^\"\s]*)\"|'([^'\s]*)'", lambda m: m[1] or m[2] or "''", found[2])
    held: bool | None = None
    alone = re.match(r"^(-[nz])\s+(\S+)$", text)
    pair = _COMPARE.match(text)
    if alone:
        held = (alone[2] == "''") == (alone[1] == "-z")
    elif pair and pair[2] in _HOW:
        left, right = pair[1].strip("'"), pair[3].strip("'")
        numbers = re.fullmatch(r"-?\d{1,15}", left) and re.fullmatch(r"-?\d{1,15}", right)
        held = bool(_HOW[pair[2]](int(left), int(right))) if numbers else None
    elif pair:
        held = (pair[1] == pair[3]) == (pair[2] != "!=")
    return None if held is None else held != bool(found[1])


def statements(line: str) -> list[str]:
    """A line cut at every `;` that stands outside quotes and brackets; `;;` stays as one of its own.

    >>> statements('A=1; B="x;y" ;; C=(1;2)')
    ['A=1', 'B="x;y"', ';;', 'C=(1;2)']
    """
    out, start, depth, quote, i = [], 0, 0, "", 0
    while i < len(line):
        c = line[i]
        if c == "\\":
            i += 1
        elif quote:
            quote = "" if c == quote else quote
        elif c in "\"'`":
            quote = c
        elif c == "#" and (i == 0 or line[i - 1].isspace()):
            line = line[:i]
            break
        elif c in "({":
            depth += 1
        elif c in ")}":
            depth = max(0, depth - 1)
        elif c == ";" and depth == 0:
            out.append(line[start:i])
            if line[i : i + 2] == ";;":
                out.append(";;")
                i += 1
            start = i + 1
        i += 1
    return [part.strip() for part in (*out, line[start:]) if part.strip()]


def without_texts(lines: list[str]) -> list[str]:
    """Lines without here-documents that are shown or that another program reads; those a shell or a file gets stay."""
    out: list[str] = []
    i = 0
    while i < len(lines):
        found = _HERE.search(lines[i])
        out.append(lines[i])
        i += 1
        if found and "<<<" not in lines[i - 1]:
            end = next((n for n in range(i, len(lines)) if lines[n].strip() == found[2]), len(lines))
            head = lines[i - 1].split("<<")[0].split()
            shown = bool(head) and (head[0] == "cat" and ">" not in lines[i - 1].replace("<<", ""))
            if not (shown or (head and head[0].startswith(("python", "perl")))):
                out += lines[i:end]
            i = end + 1
    return out


@dataclass(kw_only=True)
class Branch:
    """An `if` or `case` that is open.

    word: what a case compares; waits: for a pattern of it. reading: None where undecided; done: a branch was taken for
    sure; unsure: one may have been; said: its last test.
    """

    word: str | None = None
    waits: bool = False
    reading: bool | None = True
    done: bool = False
    unsure: bool = False
    said: str = ""

    def reads(self, held: bool | None) -> None:
        """Go on with a branch whose test holds, does not, or cannot be decided."""
        sure = held is True and not self.unsure
        self.reading = False if self.done or held is False else True if sure else None
        self.done = self.done or sure
        self.unsure = self.unsure or held is None


@dataclass(kw_only=True)
class Flow:
    """Which statements count: those of branches that are taken, and all of those that nobody can decide."""

    open: list[Branch] = field(default_factory=list)

    @property
    def counts(self) -> bool:
        """Whether statements are read here."""
        return all(branch.reading is not False for branch in self.open)

    @property
    def condition(self) -> str:
        """The innermost test that could not be decided, or ""."""
        return next((b.said for b in reversed(self.open) if b.reading is None), "")

    def taken(self, statement: str) -> str:
        """What is left of a statement once its keywords are followed; "" where it was keywords alone."""
        first, _, rest = statement.partition(" ")
        rest = rest.strip()
        if first == "if":
            self.open.append(Branch())
            self._test(rest)
        elif first == "elif" and self.open:
            self._test(rest)
        elif first == "else" and self.open:
            self.open[-1].reads(True)
            return self.taken(rest) if rest else ""
        elif first == "case" and rest.endswith(" in"):
            word = rest[:-3].strip().strip("\"'")
            self.open.append(Branch(word=word, waits=True, reading=False, said=f"case {word}"))
        elif first in ("fi", "esac"):
            del self.open[-1:]
        elif first == ";;":
            if self.open:
                self.open[-1].waits, self.open[-1].reading = True, False
        elif first in ("then", "do", "{"):
            return self.taken(rest) if rest else ""
        elif self.open and self.open[-1].waits and ")" in statement:
            return self._pattern(statement)
        else:
            return statement if self.counts else ""
        return ""

    def _test(self, condition: str) -> None:
        self.open[-1].said = condition
        self.open[-1].reads(decided(condition))

    def _pattern(self, statement: str) -> str:
        branch = self.open[-1]
        patterns, _, rest = statement.partition(")")
        known = not any(c in str(branch.word) for c in "$`")
        fits = any(fnmatchcase(str(branch.word), one.strip().strip("(\"' ")) for one in patterns.split("|"))
        branch.waits = False
        branch.reads(fits if known else None)
        return self.taken(rest.strip()) if rest.strip() else ""
