"""A scenario as the files of every target, ready to be handed out: one file as it is, several as a zip."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass

from dashboards.answers import Answer
from hwprofiles.errors import UserError
from planner.export import EXPORTS, Export, Handover, export_plan

_WHEN = (1980, 1, 1, 0, 0, 0)  # the earliest a zip can say: the same plan is the same bytes


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What one target gets. data: empty where it cannot run the plan, and problems say why; missing: what the target
    has no word for."""

    target: str
    version: str
    file_name: str = ""
    mime: str = ""
    data: bytes = b""
    names: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


# Targets that build on something the visitor names, and what that is.
BASES: Mapping[str, str] = {
    "megatron-bridge": "Recipe (default: the model's)",
    "torchtitan": "Recipe MODULE:FUNCTION (default: the model's)",
    "kubernetes": "Container image with the trainer",
}


def handover(found: Answer, base: str | None = None) -> Handover:
    """The plan of a scenario and everything a target must be told of it; base: what the target builds on."""
    asked = found.scenario
    return Handover(
        model=asked.model, cluster=asked.cluster, software=asked.software, workload=asked.workload, plan=asked.plan,
        ranks=asked.ranks, stages=tuple(found.report.stages), layout=found.report.pipeline_layout,
        base=base,
    )  # fmt: skip


def offers(
    found: Answer, bases: Mapping[str, str] | None = None, versions: Mapping[str, str] | None = None
) -> tuple[Offer, ...]:
    """Every target of `planner.export`, those that can run the plan first. bases, versions: by target, where they are
    not the model's own and the newest."""
    out = []
    for target, (known, _) in EXPORTS.items():
        version = (versions or {}).get(target, known[0])
        try:
            out.append(_offer(export_plan(handover(found, (bases or {}).get(target) or None), target, version)))
        except UserError as error:
            out.append(Offer(target=target, version=version, problems=tuple(error.problems)))
    return tuple(sorted(out, key=lambda offer: not offer.data))


def _offer(made: Export) -> Offer:
    names = tuple(made.files)
    stem = f"{made.target}-{made.version}"
    if len(names) == 1:
        data, name, mime = made.files[names[0]].encode(), f"{stem}-{names[0]}", "text/plain"
    else:
        data, name, mime = zipped(made), f"{stem}.zip", "application/zip"
    return Offer(target=made.target, version=made.version, file_name=name, mime=mime, data=data, names=names,
                 missing=made.missing)  # fmt: skip


def zipped(made: Export) -> bytes:
    """The files of an export in a folder of a zip, scripts executable; the same byte for byte."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in made.files.items():
            entry = zipfile.ZipInfo(f"{made.target}/{name}", _WHEN)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (0o755 if text.startswith("#!") else 0o644) << 16
            archive.writestr(entry, text)
    return out.getvalue()
