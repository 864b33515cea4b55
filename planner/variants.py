"""Choices that a table does not hold, searched when asked: dispatcher, offload to the host, further recompute settings,
precision, context-parallel degrees, switches of the trainer.

They are axes of one search (`planner.wide`): every layout under every combination. Here they are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from typing import Any, get_args

from hwprofiles.catalogue import device_of
from hwprofiles.errors import UserError
from hwprofiles.software_profiles import switches_from
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.space import MAX_CP, cp_choices, powers_of_two, recompute_choices
from sim.model import ModelSpec
from sim.plan import RECOMPUTE_MODULES
from sim.workload import OFFLOAD_MODULES, Offload, Precision, Workload, workload_fields, workload_from

DIMENSIONS = ("dispatcher", "offload", "recompute", "precision", "cp")
DISPATCHERS = ("alltoall", "deepep", "hybridep", "allgather")
# What `moecast stages --search offload` chooses among.
OFFLOADS = (
    Offload(), Offload(optimizer=0.5, overlap=True), Offload(optimizer=1.0, overlap=True), Offload(layers=2),
    Offload(modules=("moe_act",)), Offload(modules=("core_attn",)),
)  # fmt: skip
SHARES = (0.25, 0.5, 0.75, 1.0)  # of the optimizer on the host, beside none
LAYERS = (1, 2, 4, 8)  # of a virtual stage, whose activations go to the host
OF_WORKLOAD = ("precision", "offload")  # what a plan may run with beyond the workload asked for
AGAIN = "write the file again with `moecast plan --out`"
OF_EXPERTS = ("expert_fc1", "moe_act")  # modules that a model without experts does not have
JOINED = (("core_attn", "moe_act"), ("expert_fc1", "moe_act"), ("core_attn", "expert_fc1", "moe_act"))


@dataclass(frozen=True, kw_only=True)
class Ground:
    """What layouts are priced under, but for offload and recompute. fixed: plan fields that it pins; said: (dimension,
    value) of what is not as asked or was chosen."""

    software: SoftwareProfile
    workload: Workload
    fixed: Mapping[str, Any] = field(default_factory=dict)
    said: tuple[tuple[str, str], ...] = ()
    switches: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Axes:
    """The axes of a search. grounds: the one asked for first; shares: of the optimizer on the host, and away:
    activations on the host, as asked first; recomputes: None leaves those of the table."""

    grounds: tuple[Ground, ...]
    shares: tuple[Offload, ...]
    away: tuple[Offload, ...]
    recomputes: tuple[tuple[str, ...], ...] | None
    dimensions: tuple[str, ...]

    def offload(self, share: int, away: int) -> Offload:
        """Both parts of an offload as one."""
        part = self.away[away]
        return replace(self.shares[share], layers=part.layers, modules=part.modules)


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What a plan of such a search runs with: the ground and the offload. said: (dimension, value) in words."""

    software: SoftwareProfile
    workload: Workload
    switches: tuple[tuple[str, Any], ...] = ()
    said: tuple[tuple[str, str], ...] = ()

    @property
    def label(self) -> str:
        """In words; empty where everything is as asked."""
        return ", ".join(f"{name} {value}" for name, value in self.said)

    def to_json(self) -> dict[str, Any]:
        """What is read back (`chosen_from`): fields of the profile and of the workload that the plan runs with."""
        mine = workload_fields(self.workload)
        kept = {name: mine[name] for name in OF_WORKLOAD if name in mine}
        return {"label": self.label, "software": dict(self.switches), "workload": kept}


def chosen_from(record: Mapping[str, Any], software: SoftwareProfile, workload: Workload
                ) -> tuple[SoftwareProfile, Workload]:  # fmt: skip
    """Profile and workload that the plan of a record (`Chosen.to_json`) runs with. Raises UserError."""
    said = record.get("chosen") or {}
    of = f"of plan {record.get('rank')}"
    try:
        turned, other = dict(said.get("software", {})), dict(said.get("workload", {}))
        strange = [repr(name[:40]) for name in other if name not in OF_WORKLOAD]
        if strange:
            raise ValueError(f"unknown in workload: {', '.join(strange)}; known: {', '.join(OF_WORKLOAD)}")
        mine = {name: value for name, value in workload_fields(workload).items() if name != "offload"} | other
        own = stated_workload(mine, where=f"chosen.workload {of}") if said else workload
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"what the plan runs with cannot be read ({error}); {AGAIN}", where=f"chosen.workload {of}"
        ) from None
    return stated_profile(software, turned, where=f"chosen.software {of}"), own


def stated_profile(software: SoftwareProfile, turned: Mapping[str, Any], *, where: str) -> SoftwareProfile:
    """A profile with the switches that a plan file states. Raises UserError where one is none, or has no such value."""
    try:
        return replace(software, **switches_from(turned, where=where)) if turned else software
    except UserError as error:
        raise UserError(f"{'; '.join(error.problems)}; {AGAIN}", where=where) from None


