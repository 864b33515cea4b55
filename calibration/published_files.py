"""Where the shipped files of published runs lie."""

from __future__ import annotations

from importlib import resources
from pathlib import Path


def published(file: str) -> Path:
    """A shipped file of runs, or one of the files that speak of them."""
    return Path(str(resources.files("calibration"))) / "published" / file
