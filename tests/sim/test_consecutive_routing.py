"""Forced balance by neighbouring experts: where a token goes, what that costs, and how it is asked for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.run_routing import routing_of
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.forms.hits import block_hits
from sim.families import load_model
from sim.plan import Plan
from sim.routing import Routing, parse_routing, resolve
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

MODEL = load_model("Qwen3-30B-A3B")


@given(k=st.integers(1, 12), held=st.integers(1, 24), places=st.integers(1, 12))
def test_distinct_places_are_those_of_counted_blocks(k: int, held: int, places: int) -> None:
    """Token i takes experts ik to ik + k - 1, modulo all; places hold neighbouring experts."""
    experts = held * places
    if k > experts:
        return
    tokens = [{(i * k + j) % experts // held for j in range(k)} for i in range(experts)]
    counted = float(np.mean([len(places_hit) for places_hit in tokens]))
    if k <= experts - held:  # no block reaches round into the place it began in
        assert float(block_hits(k, places, experts)) == pytest.approx(counted, rel=1e-12)


def test_columns_of_places_are_places_one_by_one() -> None:
    places = np.array([1.0, 2.0, 8.0, 64.0])
    np.testing.assert_allclose(block_hits(8, places, 256), [float(block_hits(8, p, 256)) for p in places])


def step_s(routing: Routing, dispatcher: str) -> float:
    software = catalogue.software("megatron-lm", device="H100", arch="moe")
    plan = Plan(dp=8, ep=8, micro_batch_seqs=4)
    return simulate(
        Scenario(
            model=MODEL, cluster=catalogue.cluster("dgx-h100", gpus=8), plan=plan, routing=routing,
            software=replace(software, dispatcher=dispatcher),
            workload=Workload(seq_tokens=4096, global_batch_seqs=32),
        ),
        trace=False,
    ).step_s.value  # fmt: skip


def test_only_kernels_that_send_a_token_once_per_rank_gain() -> None:
    beside = resolve(parse_routing("consecutive"), MODEL)
    assert step_s(beside, "deepep") < 0.97 * step_s(Routing(), "deepep")
    assert step_s(beside, "alltoall") == step_s(Routing(), "alltoall")


def test_asked_for_by_word_and_by_the_gate_of_a_published_run() -> None:
    asked = resolve(parse_routing("consecutive"), MODEL)
    assert asked.consecutive and asked.max_over_mean == 1.0 and not asked.loads
    assert routing_of({"routing": "dropless, fake balanced gate"}, MODEL, {}).consecutive
    assert not routing_of({"routing": "dropless, force-balanced"}, MODEL, {}).consecutive
    with pytest.raises(UserError, match="takes no options"):
        parse_routing("consecutive,pad=16")
