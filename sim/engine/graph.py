"""Tasks as columns: which stream each stands on, who waits for whom, and what each takes.

Who waits for whom is the same for many plans of a search (same schedule, stages and micro-batches); `Graph.taking` puts
the durations, bytes and memory of another plan in the same graph.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from typing import NamedTuple

COMPUTE_STREAM = "compute"

Amounts = tuple[tuple[str, float], ...]


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
    flows: Amounts = ()
    after: tuple[int, ...] = ()
    micro_batch: int = -1
    chunk: int = 0
    alloc: Amounts = ()
    free: Amounts = ()


class Work(NamedTuple):
    """What a task takes; see `Task`."""

    busy_s: float = 0.0
    latency_s: float = 0.0
    flows: Amounts = ()
    alloc: Amounts = ()
    free: Amounts = ()


class Graph:
    """Columns of tasks, in their order; nothing here changes during a run.

    index: position of each id. queues: the streams, each with its tasks; queue_of: the stream of each task. waiting:
    how many tasks each waits for; behind: who waits for it.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        """Raises ValueError on ids that are not unique or not there."""
        self.tasks = tasks
        columns = list(zip(*tasks, strict=True)) or [()] * len(Task._fields)
        by_name = dict(zip(Task._fields, columns, strict=True))
        self.lane: Sequence[int] = by_name["lane"]
        self.stream: Sequence[str] = by_name["stream"]
        self.priority: Sequence[int] = by_name["priority"]
        self.busy_s: Sequence[float] = by_name["busy_s"]
        self.latency_s: Sequence[float] = by_name["latency_s"]
        self.flows: Sequence[Amounts] = by_name["flows"]
        self.alloc: Sequence[Amounts] = by_name["alloc"]
        self.free: Sequence[Amounts] = by_name["free"]
        self.index = index = dict(zip(by_name["id"], range(len(tasks)), strict=True))
        if len(index) != len(tasks):
            raise ValueError("task ids are not unique")
        self.waiting = [len(after) for after in by_name["after"]]
        self.behind: list[tuple[int, ...]] = [()] * len(tasks)
        for i, after in enumerate(by_name["after"]):
            for other in after:
                if other not in index:
                    raise ValueError(f"task {tasks[i].name}: waits for task {other}, which is not there")
                self.behind[index[other]] += (i,)
        queue_ids: dict[tuple[int, str], int] = {}
        self.queues: list[list[int]] = []
        self.queue_of: list[int] = []
        for i, at in enumerate(zip(self.lane, self.stream, strict=True)):
            queue = queue_ids.setdefault(at, len(self.queues))
            if queue == len(self.queues):
                self.queues.append([])
            self.queues[queue].append(i)
            self.queue_of.append(queue)
        self.num_lanes = max(self.lane, default=-1) + 1

    def __len__(self) -> int:
        return len(self.tasks)

    def taking(self, kinds: Sequence[Work], kind_of: Sequence[int]) -> Graph:
        """The same tasks with the work kinds[kind_of[i]] in place of what task i took."""
        out = copy(self)
        for name, column in zip(Work._fields, zip(*kinds, strict=True), strict=True):
            setattr(out, name, [column[k] for k in kind_of])
        return out

    def compute_queues(self) -> list[tuple[int, list[int]]]:
        """(lane, tasks in order) of every compute stream."""
        firsts = ((queue[0], queue) for queue in self.queues)
        return [(self.lane[i], queue) for i, queue in firsts if self.stream[i] == COMPUTE_STREAM]


def check_links(links: Mapping[str, float]) -> None:
    """Raise ValueError on a link without a rate."""
    for name, rate in links.items():
        if not rate > 0.0:
            raise ValueError(f"link {name}: {rate} bytes/s is not a positive rate")


def check_work(name: str, work: Task | Work, links: Mapping[str, float]) -> None:
    """Our own invariants: the builder, not the user, makes the tasks. Raises ValueError."""
    if not (0.0 <= work.busy_s < math.inf and 0.0 <= work.latency_s < math.inf):
        raise ValueError(f"task {name}: busy_s {work.busy_s}, latency_s {work.latency_s}")
    for link, size in work.flows:
        if link not in links or not 0.0 <= size < math.inf:
            raise ValueError(f"task {name}: {size} bytes on link {link!r}, links are {sorted(links)}")
