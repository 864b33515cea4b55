"""Files visitors brought: kept by what they hold, named by a token, so that a URL can name one and never a path."""

from __future__ import annotations

import atexit
import hashlib
import re
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from hwprofiles.errors import UserError

MAX_FILE_BYTES = 16 * 2**20
MAX_TOTAL_BYTES = 512 * 2**20  # the oldest files go first
KINDS: dict[str, tuple[str, ...]] = {
    "model": ("json", "toml"),
    "cluster": ("toml",),
    "software": ("toml",),
    "routing": ("csv",),
    "placement": ("json",),
    "lengths": ("txt", "csv"),
    "host_map": ("csv",),
    "nodes": ("csv",),
    "counts": ("csv", "parquet", "npz"),
    "plan": ("json",),
    "scenario": ("toml",),
    "study": ("db", "sqlite", "sqlite3"),
    "runs": ("csv",),
}
_TOKEN = re.compile(r"upload:([0-9a-f]{20}):([A-Za-z0-9._-]{1,60})")
_lock = Lock()
_folder: Path | None = None
_held: OrderedDict[str, tuple[Path, int]] = OrderedDict()


def add(kind: str, name: str, data: bytes) -> str:
    """Keep a file; the token that names it. Raises UserError: too large, empty, or not of its kind's endings."""
    clean = safe_name(name)
    ending = clean.rpartition(".")[2].lower()
    if ending not in KINDS[kind]:
        wanted = ", ".join(f".{e}" for e in KINDS[kind])
        raise UserError(f"a file ending in .{ending[:12]}; give one of {wanted}", where=clean)
    if not data:
        raise UserError("the file is empty; choose another", where=clean)
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"{len(data) / 2**20:.0f} MiB; give at most {MAX_FILE_BYTES // 2**20} MiB", where=clean)
    token = f"upload:{hashlib.sha256(data).hexdigest()[:20]}:{clean}"
    with _lock:
        if token not in _held:
            # a config.json is named after its folder
            spot = _home() / token.split(":")[1] / f"uploaded-{kind}" / clean
            spot.parent.mkdir(parents=True, exist_ok=True)
            spot.write_bytes(data)
            _held[token] = (spot, len(data))
            _make_room()
        _held.move_to_end(token)
    return token


def is_token(text: str) -> bool:
    """Whether a text is a token."""
    return _TOKEN.fullmatch(text) is not None


def path(token: str) -> Path:
    """Where the file lies. Raises UserError when it is not, or no longer, here."""
    with _lock:
        found = _held.get(token)
        if found is None or not found[0].is_file():
            raise UserError("this server does not have the file (any more); upload it again", where=shown(token))
        _held.move_to_end(token)
        return found[0]


def shown(text: str) -> str:
    """What to show of a token: the file's name; other text as it is."""
    found = _TOKEN.fullmatch(text)
    return found[2] if found else text


def without_folders(text: str) -> str:
    """A text in which files of this server stand by their names alone."""
    return text if _folder is None else re.sub(re.escape(str(_folder)) + r"/[0-9a-f]+/[^/\s]+/", "", text)


def safe_name(name: str) -> str:
    """A file name of letters, digits, dots and dashes, without folders."""
    last = re.split(r"[/\\]", name)[-1]
    return re.sub(r"[^A-Za-z0-9._-]+", "-", last).lstrip(".-")[-60:].lstrip(".-") or "file"


def _home() -> Path:
    """The folder of this server, gone when it stops."""
    global _folder
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="moecast-"))
        atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    return _folder


def _make_room() -> None:
    while len(_held) > 1 and sum(size for _, size in _held.values()) > MAX_TOTAL_BYTES:
        _, (spot, _) = _held.popitem(last=False)
        spot.unlink(missing_ok=True)
