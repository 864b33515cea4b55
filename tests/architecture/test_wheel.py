"""The wheel: what is installed, and that every data file of the rooms travels inside."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOMS = ("hwprofiles", "sim", "planner", "calibration", "dashboards")


@pytest.fixture(scope="module")
def wheel(root: Path, files: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the listed files, so that left-overs of older builds cannot help."""
    base = tmp_path_factory.mktemp("wheel")
    source = base / "source"
    for path in files:
        name = path.relative_to(root)
        if name.parts[0] in ROOMS or len(name.parts) == 1:
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(path.read_bytes())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--wheel-dir", str(base), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = base.glob("*.whl")
    return built


def test_wheel_holds_every_file_of_the_rooms_and_nothing_else(root: Path, files: list[Path], wheel: Path) -> None:
    inside = {n for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in n}
    expected = {
        str(name) for path in files if (name := path.relative_to(root)).parts[0] in ROOMS and path.name != ".gitignore"
    }
    assert inside == expected


def test_every_package_folder_is_listed(root: Path, modules: dict[str, Path]) -> None:
    listed = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(m for m, path in modules.items() if path.name == "__init__.py")


def test_installed_wheel_finds_its_data_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    """Unpacked away from the repository, the catalogues still list what they ship."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import hwprofiles, pathlib\n"
        "from hwprofiles.catalogue import names\n"
        "from sim.families import model_names\n"
        f"assert pathlib.Path(hwprofiles.__file__).is_relative_to({str(site)!r}), hwprofiles.__file__\n"
        "print(all(names(k) for k in ('devices', 'clusters', 'software')) and bool(model_names()))\n"
    )
    # -P and PYTHONPATH: an editable installation of this repository must not be found first.
    done = subprocess.run(
        [sys.executable, "-P", "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "True", done.stderr


def test_licence_and_notice_travel_in_the_wheel(wheel: Path) -> None:
    names = {Path(n).name for n in zipfile.ZipFile(wheel).namelist() if ".dist-info/" in n}
    assert {"LICENSE", "NOTICE"} <= names


def test_the_command_is_declared(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
    assert "moecast = planner.cli:main" in archive.read(entry).decode()
