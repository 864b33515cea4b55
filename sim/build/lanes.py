"""Event runs of a search: the same step as `sim.build.tasks.simulate_step`, run lane by lane, without its events.

The totals are those of the event engine to rounding (tests compare them); spans and memory over time are made when
someone looks at them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain

from sim.build.builder import DATA_STREAM, PIPELINE_STREAM, TASK_KINDS, step_name
from sim.build.order import Step, passes_of
from sim.build.profile import StepProfile
from sim.build.programs import NotInOrder, Programs, programs_of
from sim.build.schedule import repeats_after
from sim.build.tasks import check_profile, simulate_step
from sim.build.work import StepWork
from sim.engine.deferred import Deferred
from sim.engine.graph import COMPUTE_STREAM, Work, check_links, check_work
from sim.engine.lane_programs import Op, Outcome
from sim.engine.lanewise import Lanewise
from sim.engine.ledger import Ledger
from sim.engine.quiet import collector_paused
from sim.report import Span, Trace

# Behind the first two loops memory is what it was, and the end follows on any of them alike.
LOOPS_OF_MEMORY = 2


@collector_paused()
def simulate_lanes(profile: StepProfile) -> Trace:
    """The trace of one training step for a search. Raises as `simulate_step` does.

    The event engine runs the step where micro-batches differ, where they overtake each other between stages, and where
    a task has two flows on one link. `link_busy_s` is the event engine's as well, when it is asked for.
    """
    p = profile
    check_profile(p)
    check_links(p.links)
    group = repeats_after(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=p.num_micro_batches, group=p.group)
    if p.stretch is not None:
        return simulate_step(p)
    try:
        programs, loops = programs_of(p, group)
    except NotInOrder:
        return simulate_step(p)
    work = StepWork(p)
    works = [work.of(kind) for kind in programs.kinds]
    distinct = {id(each): (kind, each) for kind, each in zip(programs.kinds, works, strict=True)}
    for kind, each in distinct.values():
        check_work(kind[0], each, p.links)
        if len(dict(each.flows)) < len(each.flows):
            return simulate_step(p)
    lanes = Lanewise(programs.of_stage, works, p.links, programs.channels, loops=loops, width=programs.width)
    run = lanes.run()
    made = _Made(profile=p, programs=programs, works=works, run=run, skipped=run.skipped * group)
    return Trace(
        makespan_s=run.makespan_s,
        spans=LaneSpans(made),
        memory=Deferred(lambda: [ledger.steps() for ledger in made.ledgers()]),
        peak_bytes=tuple(made.peak(stage) for stage in range(p.pp)),
        lane_busy_s=run.busy_s,
        link_busy_s=_LinkBusy(p),
        link_bytes=made.link_bytes(loops),
        num_events=0,
        periods_skipped=made.skipped,
        link_bytes_per_s=p.links,
    )


class _LinkBusy(Mapping[tuple[int, str], float]):
    """Seconds each link carried anything, of the event engine: nobody asks for it in a search."""

    def __init__(self, profile: StepProfile) -> None:
        self._profile = profile

    @cached_property
    def _found(self) -> Mapping[tuple[int, str], float]:
        return simulate_step(self._profile).link_busy_s

    def __getitem__(self, key: tuple[int, str]) -> float:
        return self._found[key]

    def __iter__(self) -> Iterator[tuple[int, str]]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


@dataclass(frozen=True, kw_only=True)
class _Made:
    """A run and what it ran. skipped: micro-batches left out of it."""

    profile: StepProfile
    programs: Programs
    works: Sequence[Work]
    run: Outcome
    skipped: int

    def ops(self, stage: int, most: int | None = None) -> list[Op]:
        """What a stage ran, in order; most: loops at most."""
        program = self.programs.of_stage[stage]
        loops = self.run.loops if most is None else min(most, self.run.loops)
        return [*program.first, *list(program.loop) * loops, *program.last]

    def link_bytes(self, loops: int) -> dict[tuple[int, str], float]:
        """Bytes of the whole step on every link; loops: of the whole step."""
        out: dict[tuple[int, str], float] = {}
        for stage, (once, each) in enumerate(zip(self.programs.once, self.programs.each, strict=True)):
            moved: dict[str, float] = {}
            for counter, times in ((once, 1), (each, loops)):
                for kind, count in counter.items():
                    for link, size in self.works[kind].flows:
                        if size > 0.0:
                            moved[link] = moved.get(link, 0.0) + times * count * size
            out.update({(stage, link): moved[link] for link in sorted(moved)})
        return out

    def peak(self, stage: int) -> dict[str, float]:
        """Bytes by tag at the moment of the highest total."""
        static = self.profile.static_bytes[stage] if stage < len(self.profile.static_bytes) else {}
        tags = dict(static)
        took, gave = self.moved
        total = most = sum(static.values())
        highest = 0
        works = [op.work for op in self.ops(stage, LOOPS_OF_MEMORY)]
        for number, work in enumerate(works, start=1):
            total += took[work]
            if total > most:
                most, highest = total, number
            total -= gave[work]
        for work, count in Counter(works[:highest]).items():
            given = count - (work == works[highest - 1])  # the highest is reached while the last one runs
            for tag, size in self.works[work].alloc:
                tags[tag] = tags.get(tag, 0.0) + count * size
            for tag, size in self.works[work].free:
                tags[tag] = tags.get(tag, 0.0) - given * size
        return tags

    @cached_property
    def moved(self) -> tuple[list[float], list[float]]:
        """Bytes each work takes and gives back."""
        took = [sum(size for _, size in work.alloc) for work in self.works]
        return took, [sum(size for _, size in work.free) for work in self.works]

    def ledgers(self) -> Iterator[Ledger]:
        """The memory of every stage."""
        for stage in range(self.profile.pp):
            static = self.profile.static_bytes[stage] if stage < len(self.profile.static_bytes) else {}
            ledger, times_s = Ledger(static), self.run.lanes[stage].times_s
            for i, op in enumerate(self.ops(stage)):
                _, _, _, alloc, free = self.works[op.work]
                ledger.moves += [(times_s[2 * i], alloc, True)] if alloc else []
                ledger.moves += [(times_s[2 * i + 1], free, False)] if free else []
            yield ledger

    def spans(self, stage: int) -> list[Span]:
        """What a stage ran, in order of its start."""
        p, run, kinds = self.profile, self.run.lanes[stage], self.programs.kinds
        passes = passes_of(p.schedule, p.num_micro_batches - self.skipped)
        counts: Counter[tuple[str, int]] = Counter()
        owed: dict[int, deque[int]] = {}
        number = 0
        spans: list[Span] = []
        send_end_s = 0.0
        ends = iter(run.sends_s)

        def micro_batch(kind: str, chunk: int) -> int:
            number = counts[kind, chunk]
            counts[kind, chunk] += 1
            return number + passes * chunk if p.placed == "both" else number

        def name(kind: str, number: int, chunk: int) -> str:
            return step_name(Step(kind=kind, micro_batch=number, chunk=chunk), p.vpp)

        for i, op in enumerate(self.ops(stage)):
            start_s, end_s = run.times_s[2 * i], run.times_s[2 * i + 1]
            what = kinds[op.work]
            if what[0] == "step":
                _, _, kind, chunk, _, split, *_, part = what
                if part == 0:
                    # weight gradients come in the order of the backwards that put them off
                    number = owed[chunk].popleft() if kind == "W" else micro_batch(kind, chunk)
                    if split:
                        owed.setdefault(chunk, deque()).append(number)
                said = name(kind, number, chunk)
                spans.append(Span(stage, COMPUTE_STREAM, said, TASK_KINDS[kind], number, chunk, start_s, end_s))
            elif what[0] == "send":
                _, kind, _, chunk = what
                number = micro_batch("send " + kind, chunk)
                said = "send " + name(kind, number, chunk)
                spans.append(Span(stage, COMPUTE_STREAM, said, "p2p", number, chunk, start_s, end_s))
            else:
                spans.append(Span(stage, COMPUTE_STREAM, what[0], what[0], -1, 0, start_s, end_s))
            for work, _ in op.sends:
                _, kind, _, chunk = kinds[work]
                number = micro_batch("send " + kind, chunk)
                begin_s, send_end_s = max(end_s, send_end_s), next(ends)
                said = "send " + name(kind, number, chunk)
                spans.append(Span(stage, PIPELINE_STREAM, said, "p2p", number, chunk, begin_s, send_end_s))
        return sorted(chain(spans, self._background(stage)), key=lambda span: span.start_s)

    def _background(self, stage: int) -> Iterator[Span]:
        """The collectives of parameters and gradients; the chunk of a gradient is that of the step before it."""
        run, kinds, vpp = self.run.lanes[stage], self.programs.kinds, self.profile.vpp
        chunks = iter(kinds[op.work][3] for op in self.ops(stage) if op.grad >= 0)
        gathered = 0
        for work, start_s, end_s in run.background:
            what = kinds[work]
            if what[0] == "params":
                chunk = gathered * vpp // what[2]
                gathered += 1
                yield Span(stage, DATA_STREAM, "gather parameters", "param", -1, chunk, start_s, end_s)
            else:
                yield Span(stage, DATA_STREAM, "reduce gradients", "grad", -1, next(chunks), start_s, end_s)


class LaneSpans(Deferred[Span]):
    """What ran, in order of its start."""

    __slots__ = ("_of",)

    def __init__(self, made: _Made) -> None:
        super().__init__(
            lambda: sorted(
                chain.from_iterable(made.spans(stage) for stage in range(made.profile.pp)), key=lambda s: s.start_s
            )
        )
        self._of = made

    def of_lane(self, lane: int) -> list[Span]:
        """Those of one lane, without making the others."""
        return self._of.spans(lane)
