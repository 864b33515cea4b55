"""Tasks of the layer-level run: a chunk of the pipeline run becomes its slots, on several lanes per stage.

Each lane has a stream "compute", one "ep" for the all-to-alls of tokens, and one per axis ("tp", "cp", ...) for
communication that compute waits for. Lanes of a stage meet at every all-to-all: it starts when all are there, and rows
are there when all have sent. They meet again at the gradient reduction. Sends go from lane to lane of the same number.

In the steady phase a release with `a2a_overlap` runs a forward and a backward in turns. Both then need their input at
the start and hand on their output at the end, so a hop between stages does not hide behind the pair, and with one chunk
per stage neighbouring stages wait for each other (why Megatron-LM asks for virtual stages there). The pipeline run
lets the two follow each other and does not see that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from sim.build.builder import StepBuilder, edges_of, step_name
from sim.build.groups import (
    Group,
    PartWork,
    backward_groups,
    forward_groups,
    paced,
    pair_groups,
    seconds_of,
    shares,
    wgrad_groups,
)
from sim.build.order import Step
from sim.build.profile import ChunkProfile, StepProfile
from sim.cost.segments import Segment
from sim.cost.slots import Rules
from sim.engine.graph import COMPUTE_STREAM, Amounts, Task

EXCHANGE_STREAM = "ep"
INNER = "scale_up"  # a link whose traffic inside layers meets nothing that has to wait; recorded, not run
SYNC = Segment(name="done", kind="sync", seconds=0.0)  # the end of a pass whose last act is an all-to-all
ON_COMPUTE = ("host", "sync")


@dataclass(frozen=True, kw_only=True)
class LaneWork:
    """One lane of every stage: its profile (tails, memory, links) and the parts of chunks[stage][chunk], in order."""

    profile: StepProfile
    chunks: tuple[tuple[tuple[PartWork, ...], ...], ...]


@dataclass(kw_only=True, slots=True)
class Item:
    """One task of a step on one lane, before it has a number. comm: on the exchange stream, for all lanes at once;
    beside: with the exchange before it; awaits: needs the input of its pass; owns: ends its pass; piece: parameters
    of this part (number, of how many) must be there; ends: the backward of this part is over."""

    segment: Segment
    owner: str
    comm: bool = False
    beside: bool = False
    awaits: bool = False
    owns: bool = False
    piece: tuple[int, int] | None = None
    ends: int = -1
    alloc: Amounts = ()
    free: Amounts = ()


@dataclass
class DetailBuilder(StepBuilder):
    """Makes the tasks of n micro-batches on all lanes. overlap: the release pairs passes in the steady phase."""

    work: tuple[LaneWork, ...] = ()
    rules: Rules = field(default_factory=lambda: Rules(shared_beside=False, delay_wgrad=False, steal=0.0))
    overlap: bool = False

    def __post_init__(self) -> None:
        self.lanes = len(self.work)
        super().__post_init__()
        self.scripts: dict[tuple[int, int, int, str], list[list[Item]]] = {}
        self.pieces: dict[tuple[int, int], list[list[int]]] = {}
        self.before: list[tuple[int, ...]] = []
        self.gathered: list[list[list[int]]] = []
        self.grads: list[list[int]] = []
        self.edges: frozenset[Step] = frozenset()
        self.inner: dict[int, float] = {}  # bytes on the inner link, by task

    def tasks(self) -> list[Task]:
        """All tasks, stage by stage, each stream of a lane in its order."""
        self._lay_out()
        for stage, order in enumerate(self.orders):
            self.before = [()] * self.lanes
            self.gathered = [self._at(k)._params(stage) for k in range(self.lanes)]
            self.grads = [[] for _ in range(self.lanes)]
            self.edges = edges_of(order)
            i = 0
            while i < len(order):
                pair = order[i : i + 2]
                if order[i].joint:
                    self._run(stage, pair[0], pair[1])
                    i += 2
                elif self.overlap and [s.kind for s in pair] == ["B", "F"] and all(s.paired for s in pair):
                    self._run(stage, pair[1], pair[0])
                    i += 2
                else:
                    step = order[i]
                    self._run(stage, *((step, None) if step.kind == "F" else (None, step)))
                    i += 1
            self._reduce_at_the_end(stage)
            everyone = [ident for mine in self.grads for ident in mine]
            for k in range(self.lanes):
                self._at(k)._finish(stage, everyone)
        return self.out

    def _at(self, lane: int) -> DetailBuilder:
        self.at = lane
        self.profile = self.work[lane].profile
        return self

    # -- the order of one step -------------------------------------------------------------------

    def _script(self, stage: int, forward: Step | None, backward: Step | None) -> list[list[Item]]:
        """Items of each lane; the same number of exchanges on all of them."""
        way = _way(forward, backward)
        ahead, back = (-1 if step is None else step.chunk for step in (forward, backward))
        key = (stage, ahead, back, way)
        if key not in self.scripts:
            groups = paced([self._groups(lane, *key) for lane in self.work])
            self.scripts[key] = [
                self._items(mine, lane.profile, *key) for mine, lane in zip(groups, self.work, strict=True)
            ]
        return self.scripts[key]

    def _groups(self, lane: LaneWork, stage: int, forward: int, backward: int, way: str) -> list[Group]:
        ahead = [] if forward < 0 else list(lane.chunks[stage][forward])
        back = [] if backward < 0 else list(lane.chunks[stage][backward])[::-1]
        keeps = shares(ahead, 0.0 if forward < 0 else lane.profile.chunks[stage][forward].saved_bytes)
        gives = shares(back, 0.0 if backward < 0 else _given_back(lane.profile.chunks[stage][backward], way))
        if way == "W":
            return wgrad_groups(back, gives)
        if ahead and back and self.overlap and self._pairs(stage, forward, backward):
            return pair_groups(ahead, back, keeps, gives, self.rules)
        if way == "split":
            back = [part.without_wgrad() for part in back]
        first, second = forward_groups(ahead, keeps, self.rules), backward_groups(back, gives, self.rules)
        return first + second if way == "joint" else second + first

    def _pairs(self, stage: int, forward: int, backward: int) -> bool:
        """Whether turns are shorter than one after the other, for the slowest lane (all lanes must do the same)."""
        turns, apart = [], []
        for lane in self.work:
            ahead, back = list(lane.chunks[stage][forward]), list(lane.chunks[stage][backward])[::-1]
            zeros = [0.0] * max(len(ahead), len(back))
            turns.append(seconds_of(pair_groups(ahead, back, zeros, zeros, self.rules)))
            both = forward_groups(ahead, zeros, self.rules) + backward_groups(back, zeros, self.rules)
            apart.append(seconds_of(both))
        return max(turns) < max(apart)

    def _items(
        self, groups: list[Group], p: StepProfile, stage: int, forward: int, backward: int, way: str
    ) -> list[Item]:
        items: list[Item] = []
        if way == "joint":  # both inputs are there before either pass begins
            items += [Item(segment=SYNC, owner=owner) for owner in ("F", "B")]
        for number, group in enumerate(groups):
            mine: list[Item] = []
            for slot in group.slots:
                if slot.comm is not None:
                    mine.append(Item(segment=slot.comm, owner=slot.comm_owner, comm=True))
                beside = slot.comm is not None
                mine += [Item(segment=segment, owner=owner, beside=beside) for owner, segment in slot.work]
            mine = mine or [Item(segment=SYNC, owner="F" if backward < 0 else "B")]
            _mark_group(mine, group, number, len(groups))
            items += mine
        if way == "joint":  # and both outputs are sent on with the end of the backward
            items.append(Item(segment=SYNC, owner="B"))
        for owner in ("F", "B"):
            own = [i for i in items if i.owner == owner]
            if not own:
                continue
            if own[-1].comm:
                items.append(Item(segment=SYNC, owner=owner))
                own.append(items[-1])
            own[0].awaits = True
            own[-1].owns = True
        size = max(p.chunks[stage][chunk].working_bytes for chunk in (forward, backward) if chunk >= 0)
        if size > 0.0 and way != "W":
            work = [i for i in items if not i.comm]
            work[0].alloc += (("workspace", size),)
            work[-1].free += (("workspace", size),)
        return items

    # -- tasks ------------------------------------------------------------------------------------

    def _run(self, stage: int, forward: Step | None, backward: Step | None) -> None:
        scripts = self._script(stage, forward, backward)
        steps = {"F": forward, "B": backward}
        places = [0] * self.lanes
        last = list(self.before)  # the newest task on the way of compute, per lane
        rows: list[tuple[int, ...]] = [()] * self.lanes  # exchanges the next compute waits for
        while True:
            for k, script in enumerate(scripts):
                while places[k] < len(script) and not script[places[k]].comm:
                    item = script[places[k]]
                    last[k] = self._emit(stage, k, item, steps, (*last[k], *rows[k]))
                    rows[k] = ()
                    places[k] += 1
            if places[0] == len(scripts[0]):
                break
            there = tuple(dict.fromkeys(ident for mine in (*last, *rows) for ident in mine))
            sent: list[int] = []
            beside: list[tuple[int, ...]] = []
            for k, script in enumerate(scripts):
                waits = there
                for other in range(self.lanes):
                    if script[places[k]].awaits:
                        step = steps[script[places[k]].owner]
                        assert step is not None
                        waits += self._at(other)._awaited(stage, step)
                sent += self._emit(stage, k, replace(script[places[k]], awaits=False), steps, waits)
                places[k] += 1
            for k, script in enumerate(scripts):
                while places[k] < len(script) and script[places[k]].beside:
                    last[k] = self._emit(stage, k, script[places[k]], steps, (*last[k], *rows[k]))
                    rows[k] = ()
                    places[k] += 1
                beside.append(rows[k])
            rows = [(*mine, *sent) for mine in beside]
        self.before = last
        for kind in ("B", "F"):
            done = steps[kind]
            if done is not None:
                for k in range(self.lanes):
                    self._at(k)._send(stage, done, step_name(done, self.profile.vpp))

    def _emit(
        self, stage: int, lane: int, item: Item, steps: dict[str, Step | None], after: tuple[int, ...]
    ) -> tuple[int, ...]:
        """One task; returns what the next one on this lane waits for."""
        step = steps[item.owner]
        assert step is not None
        p = self._at(lane).profile
        segment = item.segment
        ident = self.id_of(step.kind, stage, step.chunk, step.micro_batch) if item.owns else self.fresh_id()
        if item.awaits:
            after += self._awaited(stage, step)
        if item.piece is not None and step in self.edges:
            pieces, (number, count) = self.gathered[lane][step.chunk], item.piece
            after += tuple(x for i, x in enumerate(pieces) if i * count // len(pieces) == number)
        stream = EXCHANGE_STREAM if item.comm else segment.kind
        if not item.comm and (segment.is_compute or segment.kind in ON_COMPUTE):
            stream = COMPUTE_STREAM
        moved = {link: busy_s * p.links[link] for link, busy_s in segment.links if busy_s > 0.0}
        inner = moved.pop(INNER, 0.0)
        if inner > 0.0:
            self.inner[ident] = inner
        self.out.append(
            Task(
                id=ident, name=f"{step_name(step, p.vpp)} {segment.name}", kind=segment.kind,
                lane=self.lane_of(stage), stream=stream, busy_s=segment.seconds, flows=tuple(moved.items()),
                after=after, micro_batch=step.micro_batch, chunk=step.chunk, alloc=item.alloc, free=item.free,
            )
        )  # fmt: skip
        tail = p.tails[stage]
        reduced = any(size > 0.0 for _, size in tail.grad_flows)
        if item.ends >= 0 and step in self.edges and tail.overlap_grad and reduced:
            self._reduce(stage, lane, step, ident)
        return (ident,)

    def _reduce(self, stage: int, lane: int, step: Step, ident: int) -> None:
        """A piece of the gradients, when the last lane has its backward."""
        waiting = self.pieces.setdefault((stage, step.chunk), [[] for _ in range(self.lanes)])
        waiting[lane].append(ident)
        number = len(waiting[lane]) - 1
        if all(len(mine) > number for mine in waiting):
            ready = tuple(mine[number] for mine in waiting)
            parts = len(self.work[0].chunks[stage][step.chunk])
            for k in range(self.lanes):
                pieces = self.profile.vpp * parts
                self.grads[k].append(self._at(k)._grad(stage, step.chunk, ready, pieces))
            self._at(lane)

    def _reduce_at_the_end(self, stage: int) -> None:
        """All gradients at once, where nothing of them went beside the last backward."""
        tail, last = self.profile.tails[stage], self.orders[stage][-1]
        moved = tail.grad_latency_s > 0.0 or any(size > 0.0 for _, size in tail.grad_flows)
        if moved and not any(self.grads):
            ready = tuple(self._at(k).id_of(last.kind, stage, last.chunk, last.micro_batch) for k in range(self.lanes))
            for k in range(self.lanes):
                self.grads[k].append(self._at(k)._grad(stage, last.chunk, ready, 1))


def _way(forward: Step | None, backward: Step | None) -> str:
    """How a script runs: "joint" (both start and end together), "split" (the weight gradient is put off), "W" (it is
    made up for), or "" (the rest)."""
    if backward is None:
        return ""
    if backward.kind == "W":
        return "W"
    return "split" if backward.split else "joint" if forward is not None and forward.joint else ""


def _given_back(cost: ChunkProfile, way: str) -> float:
    """Bytes of activations a backward gives back (negative: it holds more afterwards)."""
    if way == "W":
        return cost.deferred_bytes
    return cost.saved_bytes - (cost.deferred_bytes if way == "split" else 0.0)


def _mark_group(items: list[Item], group: Group, number: int, count: int) -> None:
    """Memory of one group, the parameters it needs, and that its backward is over with it."""
    ahead = [i for i in items if i.owner == "F"]
    work = [i for i in items if not i.comm]
    if ahead:
        ahead[0].piece = (number, count)
    if work and group.saved > 0.0:
        first = next((i for i in work if i.owner == "F"), work[0])
        first.alloc += (("activations", group.saved),)
    if work and group.freed > 0.0:
        work[-1].free += (("activations", group.freed),)
    elif work and group.freed < 0.0:
        work[0].alloc += (("activations", -group.freed),)
    back = [i for i in work if i.owner == "B"]
    if back:
        back[-1].ends = number
