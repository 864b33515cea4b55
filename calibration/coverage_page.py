"""Writes docs/reference/coverage.md: what each device's and each family's predictions rest on, and the profile of each
release.

    python -m calibration.coverage_page

A test compares the page with what this makes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from calibration.cells import read_csv
from calibration.coverage_families import class_lines, rows
from hwprofiles import catalogue
from hwprofiles.coverage import FAMILIES, coverage
from hwprofiles.software_profiles import software_for_run
from sim.interval import novelty

PAGE = Path("docs") / "reference" / "coverage.md"
INTRO = """# Coverage: devices, families of models and releases

Written by `make coverage` from the catalogue; `moecast show devices NAME` prints the row of one device.

**calibrated**: kernels measured on this device and a form fitted to them. **borrowed**: those of another part of the
same silicon, as they are. **scaled**: those of another device, by the rules of
[kernel costs](../background/kernel-costs.md#devices-without-tables-of-their-own). **datasheet**: only the rate of the
datasheet enters, with shares fitted elsewhere. *Whole runs*: whether training runs of the device, or of the same chip
with other memory, were at hand to fit its sustained clock; a device without is "new", and so are its intervals.

## Devices
"""
FAMILY_INTRO = """
## Families of models

Kernel time of one step's layers (forward and backward on eight H100, sequences of 4096 or as long as the model takes,
communication left out) by kernel, for the smallest model of each family, and what that time rests on for a device of
each class, in percent. **measured**: calibrated on the device or borrowed from the same silicon. **scaled**: kernels
of another device. **datasheet**: bytes over the memory rate. **assumed**: cores that no table has (state-space scans,
linear attention, the indexer of sparse attention, compressors of attention, hyper-connections), priced as batched
products and bytes; their projections are plain GEMMs. Chunked and windowed attention are the measured core at another
length; exchanges rest on the columns above.
"""
RELEASES = """
## Trainer releases

The profile that stands for each framework and version of the published runs in `calibration/published`. A release
without a profile of its own takes the nearest one that says so in its `applies`; none falls back to a device's default.
"""


def page() -> str:
    """The text of the page."""
    devices = _table(("device", *FAMILIES, "whole runs"), _devices())
    releases = _table(("framework", "version", "profile", "unknown switches"), _releases())
    header, families = rows()
    by_family = [FAMILY_INTRO, *class_lines(), "", *_table(header, families)]
    return "\n".join([INTRO, *devices, *by_family, RELEASES, *releases]) + "\n"


def _devices() -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name in catalogue.names("devices"):
        device = catalogue.device(name)
        found = coverage(device)
        new = novelty("", device, catalogue.software(catalogue.default_software(name))).device
        rows.append([name, *(found[family] for family in FAMILIES), "no" if new else "yes"])
    return rows


def _releases() -> list[Sequence[str]]:
    with resources.as_file(resources.files("calibration") / "published" / "training_runs.csv") as path:
        runs = read_csv(path)
    found = set()
    for row in runs:
        name = software_for_run(row["framework"], row["framework_version"], notes=row.get("notes", ""))
        unknown = str(len(catalogue.software(name).unknown)) if name else "-"
        found.add((row["framework"], row["framework_version"], name or "default of the device", unknown))
    return [list(each) for each in sorted(found)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]


def main(arguments: Sequence[str]) -> int:
    """Write the page under the folder given (default: here); returns the exit code."""
    (Path(arguments[0] if arguments else ".") / PAGE).write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
