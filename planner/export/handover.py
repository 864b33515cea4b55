"""From a plan file to a `Handover`: names are read in the catalogues again, and the digest says whether they still mean
the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.specs import SoftwareProfile
from planner.export.base import Handover, plain_text
from planner.planfile import digest_of, plan_from, ranks_from
from planner.search import PlanResult
from planner.switches import known, turned_on
from planner.variants import chosen_from, stated_profile, stated_workload
from sim.families import load_model


def handover_of(result: PlanResult, rank: int = 1, *, base: str | None = None) -> Handover:
    """A plan of an answer of `find_plans`, for `export_plan`; 1 is the fastest. Raises UserError beyond the last."""
    if not 1 <= rank <= len(result.plans):
        raise UserError(f"the answer has plans 1 to {len(result.plans)}, not {rank}", where="rank")
    ranked = result.plans[rank - 1]
    report = ranked.report
    return Handover(
        model=result.model, cluster=result.cluster, software=result.software_of(ranked),
        workload=result.workload_of(ranked),
        plan=report.plan, ranks=report.ranks, stages=tuple(report.stages), layout=report.pipeline_layout, base=base,
    )  # fmt: skip


def handover_from(
    data: Mapping[str, Any],
    *,
    rank: int = 1,
    model: str | None = None,
    cluster: str | None = None,
    software: str | None = None,
    base: str | None = None,
) -> tuple[Handover, str]:
    """(handover of the plan of this rank, a warning or ""). `data`: what `planner.planfile.load_plan` gives.

    model, cluster, software: names or files to read instead of the names in the file (a plan of a model from a file
    names no path). The warning says when what was read is not what the plan was made of. Raises UserError.
    """
    try:
        inputs = data["inputs"]
        records = data["plans"]
        names = {
            "--model": model or str(inputs["model"]),
            "--cluster": cluster or str(inputs["cluster"]),
            "--software": software or str(inputs["software"]),
        }
        workload = stated_workload(inputs["workload"], where="inputs.workload")
        devices = int(inputs["devices"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the plan file lacks {error}; write it again with `moecast plan --out`", where="inputs"
        ) from None
    if not 1 <= rank <= len(records):
        raise UserError(f"the file has plans 1 to {len(records)}, not {rank}", where="--rank")
    record = records[rank - 1]
    read_model = _read("--model", lambda: load_model(names["--model"]))
    read_cluster = _read("--cluster", lambda: catalogue.cluster(names["--cluster"], gpus=devices))
    arch = "moe" if read_model.is_moe else "dense"
    read_software = _read(
        "--software",
        lambda: catalogue.software(
            names["--software"], device=read_cluster.device, model=read_model.name, arch=arch,
            precision=workload.precision,
        ),
    )  # fmt: skip
    read_software = turned_on(_profiled(read_software, inputs), _applied(inputs))
    own_software, own_workload = chosen_from(record, read_software, workload)
    if own_workload.precision != workload.precision:
        other = catalogue.software(
            names["--software"], device=read_cluster.device, model=read_model.name, arch=arch,
            precision=own_workload.precision,
        )  # fmt: skip
        own_software, _ = chosen_from(record, turned_on(_profiled(other, inputs), _applied(inputs)), workload)
    digest = digest_of(
        read_model, read_cluster, read_software, workload, str(inputs.get("target")), inputs.get("options", {})
    )
    try:
        plan = plan_from(record["plan"])
        stages = tuple(int(n) for n in record["stages"])
        layout = str(record["pipeline_layout"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"plan {rank} lacks {error}; write the file again with `moecast plan --out`") from None
    if len(stages) != plan.pp * plan.vpp or sum(stages) != len(read_model.layers):
        raise UserError(
            f"plan {rank} lays out {sum(stages)} layers over {len(stages)} virtual stages, but "
            f"{plain_text(read_model.name)} has {len(read_model.layers)} and the plan {plan.pp * plan.vpp}; give the "
            "model it was made for",
            where="--model",
        )
    asked = Handover(
        model=read_model, cluster=read_cluster, software=own_software, workload=own_workload, plan=plan,
        ranks=ranks_from(record), stages=stages, layout=layout, base=base,
    )  # fmt: skip
    stale = "" if digest == inputs.get("digest") else (
        "model, cluster, software or workload are not byte for byte those the plan was made of; the step times in the "
        "file are of the old ones"
    )  # fmt: skip
    return asked, stale


def _profiled(software: SoftwareProfile, inputs: Mapping[str, Any]) -> SoftwareProfile:
    """The profile with what `--search` chose in it."""
    chosen = inputs.get("options", {}).get("profile", {})
    if not isinstance(chosen, Mapping) or not set(chosen) <= {f.name for f in fields(SoftwareProfile)}:
        raise UserError("unknown fields of a profile; write the file again with `moecast plan --out`",
                        where="inputs.options.profile")  # fmt: skip
    return stated_profile(software, chosen, where="inputs.options.profile")


def _applied(inputs: Mapping[str, Any]) -> tuple[str, ...]:
    """Switches of the trainer that the search had on beyond its release's."""
    names = inputs.get("options", {}).get("switches", [])
    if not isinstance(names, list) or not known([str(name) for name in names], str(inputs.get("target"))):
        raise UserError("unknown switches; write the file again with `moecast plan --out`", where="inputs.options")
    return tuple(str(name) for name in names)


def _read(option: str, read: Any) -> Any:
    try:
        return read()
    except UserError as error:
        raise UserError([f"{p} (give {option} where the plan was made from a file)" for p in error.problems]) from None
