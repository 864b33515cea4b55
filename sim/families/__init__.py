"""Readers of models: a catalogue name, a Hugging Face config.json or a TOML file -> `ModelSpec`."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from sim.families.catalogue import (
    catalogue_model,
    find_name,
    find_unsupported,
    known_spellings,
    model_names,
    public_counts,
)
from sim.families.dims import gpt_model, model_from_dims
from sim.families.hf import read_config
from sim.families.toml_model import read_toml_model
from sim.model import ModelSpec

__all__ = ["gpt_model", "load_model", "model_from_dims", "model_names", "public_counts"]

MAX_FILE_BYTES = 2_000_000  # a model description is a few kB; more is some other file


def load_model(name_or_path: str | Path) -> ModelSpec:
    """The model of a catalogue name (any case, organisation prefix allowed), a config.json, its folder, or a .toml.

    Raises UserError: unknown name (with the nearest ones), known but unsupported model, unreadable file, and all
    problems inside a file at once.
    """
    text = str(name_or_path)
    path = Path(text)
    try:
        is_path = path.exists()
    except (OSError, ValueError):  # too long a name, NUL inside
        is_path = False
    # A file or folder given with its path goes before a catalogue model that happens to bear its name.
    if isinstance(name_or_path, str) and not (is_path and len(path.parts) > 1):
        name = find_name(text)
        if name is not None:
            return catalogue_model(name)
        known = find_unsupported(text)
        if known is not None:
            raise UserError(f"{known[0]} is known but not supported yet: {known[1]}", where="model")
    if is_path:
        return _from_file(path / "config.json" if path.is_dir() else path)
    if path.suffix.lower() in {".json", ".toml"}:
        raise UserError("file does not exist: check the path", where=text[:200])
    near = difflib.get_close_matches(text.casefold(), known_spellings(), n=4, cutoff=0.5)
    hint = f"did you mean {', '.join(dict.fromkeys(find_name(n) or n for n in near))}? " if near else ""
    raise UserError(
        f"no model named {text[:120]!r}: {hint}Give a name from `moecast show models`, "
        "the path of a config.json, or of a .toml",
        where="model",
    )


def _from_file(path: Path) -> ModelSpec:
    where = str(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise UserError(
                f"{size / 1e6:.1f} MB is too large for a model description (limit {MAX_FILE_BYTES / 1e6:.0f} MB): "
                "give the model's config.json, not its weights or tokenizer",
                where=where,
            )
        raw = read_bounded(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"cannot read the file ({error.strerror or error}): check the path", where=where) from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UserError("is a binary file, not text: give a config.json or a .toml model", where=where)
    if path.suffix.lower() == ".toml":
        return read_toml_model(_parse_toml(text, where), where)
    name = path.resolve().parent.name if path.stem == "config" else path.stem
    return read_config(_parse_json(text, where), name or path.stem, where)


def _parse_toml(text: str, where: str) -> Mapping[str, object]:
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid TOML ({_brief(error)}): correct the file", where=where) from None


def _parse_json(text: str, where: str) -> Mapping[str, object]:
    try:
        data: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"is not valid JSON ({_brief(error)}): give the model's config.json", where=where) from None
    if not isinstance(data, dict):
        raise UserError(f"holds a JSON {type(data).__name__}, not an object: give the model's config.json", where=where)
    return data


def _brief(error: Exception) -> str:
    return str(error).splitlines()[0][:160] if str(error) else type(error).__name__
