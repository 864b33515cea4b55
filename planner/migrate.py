"""Plan files of older formats, brought up to date one version at a time.

The rule: keys may join within a format, and readers leave alone what they do not know. The number rises when a key
goes, changes its meaning, or becomes one that must be there; then a function here turns the version before into it. A
file of a newer format is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hwprofiles.errors import UserError


def _to_2(data: Mapping[str, Any]) -> dict[str, Any]:
    """Format 2: digests of each input beside the one of all; goal, counts and pareto; the whole run of a plan.

    An old file cannot say the digests: they are empty, and only the one of all is compared.
    """
    inputs = dict(data["inputs"])
    inputs.setdefault("digests", {})
    made = dict(data) | {"format": 2, "inputs": inputs}
    made["plans"] = [dict(plan) | {"training": plan.get("training")} for plan in data["plans"]]
    for name, empty in (("goal", None), ("counts", []), ("pareto", [])):
        made.setdefault(name, empty)
    return made


STEPS: Mapping[int, Callable[[Mapping[str, Any]], dict[str, Any]]] = {1: _to_2}


def migrated(data: Mapping[str, Any], wanted: int, *, where: str = "") -> dict[str, Any]:
    """The file in the format wanted. Raises UserError for a newer or unknown one."""
    found = data.get("format")
    if isinstance(found, bool) or not isinstance(found, int) or found < 1:
        raise UserError(f"not a plan file of format {wanted}; write it again with `moecast plan --out`", where=where)
    if found > wanted:
        raise UserError(
            f"format {found} is newer than this program reads ({wanted}); update moecast, or write the file again",
            where=where,
        )
    out = dict(data)
    while out["format"] < wanted:
        try:
            out = STEPS[out["format"]](out)
        except (KeyError, TypeError, ValueError) as error:
            problem = f"a file of format {found} that lacks or mangles a field ({error}); write it again"
            raise UserError(problem, where=where) from None
    return out
