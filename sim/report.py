"""The result of a run: numbers with intervals, where the time goes, memory by tag."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from sim.mesh import DEFAULT_MAP, RankMap
from sim.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number and its 80 % interval (equal bounds: the interval is not known)."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> Estimate:
        """The same estimate in other units."""
        return Estimate(value=self.value * factor, low=self.low * factor, high=self.high * factor)

    def inverse(self, numerator: float) -> Estimate:
        """numerator / self, bounds swapped."""
        return Estimate(value=numerator / self.value, low=numerator / self.high, high=numerator / self.low)


class Span(NamedTuple):
    """One finished task: [start_s, end_s) on a stream of a lane (see `Trace.lanes`); a tuple, as tasks are."""

    lane: int
    stream: str
    name: str
    kind: str
    micro_batch: int
    chunk: int
    start_s: float
    end_s: float


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One simulated rank: its pipeline stage, what it is there ("" where a stage has one lane), ranks it stands for."""

    stage: int
    name: str
    weight: int


@dataclass(frozen=True, kw_only=True)
class Trace:
    """Everything an event run recorded.

    memory[lane]: (time_s, bytes in use) steps; peak_bytes[lane]: {tag: bytes at the lane's peak};
    link_busy_s[(lane, link)]: seconds the link carried anything; link_bytes likewise.
    lane_busy_s[lane]: seconds its compute stream was busy. periods_skipped: micro-batches jumped
    over by the periodic steady state (0 = every event was run). lanes: what each lane is; empty: lane = pipeline stage.
    link_rates[(lane, link)]: load as steps (time_s, bytes/s from then on), zero at the end, of the part that was run;
    empty unless asked for. link_bytes_per_s[link]: the rate that 100 % stands for.
    """

    makespan_s: float
    spans: Sequence[Span]
    memory: Sequence[tuple[tuple[float, float], ...]]
    peak_bytes: tuple[Mapping[str, float], ...]
    lane_busy_s: tuple[float, ...]
    link_busy_s: Mapping[tuple[int, str], float]
    link_bytes: Mapping[tuple[int, str], float]
    num_events: int
    periods_skipped: int = 0
    link_rates: Mapping[tuple[int, str], tuple[tuple[float, float], ...]] = field(default_factory=dict)
    link_bytes_per_s: Mapping[str, float] = field(default_factory=dict)
    lanes: tuple[Lane, ...] = ()

    def spans_of(self, lane: int) -> list[Span]:
        """The spans of one lane, in order."""
        of_lane = getattr(self.spans, "of_lane", None)  # an engine makes spans when they are asked for
        return [span for span in self.spans if span.lane == lane] if of_lane is None else list(of_lane(lane))

    def stage_of(self, lane: int) -> int:
        """Pipeline stage of a lane."""
        return self.lanes[lane].stage if self.lanes else lane

    def lane_name(self, lane: int) -> str:
        """A lane in words: "stage 3", or "stage 3, median rank"."""
        name = self.lanes[lane].name if self.lanes else ""
        return f"stage {self.stage_of(lane)}" + (f", {name}" if name else "")


HOST = "host memory"  # in place of a tag: the node's memory is too small for what is offloaded to it


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """Where a plan does not fit: the lane, its largest tag, bytes needed and bytes there."""

    lane: int
    tag: str
    need_bytes: float
    have_bytes: float


