"""The event core: tasks on in-order streams, link flows and memory, run in order of time.

A task starts when its predecessors have ended and it is the head of its idle stream. It ends when
its latency and busy time have elapsed and its bytes have drained (see `sim.engine.links`). The
engine knows no FLOP and no layer: `sim.build.tasks` makes the tasks. Most tasks cost one event
(their end), so that a step of a long pipeline stays in the hundredths of a second.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from sim.engine.clock import Clock
from sim.engine.deferred import Deferred
from sim.engine.graph import Graph, Task, check_links, check_work
from sim.engine.ledger import Ledger
from sim.engine.links import Flow, Link
from sim.report import Span, Trace

SHARED = -1  # in place of the lane of a link that all lanes share


class DeadlockError(RuntimeError):
    """Tasks that can never start: a cycle in `after`, or a stream whose head waits for its own tail."""


class Engine:
    """One run. `start_s` and `end_s` (in the order of the tasks), `links` and `ledgers` stay readable after it.

    tasks: in the order of their streams, or their `Graph` (whose work has been checked). link_series: also record the
    load of every link over time (`Trace.link_rates`).
    """

    def __init__(
        self,
        tasks: Sequence[Task] | Graph,
        links: Mapping[str, float],
        static_bytes: Sequence[Mapping[str, float]] = (),
        shared: Mapping[str, float] | None = None,
        *,
        link_series: bool = False,
    ) -> None:
        self._link_series = link_series
        self._shared = shared or {}
        every = {**links, **self._shared}
        check_links(every)
        if not isinstance(tasks, Graph):
            for task in tasks:
                check_work(task.name, task, every)
            tasks = Graph(tasks)
        if both := sorted(links.keys() & self._shared.keys()):
            raise ValueError(f"links {both} are given both per lane and shared")
        self.graph = graph = tasks
        self.clock = Clock()
        self._after = self.clock.after
        self.num_events = 0
        count = len(graph)
        lanes = max(graph.num_lanes, len(static_bytes))
        self.ledgers = [Ledger(static_bytes[i] if i < len(static_bytes) else {}) for i in range(lanes)]
        self._capacity = links
        self.links: dict[tuple[int, str], Link] = {}
        self._link_of: dict[tuple[int, str], Link] = {}  # by the lane that uses it
        self.start_s = [math.nan] * count
        self.end_s = [math.nan] * count
        # The columns of the graph that every event reads, and the calls that stand in the heap.
        self._lane, self._queues, self._queue_of, self._behind = graph.lane, graph.queues, graph.queue_of, graph.behind
        self._busy_s, self._latency_s, self._flows_of = graph.busy_s, graph.latency_s, graph.flows
        self._alloc, self._free = graph.alloc, graph.free
        self._on_end, self._on_latency, self._on_own_time = self._end, self._send, self._own_time_over
        self._waiting = list(graph.waiting)
        # What still keeps a running task from ending: 1 for its own time, 1 per flow under contention.
        self._open = [1] * count
        self._flows: dict[int, list[Flow]] = {}
        self._head = [0] * len(graph.queues)
        self._idle = [True] * len(graph.queues)

    def run(self) -> Trace:
        """Run to the end. Raises DeadlockError when tasks are left that cannot start."""
        for queue in range(len(self._head)):
            self._try(queue)
        self.clock.run()
        if sum(self._head) < len(self.graph):
            raise DeadlockError(self._stuck())
        return self._trace()

    # -- events ---------------------------------------------------------------------------------

    def _try(self, queue: int) -> None:
        """Start the head of a stream if it can start."""
        if self._idle[queue]:
            order, head = self._queues[queue], self._head[queue]
            if head < len(order) and self._waiting[order[head]] == 0:
                self._idle[queue] = False
                self._start(order[head])

    def _start(self, i: int) -> None:
        now = self.start_s[i] = self.clock.now
        alloc = self._alloc[i]
        if alloc:
            self.ledgers[self._lane[i]].moves.append((now, alloc, True))
        latency_s = self._latency_s[i]
        if not self._flows_of[i]:
            self.num_events += 1
            self._after(latency_s + self._busy_s[i], self._on_end, i)
        elif latency_s > 0.0:
            self.num_events += 1
            self._after(latency_s, self._on_latency, i)
        else:
            self._send(i)

    def _send(self, i: int) -> None:
        """Put the flows of a task on their links and time its end as if they met no one."""
        lane, priority = self._lane[i], self.graph.priority[i]
        duration_s = busy_s = self._busy_s[i]
        sent: list[Flow] = []
        for name, size in self._flows_of[i]:
            if size > 0.0:
                link = self._link_of.get((lane, name)) or self._new_link(lane, name)
                alone_s = size / link.capacity
                if alone_s < busy_s:
                    alone_s = busy_s
                if alone_s > duration_s:
                    duration_s = alone_s
                sent.append(Flow(i, link, size, alone_s, priority))
        self._flows[i] = sent
        for flow in sent:
            flow.link.arrive(flow, ends_with_task=flow.alone_s >= duration_s)
        self.num_events += 1
        self._after(duration_s, self._on_own_time, i)

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

    def _own_time_over(self, i: int) -> None:
        """The time a task takes alone is over; it ends unless contention still holds a flow."""
        for flow in self._flows.pop(i):
            if not flow.held:
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

    def _end(self, i: int) -> None:
        now = self.end_s[i] = self.clock.now
        free = self._free[i]
        if free:
            self.ledgers[self._lane[i]].moves.append((now, free, False))
        queue_of, waiting, behind = self._queue_of, self._waiting, self._behind[i]
        for j in behind:
            waiting[j] -= 1
        queue = queue_of[i]
        self._head[queue] += 1
        self._idle[queue] = True
        self._try(queue)
        for j in behind:
            if waiting[j] == 0:
                self._try(queue_of[j])

    # -- results --------------------------------------------------------------------------------

    def _trace(self) -> Trace:
        graph, start, end = self.graph, self.start_s, self.end_s
        busy_s = [0.0] * len(self.ledgers)
        for lane, queue in graph.compute_queues():
            for i in queue:
                busy_s[lane] += end[i] - start[i]
        used = sorted(self.links.items())
        ledgers = self.ledgers
        return Trace(
            makespan_s=max(end, default=0.0),
            spans=Spans(graph, start, end),
            memory=Deferred(lambda: [ledger.steps() for ledger in ledgers]),
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
        tasks, index = self.graph.tasks, self.graph.index
        lines = []
        for order, head in zip(self.graph.queues, self._head, strict=True):
            if head < len(order):
                task = tasks[order[head]]
                for_ = [tasks[index[a]].name for a in task.after if not ended[index[a]]]
                lines.append(f"{task.name} (lane {task.lane}, {task.stream}) waits for {', '.join(for_)}")
        left = len(tasks) - sum(self._head)
        shown = "; ".join(lines[:8]) + ("; ..." if len(lines) > 8 else "")
        return f"{left} of {len(tasks)} tasks can never start: {shown}"


class Spans(Deferred[Span]):
    """What ran, in order of its start."""

    __slots__ = ("_end_s", "_graph", "_start_s")

    def __init__(self, graph: Graph, start_s: Sequence[float], end_s: Sequence[float]) -> None:
        super().__init__(lambda: self._those(range(len(graph))))
        self._graph, self._start_s, self._end_s = graph, start_s, end_s

    def of_lane(self, lane: int) -> list[Span]:
        """Those of one lane, without making the others."""
        return self._those(i for i, at in enumerate(self._graph.lane) if at == lane)

    def _those(self, chosen: Iterable[int]) -> list[Span]:
        start_s, end_s, tasks = self._start_s, self._end_s, self._graph.tasks
        return [
            Span(t.lane, t.stream, t.name, t.kind, t.micro_batch, t.chunk, start_s[i], end_s[i])
            for i, t in ((i, tasks[i]) for i in sorted(chosen, key=start_s.__getitem__))
        ]


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
