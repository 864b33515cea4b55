"""From a step profile to tasks, and their run: chunks x micro-batches over lanes, sends, and the step's ends.

A search runs many plans of one shape (schedule, stages, micro-batches): what their tasks are and who waits for whom is
laid out once (`laid_out`), and only what each task takes is worked out anew.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from sim.build.builder import StepBuilder
from sim.build.order import passes_of
from sim.build.profile import StepProfile
from sim.build.programs import ends_shape
from sim.build.repeats import first_trial
from sim.build.schedule import check_schedule, repeats_after
from sim.build.work import StepWork, WorkKind
from sim.engine.core import Engine
from sim.engine.graph import Graph, Task, check_work
from sim.engine.quiet import collector_paused
from sim.engine.steady import Pipeline, Window, run_steady
from sim.report import Trace

KEPT = 6  # shapes: one of `MOST_TASKS` takes some 40 MB
MOST_TASKS = 80_000


@collector_paused()
def simulate_step(profile: StepProfile, *, steady: bool = True, link_series: bool = False) -> Trace:
    """Run one training step of a profile: makespan and spans in seconds, memory and link use in bytes.

    steady: jump over whole periods where the pipeline has become periodic (checked on all lanes; the
    totals are those of the whole step, the spans those of the part that was run; never where micro-batches
    differ). link_series: record the load of links over time. Raises UserError on an impossible pipeline layout,
    ValueError where the profile contradicts itself.
    """
    check_profile(profile)
    m, pp, vpp = profile.num_micro_batches, profile.pp, profile.vpp
    group = repeats_after(profile.schedule, pp=pp, vpp=vpp, num_micro_batches=m, group=profile.group)
    if not steady or profile.schedule == "gpipe" or profile.stretch is not None:
        tasks = step_tasks(profile, num_micro_batches=m, group=group)
        return Engine(tasks, profile.links, profile.static_bytes, link_series=link_series).run()
    work = StepWork(profile)
    return run_steady(
        lambda n: laid_out(profile, n, group).pipeline(work),
        num_micro_batches=m,
        period=group,
        first=first_trial(profile, group),
        links=profile.links,
        static_bytes=profile.static_bytes,
        link_series=link_series,
    )


def step_tasks(profile: StepProfile, *, num_micro_batches: int, group: int = 0) -> list[Task]:
    """All tasks of one step, lane by lane, each stream in its order. group: see `schedule.group_size`."""
    p = profile
    group = group or repeats_after(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=num_micro_batches, group=p.group)
    return StepBuilder(profile, num_micro_batches, group).tasks()


# -- one shape, many plans ----------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class LaidOut:
    """The tasks of a shape: their graph, the kinds of work among them, which kind each has, and where it repeats."""

    graph: Graph
    kinds: Sequence[WorkKind]
    kind_of: Sequence[int]
    windows: tuple[Window, ...]

    def pipeline(self, work: StepWork) -> Pipeline:
        """The tasks with the work of one plan."""
        works = [work.of(kind) for kind in self.kinds]
        for kind, each in zip(self.kinds, works, strict=True):
            check_work(str(kind[:3]), each, work.profile.links)
        return Pipeline(tasks=self.graph.taking(works, self.kind_of), windows=self.windows)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """A shape, and one profile that has it."""

    shape: Hashable
    n: int
    group: int
    profile: StepProfile = field(compare=False)


def laid_out(profile: StepProfile, num_micro_batches: int, group: int) -> LaidOut:
    """The tasks of a profile's shape, remembered unless there are too many; not where micro-batches differ."""
    p = profile
    shape = (p.schedule, p.pp, p.vpp, p.sends, p.p2p_overlap, tuple(map(ends_shape, p.tails)))
    asked = _Asked(shape=shape, n=num_micro_batches, group=group, profile=profile)
    few = 4 * p.pp * p.vpp * passes_of(p.schedule, num_micro_batches) <= MOST_TASKS
    return _remembered(asked) if few else _lay_out(asked)


def _lay_out(asked: _Asked) -> LaidOut:
    builder = StepBuilder(asked.profile, asked.n, asked.group)
    tasks = builder.tasks()
    number: dict[WorkKind, int] = {}
    kind_of = [number.setdefault(kind, len(number)) for kind in builder.kinds]
    return LaidOut(graph=Graph(tasks), kinds=tuple(number), kind_of=kind_of, windows=builder.windows())


_remembered = lru_cache(maxsize=KEPT)(_lay_out)


def check_profile(profile: StepProfile) -> None:
    """Raise UserError on an impossible pipeline layout, ValueError where the profile contradicts itself."""
    p = profile
    check_schedule(p.schedule, pp=p.pp, vpp=p.vpp, num_micro_batches=p.num_micro_batches, group=p.group)
    if len(p.chunks) != p.pp or any(len(stage) != p.vpp for stage in p.chunks) or len(p.tails) != p.pp:
        raise ValueError(f"profile of pp {p.pp} vpp {p.vpp}: {len(p.chunks)} stages, {len(p.tails)} tails")
    if p.p2p and len(p.p2p) != p.pp:
        raise ValueError(f"profile of pp {p.pp}: {len(p.p2p)} boundaries between stages")
    if any(tail.buckets < 1 for tail in p.tails):
        raise ValueError("a stage tail needs at least one bucket")