def stated_workload(stated: Mapping[str, Any], *, where: str) -> Workload:
    """The workload that a plan file states (`workload_fields`). Raises UserError for values that none has, TypeError
    where a field is missing or unknown."""
    from hwprofiles.reader import build

    made = workload_from(stated)
    try:
        build(Offload, asdict(made.offload), where=where)
        if made.precision not in get_args(Precision):
            raise UserError(f"precision = {made.precision!r}: use one of {', '.join(get_args(Precision))}", where=where)
        problems = [
            f"offload.modules: unknown module {m!r}; known: {', '.join(OFFLOAD_MODULES)}"
            for m in made.offload.modules if m not in OFFLOAD_MODULES
        ]  # fmt: skip
        if not 0.0 <= made.offload.optimizer <= 1.0:
            problems.append(f"offload.optimizer = {made.offload.optimizer:g}: must be a share from 0 to 1")
        if made.offload.layers < 0:
            problems.append(f"offload.layers = {made.offload.layers}: must be zero or more")
        if problems:
            raise UserError(problems, where=where)
    except UserError as error:
        raise UserError(f"{'; '.join(error.problems)}; {AGAIN}", where=where) from None
    return made


def axes_of(
    dimensions: Sequence[str],
    model: ModelSpec,
    cluster: ClusterSpec,
    software: SoftwareProfile,
    workload: Workload,
    fixed: Mapping[str, Any],
    *,
    trained_in: Callable[[str], SoftwareProfile] | None = None,
    switches: Sequence[str] = (),
) -> Axes:
    """The axes of these dimensions; what was asked for stands first on each.

    trained_in: the profile under another precision (default: the same); switches: of the trainer, each tried besides.
    Raises UserError with everything that contradicts the rest of the question.
    """
    problems = [f"{name[:40]!r} is not known; use {', '.join(DIMENSIONS)}" for name in dimensions
                if name not in DIMENSIONS]  # fmt: skip
    if "recompute" in dimensions and "recompute" in fixed:
        problems.append("recompute is fixed by --recompute; leave one of them out")
    if "offload" in dimensions and workload.offload != Offload():
        problems.append("offload is fixed by --offload; leave one of them out")
    if "dispatcher" in dimensions and not model.is_moe:
        problems.append(f"{model.name} has no experts to dispatch to; leave dispatcher out")
    if "cp" in dimensions and "cp" in fixed:
        problems.append("cp is fixed by --cp; leave one of them out")
    if problems:
        raise UserError(problems, where="--search")
    precisions: tuple[str, ...] = (workload.precision,)
    if "precision" in dimensions:
        peaks = device_of(cluster).peak_flop_per_s
        precisions += tuple(p for p in get_args(Precision) if p in peaks and p != workload.precision)
    dispatchers: tuple[str, ...] = (software.dispatcher,)
    if "dispatcher" in dimensions:
        dispatchers += tuple(d for d in DISPATCHERS if d != software.dispatcher)
    degrees: tuple[int | None, ...] = (None,)
    if "cp" in dimensions:
        degrees += tuple(c for c in powers_of_two(MAX_CP) if c not in cp_choices(workload.seq_tokens))
    grounds = []
    for precision, dispatcher, switch, cp in product(precisions, dispatchers, (None, *switches), degrees):
        other = precision != workload.precision and trained_in is not None
        profile = trained_in(precision) if other and trained_in is not None else software
        turned: dict[str, Any] = {} if switch is None else {switch: True}
        if "dispatcher" in dimensions:
            turned["dispatcher"] = dispatcher
        said = [("precision", precision)] if "precision" in dimensions else []
        said += [("dispatcher", dispatcher)] if "dispatcher" in dimensions else []
        said += [("switch", switch)] if switch is not None else []
        said += [("cp", str(cp))] if cp is not None else []
        grounds.append(
            Ground(
                software=replace(profile, **turned), workload=replace(workload, precision=precision),  # type: ignore[arg-type]
                fixed={} if cp is None else {"cp": cp}, said=tuple(said), switches=tuple(sorted(turned.items())),
            )
        )  # fmt: skip
    own = workload.offload
    shares: tuple[Offload, ...] = (replace(own, layers=0, modules=()),)
    away: tuple[Offload, ...] = (Offload(layers=own.layers, modules=own.modules),)
    if "offload" in dimensions:
        if cluster.host_mem_bytes_per_s and not software.optimizer_offload:
            shares += tuple(Offload(optimizer=share, overlap=True) for share in SHARES)
        away += offloads_of(model)
    recomputes = every_recompute(model, software) if "recompute" in dimensions else None
    return Axes(
        grounds=tuple(grounds), shares=shares, away=away, recomputes=recomputes, dimensions=tuple(dimensions)
    )  # fmt: skip


def offloads_of(model: ModelSpec) -> tuple[Offload, ...]:
    """Activations that can go to the host: modules alone, joined and all of them, and whole layers."""
    there = tuple(name for name in OFFLOAD_MODULES if model.is_moe or name not in OF_EXPERTS)
    joined = [each for each in JOINED if set(each) <= set(there)]
    small = tuple(name for name in there if name not in ("core_attn", *OF_EXPERTS))
    modules = dict.fromkeys([*((name,) for name in there), small, *joined, there])
    return (*(Offload(modules=each) for each in modules), *(Offload(layers=count) for count in LAYERS))


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


def offload_text(offload: Offload) -> str:
    """An offload as `--offload` takes it; "nothing" where there is none."""
    said = []
    if offload.optimizer:
        said.append(f"optimizer={offload.optimizer:g}" + (",overlap" if offload.overlap else ""))
    if offload.layers:
        said.append(f"layers={offload.layers}")
    if offload.modules:
        said.append(f"modules={'+'.join(offload.modules)}")
    return ",".join(said) or "nothing"
