"""Screening: memory and a true lower bound of the step for 10^5 plans at once.

Prices of virtual stages come from a `PriceTable` (each distinct setting once, by the `StepCost` the event run uses);
how often each enters from `sim.build.forms` (integers per pipeline). Left per row are sums of products over lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.context import Context
from sim.build.order import SPLIT_SCHEDULES
from sim.build.ragged import Lists, Spans, joined
from sim.build.stages import StageContent
from sim.columns import Columns
from sim.cost import prices as at
from sim.cost.hops import Hops
from sim.cost.levels import KnownLoads
from sim.cost.model import CostModel
from sim.cost.prices import PriceTable, distinct, meet, setting_fields
from sim.cost.state import LocalParams
from sim.cost.step import StepCost
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.pipelines import Pipelines
from sim.routing import Routing
from sim.workload import Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROWS_AT_ONCE = 8192  # a pass over so many rows stays in the processor's cache and in some tens of MB
ENDS_KEPT = 16  # blocks whose step ends (memory of the state, data-parallel tails) are remembered


@dataclass(frozen=True, kw_only=True, eq=False)
class Screened:
    """Per row: bound_s <= simulated step (inf where it cannot be laid out), peak_bytes of the fullest
    stage, fits (peak within what a rank may allocate)."""

    bound_s: Floats
    peak_bytes: Floats
    fits: NDArray[np.bool_]


def screen(
    model: ModelSpec, cluster: ClusterSpec, software: SoftwareProfile, workload: Workload, columns: Columns, *,
    routing: Routing | None = None, cost: CostModel | None = None, ranks: RankMap = DEFAULT_MAP,
) -> Screened:  # fmt: skip
    """Bound and memory of every row of `columns`; rows must already satisfy the layout rules."""
    return Screener(model, cluster, software, workload, routing=routing, cost=cost, ranks=ranks)(columns)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ends:
    """Per (distinct layout of the state, kept stage): bytes held all step, seconds of the ends of the step."""

    state: NDArray[np.intp]
    start: NDArray[np.intp]
    static_bytes: Floats
    grad_s: Floats
    gather_s: Floats
    optimizer_s: Floats
    overhead_s: Floats


class Screener:
    """Screens block after block of one question; prices and pipelines met before are not worked out again.

    pipelines: of the same model, workload and routing, shared by the screenings under several rank maps.
    """

    def __init__(
        self, model: ModelSpec, cluster: ClusterSpec, software: SoftwareProfile, workload: Workload, *,
        routing: Routing | None = None, cost: CostModel | None = None, ranks: RankMap = DEFAULT_MAP,
        pipelines: Pipelines | None = None,
    ) -> None:  # fmt: skip
        self.model, self.software, self.workload = model, software, workload
        self.routing = routing or Routing()
        self.cost = cost or CostModel(cluster, software, ranks=ranks)
        self._pipelines = pipelines or Pipelines(model, workload, self.routing)
        self._prices: dict[tuple[tuple[str, ...], int, str], PriceTable] = {}
        self._met: dict[tuple[str, ...], dict[tuple[int, ...], tuple[int, ...]]] = {}
        self._known: dict[tuple[bytes, bytes], KnownLoads] = {}
        self._ends: dict[tuple[Any, ...], _Ends] = {}
        self._pricing = self  # whose layers' prices these are

    def with_ends(self, cluster: ClusterSpec, workload: Workload) -> Screener:
        """The screening where the optimizer rests elsewhere (its offload, the rates of the host): layers keep their
        prices, only state and ends of the step are worked out again."""
        other = copy(self)
        other.workload, other._ends = workload, {}
        other.cost = CostModel(cluster, self.software, ranks=self.cost.ranks)
        return other

    def pass_prices(self, plan: Columns, contents: Sequence[StageContent]) -> Floats:
        """Prices [field, content] of virtual stages of one plan (`sim.cost.prices`)."""
        price_table = self._price_table(plan)
        settings, _ = price_table.settings(plan)
        found: Floats = price_table.table(contents, settings)[:, :, 0]
        return found

    def update_s(self, plan: Columns, params: LocalParams) -> Floats:
        """Seconds of the optimizer for stages that hold these parameters, a row each."""
        return np.broadcast_to(np.asarray(self._step(plan).of_state().optimizer_s(params)), (len(plan),))

    def __call__(self, columns: Columns) -> Screened:
        """Bound and memory of every row; rows must already satisfy the layout rules."""
        bound, peak = np.full(len(columns), np.inf), np.full(len(columns), np.inf)
        for start in range(0, len(columns), ROWS_AT_ONCE):
            index = np.arange(start, min(start + ROWS_AT_ONCE, len(columns)))
            part = columns.take(index)
            m = self.workload.global_batch_seqs // np.maximum(1, part.micro_batch_seqs * part.dp)
            first, pipe = distinct([part.pp, part.vpp, m])
            lists = [self._pipelines.lists_of(part, int(i), int(m[i])) for i in first]
            sound = np.array([each is not None for each in lists])
            rows = np.flatnonzero(sound[pipe])
            if len(rows):
                place = np.cumsum(sound) - 1
                found = [each for each in lists if each is not None]
                bound[index[rows]], peak[index[rows]] = self._rows(part.take(rows), place[pipe[rows]], found)
        return Screened(bound_s=bound, peak_bytes=peak, fits=peak <= self.cost.usable_bytes)

    def expect(self, columns: Columns) -> None:
        """Rows that will be screened later: their settings are priced together with those of the first block."""
        if len(columns):
            meet(columns, self._met.setdefault(setting_fields(columns.zero_stage), {}))

    # -- one block -------------------------------------------------------------------------------

    def _rows(self, part: Columns, pipe: Any, found: Sequence[Lists]) -> tuple[Floats, Floats]:
        """(bound_s, peak_bytes) of rows of which row i has pipeline found[pipe[i]]."""
        lists, spans = joined(found)
        price_table = self._price_table(part)
        settings, setting = price_table.settings(part)
        used = np.unique(np.concatenate([lists.term_content, lists.moments[1], lists.held[0]]))
        everything = list(self._pipelines.contents)
        prices = price_table.table([everything[i] for i in used], settings).reshape(-1, len(used) * len(settings))
        column = np.zeros(len(everything), dtype=np.int64)
        column[used] = np.arange(len(used)) * len(settings)
        price = _Prices(prices, column, setting)

        owner, term = spans["terms"].of(pipe)
        opens = np.flatnonzero(lists.opens_term[term])
        fill_n, drain_n, alone_f, alone_b, pair_f, pair_b = lists.terms[:, term]
        where = price.where(lists.term_content[term], owner)
        forward, backward = prices[at.FORWARD].take(where), prices[at.BACKWARD].take(where)
        paired = pair_f * prices[at.PAIRED_FORWARD].take(where) + pair_b * prices[at.PAIRED_BACKWARD].take(where)
        work = np.add.reduceat(alone_f * forward + alone_b * backward + paired, opens)
        fill = np.add.reduceat(fill_n * forward, opens)
        drained = drain_n * backward
        if part.schedule in SPLIT_SCHEDULES:
            drained = drained + lists.late[term] * prices[at.WGRAD].take(where)
        drain = np.add.reduceat(drained, opens)

        owner, entry = spans["stages"].of(pipe)
        row_start = spans["stages"].starts(pipe)
        stage, buckets, activations, gradients, chunk0 = lists.stages[:, entry]
        hops = Hops(self._step(part))
        from_first_s = hops.before(stage, owner)
        fill, drain = fill + from_first_s, drain + from_first_s
        sending = activations * hops.at(stage, owner) + gradients * hops.at(stage - 1, owner)
        if not self.software.p2p_overlap:
            work, sending = work + sending, np.zeros(len(sending))
        ends = self._ends_of(part, pipe, lists, spans, price)
        state = ends.start[ends.state[owner]] + np.arange(len(owner)) - row_start[owner]
        where = price.where(chunk0, owner)
        vpp = np.full(len(owner), 2) if part.schedule == "dualpipe" else part.vpp[owner]
        first_s = self._gathered_s(ends.gather_s[state], prices[at.FORWARD].take(where), buckets, vpp)
        tail = self._reduced_s(ends.grad_s[state], prices[at.BACKWARD].take(where), buckets, vpp)
        tail = tail + ends.optimizer_s[state] + ends.overhead_s[state]
        begin = np.maximum(first_s[row_start][owner] + fill, first_s)
        first_tail = tail[row_start][owner]
        # sends follow each other; the last gradient then goes on to the first stage
        finish = begin + np.maximum(work + np.maximum(tail, drain + first_tail), sending + drain + first_tail)
        free = self.software.optimizer_post_validation
        if free:  # a stage's own time, and the way through all of them to the end of the first
            finish = np.maximum(work + tail, begin + np.maximum(work, sending) + drain + first_tail)
        bound = np.maximum.reduceat(finish, row_start)
        # the stage before the slowest boundary need not be kept: its activations, and the last gradient back
        m = self.workload.global_batch_seqs // (part.micro_batch_seqs * part.dp)
        line = (m * part.vpp + (part.schedule != "dualpipe" and not free)) * hops.slowest_s
        line = line if free else first_s[row_start] + line + tail[row_start]
        bound = np.maximum(bound, line)
        peak = self._peak(pipe, lists, spans, price, ends.static_bytes[state], row_start)
        return bound, peak

    def _gathered_s(self, gather_s: Any, forward_s: Any, buckets: Any, vpp: Any) -> Any:
        """Seconds a stage's first forward is late because parameters are gathered from t = 0.

        Overlapped, the forward runs in `buckets` parts, each after its piece of 1/(vpp buckets).
        """
        if not self.software.dp_overlap_param:
            return gather_s
        piece = gather_s / (vpp * buckets)
        return np.maximum(piece, buckets * piece - forward_s * (buckets - 1) / buckets)

    def _reduced_s(self, grad_s: Any, backward_s: Any, buckets: Any, vpp: Any) -> Any:
        """Seconds of gradient reduction after the last backward, which releases `buckets` pieces one by one."""
        if not self.software.dp_overlap_grad:
            return grad_s
        piece = grad_s / (vpp * buckets)
        return np.maximum(piece, buckets * piece - backward_s * (buckets - 1) / buckets)

    def _peak(
        self, pipe: Any, lists: Lists, spans: dict[str, Spans], price: _Prices, static: Floats, row_start: Any
    ) -> Floats:
        """Static bytes, activations held and the transient of what runs, at the worst moment of any stage."""
        owner, entry = spans["held"].of(pipe)
        opens = np.flatnonzero(lists.opens_held[entry])
        content, count = lists.held[:, entry]
        where = price.where(content, owner)
        split = np.any(lists.held_as != at.SAVED)
        sizes = price.table[lists.held_as[entry], where] if split else price.table[at.SAVED].take(where)
        held = np.add.reduceat(count * sizes, opens)
        owner, entry = spans["moments"].of(pipe)
        stage, running = lists.moments[:, entry]
        total = static[row_start[owner] + stage] + held + price.table[at.WORKING].take(price.where(running, owner))
        result: Floats = np.maximum.reduceat(total, spans["moments"].starts(pipe))
        return result

    # -- what is remembered between blocks -------------------------------------------------------

    def _step(self, plan: Columns) -> StepCost:
        return StepCost(
            self.cost,
            Context(
                model=self.model, workload=self.workload, plan=plan, software=self.software, routing=self.routing
            ),
        )  # fmt: skip

    def _step_of_settings(self, plan: Columns) -> StepCost:
        """The cost of the settings of a price table; tables of other recompute settings know their loads already."""
        step = self._step(plan)
        if not self.routing.loads:
            return step
        key = (plan.ep.tobytes(), np.asarray(step.ctx.group_tokens).tobytes())
        return StepCost(self.cost, step.ctx, self._known.setdefault(key, KnownLoads()))

    def _price_table(self, part: Columns) -> PriceTable:
        # one keeps the logits of all micro-batches, some put weight gradients off
        kind = part.schedule if part.schedule == "gpipe" else "split" if part.schedule in SPLIT_SCHEDULES else ""
        key = (part.recompute, part.zero_stage, kind)
        if key not in self._prices:
            met = self._met.setdefault(setting_fields(part.zero_stage), {})
            self._prices[key] = PriceTable(self._pricing._step_of_settings, met)
        return self._prices[key]

    def _ends_of(self, part: Columns, pipe: Any, lists: Lists, spans: dict[str, Spans], price: _Prices) -> _Ends:
        """Model state and data-parallel ends: neither the micro-batch nor recompute matters to them."""
        fields = ("tp", "cp", "dp", "ep", "etp", "edp", "pp", "vpp")
        columns = [getattr(part, name) for name in fields]
        first, which = distinct(columns)
        small = part.take(first)
        split = part.schedule if part.schedule in SPLIT_SCHEDULES else ""  # they look at other stages
        degrees = np.stack([getattr(small, name) for name in fields]).tobytes()
        key = (part.zero_stage, part.account_ends, split, degrees)
        if key in self._ends:
            return _Ends(**{**vars(self._ends[key]), "state": which})
        owner, term = spans["terms"].of(pipe[first])
        opens = np.flatnonzero(lists.opens_term[term])
        _, _, alone, _, paired, _ = lists.terms[:, term]
        m = (self.workload.global_batch_seqs // (small.micro_batch_seqs * small.dp))[owner]
        m = m // (1 + (split == "dualpipe"))
        where = price.where(lists.term_content[term], first[owner])
        chunks = (alone + paired) / m  # virtual stages of this content on the stage
        more = range(at.more_from(part.schedule), len(price.table))
        dense, routed, launch_s, *rest = (
            np.add.reduceat(chunks * price.table[i].take(where), opens) for i in (at.DENSE, at.ROUTED, at.END, *more)
        )
        params = LocalParams(dense=dense, routed=routed, more=tuple(rest))
        owner, _ = spans["stages"].of(pipe[first])
        step = self._step(small.take(owner)).of_state()
        grad, gather = step.data_parallel(params)
        static = sum((np.asarray(v) for v in step.static(params).values()), np.zeros(len(owner)))
        ends = _Ends(
            state=which, start=spans["stages"].starts(pipe[first]), static_bytes=static,
            grad_s=np.asarray(grad.alone_s), gather_s=np.asarray(gather.alone_s),
            optimizer_s=np.asarray(step.optimizer_s(params)),
            overhead_s=launch_s + step.check_s(params) + self.cost.factors.step_fixed_s,
        )  # fmt: skip
        while len(self._ends) >= ENDS_KEPT:
            del self._ends[next(iter(self._ends))]
        self._ends[key] = ends
        return ends


class _Prices:
    """A price table flattened to [field, content x setting], and where a row finds a content in it."""

    def __init__(self, table: Floats, column: Ints, setting: Any) -> None:
        self.table, self._column, self._setting = table, column, setting

    def where(self, content: Any, row: Any) -> Any:
        """Position of the price of `content` for `row`."""
        return self._column.take(content) + self._setting.take(row)
