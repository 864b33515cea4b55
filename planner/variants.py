"""Choices that a table does not hold, searched when asked: dispatcher, offload to the host, further recompute settings.

Each combination is a search of its own; the answer is the result with the shortest step. It is proved over all of
them: the bound is the least of all, and the certificate of the first plan stands only where no search could still
beat it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from hwprofiles.errors import NoPlanError, UserError
from hwprofiles.specs import SoftwareProfile
from planner.search import Certificate, PlanResult
from planner.space import recompute_choices
from sim.model import ModelSpec
from sim.plan import RECOMPUTE_MODULES
from sim.workload import Offload, Workload

DIMENSIONS = ("dispatcher", "offload", "recompute")
DISPATCHERS = ("alltoall", "deepep", "hybridep", "allgather")
OFFLOADS = (
    Offload(), Offload(optimizer=0.5, overlap=True), Offload(optimizer=1.0, overlap=True), Offload(layers=2),
    Offload(modules=("moe_act",)), Offload(modules=("core_attn",)),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One combination: switches of the software profile, what is offloaded (None: as asked), recompute (None: free)."""

    switches: tuple[tuple[str, Any], ...] = ()
    offload: Offload | None = None
    recompute: tuple[str, ...] | None = None

    @property
    def label(self) -> str:
        """In words; "as asked" where nothing is changed."""
        said = [f"{name} {value}" for name, value in self.switches]
        if self.offload is not None:
            said.append(f"offload {_offload_text(self.offload)}")
        if self.recompute is not None:
            said.append(f"recompute {'+'.join(self.recompute) or 'none'}")
        return ", ".join(said) or "as asked"


@dataclass(frozen=True, kw_only=True)
class VariantLine:
    """What the search of one combination gave. step_s, plan: of its best plan; bound_s: nothing of it is faster; why:
    there is no plan, and these are None."""

    label: str
    step_s: float | None
    plan: str | None
    bound_s: float | None
    certificate: str | None
    why: str


def variants_of(
    dimensions: Sequence[str], model: ModelSpec, software: SoftwareProfile, workload: Workload, fixed: Mapping[str, Any]
) -> tuple[Variant, ...]:
    """Every combination of the dimensions; what was asked for itself stands first. Raises UserError."""
    problems = [f"{name[:40]!r} is not known; use {', '.join(DIMENSIONS)}" for name in dimensions
                if name not in DIMENSIONS]  # fmt: skip
    if "recompute" in dimensions and "recompute" in fixed:
        problems.append("recompute is fixed by --recompute; leave one of them out")
    if "offload" in dimensions and workload.offload != Offload():
        problems.append("offload is fixed by --offload; leave one of them out")
    if "dispatcher" in dimensions and not model.is_moe:
        problems.append(f"{model.name} has no experts to dispatch to; leave dispatcher out")
    if problems:
        raise UserError(problems, where="--search")
    own = software.dispatcher
    switches: tuple[tuple[tuple[str, Any], ...], ...] = ((),)
    if "dispatcher" in dimensions:
        switches = tuple((("dispatcher", each),) for each in (own, *(d for d in DISPATCHERS if d != own)))
    offloads: tuple[Offload | None, ...] = OFFLOADS if "offload" in dimensions else (None,)
    recomputes: tuple[tuple[str, ...] | None, ...] = (None,)
    if "recompute" in dimensions:
        recomputes = every_recompute(model, software)
    return tuple(
        Variant(switches=s, offload=o, recompute=r) for s, o, r in product(switches, offloads, recomputes)
    )  # fmt: skip


def every_recompute(model: ModelSpec, software: SoftwareProfile) -> tuple[tuple[str, ...], ...]:
    """The settings of the table, and every module that the model has by itself and beside what all of them
    recompute."""
    mla = any(layer.attention.kind == "mla" for layer in model.layers)
    dense = any(layer.ffn_dim for layer in model.layers)
    shared = any(layer.moe and layer.moe.shared_ffn_dim for layer in model.layers)
    there = {"core_attn": True, "moe_act": model.is_moe, "layernorm": True, "mla_up_proj": mla, "mlp": dense,
             "moe": model.is_moe, "shared_experts": shared}  # fmt: skip
    single = [(name,) for name in RECOMPUTE_MODULES if there.get(name)]
    cheap = {name for name in ("moe_act", "layernorm") if there[name]}
    joined = [tuple(m for m in RECOMPUTE_MODULES if m in {*cheap, *each}) for each in single]
    named = set(RECOMPUTE_MODULES if software.recompute_modules is None else software.recompute_modules)
    able = [each for each in (*single, *joined) if set(each) <= named]
    return tuple(dict.fromkeys([*recompute_choices(model, software), *able]))


def best_of(variants: Sequence[Variant], search: Callable[[Variant], PlanResult]) -> PlanResult:
    """The result with the shortest step of all combinations, and what the others gave. Raises NoPlanError where none
    has a plan."""
    found: list[PlanResult] = []
    lines: list[VariantLine] = []
    for variant in variants:
        try:
            result = search(variant)
        except NoPlanError as error:
            lines.append(VariantLine(label=variant.label, step_s=None, plan=None, bound_s=None, certificate=None,
                                     why=error.problems[0]))  # fmt: skip
            continue
        best = result.plans[0].report
        options = {**result.options, "searched": [each.label for each in variants]}
        options |= {"profile": dict(variant.switches)} if variant.switches else {}
        found.append(replace(result, options=options))
        lines.append(
            VariantLine(label=variant.label, step_s=best.step_s.value, plan=best.plan.label(),
                        bound_s=result.search.bound_s, certificate=result.search.certificate, why="")
        )  # fmt: skip
        if result.search.stopped == "interrupted":
            break
    if not found:
        raise NoPlanError([f"{line.label}: {line.why}" for line in lines], search={"variants": len(lines)})
    chosen = min(found, key=lambda r: r.plans[0].report.step_s.value)
    step_s = chosen.plans[0].report.step_s.value
    bound_s = min(step_s, *(r.search.bound_s for r in found))
    certificate: Certificate = "best exact" if bound_s >= step_s else "gap"
    if any(r.search.certificate == "void" for r in found):
        certificate = "void"
    lost: dict[str, int] = {}
    for each in found:
        for name, count in each.search.rejected.items():
            lost[name] = lost.get(name, 0) + count
    summary = replace(
        chosen.search, bound_s=bound_s, gap=(step_s - bound_s) / step_s, certificate=certificate,
        rejected=dict(sorted(lost.items(), key=lambda item: (-item[1], item[0]))),
        **{name: sum(getattr(r.search, name) for r in found) for name in ("raw", "legal", "fits", "simulated")},
        stopped=next((r.search.stopped for r in found if r.search.stopped in ("interrupted", "limit")), "bound"),
    )  # fmt: skip
    return replace(chosen, search=summary, variants=tuple(asdict(line) for line in lines), front=None, energy=None)


def _offload_text(offload: Offload) -> str:
    said = []
    if offload.optimizer:
        said.append(f"optimizer={offload.optimizer:g}" + (" overlap" if offload.overlap else ""))
    if offload.layers:
        said.append(f"layers={offload.layers}")
    if offload.modules:
        said.append(f"modules={'+'.join(offload.modules)}")
    return ", ".join(said) or "nothing"
