"""What a result depends on, as digests: the case, the files it names, and the program with its shipped data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.folders import contents, folder_digest, is_own
from planner.study.spec import FILES

ROOMS = ("hwprofiles", "sim", "planner")
SUFFIXES = (".py", ".toml", ".csv", ".gz", ".json")


@cache
def program_digest() -> str:
    """SHA-256 of the code and data that answers come from: results of another version are never taken for these."""
    return folder_digest(ROOMS, SUFFIXES)


@cache
def _content(key: str, file: str) -> str:
    """What a file named by an option holds; of a cluster also its device and its tables."""
    if key == "cluster":
        try:
            spec = catalogue.cluster(file)
        except UserError:
            pass  # the case will say so; the bytes tell one broken file from another
        else:
            own = spec.device_spec
            tables = contents(own.measured) if own is not None and is_own(own.measured) else ""
            return hashlib.sha256((json.dumps(asdict(spec), sort_keys=True) + tables).encode()).hexdigest()
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


def case_digest(verb: str, case: Mapping[str, Any], located: Mapping[str, Any], program: str) -> str:
    """SHA-256 of everything the result of a case depends on. located: `planner.study.spec.resolved` of the case.

    Files count by what they hold, not by where they lie.
    """
    files = {key: _content(key, str(located[key])) for key in FILES if located.get(key) and _is_file(located[key])}
    inputs = {"verb": verb, "case": {k: v for k, v in case.items() if k not in files}, "files": files,
              "program": program}  # fmt: skip
    text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and Path(value).is_file()
