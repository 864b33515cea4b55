"""`build`: from the measured rows of a device to a profile that every command of Moecast can use.

A profile is a folder: device.toml, cluster.toml (one node), tables/ (measured tables, fitted forms and factors, by
the names of `hwprofiles.folders`) and fit.json (errors, ranges, what was skipped). Equal rows give equal bytes.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from importlib.resources import as_file
from pathlib import Path
from typing import Any

from calibration import profile_kernels as kernels
from calibration.kernels import attention, collectives, grouped, memory
from calibration.kernels.base import Errors
from calibration.profile_device import ROOM, Described, describe
from calibration.profile_kernels import Family
from calibration.profile_rows import ROWS, Measured, read
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.factors import factors
from hwprofiles.folders import FACTORS, SOURCES, fitted_file, located, measured_file
from hwprofiles.forms.grouped import grouped_forms
from hwprofiles.measured import tables
from hwprofiles.specs import DeviceSpec, Source
from sim.cost.memo import remembered

NEEDED = ("launch", "gemm", "attention", "memory", "grouped_gemm", "sustained")
# What a device of the catalogue may lack: files of the shipped one that stand in for a family.
STAND_INS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    attention.FAMILY: (("attention.csv", "mla.csv"), ("attention.toml",)),
    grouped.FAMILY: ((), ("grouped.toml",)),
    collectives.FAMILY: (("collectives.csv",), ()),
}
OWN = ("launch", "gemm")  # families that nothing stands in for
DISPATCH = ("alltoall.csv", "alltoall_summary.csv")  # kernels of libraries that the harness does not run
Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A written profile: its folder, the device's name, families in order, names of those borrowed, and notes."""

    folder: Path
    device: str
    families: Sequence[Family]
    borrowed: Sequence[str]
    notes: Sequence[str]


def build(
    rows_folder: Path,
    out: Path,
    *,
    name: str | None = None,
    usd_per_s: float | None = None,
    progress: Progress | None = None,
) -> Profile:
    """Fit the rows that `calibration.measure` left in `rows_folder` and write a profile into `out`.

    `name`: of the device, instead of its driver's; `usd_per_s`: its price. Raises UserError for rows that cannot be
    used, and for families that are missing and that no device of the catalogue can stand in for.
    """
    say = progress or (lambda text: None)
    if (Path(out) / ROWS).exists():
        problem = f"holds {ROWS}: a profile beside its rows is easily mistaken; give another folder"
        raise UserError(problem, where="--out")
    measured = read(rows_folder)
    points = collectives.points_of_rows(measured.rows)
    _check_families(measured, None)
    described = describe(measured, name=name, usd_per_s=usd_per_s, points=points)
    _check_families(measured, described.known)
    folder = Path(out) / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    device = described.device
    families, borrowed = list[Family](), list[str]()

    def add(family: str, there: bool, fit: Callable[[], Family]) -> None:
        say(f"fitting {family}")
        if there:
            families.append(fit())
        elif described.known is not None and family in STAND_INS:
            families.append(_borrow(family, described.known, folder))
            borrowed.append(family)

    room = 1.0 if described.known else ROOM
    add("gemm", True, lambda: kernels.dense(measured, device, room, folder))
    add(attention.FAMILY, bool(measured.of(attention.FAMILY)), lambda: kernels.cores(measured, device, folder))
    add(grouped.FAMILY, bool(measured.of(grouped.FAMILY)), lambda: kernels.experts(
        measured, device, device.launch_s, folder))  # fmt: skip
    add(memory.FAMILY, bool(measured.of(memory.FAMILY)), lambda: kernels.memory_bound(
        measured, device.launch_s, folder))  # fmt: skip
    inside = bool((points.nodes == 1).any())
    add(collectives.FAMILY, inside, lambda: kernels.between_ranks(measured, points, folder))
    sources = {key: source for family in families for key, source in family.files.items()}
    sources |= _dispatch(described.known, folder)
    _write_toml(folder / SOURCES, {key: {"files": [f"{key}.csv"], "source": asdict(s)} for key, s in sources.items()})
    _write_toml(folder / FACTORS, {**described.factors, "source": asdict(described.factors_source)})
    _write_toml(Path(out) / "device.toml", _stated(device))
    _write_toml(Path(out) / "cluster.toml", _stated(described.cluster))
    notes = list(described.notes)
    _write_summary(Path(out) / "fit.json", measured, described, families, borrowed)
    _check(Path(out))
    return Profile(folder=Path(out), device=device.name, families=families, borrowed=borrowed, notes=notes)


def _check_families(measured: Measured, known: DeviceSpec | None) -> None:
    """Raise UserError for what is missing; `known`: a device of the catalogue, whose tables stand in."""
    from calibration.profile_device import known_device

    known = known or known_device(measured.device, float(measured.env["mem_bytes"] or 0))
    needed = OWN if known else NEEDED
    missing = [family for family in needed if not _forward(measured, family)]
    if missing:
        options = " ".join(f"--family {family}" for family in missing)
        device = "cuda" if measured.cuda else "cpu"
        raise UserError(
            [
                f"no row of the family {family} has a time; run `moecast calibrate measure --device {device} {options} "
                "--out DIR` with the same DIR as before"
                for family in missing
            ],
            where=measured.device,
        )


