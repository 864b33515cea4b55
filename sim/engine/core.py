"""The event core: tasks on in-order streams, link flows and memory, run by SimPy.

A task starts when its predecessors have ended and it is the head of its idle stream. It ends when
its latency and busy time have elapsed and its bytes have drained (see `sim.engine.links`). The
engine knows no FLOP and no layer: `sim.build.tasks` makes the tasks. SimPy keeps the clock; most
tasks cost one event (their end), so that a step of a long pipeline stays in the tenths of a second.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

from simpy import Environment
from simpy.events import Event, Timeout

from sim.engine.ledger import Ledger
from sim.engine.links import Flow, Link
from sim.report import Span, Trace

COMPUTE_STREAM = "compute"
SHARED = -1  # in place of the lane of a link that all lanes share


class DeadlockError(RuntimeError):
    """Tasks that can never start: a cycle in `after`, or a stream whose head waits for its own tail."""


class Task(NamedTuple):
    """One op on one lane, a tuple because a step has tens of thousands. Streams take their tasks in the order given.

    Alone it lasts latency_s + max(busy_s, bytes / rate of each link): flows start after the
    latency. With busy_s > 0 a flow takes at most bytes / busy_s; with busy_s == 0 as much as its link
    gives. Flows of one priority share max-min fairly, those of a higher number get what is left.
    after: ids of the tasks it waits for.
    alloc / free: (tag, bytes) taken at its start and given back at its end.
    """

    id: int
    name: str
    kind: str
    lane: int
    stream: str
    busy_s: float = 0.0
    latency_s: float = 0.0
    priority: int = 0
    flows: tuple[tuple[str, float], ...] = ()
    after: tuple[int, ...] = ()
    micro_batch: int = -1
    chunk: int = 0
    alloc: tuple[tuple[str, float], ...] = ()
    free: tuple[tuple[str, float], ...] = ()


class Engine:
    """One run. `start_s` and `end_s` (in the order of `tasks`), `links` and `ledgers` stay readable after it.

    link_series: also record the load of every link over time (`Trace.link_rates`).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        links: Mapping[str, float],
        static_bytes: Sequence[Mapping[str, float]] = (),
        shared: Mapping[str, float] | None = None,
        *,
        link_series: bool = False,
    ) -> None:
        self.tasks = tasks
        self._link_series = link_series
        self.index = {task.id: i for i, task in enumerate(tasks)}
        self._shared = shared or {}
        _check(tasks, {**links, **self._shared}, self.index)
        if both := sorted(links.keys() & self._shared.keys()):
            raise ValueError(f"links {both} are given both per lane and shared")
        self.env = Environment()
        self.num_events = 0
        self._num_done = 0
        count = len(tasks)
        lanes = max(max((task.lane for task in tasks), default=-1) + 1, len(static_bytes))
        self.ledgers = [Ledger(static_bytes[i] if i < len(static_bytes) else {}) for i in range(lanes)]
        self._capacity = links
        self.links: dict[tuple[int, str], Link] = {}
        self._link_of: dict[tuple[int, str], Link] = {}  # by the lane that uses it
        self.start_s = [math.nan] * count
        self.end_s = [math.nan] * count
        self._waiting = [len(task.after) for task in tasks]
        self._next: list[list[int]] = [[] for _ in range(count)]
        # What still keeps a running task from ending: 1 for its own time, 1 per flow under contention.
        self._open = [1] * count
        self._flows: dict[int, list[Flow]] = {}
        self._queues: list[list[int]] = []
        self._head: list[int] = []
        self._idle: list[bool] = []
        self._queue_of: list[int] = []
        self._build()

    def _build(self) -> None:
        queue_ids: dict[tuple[int, str], int] = {}
        for i, task in enumerate(self.tasks):
            for other in task.after:
                self._next[self.index[other]].append(i)
            queue = queue_ids.setdefault((task.lane, task.stream), len(queue_ids))
            if queue == len(self._queues):
                self._queues.append([])
            self._queues[queue].append(i)
            self._queue_of.append(queue)
        self._head = [0] * len(self._queues)
        self._idle = [True] * len(self._queues)

    def run(self) -> Trace:
        """Run to the end. Raises DeadlockError when tasks are left that cannot start."""
        for queue in range(len(self._queues)):
            self._try(queue)
        self.env.run()
        if self._num_done < len(self.tasks):
            raise DeadlockError(self._stuck())
        return self._trace()

    # -- events ---------------------------------------------------------------------------------

    def _try(self, queue: int) -> None:
        """Start the head of a stream if it can start."""
        if self._idle[queue]:
            order = self._queues[queue]
            head = self._head[queue]
            if head < len(order) and self._waiting[order[head]] == 0:
                self._idle[queue] = False
                self._start(order[head])

    def _start(self, i: int) -> None:
        task = self.tasks[i]
        env = self.env
        now = self.start_s[i] = env.now
        if task.alloc:
            self.ledgers[task.lane].alloc(now, task.alloc)
        if not task.flows:
            self.num_events += 1
            Timeout(env, task.latency_s + task.busy_s, i).callbacks.append(self._on_end)
        elif task.latency_s > 0.0:
            self.num_events += 1
            Timeout(env, task.latency_s, i).callbacks.append(self._on_latency)
        else:
            self._send(i)

    def _on_latency(self, event: Event) -> None:
        self._send(cast(int, event.value))

    def _send(self, i: int) -> None:
        """Put the flows of a task on their links and time its end as if they met no one."""
        task = self.tasks[i]
        lane, busy_s = task.lane, task.busy_s
        sent: list[Flow] = []
        duration_s = busy_s
        for name, size in task.flows:
            if size > 0.0:
                link = self._link_of.get((lane, name)) or self._new_link(lane, name)
                alone_s = max(busy_s, size / link.capacity)
                duration_s = max(duration_s, alone_s)
                sent.append(Flow(i, link, size, alone_s, task.priority))
        self._flows[i] = sent
        for flow in sent:
            flow.link.arrive(flow, ends_with_task=flow.alone_s >= duration_s)
        self.num_events += 1
        Timeout(self.env, duration_s, i).callbacks.append(self._on_own_time)

    def link_key(self, lane: int, name: str) -> tuple[int, str]:
        """(lane, name) of the link a lane means by a name; the lane is `SHARED` where it belongs to all."""
        return (SHARED if name in self._shared else lane), name

    def _new_link(self, lane: int, name: str) -> Link:
        key = self.link_key(lane, name)
        if key not in self.links:
            rate = self._shared[name] if name in self._shared else self._capacity[name]
            self.links[key] = Link(self, rate, series=self._link_series)
        self._link_of[lane, name] = self.links[key]
        return self.links[key]

    def _on_own_time(self, event: Event) -> None:
        """The time a task takes alone is over; it ends unless contention still holds a flow."""
        i = cast(int, event.value)
        for flow in self._flows.pop(i):
            flow.link.leave(flow)
        self.release(i)

    def hold(self, i: int) -> None:
        """A link under contention: the task must also wait for this flow to drain."""
        self._open[i] += 1

    def release(self, i: int) -> None:
        """One of the things the task waits for is over."""
        self._open[i] -= 1
        if self._open[i] == 0:
            self._end(i)

    def _on_end(self, event: Event) -> None:
        self._end(cast(int, event.value))

    def _end(self, i: int) -> None:
        task = self.tasks[i]
        now = self.end_s[i] = self.env.now
        self._num_done += 1
        if task.free:
            self.ledgers[task.lane].free(now, task.free)
        queue = self._queue_of[i]
        self._head[queue] += 1
        self._idle[queue] = True
        waiting, behind = self._waiting, self._next[i]
        for j in behind:
            waiting[j] -= 1
        self._try(queue)
        for j in behind:
            if waiting[j] == 0:
                self._try(self._queue_of[j])

    # -- results --------------------------------------------------------------------------------

    def _trace(self) -> Trace:
        start, end = self.start_s, self.end_s
        busy_s = [0.0] * len(self.ledgers)
        spans: list[Span] = []
        for i in sorted(range(len(self.tasks)), key=start.__getitem__):
            task = self.tasks[i]
            if task.stream == COMPUTE_STREAM:
                busy_s[task.lane] += end[i] - start[i]
            spans.append(
                Span(
                    lane=task.lane,
                    stream=task.stream,
                    name=task.name,
                    kind=task.kind,
                    micro_batch=task.micro_batch,
                    chunk=task.chunk,
                    start_s=start[i],
                    end_s=end[i],
                )
            )
        used = sorted(self.links.items())
        return Trace(
            makespan_s=max(end, default=0.0),
            spans=tuple(spans),
            memory=tuple(ledger.steps() for ledger in self.ledgers),
            peak_bytes=tuple(ledger.peak() for ledger in self.ledgers),
            lane_busy_s=tuple(busy_s),
            link_busy_s={key: link.busy_s for key, link in used},
            link_bytes={key: link.carried_bytes for key, link in used},
            num_events=self.num_events,
            link_rates={key: tuple(link.rates) for key, link in used if link.rates},
            link_bytes_per_s={**self._capacity, **self._shared},
        )

    def _stuck(self) -> str:
        ended = [not math.isnan(t) for t in self.end_s]
        lines = []
        for order, head in zip(self._queues, self._head, strict=True):
            if head < len(order):
                task = self.tasks[order[head]]
                for_ = [self.tasks[self.index[a]].name for a in task.after if not ended[self.index[a]]]
                lines.append(f"{task.name} (lane {task.lane}, {task.stream}) waits for {', '.join(for_)}")
        left = len(self.tasks) - self._num_done
        shown = "; ".join(lines[:8]) + ("; ..." if len(lines) > 8 else "")
        return f"{left} of {len(self.tasks)} tasks can never start: {shown}"


