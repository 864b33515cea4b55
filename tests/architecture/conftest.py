"""The project as files: what the architecture tests read."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def _listed(root: Path) -> list[Path]:
    """Files git knows or would add; in an unpacked archive, all files that no tool made."""
    git = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(git, check=True, capture_output=True, text=True).stdout.split("\0")
        return sorted(path for name in names if name and (path := root / name).is_file())
    except (OSError, subprocess.CalledProcessError):
        made = {"build", "dist", "out", "__pycache__"}
        return sorted(
            path
            for path in root.rglob("*")
            if path.is_file()
            and not any(p in made or (p.startswith(".") and p != ".ci") for p in path.relative_to(root).parts[:-1])
        )


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file of the project, absolute."""
    return _listed(ROOT)


@pytest.fixture(scope="session")
def modules(files: list[Path]) -> dict[str, Path]:
    """Dotted name -> file, for every module of the rooms."""
    rooms = ("hwprofiles", "sim", "planner", "calibration", "dashboards")
    found: dict[str, Path] = {}
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if path.suffix == ".py" and parts[0] in rooms:
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found