def _forward(measured: Measured, family: str) -> bool:
    """Whether a family has a row that its fit can start from."""
    rows = measured.of(family)
    if family == attention.FAMILY:
        return bool((attention.points_of_rows(rows, "").pass_ == "forward").any())
    if family == "sustained":
        return {"gemm_burst", "gemm_sustained"} <= {row["op"] for row in rows}
    return any(row["pass"] == "forward" for row in rows)


def _borrow(family: str, known: DeviceSpec, folder: Path) -> Family:
    """The shipped tables of the catalogue's device in place of a family that was not measured."""
    measured_names, fitted_names = STAND_INS[family]
    shipped = known.measured
    for name in measured_names:
        with as_file(measured_file(shipped, name)) as path:
            shutil.copyfile(path, folder / name)
    for name in fitted_names:
        with as_file(fitted_file(shipped, name)) as path:
            shutil.copyfile(path, folder / name)
    why = f"not measured here: assumed, the shipped tables of {shipped}"
    files = {name.removesuffix(".csv"): _assumed(shipped, name) for name in measured_names}
    return Family(name=family, cases=0, files=files, notes=[why])


def _assumed(shipped: str, name: str) -> Source:
    own = tables(shipped).sources[name.removesuffix(".csv").removesuffix("_summary")]
    title = f"Borrowed from the shipped tables of {shipped}: {own.title}"
    return replace(own, kind="assumed", title=title)


def _dispatch(known: DeviceSpec | None, folder: Path) -> dict[str, Source]:
    """Tables of dispatch kernels, which belong to libraries: taken over for a device of the catalogue."""
    found = {}
    for name in DISPATCH:
        if known is not None and measured_file(known.measured, name).is_file():
            with as_file(measured_file(known.measured, name)) as path:
                shutil.copyfile(path, folder / name)
            found[name.removesuffix(".csv")] = _assumed(known.measured, name)
    return found


def _check(out: Path) -> None:
    """Read the profile back as every other command will; a failure here is a mistake of ours, said in words."""
    for read_anew in (tables, factors, grouped_forms, remembered):
        read_anew.cache_clear()
    cluster = catalogue.cluster(str(out / "cluster.toml"))
    device = catalogue.device_of(cluster)
    for read_table in (tables, factors, grouped_forms):
        read_table(located(device, None, str(out)).measured)


def _stated(record: Any) -> dict[str, Any]:
    """Keys of a record that are not at their default or empty, tables last, as TOML wants them."""
    out = {}
    for item in fields(record):
        value = getattr(record, item.name)
        if value is None or value == () or item.name == "host_speed":
            continue
        out[item.name] = asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
    return out


def _write_toml(path: Path, data: Mapping[str, Any]) -> None:
    lines = ["# Written by `moecast calibrate fit`."]

    def add(body: Mapping[str, Any], prefix: str) -> None:
        for key, value in body.items():
            if not isinstance(value, Mapping):
                lines.append(f"{key} = {_value(value)}")
        for key, value in body.items():
            if isinstance(value, Mapping):
                lines.extend(["", f"[{prefix}{key}]"])
                add(value, f"{prefix}{key}.")

    add(data, "")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _value(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, float):
        return json.dumps(value)
    return repr(float(f"{value:.9g}"))


def _write_summary(
    path: Path, measured: Measured, described: Described, families: Sequence[Family], borrowed: Sequence[str]
) -> None:
    """fit.json: per family cases, errors, ranges, what was left out and why."""
    env = {name: measured.env.get(name, "") for name in ("device", "driver", "torch", "cuda", "host_cpu")}
    fitted = {family.name for family in families}
    out = {
        "device": described.device.name,
        "known_as": described.known.name if described.known else None,
        "environment": env,
        "rows": len(measured.rows),
        "dates": [min(row["date"] for row in measured.rows), max(row["date"] for row in measured.rows)],
        "clock": described.factors["clock"],
        "borrowed": list(borrowed),
        "notes": list(described.notes),
        "families": {
            family.name: {
                "cases": family.cases,
                "in_sample": {kind: rounded(found) for kind, found in family.in_sample.items()},
                "left_out": [
                    {"left_out": e.kind, "kind": e.dtype_or_kind, **rounded(e)} for e in family.left_out
                ],
                "domain": {kind: dict(ranges) for kind, ranges in family.domain.items()},
                "skipped": dict(family.skipped),
                "notes": list(family.notes),
            }
            for family in families
        },
        "skipped": {name: dict(why) for name, why in measured.left.items() if name not in fitted},
    }  # fmt: skip
    path.write_text(json.dumps(out, indent=2) + "\n", encoding="utf-8")


def rounded(found: Any) -> dict[str, float | int]:
    """Cases, median and p90 of `Errors` or `LeftOut`, as they are written."""
    e = Errors(cases=found.cases, median=found.median, p90=found.p90)
    return {"cases": e.cases, "median": round(e.median, 4), "p90": round(e.p90, 4)}
