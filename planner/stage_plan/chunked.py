"""Virtual stages without the memory that they share: a dynamic programme over chunks, exact but for that memory.

The bottleneck adds up over chunks, of each its slowest stage. So a chunk is swept over caps of its steady time as a
pipeline without virtual stages is (`planner.stage_plan.dynamic`), from the cheapest ways to begin it at each layer to
the cheapest ways to end it; ends of one chunk are beginnings of the next. Without the rows of memory that tie the
chunks of a stage together that is the optimum: a bound with them, for every column too, and the answer where its path
fits. Where it does not, bytes are charged (a Lagrangian relaxation of the rows of memory, multipliers by Polyak's
steps): every charge gives a bound, and the paths on the way are tried as answers.
"""

from __future__ import annotations

import numpy as np

from planner.stage_plan.dynamic import Paths
from planner.stage_plan.records import Floats, Intervals, Ints

ROUNDS = 60  # of charges for memory
PATIENCE = 5  # rounds without a higher bound after which steps are halved
GAP = 1e-9


class Chunks:
    """The programme of one set of options. charge: seconds on top of each column, in the shape of `Paths.fill`, and
    their sum for a rank that is full, which is taken off. least_s: the least objective of any path; inf: there is none.
    """

    def __init__(self, paths: Paths, charge: tuple[Floats, float] | None = None) -> None:
        self.paths, columns = paths, paths.columns
        self.vpp, self.pp = columns.vpp, columns.pp
        self.weight = columns.num_micro_batches - 1.0 / columns.vpp
        more, self._off_s = charge if charge is not None else (0.0, 0.0)
        self._price = paths.fill / self.vpp + more
        # per chunk its caps and, of each, the cost of every (slot, first, stop) within it
        self._caps: list[Floats] = []
        self._costs: list[list[Floats]] = []
        for chunk in range(self.vpp):
            mine = slice(chunk * self.pp, (chunk + 1) * self.pp)
            price, steady = self._price[:, mine], paths.steady[:, mine]
            caps = np.unique(steady[np.isfinite(steady)])
            self._caps.append(caps)
            self._costs.append([np.where(steady <= cap, price, np.inf).min(axis=0) for cap in caps])
        size = columns.num_layers + 1
        begin = np.full(size, np.inf)
        begin[0] = 0.0
        self.begins = [begin]  # cheapest way to begin each chunk at each layer
        for chunk in range(self.vpp):
            self.begins.append(self._over(chunk, self.begins[chunk], back=False))
        end = np.full(size, np.inf)
        end[-1] = 0.0
        self.ends = [end]  # cheapest way on from each layer at which a chunk ends
        for chunk in range(self.vpp - 1, -1, -1):
            self.ends.insert(0, self._over(chunk, self.ends[0], back=True))
        self.least_s = float(self.begins[-1][-1]) - self._off_s

    def _over(self, chunk: int, source: Floats, *, back: bool) -> Floats:
        """Through a whole chunk, forward from its beginnings or back from its ends."""
        out = np.full(len(source), np.inf)
        for cap, costs in zip(self._caps[chunk], self._costs[chunk], strict=True):
            sums = source + self.weight * cap
            for table in costs[::-1] if back else costs:
                sums = (table + sums).min(axis=1) if back else (sums[:, None] + table).min(axis=0)
            out = np.minimum(out, sums)
        return out

    def bounds(self) -> Floats:
        """Least objective of any path through a column, in the shape of `Paths.fill`; inf where there is none."""
        out = np.full(self.paths.fill.shape, np.inf)
        for chunk in range(self.vpp):
            for cap, costs in zip(self._caps[chunk], self._costs[chunk], strict=True):
                before, after = [self.begins[chunk]], [self.ends[chunk + 1] + self.weight * cap]
                for table in costs[:-1]:
                    before.append((before[-1][:, None] + table).min(axis=0))
                for table in costs[:0:-1]:
                    after.insert(0, (table + after[0]).min(axis=1))
                for stage in range(self.pp):
                    slot = chunk * self.pp + stage
                    rest = before[stage][:, None] + after[stage]
                    within = self.paths.steady[:, slot] <= cap
                    through = np.where(within, self._price[:, slot] + rest, np.inf)
                    out[:, slot] = np.minimum(out[:, slot], through)
        return out - self._off_s

    def path(self) -> Ints | None:
        """Column of each slot of a path of the least objective."""
        if not np.isfinite(self.least_s):
            return None
        found: list[int] = []
        stop = self.paths.columns.num_layers
        for chunk in range(self.vpp - 1, -1, -1):
            steps, stop = self._back(chunk, stop)
            found = steps + found
        return np.array(found, dtype=np.int64)

    def _back(self, chunk: int, stop: int) -> tuple[list[int], int]:
        """(columns of a chunk that ends at a layer at the least cost, the layer it begins with)."""
        best_s, best = np.inf, -1
        walks: list[list[Floats]] = []
        for number, (cap, costs) in enumerate(zip(self._caps[chunk], self._costs[chunk], strict=True)):
            sums = [self.begins[chunk] + self.weight * cap]
            for table in costs:
                sums.append((sums[-1][:, None] + table).min(axis=0))
            walks.append(sums)
            if sums[-1][stop] < best_s:
                best_s, best = float(sums[-1][stop]), number
        cap = self._caps[chunk][best]
        steps: list[int] = []
        for stage in range(self.pp - 1, -1, -1):
            slot = chunk * self.pp + stage
            first = int((walks[best][stage] + self._costs[chunk][best][stage][:, stop]).argmin())
            prices = np.where(self.paths.steady[:, slot] <= cap, self._price[:, slot], np.inf)[:, first, stop]
            steps.insert(0, int(self.paths.at[int(prices.argmin()), slot, first, stop]))
            stop = first
        return steps, stop