def _check(tasks: Sequence[Task], links: Mapping[str, float], index: Mapping[int, int]) -> None:
    """Our own invariants: the builder, not the user, makes the tasks."""
    if len(index) != len(tasks):
        raise ValueError("task ids are not unique")
    for name, rate in links.items():
        if not rate > 0.0:
            raise ValueError(f"link {name}: {rate} bytes/s is not a positive rate")
    for task in tasks:
        if not (0.0 <= task.busy_s < math.inf and 0.0 <= task.latency_s < math.inf):
            raise ValueError(f"task {task.name}: busy_s {task.busy_s}, latency_s {task.latency_s}")
        for name, size in task.flows:
            if name not in links or not 0.0 <= size < math.inf:
                raise ValueError(f"task {task.name}: {size} bytes on link {name!r}, links are {sorted(links)}")
        for other in task.after:
            if other not in index:
                raise ValueError(f"task {task.name}: waits for task {other}, which is not there")


def run(
    tasks: Sequence[Task],
    links: Mapping[str, float],
    static_bytes: Sequence[Mapping[str, float]] = (),
    shared: Mapping[str, float] | None = None,
) -> Trace:
    """Run tasks to the end and record what happened.

    links: bytes/s of each link name; every lane has its own. shared: bytes/s of links there is one of for all lanes
    (the network ports of a node); the trace has them under lane -1. static_bytes[lane]: memory by tag
    held from the start. Raises DeadlockError naming the stuck tasks, ValueError on malformed tasks.
    """
    return Engine(tasks, links, static_bytes, shared).run()
