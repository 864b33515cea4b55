"""A plan in the words of the software that runs it: one file per target, all from one `Handover`.

A plan that a target cannot run is a UserError naming the rule; what a target has no word for stands in `Export.missing`
and in every file that knows comments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import get_close_matches
from pathlib import Path

from hwprofiles.errors import UserError
from planner.export import accelerate, deepspeed, kubernetes, megatron_bridge, megatron_lm, slurm, torchtitan
from planner.export.base import Export, Handover
from planner.export.expert_map import MAPS

__all__ = ["EXPORTS", "Export", "Handover", "export_plan", "write_export"]

_MODULES = (megatron_lm, megatron_bridge, deepspeed, torchtitan, accelerate, slurm, kubernetes)
# Target -> (versions it is written for, the newest first; what writes it).
EXPORTS: Mapping[str, tuple[tuple[str, ...], Callable[[Handover, str], Export]]] = {
    module.TARGET: (module.VERSIONS, module.export) for module in _MODULES
}


def export_plan(asked: Handover, target: str, version: str | None = None) -> Export:
    """The files of one target. Raises UserError for an unknown target or version, or a plan it cannot run."""
    if target not in EXPORTS:
        known = (*EXPORTS, *MAPS)
        near = get_close_matches(target, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"{target[:60]!r} is not known; {hint}use one of: {', '.join(known)}", where="--to")
    versions, write = EXPORTS[target]
    if version is not None and version not in versions:
        raise UserError(
            f"{target} {version[:60]!r} is not written; use one of: {', '.join(versions)}", where="--version"
        )
    return write(asked, version or versions[0])


def write_export(made: Export, folder: str | Path) -> tuple[Path, ...]:
    """Write the files into a folder, which is made; scripts may be executed. Raises UserError where that fails."""
    target = Path(folder)
    written = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name, text in made.files.items():
            path = target / name
            path.write_text(text, encoding="utf-8")
            if text.startswith("#!"):
                path.chmod(0o755)
            written.append(path)
    except OSError as error:
        raise UserError(
            f"cannot write {target}: {error.strerror}; give a folder you may write", where="--out"
        ) from None
    return tuple(written)
