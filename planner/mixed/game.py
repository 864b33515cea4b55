"""Layers to unlike stages against the longest path through the order of their work: a bound, and stages that reach it.

A step is no shorter than any path through its order (`planner.mixed.orders`), so none than any mixture of paths, and
under a mixture every column of layers has a price of its own: what it adds to each path, times how much of the mixture
that path is. The cheapest columns from the first layer to the last are a shortest path. That is a game: one side mixes
paths, the other chooses stages, and the value for the best mixture is a bound of every choice of stages. Both sides
answer each other (the double oracle): the mixture is that of a small linear programme over the paths and stages met so
far. The rows of memory that tie the virtual stages of a stage are priced along (a Lagrangian relaxation): columns pay
for their bytes, and what a full rank would pay is taken off. Stages met on the way that fit are candidates, improved by
single layers moved as long as their own longest path gets shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planner.mixed.orders import Order
from planner.stage_plan.records import Floats, Intervals, Ints

ROUNDS = 40
CLOSE = 2e-3  # relative distance of both sides at which the game ends
MOST_NODES = 12_000  # of an order: longer ones take longer than what they tell is worth
MOST_CHARGE = 10.0  # for a full rank, over the longest path met
KEPT = 3  # stages of each game that are improved


@dataclass(frozen=True, kw_only=True, eq=False)
class Game:
    """What a game says. bound_s: no stages have a shorter longest path; paths: columns of each slot of the best stages
    that fit, with the seconds of their longest path, the best first; walks: how often each duration stands on the paths
    of the mixture, which other games on the same order may begin with."""

    bound_s: float
    paths: tuple[tuple[float, Ints], ...]
    walks: tuple[Floats, ...] = ()


class Board:
    """The columns of one setting as tables [slot, first, stop]. columns: of one layout; forward_s: of each column;
    share: their rows of memory."""

    def __init__(self, columns: Intervals, forward_s: Floats, option: int, share: Floats) -> None:
        self.columns, self.share, self.option = columns, share, option
        rows = np.flatnonzero(columns.option == option)
        size = columns.num_layers + 1
        self.at = np.full((columns.slots, size, size), -1, dtype=np.int64)
        self.at[columns.slot[rows], columns.first[rows], columns.stop[rows]] = rows
        # the last line stands where there is no column
        self.each = np.append(np.stack([forward_s, columns.fill_s - forward_s]), np.full((2, 1), np.inf), axis=1)
        self.forward, self.backward = self.each[:, self.at]

    def cheapest(self, weights: Floats, charges: Floats) -> tuple[float, Ints] | None:
        """(price, column of each slot) of the cheapest path, weights [2 slots] of forwards and backwards; charges: for
        a rank of each row of memory that is full."""
        slots = self.columns.slots
        with np.errstate(invalid="ignore"):
            price = weights[:slots, None, None] * self.forward + weights[slots:, None, None] * self.backward
        if charges.any():
            price = price + np.append(charges @ self.share, 0.0)[self.at]
        price[self.at < 0] = np.inf
        before = np.full(price.shape[1], np.inf)
        before[0] = 0.0
        came = np.empty(price.shape[:2], dtype=np.int64)
        for slot, table in enumerate(price):
            sums = before[:, None] + table
            came[slot] = sums.argmin(axis=0)
            before = sums[came[slot], np.arange(len(before))]
        if not np.isfinite(before[-1]):
            return None
        stop, path = price.shape[1] - 1, np.empty(slots, dtype=np.int64)
        for slot in range(slots - 1, -1, -1):
            first = int(came[slot, stop])
            path[slot], stop = self.at[slot, first, stop], first
        return float(before[-1] - charges.sum()), path

    def durations(self, path: Ints) -> Floats:
        """Seconds [2 slots] of the forwards and backwards of a path."""
        out: Floats = self.each[:, path].reshape(-1)
        return out


def play(
    board: Board, order: Order, *, beat_s: float = np.inf, walks: Sequence[Floats] = (), rounds: int = ROUNDS
) -> Game:
    """The game of one setting of a layout; it ends where no stages can be faster than `beat_s`. walks: paths through
    the order to begin with."""
    slots, rows = board.columns.slots, len(board.share)
    start = np.mean(walks, axis=0) if walks else np.ones(2 * slots) * board.columns.num_micro_batches / board.columns.pp
    known, made, over = list(walks), list[Floats](), list[Floats]()
    met: dict[tuple[int, ...], float] = {}
    bound_s, mixture = 0.0, np.ones(len(known))
    found = board.cheapest(start, np.zeros(rows))
    if found is None:
        return Game(bound_s=np.inf, paths=())
    answer = found[1]
    for _ in range(rounds):
        made.append(board.durations(answer))
        over.append(board.share[:, answer].sum(axis=1) - 1.0)
        met[tuple(answer.tolist())], walk = order.longest(made[-1].tolist())
        known.append(walk.astype(np.float64))
        stages, paths = np.array(made), np.array(known)
        mixture, charges, chosen = _mixtures(stages @ paths.T, np.array(over))
        above_s, walk = order.longest((chosen @ stages).tolist())
        known.append(walk.astype(np.float64))
        replied = board.cheapest(mixture @ paths, charges)
        assert replied is not None, "columns do not come and go"
        bound_s, answer = max(bound_s, replied[0]), replied[1]
        # the path of a mixture of stages that fits on average: the bound gets no higher
        closed = bound_s >= above_s * (1.0 - CLOSE) and (chosen @ np.array(over)).max(initial=0.0) <= CLOSE
        if bound_s >= beat_s or closed or tuple(answer.tolist()) in met:
            break
    fit = [(seconds, np.array(path)) for path, seconds in met.items() if board.columns.fits(np.array(path))]
    fit.sort(key=lambda item: (item[0], item[1].tolist()))
    used = tuple(walk for walk, share in zip(known, mixture, strict=False) if share > 0.0)
    return Game(bound_s=bound_s, paths=tuple(fit[:KEPT]), walks=used)


def _mixtures(payoff: Floats, over: Floats) -> tuple[Floats, Floats, Floats]:
    """(shares of paths, charges of the rows of memory, shares of stages) of the game payoff[stages, paths], which paths
    make large; over[stages, rows]: what stages need of a rank beyond all of it."""
    from scipy.optimize import linprog

    (count, walks), rows = payoff.shape, over.shape[1]
    scale = float(payoff.max()) or 1.0
    # max v: v <= sum_p x_p payoff[s, p] + sum_r u_r over[s, r] for every choice of stages s
    table = np.hstack([-payoff / scale, -over, np.ones((count, 1))])
    solved = linprog(
        np.append(np.zeros(walks + rows), -1.0), A_ub=table, b_ub=np.zeros(count),
        A_eq=np.concatenate([np.ones(walks), np.zeros(rows + 1)])[None], b_eq=[1.0],
        bounds=[(0.0, None)] * walks + [(0.0, MOST_CHARGE)] * rows + [(None, None)], method="highs-ds",
    )  # fmt: skip
    assert solved.x is not None, "the programme always has a point"
    x: Floats = solved.x
    shares, dual = np.maximum(x[:walks], 0.0), np.maximum(-solved.ineqlin.marginals, 0.0)
    return shares / shares.sum(), np.maximum(x[walks:-1], 0.0) * scale, dual / dual.sum()


def improved(board: Board, order: Order, path: Ints) -> tuple[float, Ints]:
    """From these stages, single layers moved from one virtual stage to another as long as that shortens the longest
    path; what does not fit is left alone."""
    columns = board.columns
    now_s = float(order.lengths(board.durations(path)[None])[0])
    while True:
        moves = _moves(board, path)
        if not len(moves):
            return now_s, path
        seconds = order.lengths(np.concatenate([board.each[0][moves], board.each[1][moves]], axis=1))
        for i in np.argsort(seconds, kind="stable").tolist():
            if seconds[i] >= now_s * (1.0 - 1e-9):
                return now_s, path
            if columns.fits(moves[i]):
                now_s, path = float(seconds[i]), moves[i]
                break
        else:
            return now_s, path


def _moves(board: Board, path: Ints) -> Ints:
    """Every path [moves, slots] with one layer moved, of columns that there are."""
    columns = board.columns
    slots = columns.slots
    counts = (columns.stop - columns.first)[path]
    giver, taker = np.nonzero(~np.eye(slots, dtype=bool) & (counts[:, None] > 0))
    tried = np.tile(counts, (len(giver), 1))
    tried[np.arange(len(giver)), giver] -= 1
    tried[np.arange(len(giver)), taker] += 1
    stops = tried.cumsum(axis=1)
    found = board.at[np.arange(slots), stops - tried, stops]
    out: Ints = found[(found >= 0).all(axis=1)]
    return out
