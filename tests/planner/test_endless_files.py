"""No verb reads a file without end, a nest without bottom or a bomb to its end: a worded refusal, at once."""

from __future__ import annotations

import gzip
import io
import time
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hwprofiles.errors import UserError
from planner.cli.app import app

QWEN = ("--model", "Qwen3-30B-A3B", "--cluster", "dgx-h100", "--gpus", "8")
VERBS: tuple[tuple[str, ...], ...] = (
    ("judge", "FILE", *QWEN, "--seq-len", "4096"), ("import", "cluster", "FILE", "--out", "OUT"),
    ("import", "experts", "FILE", "--gpus", "8", "--out", "OUT"), ("import", "weights", "FILE"),
    ("import", "routing", "FILE", "--out", "OUT"), ("export", "FILE", "--to", "megatron-lm", "--out", "OUT"),
    ("export", "FILE", "--to", "sglang", "--model", "Qwen3-30B-A3B", "--out", "OUT"),
    ("compare", "--measured", "FILE", "FILE"), ("explain", "FILE"), ("show", "models", "FILE"), ("validate", "FILE"),
    ("plan", "--model", "FILE", "--cluster", "dgx-h100"), ("plan", "--model", "Qwen3-30B-A3B", "--cluster", "FILE"),
    ("plan", *QWEN, "--software", "FILE"), ("plan", *QWEN, "--lengths", "FILE"), ("plan", *QWEN, "--host-map", "FILE"),
    ("place", "--loads", "FILE", "--gpus", "8"), ("share", "FILE"),
)  # fmt: skip
BOMB = io.BytesIO()
with zipfile.ZipFile(BOMB, "w", zipfile.ZIP_DEFLATED) as _archive:
    _archive.writestr("counts.npy", b"\0" * 10**8)
FILES = {
    "endless": None,  # /dev/zero
    "deep.json": b"[" * 100_000,
    "deep.toml": b"a = " + b"[" * 100_000,
    "deep.yaml": b"[" * 100_000,
    "bomb.npz": BOMB.getvalue(),
    "bomb.csv.gz": gzip.compress(b"1," * 5 * 10**7),
    "pickle.json": b"\x80\x04.",
}


@pytest.mark.parametrize("name", FILES)
def test_every_verb_refuses_in_words(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    data = FILES[name]
    if data is None:
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(data)
    for verb in VERBS:
        words = [str(path) if w == "FILE" else str(tmp_path / "out") if w == "OUT" else w for w in verb]
        began = time.process_time()
        done = CliRunner().invoke(app, words)
        assert isinstance(done.exception, (UserError, SystemExit)) and done.exit_code != 0, (verb, done.exception)
        assert time.process_time() - began < 5.0, verb


@pytest.mark.parametrize(
    ("name", "said"),
    [("folder", "a folder, not a file"), ("device", "a device or a pipe"), ("absent", "no such file"),
     ("map.json.gz", "unpack it first")],
)  # fmt: skip
def test_what_is_no_file_is_said_in_the_right_words(name: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "map.json.gz").write_bytes(gzip.compress(b"{}"))
    for verb in (("import", "experts", "FILE", "--gpus", "8", "--out", "OUT"), ("judge", "FILE", *QWEN)):
        words = [str(tmp_path / name) if w == "FILE" else str(tmp_path / "out") if w == "OUT" else w for w in verb]
        done = CliRunner().invoke(app, words)
        told = f"{done.exception} {done.output}"
        assert said in told and "shell script" not in told, (verb, told)