class Rows:
    """The rows of memory: share[row, column] of what a rank may allocate, or keep on its host, at one moment of one
    stage."""

    def __init__(self, columns: Intervals) -> None:
        lines: list[Floats] = []
        self.names: list[str] = []
        for stage in range(columns.held_once):
            for host, capacity in ((False, columns.capacity_bytes), (True, columns.host_capacity_bytes)):
                if host and not columns.on_host:
                    continue
                share = np.zeros((len(columns.moments[stage]), len(columns)))
                for chunk, slot in enumerate(columns.mates(stage)):
                    mine = np.flatnonzero(columns.slot == slot)
                    share[:, mine] = columns.need_bytes(stage, chunk, mine, host=host) / capacity[stage]
                lines += list(share)
                self.names += [f"{'host' if host else 'bytes'}_{stage}"] * len(share)
        self.share: Floats = np.array(lines)

    def charge(self, paths: Paths, seconds: Floats) -> tuple[Floats, float]:
        """What columns pay for their bytes, seconds[row] for all that a rank may allocate."""
        paid = np.append(seconds @ self.share, 0.0)  # the last stands where there is no column
        return paid[paths.at], float(seconds.sum())


def charged(
    paths: Paths, rows: Rows, best_s: float, rounds: int = ROUNDS, free: Chunks | None = None
) -> tuple[Chunks, list[Ints]]:  # fmt: skip
    """(the programme with the highest bound found, paths that fit); it stops where the bound exceeds `best_s`.

    free: the programme without charges, where it is there.

    Polyak's step, towards the best known objective by the rows that the path breaks, halved where it does not help.
    """
    columns = paths.columns
    best, found = free or Chunks(paths), list[Ints]()
    now, seconds = best, np.zeros(len(rows.share))
    target_s = best_s if np.isfinite(best_s) else 2.0 * best.least_s
    share, stalled = 1.0, 0
    for number in range(rounds + 1):
        path = now.path()
        if path is None or now.least_s > target_s * (1.0 + GAP):
            break
        over = rows.share[:, path].sum(axis=1) - 1.0
        if over.max() <= 0.0:
            found.append(path)
            target_s = min(target_s, columns.objective_s(path))
        slope = np.where((over > 0.0) | (seconds > 0.0), over, 0.0)
        if number == rounds or not slope.any():
            break
        step = share * max(target_s - now.least_s, GAP * target_s) / float(slope @ slope)
        seconds = np.maximum(0.0, seconds + step * slope)
        now = Chunks(paths, rows.charge(paths, seconds))
        stalled = 0 if now.least_s > best.least_s else stalled + 1
        if stalled == PATIENCE:
            share, stalled = share / 2.0, 0
        best = now if now.least_s > best.least_s else best
    return best, found
