"""Periodic steady state: run a short pipeline, prove that it repeats, jump over the rest.

Without a change of order a pipeline step is a max-plus linear system: once the whole state (the
times at which every lane runs its steps of one period) is the state of a period earlier shifted by
some L, it keeps shifting by L (Baccelli et al., "Synchronization and Linearity", chapter 3). The
state is compared on all lanes, so a slow stage that has not caught up yet is seen. Shared links do
not break the argument: flows start with their tasks and sharing does not depend on the date.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sim.engine.core import Engine
from sim.engine.graph import COMPUTE_STREAM, Graph
from sim.report import Trace

# Relative error to which two periods must agree.
TOLERANCE = 1e-9
# Trials together may take this share of the micro-batches of the full run before it is run instead.
TRIAL_SHARE = 0.75


@dataclass(frozen=True, kw_only=True)
class Window:
    """One lane's repeating steps up to the cut, oldest first: task ids of each slot.

    A slot recurs after `period` slots; the last `width` slots hold all that later steps depend on.
    Tasks that do not repeat (parameters) must be over when the first slot starts.
    """

    slots: tuple[tuple[int, ...], ...]
    period: int
    width: int


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Tasks of a step and where it should repeat (windows empty: too short to tell)."""

    tasks: Graph
    windows: tuple[Window, ...] = ()


def find_period(engine: Engine, windows: Sequence[Window]) -> tuple[int, float] | None:
    """(c, L): after c periods of the order the state of all lanes is the same, L seconds later.

    c is 1 where one stage sets the pace, more where the slowest circuit runs through several
    micro-batches. None: no c fits what was run. Times agree to 1e-9 of L.
    """
    index, start_s, end_s = engine.graph.index, engine.start_s, engine.end_s

    def times(window: Window, slot: int) -> list[float]:
        at = [index[task_id] for task_id in window.slots[slot]]
        return [start_s[i] for i in at] + [end_s[i] for i in at]

    def shifted(window: Window, cycles: int, shift_s: float) -> bool:
        error_s = TOLERANCE * shift_s
        for slot in range(len(window.slots) - window.width, len(window.slots)):
            early = times(window, slot - cycles * window.period)
            for late_s, early_s in zip(times(window, slot), early, strict=True):
                if abs(late_s - early_s - shift_s) > error_s:
                    return False
        return True

    most = min(((len(w.slots) - w.width) // w.period for w in windows), default=0)
    for cycles in range(1, most + 1):
        first = windows[0]
        shift_s = times(first, -1)[-1] - times(first, -1 - cycles * first.period)[-1]
        if all(shifted(w, cycles, shift_s) for w in windows):
            return cycles, shift_s
    return None


def run_steady(
    build: Callable[[int], Pipeline],
    *,
    num_micro_batches: int,
    period: int,
    first: int,
    links: Mapping[str, float],
    static_bytes: Sequence[Mapping[str, float]] = (),
    link_series: bool = False,
) -> Trace:
    """The trace of build(num_micro_batches), most periods jumped over where the run is periodic.

    build(n): the same pipeline with n micro-batches. period: micro-batches after which the order
    repeats. first: micro-batches of the first trial (raised to the right remainder, doubled until a
    period is found or trials have cost too much, then the full run follows). Spans, memory and link rates are those
    of the part that was run; makespan, busy times and bytes are of the whole step.
    """
    trial = first + (num_micro_batches - first) % period
    spent = trial
    while spent <= TRIAL_SHARE * num_micro_batches:
        pipeline = build(trial)
        if pipeline.windows:
            engine = Engine(pipeline.tasks, links, static_bytes, link_series=link_series)
            trace = engine.run()
            found = find_period(engine, pipeline.windows)
            if found is not None:
                cycles, shift_s = found
                skipped = num_micro_batches - trial
                times, rest = divmod(skipped, cycles * period)
                if rest == 0:
                    return _jump(engine, trace, pipeline.windows, cycles, shift_s, times, skipped)
                trial += rest
                spent += trial
                continue
        trial += period * max(1, trial // period)
        spent += trial
    return Engine(build(num_micro_batches).tasks, links, static_bytes, link_series=link_series).run()


def _jump(
    engine: Engine, trace: Trace, windows: Sequence[Window], cycles: int, shift_s: float, times: int, skipped: int
) -> Trace:
    """Add `times` jumps of `cycles` periods each, `skipped` micro-batches in all, to the totals of a trial."""
    graph = engine.graph
    lane_busy_s = list(trace.lane_busy_s)
    link_bytes = dict(trace.link_bytes)
    link_busy_s = dict(trace.link_busy_s)
    for lane, window in enumerate(windows):
        cut_s = 0.0
        for slot in window.slots[-cycles * window.period :]:
            for task_id in slot:
                i = graph.index[task_id]
                if graph.stream[i] == COMPUTE_STREAM:
                    lane_busy_s[lane] += times * (engine.end_s[i] - engine.start_s[i])
                    cut_s = max(cut_s, engine.end_s[i])
                for name, size in graph.flows[i]:
                    if size > 0.0:
                        link_bytes[lane, name] += times * size
        for (link_lane, name), link in engine.links.items():
            if link_lane == lane:
                link_busy_s[lane, name] += times * link.busy_between(cut_s - shift_s, cut_s)
    return replace(
        trace,
        makespan_s=trace.makespan_s + times * shift_s,
        lane_busy_s=tuple(lane_busy_s),
        link_bytes=link_bytes,
        link_busy_s=link_busy_s,
        periods_skipped=skipped,
    )
