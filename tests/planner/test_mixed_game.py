"""The game of stages against paths: orders agree with a longest path of their own, bounds with brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.mixed.game import Board, improved, play
from planner.mixed.orders import order_of
from planner.mixed.prices import Prices, spans_of
from planner.mixed.refine import Refiner, scenario_of
from planner.mixed.rows import mixed_rows
from planner.stage_plan.chunked import Rows
from planner.stage_plan.priced import intervals
from planner.stage_plan.records import Setting
from sim.build.schedule import lane_order
from sim.mixed import Mixed, MixedSimulation
from tests.planner.test_mixed import types
from tests.planner.test_stage_plan import made

SHAPES = [(2, 1, 4), (4, 1, 3), (2, 3, 4), (4, 2, 8), (3, 2, 5)]


@pytest.mark.parametrize(("pp", "vpp", "m"), SHAPES)
def test_an_order_has_the_longest_path_of_its_graph(pp: int, vpp: int, m: int) -> None:
    order, slots = order_of(pp=pp, vpp=vpp, num_micro_batches=m), pp * vpp
    durations = np.random.default_rng(pp * 100 + vpp).uniform(0.1, 2.0, (3, 2 * slots))
    for each in durations:
        graph = nx.DiGraph()
        for stage in range(pp):
            steps = lane_order("interleaved" if vpp > 1 else "1f1b", pp=pp, vpp=vpp, stage=stage, num_micro_batches=m)
            names = [(step.kind, step.micro_batch, step.chunk * pp + stage) for step in steps]
            nx.add_path(graph, names)
        for micro_batch in range(m):
            ways = [("F", micro_batch, slot) for slot in range(slots)]
            nx.add_path(graph, [*ways, *[("B", micro_batch, slot) for slot in reversed(range(slots))]])
        took = {name: each[name[2] + slots * (name[0] == "B")] for name in graph}
        weighed = nx.DiGraph((a, b, {"weight": took[b]}) for a, b in graph.edges)
        weighed.add_edges_from(("start", a, {"weight": took[a]}) for a in graph)
        seconds, counts = order.longest(each.tolist())
        assert seconds == pytest.approx(nx.dag_longest_path_length(weighed))
        assert counts @ each == pytest.approx(seconds)
    assert order.lengths(durations) == pytest.approx([order.longest(each.tolist())[0] for each in durations])


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), shape=st.sampled_from([(2, 1, 4, 5), (3, 1, 5, 5), (2, 2, 4, 5)]),
       capacity=st.floats(6.0, 25.0))  # fmt: skip
def test_the_game_bounds_every_choice_of_stages(seed: int, shape: tuple[int, ...], capacity: float) -> None:
    pp, vpp, m, layers = shape
    rng = np.random.default_rng(seed)
    columns = made(seed, pp, vpp, layers, 1, capacity)
    speed = rng.uniform(0.5, 2.0, pp)[columns.slot % pp]
    columns = replace(columns, num_micro_batches=m, fill_s=columns.fill_s * speed)
    forward = columns.fill_s * rng.uniform(0.2, 0.5)
    board, order = Board(columns, forward, 0, Rows(columns).share), order_of(pp=pp, vpp=vpp, num_micro_batches=m)
    best = np.inf
    for cuts in product(range(layers + 1), repeat=pp * vpp - 1):
        ends = (0, *cuts, layers)
        if list(ends) != sorted(ends):
            continue
        spans = enumerate(pairwise(ends))
        path = np.array([columns.place.get((i, a, b, 0), -1) for i, (a, b) in spans])
        if path.min() >= 0 and columns.fits(path):
            best = min(best, order.longest(board.durations(path).tolist())[0])
    game = play(board, order)
    assert game.bound_s <= best * (1.0 + 1e-9)
    for seconds, path in game.paths:
        shorter, stages = improved(board, order, path)
        assert best <= shorter * (1.0 + 1e-9) and shorter <= seconds and columns.fits(stages)
        assert shorter == pytest.approx(order.longest(board.durations(stages).tolist())[0])


def test_prices_of_many_layouts_are_those_of_each() -> None:
    table = mixed_rows(types(), {"recompute": (), "tp": 2}, "megatron-lm", [()])
    prices = Prices(types(), table.rows, [(), ("full",)])
    for row in (0, len(table.rows) // 2, len(table.rows) - 1):
        plan = table.plan(row)
        where = (0,) * (plan.pp // 2) + (1,) * (plan.pp // 2)
        homes = [scenario_of(t, plan) for t in types()]
        found, forward = prices.columns(row, where, homes[0], np.array([0, 1]))
        alone = intervals(homes[0], [Setting(), Setting(recompute=("full",))], [homes[i] for i in where])
        assert list(found.place) == list(alone.place) and found.moments == alone.moments
        for name in ("fill_s", "steady_s", "static_bytes", "saved_bytes", "working_bytes", "capacity_bytes"):
            assert getattr(found, name) == pytest.approx(getattr(alone, name)), name
        assert np.all(forward < found.fill_s)


def test_a_path_is_no_longer_than_its_event_run() -> None:
    table = mixed_rows(types(), {"recompute": (), "tp": 2, "pp": 2}, "megatron-lm", [()])
    refiner = Refiner(types(), table.rows, [()], target="megatron-lm", between=None, seed=0)
    for row in range(0, min(len(table.rows), 12), 3):
        found, bound_s = refiner.refine(row, table.plan(row), (0, 1))
        for each in found:
            step = each.report.step_s.value
            assert bound_s <= each.game.objective_s + refiner.ends_s <= step or each is not found[0]
            assert step < 1.35 * each.game.objective_s
            homes = tuple(scenario_of(t, each.report.plan) for t in types())
            profile = MixedSimulation(Mixed(types=homes, where=(0, 1))).profile()
            chunks = [profile.chunks[s % 2][s // 2] for s in range(2 * profile.vpp)]
            own = [c.forward_s for c in chunks] + [c.backward_s for c in chunks]
            order = order_of(pp=2, vpp=profile.vpp, num_micro_batches=profile.num_micro_batches, group=profile.group)
            assert order.longest(own)[0] <= step


def test_every_span_leaves_layers_for_the_stages_between() -> None:
    spans = spans_of(pp=2, vpp=2, layers=4)
    met = set(zip(spans.slot.tolist(), spans.first.tolist(), spans.stop.tolist(), strict=True))
    assert {(0, 0, 0), (0, 0, 2), (3, 4, 4), (1, 0, 1)} <= met
    assert not np.any((spans.slot == 1) & (spans.first == spans.stop))