@dataclass(frozen=True, kw_only=True)
class Imbalance:
    """What uneven experts do to one plan.

    max_over_mean: expected rows of the hottest rank over the mean, averaged over layers; fullest_over_mean: of its
    fullest expert over its mean expert. balanced_step_s: the same plan under forced balance; cost_share: time lost over
    it (0.1 = 10 %). step_p10_s ... peak_p99_bytes: quantiles over routing noise (and drift); oom_probability: that
    any rank runs out of memory in a step. rank_load[layer][rank]: expected rows over the mean rank.
    traffic_bytes[source][destination]: one forward dispatch, mean over layers, of ranks or nodes (`traffic_of`).
    stage_over_mean[virtual stage]: max_over_mean of its own layers, in model order (1 where it has none).
    sampled_p10_s ... sampled_p90_s: quantiles of sampled_steps steps with a drawn load in every micro-batch, None where
    none were drawn. dropped_share, dropped_worst_layer: token-choices that a capacity drops, mean and worst layer.
    stay_rank, stay_node: of the choices a token makes in the next layer, the share on the rank (node) where it is; None
    unless a trace tells how tokens go on.
    """

    source: str
    max_over_mean: float
    fullest_over_mean: float
    balanced_step_s: float
    cost_share: float
    step_p10_s: float
    step_p50_s: float
    step_p90_s: float
    step_p99_s: float
    peak_p50_bytes: float
    peak_p99_bytes: float
    oom_probability: float
    rank_load: tuple[tuple[float, ...], ...]
    traffic_of: str
    traffic_bytes: tuple[tuple[float, ...], ...]
    stage_over_mean: tuple[float, ...] = ()
    sampled_steps: int = 0
    sampled_p10_s: float | None = None
    sampled_p50_s: float | None = None
    sampled_p90_s: float | None = None
    dropped_share: float = 0.0
    dropped_worst_layer: float = 0.0
    stay_rank: float | None = None
    stay_node: float | None = None


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """An own measured run that a prediction was anchored to.

    ratio: its measured over predicted step time. weight: log of the factor on the prediction per log of the ratio.
    """

    id: str
    where: str
    ratio: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class Adjustment:
    """What own measured runs say about one prediction: the posterior of log(measured / predicted step time).

    factor: on the step time; share: of the interval's width (in the logarithm) that is left, at most 1. before, after:
    bounds of measured over predicted step time, the latter with the factor in it. unusable: (row, reason) of rows
    that could not serve. Variances and the formula: calibration/spread.py.
    """

    factor: float
    share: float
    before: tuple[float, float]
    after: tuple[float, float]
    anchors: tuple[Anchor, ...]
    unusable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """One simulated step.

    breakdown: seconds per class of the critical (longest busy) stage; sums to step_s.value.
    Classes: compute classes ("attention", "gemm", "experts", "memory-bound", "recompute"),
    "host", exposed communication ("tp", "cp", "ep", "dp", "pp"), "bubble", "optimizer", "step overhead".
    mem_capacity_bytes: of the device; usable_mem_bytes: what plans have to fit in, less context, reserve and
    fragmentation. memory: per stage, bytes by tag at the peak. link_use: per link name, bytes and mean share of its
    rate over the step (worst lane). provenance: what the numbers rest on, worst first.
    stages: layers per virtual stage in model order; pipeline_layout: the same with embedding, MTP and loss, as
    Megatron-LM takes it. imbalance: set by `sim.imbalance.with_imbalance`. ranks: order and devices of the ranks.
    peak_mem: peak_mem_bytes with its interval. host_mem_bytes: of a node, what is offloaded to it.
    anchored: own runs that moved times and rates (`sim.interval.adjusted`).
    """

    model: str
    cluster: str
    software: str
    devices: int
    plan: Plan
    num_micro_batches: int
    step_s: Estimate
    tokens_per_s_per_gpu: Estimate
    mfu: Estimate
    tflops_per_gpu: float
    usd_per_step: float | None
    breakdown: Mapping[str, float]
    bubble_fraction: float
    exposed_comm_s: Mapping[str, float]
    peak_mem_bytes: float
    mem_capacity_bytes: float
    usable_mem_bytes: float
    memory: tuple[Mapping[str, float], ...]
    link_use: Mapping[str, Mapping[str, float]]
    out_of_memory: OutOfMemory | None
    provenance: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    bound_s: float = 0.0
    stages: tuple[int, ...] = ()
    pipeline_layout: str = ""
    imbalance: Imbalance | None = field(default=None, repr=False)
    ranks: RankMap = field(default=DEFAULT_MAP, repr=False)
    peak_mem: Estimate | None = None
    host_mem_bytes: float = 0.0
    host_mem_capacity_bytes: float = 0.0
    anchored: Adjustment | None = None
    trace: Trace | None = field(default=None, repr=False)

    @property
    def fits(self) -> bool:
        """True when every stage stays within `usable_mem_bytes` and a node within its host memory."""
        return self.out_of_memory is None

    def to_json(self) -> dict[str, Any]:
        """Machine-readable form: plain numbers, SI units; the trace is left out."""
        from dataclasses import asdict

        out = asdict(self) if self.trace is None else asdict(_without_trace(self))
        out.pop("trace")
        out.pop("ranks")
        out["fits"] = self.fits
        return out | rank_fields(self.ranks)


def rank_fields(ranks: RankMap) -> dict[str, Any]:
    """A rank map as JSON: the order, and of a host map source, digest, devices in runs and names of the nodes."""
    hosts = ranks.hosts
    return {
        "rank_order": ranks.order,
        "host_map": None
        if hosts is None
        else {"source": hosts.source, "digest": hosts.digest, "runs": [list(run) for run in hosts.runs()]},
        "hosts": list(hosts.nodes) if hosts is not None and hosts.nodes else None,
    }


def _without_trace(report: Report) -> Report:
    from dataclasses import replace

    return replace(report, trace=None)
