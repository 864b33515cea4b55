"""Words of a shell script, read without a shell: comments, quotes, line ends and plain variables.

Nothing is executed. A variable that is assigned a plain value is put in where it is used; one that comes from
elsewhere (`$(...)`, the environment) is left as it is written.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hwprofiles.errors import UserError

MAX_SCRIPT_BYTES = 2**20
MAX_WORDS = 50_000
_ASSIGN = re.compile(
    r"^\s*(?:export\s+|local\s+|declare\s+(?:-\w+\s+)?)?([A-Za-z_]\w*)=([^\s()`$;|&]*|\"[^\"`$]*\"|'[^']*')\s*(?:[;#].*)?$"
)
_USE = re.compile(r"\$\{([A-Za-z_]\w*)(?::?-([^}$`]*))?\}|\$([A-Za-z_]\w*)")


def read_text(path: str, limit: int = MAX_SCRIPT_BYTES) -> str:
    """Text of a file. Raises UserError where it is missing, too large or no text."""
    try:
        file = Path(path)
        if not file.is_file():
            raise UserError("no such file; give the path of a text file", where=path)
        if file.stat().st_size > limit:
            raise UserError(f"larger than {limit // 2**10} KiB; give the script itself", where=path)
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", where=path) from None
    except UnicodeDecodeError:
        raise UserError("not a text file; give a shell script or a file of flags", where=path) from None


def words_of(text: str) -> list[str]:
    """Words in order; parentheses of arrays and the commas of lists stand alone and are left out.

    >>> words_of('TP=2\\nARGS=(\\n  --tensor-model-parallel-size ${TP} # two\\n)')
    ['TP=2', 'ARGS=', '--tensor-model-parallel-size', '2']
    """
    lines = text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines()
    known: dict[str, str] = {}
    out: list[str] = []
    for line in lines:
        filled = _USE.sub(lambda m: _value(m, known), line)
        assigned = _ASSIGN.match(filled)
        if assigned:
            known[assigned[1]] = assigned[2].strip("\"'")
        try:
            pieces = shlex.split(filled, comments=True)
        except ValueError:  # a quote that another line closes
            pieces = filled.replace('"', " ").replace("'", " ").split()
        for piece in pieces:
            if "=(" in piece and not piece.startswith("-"):
                head, _, rest = piece.partition("=(")
                out += [head + "=", *([rest] if rest else [])]
            elif piece.strip("()"):
                out.append(piece if piece.count("(") == piece.count(")") else piece.strip("()"))
        if len(out) > MAX_WORDS:
            raise UserError(f"more than {MAX_WORDS} words; give the launch script itself", where="script")
    return out


def _value(found: re.Match[str], known: dict[str, str]) -> str:
    name = found[1] or found[3]
    return known.get(name, found[2] if found[2] is not None else found[0])


def flags_of(words: list[str]) -> dict[str, list[str]]:
    """Flag without dashes -> its values; of a flag given twice the last counts, as argparse has it."""
    out: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, _, value = word[2:].partition("=")
            current = [value] if value else []
            out[name] = current
        elif current is not None and not re.match(r"^[A-Za-z_]\w*=", word):
            current.append(word)
        else:
            current = None
    return out
