"""Where the files of a measured device lie: spread over this package, or all in one folder of a user's profile.

`DeviceSpec.measured` is either a name (`h200`: tables in `measured/h200`, fitted files in `fitted/kernels/h200` and
`fitted/h200.toml`) or a path to a folder that `moecast calibrate fit` wrote, which holds files of the same names.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from hwprofiles.errors import UserError
from hwprofiles.reader import looks_like_path
from hwprofiles.specs import DeviceSpec

FACTORS = "factors.toml"
SOURCES = "source.toml"


def is_own(folder: str) -> bool:
    """Whether `DeviceSpec.measured` is a folder of a user's profile, made for its device alone."""
    return looks_like_path(folder)


def measured_file(folder: str, name: str) -> Traversable:
    """A measured table (`gemm.csv`, `source.toml`, ...) of a device; it need not exist."""
    if is_own(folder):
        return Path(folder) / name
    return resources.files("hwprofiles") / "measured" / folder / name


def fitted_file(folder: str, name: str) -> Traversable:
    """A fitted file of a device: `gemm.toml`, `attention.toml`, `grouped.toml` or `factors.toml`; it need not exist."""
    if is_own(folder):
        return Path(folder) / name
    fitted = resources.files("hwprofiles") / "fitted"
    return fitted / f"{folder}.toml" if name == FACTORS else fitted / "kernels" / folder / name


def located(device: DeviceSpec, beside: Path | None, where: str) -> DeviceSpec:
    """The device with a path in `measured` made absolute (relative to `beside`, the folder of its file).

    Raises UserError where that is not a folder of tables.
    """
    if not is_own(device.measured):
        return device
    folder = ((beside or Path()) / device.measured).resolve()
    if not (folder / SOURCES).is_file():
        raise UserError(
            f"measured = {device.measured!r}: {folder} has no {SOURCES}; give a folder that `moecast calibrate fit` "
            "wrote, relative to this file, or a name of the shipped tables",
            where=where,
        )
    return dataclasses.replace(device, measured=folder.as_posix())


def contents(folder: str) -> str:
    """SHA-256 over the files of a user's folder: the same tables are the same wherever they lie."""
    digest = hashlib.sha256()
    for file in sorted(Path(folder).iterdir()):
        if file.is_file():
            digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def folder_digest(packages: Sequence[str], endings: tuple[str, ...]) -> str:
    """SHA-256 over the shipped files of some packages with these endings: names and contents, in order of name."""
    digest = hashlib.sha256()
    for package in packages:
        for name, file in sorted(_below(resources.files(package), package), key=lambda item: item[0]):
            if name.endswith(endings):
                digest.update(name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()


def _below(folder: Traversable, prefix: str) -> list[tuple[str, Traversable]]:
    found: list[tuple[str, Traversable]] = []
    for entry in folder.iterdir():
        name = f"{prefix}/{entry.name}"
        if entry.is_dir():
            found += [] if entry.name == "__pycache__" else _below(entry, name)
        else:
            found.append((name, entry))
    return found
