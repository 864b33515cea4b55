"""Why this plan: where its seconds go, what binds it, what was rejected, what came close.

Works on the plan file alone, so an answer can be explained long after it was found.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from hwprofiles.errors import UserError
from planner.planfile import plan_json
from planner.search import OUT_OF_MEMORY_EVENT, PlanResult
from planner.table import NOT_LAID_OUT, OUT_OF_MEMORY, SAME_GROUPS
from planner.wide_answer import BEYOND_BEST, OUT_OF_MEMORY_ANYHOW
from sim.mesh import DEFAULT_ORDER

MEMORY_TIGHT = 0.9  # share of the device from which memory is called tight
COMMUNICATION = ("tp", "cp", "ep", "dp", "pp")
ROUNDING = 1e-9  # of the step: what adding floats may leave
PRODUCTS = ("world-product", "expert-grid-product")  # arithmetic of the grid: nothing one could relax
# Reasons that no rule stands behind, and who finds them.
NOT_RULES: Mapping[str, Mapping[str, str]] = {
    OUT_OF_MEMORY: {"text": "peak memory within the device", "source": "memory screening"},
    OUT_OF_MEMORY_EVENT: {"text": "peak memory within the device", "source": "memory ledger of the event run"},
    SAME_GROUPS: {"text": "another rank map lays every group of the plan alike", "source": "screening"},
    NOT_LAID_OUT: {"text": "layers can be spread over the stages", "source": "screening"},
    BEYOND_BEST: {"text": "a bound over settings of --search above the best step", "source": "search over variants"},
    OUT_OF_MEMORY_ANYHOW: {
        "text": "peak memory with the most on the host within the device",
        "source": "search over variants",
    },
}


@dataclass(frozen=True, kw_only=True)
class Bar:
    """One step of the waterfall: a class of time, its seconds, its share, and the sum so far."""

    name: str
    seconds: float
    share: float
    until_s: float


@dataclass(frozen=True, kw_only=True)
class Rejection:
    """Candidates lost for one reason, what the reason says and who asks for it."""

    reason: str
    count: int
    share: float
    text: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Near:
    """A plan that was not chosen and why, in words; need and have bytes where memory decided."""

    label: str
    recompute: tuple[str, ...]
    why: str
    bound_s: float
    need_bytes: float | None = None
    have_bytes: float | None = None


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """The best plan explained; `waterfall` sums to step_s (the last bar's until_s)."""

    label: str
    recompute: tuple[str, ...]
    step_s: float
    waterfall: tuple[Bar, ...]
    binding: tuple[str, ...]
    rejected: tuple[Rejection, ...]
    near: tuple[Near, ...]
    neighbours: tuple[Mapping[str, Any], ...]
    certificate: str
    warnings: tuple[str, ...]
    rank_order: str = DEFAULT_ORDER
    runs_with: str = ""  # what was chosen besides degrees, where that was searched

    def to_json(self) -> dict[str, Any]:
        """Machine-readable form, SI units."""
        said = asdict(self)
        return said if self.runs_with else {name: value for name, value in said.items() if name != "runs_with"}


def waterfall(record: Mapping[str, Any]) -> tuple[Bar, ...]:
    """The breakdown of one plan record as bars in falling order; a remainder becomes its own bar.

    The remainder ("not attributed") keeps the sum honest should a breakdown not add up.
    """
    step = float(record["step_s"]["value"])
    parts = {str(k): float(v) for k, v in record["breakdown"].items() if v}
    rest = step - sum(parts.values())
    if abs(rest) > ROUNDING * step:
        parts["not attributed"] = rest
    bars: list[Bar] = []
    total = 0.0
    for name, seconds in sorted(parts.items(), key=lambda item: (-item[1], item[0])):
        total += seconds
        bars.append(Bar(name=name, seconds=seconds, share=seconds / step if step else 0.0, until_s=total))
    if bars:  # the last bar ends at the step itself, not beside it by rounding
        bars[-1] = replace(bars[-1], until_s=step)
    return tuple(bars)


def explain(answer: PlanResult | Mapping[str, Any]) -> Explanation:
    """Explain rank 1 of an answer (a `PlanResult`, or the JSON of one); broken JSON is a UserError."""
    if isinstance(answer, PlanResult):
        return _explained(plan_json(answer))
    try:
        return _explained(answer)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        problem = f"the plan file lacks or mangles a field ({error}); write it again with `moecast plan --out`"
        raise UserError(problem) from None


def _explained(data: Mapping[str, Any]) -> Explanation:
    best = data["plans"][0]
    bars = waterfall(best)
    return Explanation(
        label=best["label"],
        recompute=_recompute(best),
        step_s=best["step_s"]["value"],
        waterfall=bars,
        binding=_binding(data, best, bars),
        rejected=_rejected(data),
        near=_near(data, best),
        neighbours=tuple(data.get("neighbours", ())),
        certificate=_certificate(data["search"]),
        warnings=(*data.get("warnings", ()), *best.get("warnings", ())),
        rank_order=best.get("rank_order", DEFAULT_ORDER),
        runs_with=str((best.get("chosen") or {}).get("label", "")),
    )


def _binding(data: Mapping[str, Any], best: Mapping[str, Any], bars: tuple[Bar, ...]) -> tuple[str, ...]:
    """What stops the best plan from being faster, most telling first."""
    said: list[str] = []
    step = best["step_s"]["value"]
    have = best.get("usable_mem_bytes") or best["mem_capacity_bytes"] or 0.0  # files of older versions lack the former
    peak = best["peak_mem_bytes"]
    if have and peak / have >= MEMORY_TIGHT:
        said.append(f"memory: the fullest device holds {peak / 2**30:.1f} of {have / 2**30:.1f} GiB usable")
    faster = [m for m in data.get("faster_out_of_memory", ()) if m["bound_s"] < step]
    if faster:
        miss = faster[0]
        over = max(0.01, (miss["need_bytes"] - miss["have_bytes"]) / 2**30)
        setting = ", ".join(_recompute(miss))
        said.append(
            f"memory: {_label(miss)}{f' recomputing {setting}' if setting else ''} might run in "
            f"{miss['bound_s']:.4g} s but needs {over:.2f} GiB more per device"
        )
    for move in data.get("neighbours", ()):
        broke_rule = move["outcome"] in data.get("rules", {}) and move["outcome"] not in PRODUCTS
        if broke_rule or move["outcome"] == OUT_OF_MEMORY:
            said.append(f"{move['change']}: {move['outcome']} ({move['what']})")
    if bars:
        said.append(f"time: {bars[0].share:.0%} of the step is {bars[0].name}")
    exposed = sum(float(best["exposed_comm_s"].get(axis, 0.0)) for axis in COMMUNICATION)
    if exposed > 0 and step:
        said.append(f"communication: {exposed / step:.0%} of the step is communication that nothing hides")
    return tuple(said)


def _rejected(data: Mapping[str, Any]) -> tuple[Rejection, ...]:
    raw = max(1, int(data["search"]["raw"]))
    known = {**data.get("rules", {}), **NOT_RULES}
    return tuple(
        Rejection(
            reason=reason,
            count=count,
            share=count / raw,
            text=known.get(reason, {}).get("text", ""),
            source=known.get(reason, {}).get("source", ""),
        )
        for reason, count in data["search"]["rejected"].items()
    )


def _near(data: Mapping[str, Any], best: Mapping[str, Any]) -> tuple[Near, ...]:
    step = best["step_s"]["value"]
    near = []
    for item in data.get("next_best", ()):
        lag = item["bound_s"] / step - 1
        why = (
            f"not simulated: at least {lag:.1%} slower than the best"
            if lag >= 0
            else f"not simulated before the search stopped: at most {-lag:.1%} faster"
        )
        near.append(Near(label=_label(item), recompute=_recompute(item), why=why, bound_s=item["bound_s"]))
    for item in data.get("nearest_out_of_memory", ()):
        need, have = item["need_bytes"], item["have_bytes"]
        over = need - have
        much = f"{over / 2**30:.1f} GiB" if over >= 2**30 / 10 else f"{over / 2**20:.0f} MiB"
        why = f"out of memory: needs {need / 2**30:.1f} GiB, {much} too much"
        near.append(
            Near(
                label=_label(item), recompute=_recompute(item), why=why, bound_s=item["bound_s"], need_bytes=need,
                have_bytes=have,
            )
        )  # fmt: skip
    return tuple(near)


def _label(item: Mapping[str, Any]) -> str:
    """The label, with the rank order where it is not the default."""
    order = item.get("rank_order", DEFAULT_ORDER)
    return str(item["label"]) + ("" if order == DEFAULT_ORDER else f" {order}")


def _recompute(item: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(item.get("plan", {}).get("recompute", ()))


def _certificate(search: Mapping[str, Any]) -> str:
    """The proof in words; the word for a proven best is used only when it is one."""
    return {
        "exact": "exact: no other candidate of the table can beat the plans listed",
        "best exact": "exact for the first plan; later ranks may be beaten",
        "gap": f"not proven: a candidate up to {search['gap']:.1%} faster than the first plan may exist",
        "void": "not proven: an event run came out below its lower bound",
    }[search["certificate"]]
