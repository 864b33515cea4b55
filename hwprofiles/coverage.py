"""What the predictions of a device rest on, by kernel family: its own measurements, another device's, or a datasheet.

- calibrated: kernels measured on this device, with a form fitted to them;
- borrowed: those of another part of the same silicon, taken as they are;
- scaled: those of another device, scaled by stated rules (`hwprofiles.scaling`);
- datasheet: only a rate of the datasheet enters, with shares that were fitted elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from hwprofiles.folders import fitted_file, is_own
from hwprofiles.forms.dispatch import dispatch_forms
from hwprofiles.scaling import families_scaled, scale_of
from hwprofiles.specs import DeviceSpec

FAMILIES = ("gemm", "attention", "grouped GEMM", "collectives", "dispatch", "memory-bound")
REFERENCE = "h100"  # whose dispatch kernels stand for those of devices without (`sim.cost.dispatch`)


def coverage(device: DeviceSpec) -> Mapping[str, str]:
    """By family of `FAMILIES`: "calibrated", "borrowed from X", "scaled from X" or "datasheet".

    Raises UserError where the tables that the device names do not exist.
    """
    folder = device.measured
    same = is_own(folder) or folder.lower() == device.name.lower()
    own = "calibrated" if same else f"borrowed from {folder.upper()}"
    scaled = families_scaled(device)
    found = {name: f"scaled from {device.scaled_from}" if name in scaled else own for name in FAMILIES[:-1]}
    scale = scale_of(device)
    folders = [name for name in (folder, scale.source if scale else "") if name]
    if not any(dispatch_forms(name) for name in folders):
        found["dispatch"] = f"{'scaled' if scale else 'borrowed'} from {REFERENCE.upper()}"
    if is_own(folder) and not fitted_file(folder, "dispatch.toml").is_file():
        found["dispatch"] = f"borrowed from {REFERENCE.upper()}"
    return {**found, "memory-bound": "datasheet"}
