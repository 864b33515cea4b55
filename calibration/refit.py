"""Fit the kernel families of the shipped devices anew from their shipped tables, and say what changed.

What `make fit-kernels` runs into `hwprofiles`: forms and made tables by the code of today. Deterministic.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from calibration.carry import ALL as SYSTEMS
from calibration.kernels import attention, gemm, grouped
from hwprofiles.folders import measured_file

DATE = "2026-11-22"  # of the shipped tables' collection, not of a run: equal inputs give equal bytes
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Refit:
    """Files written under `folder` (relative to it), and of these the ones that differ from the shipped files."""

    folder: Path
    written: Sequence[str]
    changed: Sequence[str]


def refit(out: Path, progress: Progress | None = None) -> Refit:
    """Fit and score every family of every shipped device, and write the files into `out`, laid out as `hwprofiles`."""
    out = Path(out)
    steps: list[tuple[str, Callable[[], None]]] = []
    for folder in SYSTEMS:
        steps.append((f"{folder}: gemm", partial(_gemm, folder, out)))
        steps.append((f"{folder}: attention", partial(attention.write_one, folder, out)))
        if _has_experts(folder):
            steps.append((f"{folder}: grouped_gemm", partial(_grouped, folder, out)))
    names = [
        name
        for folder in SYSTEMS
        for name in (
            *(f"fitted/kernels/{folder}/{family}.toml" for family in ("gemm", "attention")),
            *([f"fitted/kernels/{folder}/grouped.toml"] if _has_experts(folder) else []),
            *(f"measured/{folder}/{table}.csv" for table in ("attention", "mla")),
        )
    ]
    shipped = resources.files("hwprofiles")
    before = {name: _bytes(shipped / name) for name in names}  # `out` may be that very folder
    for done, (label, step) in enumerate(steps):
        if progress is not None:
            progress(done, len(steps), label)
        step()
    changed = [name for name in names if (out / name).read_bytes() != before[name]]
    return Refit(folder=out, written=names, changed=changed)


def _has_experts(folder: str) -> bool:
    """Whether expert layers were measured; a device without takes its grouped GEMM scaled from another."""
    return measured_file(folder, "moe.csv").is_file()


def _bytes(file: Traversable) -> bytes:
    return file.read_bytes() if file.is_file() else b""


def _gemm(folder: str, out: Path) -> None:
    path = out / "fitted" / "kernels" / folder / "gemm.toml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(gemm.shipped(folder), encoding="utf-8")


def _grouped(folder: str, out: Path) -> None:
    measured = grouped.points(folder)
    path = out / "fitted" / "kernels" / folder / "grouped.toml"
    grouped.write(folder, grouped.fit(measured), path, left=grouped.left_out(measured), date=DATE)
