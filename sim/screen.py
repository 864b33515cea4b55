"""Screening: memory and a true lower bound of the step for 10^5 plans at once.

Prices of virtual stages come from `sim.cost.stage_prices` (each part in each distinct setting once, by the `StepCost`
the event run uses); how often each enters from `sim.build.forms` (integers per pipeline). Rows are taken layout by
layout, with all recompute settings in which they are expected: arrays are [kept stage, recompute, row].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hwprofiles.specs import ClusterSpec, SoftwareProfile
from sim.build.context import Context
from sim.build.forms import Form
from sim.build.order import SPLIT_SCHEDULES
from sim.build.stages import StageContent
from sim.columns import DEGREE_FIELDS, Columns
from sim.cost.hops import Hops
from sim.cost.model import CostModel
from sim.cost.prices import PartPrices, distinct, meet, setting_fields
from sim.cost.stage_prices import Priced, StagePrices
from sim.cost.state import LocalParams
from sim.cost.step import StepCost
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.pipelines import LayoutForms, Pipelines
from sim.routing import Routing
from sim.workload import Workload

Floats = NDArray[np.float64]
Index = NDArray[np.intp]

ROWS_AT_ONCE = 8192  # a pass over so many rows stays in some tens of MB
PARTS_DO_NOT_SEE: dict[str, Any] = {"optimizer": 0.0, "overlap": False}
ENTRIES_AT_ONCE = 1 << 16  # numbers of one array of a layout: they stay in the processor's cache


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
    """Per kept stage and row of one layout: bytes held all step, seconds of the ends of the step."""

    static_bytes: Floats
    grad_s: Floats
    gather_s: Floats
    rest_s: Floats


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """Rows of one layout in a block: their places in it (in order of `forms`), the form of each, their settings."""

    at: LayoutForms
    rows: Index
    forms: list[Form]
    form: Index


class Screener:
    """Screens block after block of one question; prices and pipelines met before are not worked out again.

    pipelines: of the same model, workload and routing, shared by the screenings under several rank maps and of what
    differs in software: what one of them was asked for the others price in one go.
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
        # parts do not see where the optimizer lives; a cost model that was given may be none of the catalogue's, and a
        # device of one's own has tables, which are no keys
        by_name = replace(cluster, device_spec=None), repr(cluster.device_spec), ranks
        self._priced_as = (
            cost or by_name, software, replace(workload, offload=replace(workload.offload, **PARTS_DO_NOT_SEE))
        )  # fmt: skip
        self._expected: dict[tuple[Any, ...], list[tuple[str, ...]]] = {}
        self._done: dict[tuple[Any, ...], dict[tuple[str, ...], tuple[Floats, Floats]]] = {}
        self._pricing = self  # whose parts these are

    def with_ends(self, cluster: ClusterSpec, workload: Workload) -> Screener:
        """The screening where the optimizer rests elsewhere (its offload, the rates of the host): parts keep their
        prices, only state and ends of the step are worked out again."""
        other = copy(self)
        other.workload, other._expected, other._done = workload, {}, {}
        other.cost = CostModel(cluster, self.software, ranks=self.cost.ranks)
        return other

    def pass_prices(self, plan: Columns, contents: Sequence[StageContent]) -> tuple[Priced, Floats]:
        """Prices [content, 1, 1] of virtual stages of one plan, and what they hold of parameters [field, content]."""
        numbers, place = self._prices_of(plan).settings(plan)
        stages, split = self._stage_prices(plan, tuple(contents), int(numbers[0])), plan.schedule in SPLIT_SCHEDULES
        priced = stages.at((plan.recompute,), place, gpipe=plan.schedule == "gpipe", split=split)
        return priced, stages.params(place)[:, :, 0]

    def update_s(self, plan: Columns, params: LocalParams) -> Floats:
        """Seconds of the optimizer for stages that hold these parameters, a row each."""
        return np.broadcast_to(np.asarray(self._step(plan).of_state().optimizer_s(params)), (len(plan),))

    def __call__(self, columns: Columns) -> Screened:
        """Bound and memory of every row; rows must already satisfy the layout rules."""
        if not len(columns):
            return Screened(bound_s=np.empty(0), peak_bytes=np.empty(0), fits=np.empty(0, dtype=bool))
        key, mine = _but_recompute(columns), columns.recompute
        if mine not in self._done.get(key, {}):
            recomputes = tuple(dict.fromkeys((mine, *self._expected.pop(key, ()))))
            bound, peak = self._screened(columns, recomputes)
            found = {recompute: (bound[i], peak[i]) for i, recompute in enumerate(recomputes)}
            self._done.setdefault(key, {}).update(found)
        bound, peak = self._done[key].pop(mine)
        if not self._done[key]:
            del self._done[key]
        return Screened(bound_s=bound, peak_bytes=peak, fits=peak <= self.cost.usable_bytes)

    def expect(self, columns: Columns) -> None:
        """Rows that will be screened later: their settings are priced together with those of the first block, and rows
        that differ in recompute alone are screened together."""
        if len(columns):
            expected = self._expected.setdefault(_but_recompute(columns), [])
            if not expected:
                meet(columns, self._met_of(columns))
            if columns.recompute not in expected:
                expected.append(columns.recompute)

    def _met_of(self, columns: Columns) -> dict[tuple[int, ...], tuple[int, ...]]:
        return self._pipelines.met.setdefault(setting_fields(columns.zero_stage), {})

    # -- one block -------------------------------------------------------------------------------

    def _screened(self, columns: Columns, recomputes: tuple[tuple[str, ...], ...]) -> tuple[Floats, Floats]:
        """(bound_s, peak_bytes) [recompute, row]."""
        bound = np.full((len(recomputes), len(columns)), np.inf)
        peak = bound.copy()
        parts = self._prices_of(columns)
        for start in range(0, len(columns), ROWS_AT_ONCE):
            index = np.arange(start, min(start + ROWS_AT_ONCE, len(columns)))
            numbers, places = parts.settings(columns.take(index))
            for number in np.unique(numbers).tolist():
                mine = np.flatnonzero(numbers == number)
                rows = index[mine]
                for few, *found in self._of_pass(columns.take(rows), recomputes, number, places[mine]):
                    bound[:, rows[few]], peak[:, rows[few]] = found
        return bound, peak

    def _of_pass(
        self, block: Columns, recomputes: tuple[tuple[str, ...], ...], number: int, places: Index
    ) -> Iterator[tuple[Index, Floats, Floats]]:
        """(rows, bound_s and peak_bytes of them), some at a time, of a block whose settings were priced in one pass."""
        laid, hops = self._laid_out(block), Hops(self._step(block))
        for each, ends in zip(laid, self._ends_of(block, laid, number, places), strict=True):
            size = max(1, ENTRIES_AT_ONCE // (len(each.at.stages) * len(recomputes)))
            for first in range(0, len(each.rows), size):
                some = slice(first, first + size)
                few = replace(each, rows=each.rows[some], form=each.form[some])
                prices = self._stage_prices(block, few.at.contents, number).at(
                    recomputes, places[few.rows], gpipe=block.schedule == "gpipe",
                    split=block.schedule in SPLIT_SCHEDULES,
                )  # fmt: skip
                piece = _Ends(**{name: value[:, some] for name, value in vars(ends).items()})
                bound = self._bound(block, few, prices, piece, hops)
                yield few.rows, bound, _peak(few, prices, piece.static_bytes)

    def _laid_out(self, block: Columns) -> list[_Rows]:
        """The rows by layout, those of one form and of like moments of memory side by side; without those that have
        none."""
        m = self.workload.global_batch_seqs // np.maximum(1, block.micro_batch_seqs * block.dp)
        first, which = distinct([block.pp, block.vpp, m])
        found: dict[int, tuple[LayoutForms, list[tuple[Form, int]]]] = {}
        for number, row in enumerate(first.tolist()):
            at = self._pipelines.layout(
                int(block.pp[row]), int(block.vpp[row]), account_ends=block.account_ends, schedule=block.schedule
            )
            form = None if at is None else at.form(int(m[row]), block.schedule, block.micro_batch_group)
            if at is not None and form is not None:
                found.setdefault(id(at), (at, []))[1].append((form, number))
        members = np.argsort(which, kind="stable")
        ends = np.cumsum(np.bincount(which, minlength=len(first)))
        out = []
        for at, forms in found.values():
            forms.sort(key=lambda item: id(item[0].peaks))
            rows = [members[ends[n - 1] if n else 0 : ends[n]] for _, n in forms]
            out.append(
                _Rows(
                    at=at, rows=np.concatenate(rows), forms=[form for form, _ in forms],
                    form=np.repeat(np.arange(len(forms)), [len(each) for each in rows]),
                )
            )  # fmt: skip
        return out

    def _bound(self, block: Columns, each: _Rows, prices: Priced, ends: _Ends, hops: Hops) -> Floats:
        """Seconds no event run of the rows can beat, [recompute, row]."""
        at, rows, software = each.at, each.rows, self.software
        own, (content, count) = at.layout.own, at.layout.before
        steps = np.stack([form.steps for form in each.forms], axis=-1).take(each.form, axis=-1)
        forward, backward = prices.forward_s, prices.backward_s
        work: Any = 0.0
        for slot, here in enumerate(own):
            n = steps[:, slot, :, None]
            work = work + n[0] * forward[here] + n[1] * backward[here]
            if n[2:].any():
                work = work + (n[2] * prices.paired_forward_s[here] + n[3] * prices.paired_backward_s[here])
        back = backward if prices.wgrad_s is None else backward - prices.wgrad_s
        fill, drain = (
            np.cumsum(sum(n[:, None, None] * way[c] for c, n in zip(content, count, strict=True)), axis=0)
            for way in (forward, back)
        )
        if prices.wgrad_s is not None:
            late = np.stack([form.late for form in each.forms], axis=-1).take(each.form, axis=-1)[:, :, None]
            drain = drain + sum(n[0] * prices.wgrad_s[c[0]] for n, c in zip(late, own, strict=True))
            drain = drain - sum(n * prices.wgrad_s[c] for n, c in zip(late, own, strict=True))
        stage, row = at.stages[:, None], rows[None, :]
        from_first_s = hops.before(stage, row)[:, None]
        fill, drain = fill + from_first_s, drain + from_first_s
        sends = np.stack([form.sends for form in each.forms], axis=-1).take(each.form, axis=-1)
        sending = (sends[0] * hops.at(stage, row) + sends[1] * hops.at(stage - 1, row))[:, None]
        if not software.p2p_overlap:
            work, sending = work + sending, np.zeros_like(sending)
        vpp = 2 if block.schedule == "dualpipe" else block.vpp[rows]
        buckets = at.buckets[:, None, None]
        first_s = _reached(
            ends.gather_s[:, None], forward[at.first], buckets, vpp, overlapped=software.dp_overlap_param
        )
        tail = _reached(ends.grad_s[:, None], backward[at.first], buckets, vpp, overlapped=software.dp_overlap_grad)
        tail = tail + ends.rest_s[:, None]
        begin, first_tail = np.maximum(first_s[0] + fill, first_s), tail[0]
        # sends follow each other; the last gradient then goes on to the first stage
        if software.optimizer_post_validation:  # a stage's own time, and the way through all to the end of the first
            finish = np.maximum(work + tail, begin + np.maximum(work, sending) + drain + first_tail)
        else:
            finish = begin + np.maximum(work + np.maximum(tail, drain + first_tail), sending + drain + first_tail)
        # the stage before the slowest boundary need not be kept: its activations, and the last gradient back
        free = software.optimizer_post_validation
        m = self.workload.global_batch_seqs // (block.micro_batch_seqs[rows] * block.dp[rows])
        line = (m * block.vpp[rows] + (block.schedule != "dualpipe" and not free)) * hops.slowest_s[rows]
        bound: Floats = np.maximum(finish.max(axis=0), line if free else first_s[0] + line + first_tail)
        return bound

    # -- what is remembered between blocks -------------------------------------------------------

    def _step(self, plan: Columns) -> StepCost:
        return StepCost(self.cost, self._context(plan))

    def _step_of_settings(self, cost: CostModel, plan: Columns) -> StepCost:
        ctx = self._context(plan)
        return StepCost(cost, ctx, self._pipelines.loads(ctx) if self.routing.loads else None)

    def _context(self, plan: Columns) -> Context:
        return Context(
            model=self.model, workload=self.workload, plan=plan, software=self.software, routing=self.routing
        )  # fmt: skip

    def _prices_of(self, block: Columns) -> PartPrices:
        key, known = (block.zero_stage, *self._priced_as), self._pipelines.parts
        if key not in known:
            known[key] = PartPrices(self._pricing.cost, self._pricing._step_of_settings, self._met_of(block))
        return known[key]

    def _stage_prices(self, block: Columns, contents: tuple[StageContent, ...], number: int) -> StagePrices:
        parts, known = self._prices_of(block), self._pipelines.stages
        key = (id(parts), number, contents)
        if key not in known:
            known[key] = StagePrices(contents, parts, number)
        return known[key]

    def _ends_of(self, block: Columns, laid: Sequence[_Rows], number: int, places: Index) -> Iterator[_Ends]:
        """Model state and data-parallel ends of each layout: neither the micro-batch nor recompute matters to them."""
        params, entries, which = [], [], []
        if not laid:
            return
        for each in laid:
            first, where = distinct([getattr(block, n)[each.rows] for n in DEGREE_FIELDS if n != "micro_batch_seqs"])
            few = each.rows[first]
            of_content = self._stage_prices(block, each.at.contents, number).params(places[few])
            of_stage = sum(
                n[:, None] * of_content[:, c] for n, c in zip(each.at.layout.often, each.at.layout.own, strict=True)
            )
            params.append(np.reshape(of_stage, (len(of_content), -1)))
            entries.append(np.tile(few, len(each.at.stages)))
            which.append((len(few), where))
        dense, routed, launch_s, *more = np.concatenate(params, axis=1)
        own = LocalParams(dense=dense, routed=routed, more=tuple(more))
        step = self._step(block.take(np.concatenate(entries))).of_state()
        grad, gather = step.data_parallel(own)
        rest = np.asarray(step.optimizer_s(own)) + (launch_s + step.check_s(own) + self.cost.factors.step_fixed_s)
        static = sum((np.asarray(v) for v in step.static(own).values()), np.zeros(len(dense)))
        lines = np.stack([np.broadcast_to(x, dense.shape) for x in (static, grad.alone_s, gather.alone_s, rest)])
        start = 0
        for mine, (count, where) in zip(entries, which, strict=True):
            here, start = lines[:, start : start + len(mine)], start + len(mine)
            static, grad_s, gather_s, rest_s = here.reshape(4, -1, count).take(where, axis=2)
            yield _Ends(static_bytes=static, grad_s=grad_s, gather_s=gather_s, rest_s=rest_s)


def _but_recompute(columns: Columns) -> tuple[Any, ...]:
    """Equal for blocks that differ in recompute alone."""
    shared = {name: value for name, value in columns.discrete().items() if name != "recompute"}
    return (*shared.values(), *(getattr(columns, name).tobytes() for name in DEGREE_FIELDS))


def _reached(seconds: Any, pass_s: Any, buckets: Any, vpp: Any, *, overlapped: bool) -> Any:
    """Seconds that collectives over parameters or gradients reach beyond the passes of their stage.

    Gathered from t = 0, parameters hold the first forward up; overlapped, it runs in `buckets` parts, each after its
    piece of 1/(vpp buckets). Likewise the last backward releases its gradients piece by piece.
    """
    if not overlapped:
        return seconds
    piece = seconds / (vpp * buckets)
    return np.maximum(piece, buckets * piece - pass_s * (buckets - 1) / buckets)


def _peak(each: _Rows, prices: Priced, static: Floats) -> Floats:
    """Static bytes, activations held and the transient of what runs, at the worst moment of any stage."""
    out = np.empty(prices.working.shape[1:])
    own, contents = each.at.layout.own, len(prices.working)
    starts = [0, *(np.flatnonzero(np.diff(each.form)) + 1).tolist(), len(each.form)]
    first = 0
    for stop, following in zip(starts[1:], (*starts[2:], None), strict=True):
        peaks = each.forms[each.form[first]].peaks
        if following is not None and each.forms[each.form[stop]].peaks is peaks:
            continue
        some = slice(first, stop)
        total = static[peaks.stage, None, some] + prices.working[own[peaks.running, peaks.stage], :, some]
        for entry, count in enumerate(peaks.held):
            kind, slot = divmod(entry, len(own))
            if count.any():
                total += count[:, None, None] * prices.held[own[slot, peaks.stage] + kind * contents, :, some]
        out[:, some] = total.max(axis=0)
        first = stop
    return out
