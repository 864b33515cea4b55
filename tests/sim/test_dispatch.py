"""Dispatch and combine kernels: counts against brute force, limits of the forms, and what a cluster makes of them."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster, device_of
from hwprofiles.factors import factors
from hwprofiles.forms.dispatch import Exchange, dispatch_forms, expected_hits, norm
from hwprofiles.measured import tables
from sim.cost.comm import CommCost
from sim.cost.dispatch import DispatchCost
from sim.mesh import Group

MEASURED = ("h100", "h200", "b200", "gb200")
KERNELS = [(device, *kernel) for device in MEASURED for kernel in dispatch_forms(device)]


def exchange(**changes: Any) -> Exchange:
    return replace(Exchange(tokens=4096, hidden=7168, top_k=8, experts=256, ranks=8), **changes)


def cost(folder: str) -> DispatchCost:
    return DispatchCost(tables(folder), factors(folder))


def comm(name: str) -> CommCost:
    spec = cluster(name)
    folder = device_of(spec).measured
    return CommCost(spec, tables(folder), factors(folder))


@pytest.mark.parametrize(("top_k", "places", "experts"), [(1, 4, 8), (2, 4, 8), (3, 2, 8), (4, 8, 8), (3, 4, 12)])
def test_hits_are_the_mean_over_all_choices(top_k: int, places: int, experts: int) -> None:
    each = experts // places
    drawn = [len({expert // each for expert in chosen}) for chosen in combinations(range(experts), top_k)]
    assert float(expected_hits(top_k, places, experts)) == pytest.approx(np.mean(drawn), rel=1e-12)


def test_hits_of_endless_experts_are_a_draw_with_replacement() -> None:
    closed = 16 * (1 - (1 - 1 / 16) ** 6)
    assert float(expected_hits(6, 16)) == pytest.approx(closed, rel=1e-12)
    assert float(expected_hits(6, 16, 1e9)) == pytest.approx(closed, rel=1e-6)


def test_hits_of_columns_are_those_of_their_numbers() -> None:
    k, places, experts = np.array([1, 2, 8, 22]), np.array([1, 8, 64, 8]), np.array([16, 8, 256, 512])
    alone = [float(expected_hits(*sizes)) for sizes in zip(k, places, experts, strict=True)]
    np.testing.assert_allclose(expected_hits(k, places, experts), alone, rtol=1e-12)


@pytest.mark.parametrize("places", [1, 2, 3, 4, 6, 12])
@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_hits_of_limited_routing_are_the_mean_over_all_choices(places: int, limit: int) -> None:
    experts, groups, top_k = 12, 4, 3
    drawn = [
        np.mean([len({e * places // experts for e in chosen}) for chosen in combinations(allowed, top_k)])
        for few in combinations(range(groups), limit)
        for allowed in [[e for e in range(experts) if e * groups // experts in few]]
    ]
    found = expected_hits(top_k, places, experts, limit=limit, groups=groups)
    assert float(found) == pytest.approx(np.mean(drawn), rel=1e-12)


def test_limited_hits_of_columns_are_those_of_their_numbers() -> None:
    places = np.array([1, 2, 4, 8, 8, 16, 64])
    alone = [float(expected_hits(8, g, 256, limit=4, groups=8)) for g in places]
    np.testing.assert_allclose(expected_hits(8, places, 256, limit=4, groups=8), alone, rtol=1e-12)
    free = [float(expected_hits(8, g, 256)) for g in places]
    assert all(a <= f + 1e-12 for a, f in zip(alone, free, strict=True))


def test_group_limit_spares_domains_and_the_ranks_behind_them() -> None:
    free = exchange(ranks=64, domains=8)
    near = replace(free, group_limit=4)
    assert float(near.domain_hits) < 4.0 < float(free.domain_hits)
    assert float(near.rank_hits) < float(free.rank_hits)
    form = dispatch_forms("h100")["normal", "dispatch"]
    assert form.parts(near).nic_s < form.parts(free).nic_s
    # eight groups over four domains: half of the groups seldom lie in every domain
    four = exchange(ranks=32, domains=4, group_limit=4, groups=8)
    assert float(four.domain_hits) < float(replace(four, groups=0).domain_hits)


@settings(max_examples=60, deadline=None)
@given(
    kernel=st.sampled_from(KERNELS),
    tokens=st.floats(1, 1e5),
    hidden=st.sampled_from([2048, 4096, 7168]),
    top_k=st.integers(1, 8),
    load=st.floats(1, 4),
    domains=st.sampled_from([1, 2, 8]),
)
def test_more_work_is_never_faster(
    kernel: tuple[str, str, str], tokens: float, hidden: int, top_k: int, load: float, domains: int
) -> None:
    folder, mode, phase = kernel
    whole = cost(folder)
    at = exchange(tokens=tokens, hidden=hidden, top_k=top_k, ranks=8 * domains, domains=domains)

    def seconds(x: Exchange) -> float:
        return float(whole.parts(x, phase, mode="normal" if mode == "rack" else mode).total_s)

    base = seconds(at)
    assert base > 0
    for more in ({"tokens": 2 * tokens}, {"hidden": 2 * hidden}, {"top_k": top_k + 1}, {"load": load}):
        assert seconds(replace(at, **more)) >= base * (1 - 1e-12)
    assert seconds(replace(at, payload="fp8")) <= base
    assert seconds(replace(at, nvlink_scale=2.0)) <= base
    assert seconds(replace(at, sms=2 * at.sms)) <= base
    # a message to each expert shares nothing; a kernel that deduplicates hides part of the load in its start
    assert seconds(replace(at, load=load)) <= load * base * (1 + 1e-12)


def test_few_multiprocessors_set_the_rate_and_many_leave_it_to_the_wire() -> None:
    form = dispatch_forms("h100")["normal", "combine"]
    one, two, many = (float(form.parts(exchange(tokens=65536, sms=sms)).nvlink_s) for sms in (2, 4, 1e6))
    assert one / two == pytest.approx(2.0, rel=0.01)
    x = exchange(tokens=65536)
    assert many == pytest.approx(65536 * float(x.rank_hits) * 7 / 8 * 7168 * 2 / form.nvlink_bytes_per_s, rel=1e-6)


def test_few_experts_leave_multiprocessors_idle_in_low_latency() -> None:
    """One multiprocessor per expert up to all of them: 8 experts run a sixteenth of what 128 do."""
    form = dispatch_forms("h100")["low_latency", "dispatch"]
    few, many = (float(form.parts(exchange(tokens=512, top_k=1, experts=e)).nvlink_s) for e in (8, 128))
    assert 4.0 < few / many <= 16.0


def test_crossing_domains_adds_start_and_nic() -> None:
    form = dispatch_forms("h100")["normal", "dispatch"]
    domains = np.array([1, 2, 4, 8])
    parts = form.parts(exchange(ranks=8 * domains, domains=domains))
    assert parts.nic_s[0] == 0.0 and np.all(np.diff(parts.nic_s) > 0) and np.all(np.diff(parts.latency_s) > 0)
    slow = form.parts(exchange(ranks=32, domains=4, nic_bytes_per_s=form.across.nic_bytes_per_s / 4))
    assert float(slow.nic_s) == pytest.approx(4 * float(parts.nic_s[2]), rel=0.02)


def test_norm_lies_between_larger_and_sum() -> None:
    a, b = np.array([1.0, 2.0, 0.0, 5.0]), np.array([1.0, 3.0, 4.0, 0.0])
    for sharpness in (1.0, 3.0, 20.0):
        joint = norm(sharpness, a, b)
        assert np.all(joint >= np.maximum(a, b)) and np.all(joint <= a + b + 1e-12)


def test_devices_without_kernels_borrow_and_say_so() -> None:
    bare, own, far = cost("a100"), cost("b200"), cost("h100")
    x = exchange()
    borrowed = bare.parts(x, "combine")
    assert float(borrowed.total_s) == float(far.parts(x, "combine").total_s)
    own.parts(x, "combine")
    assert bare.notes == {"expert dispatch: borrowed from h100"} and own.notes == {"expert dispatch: measured"}
    own.parts(exchange(ranks=16, domains=2), "combine")
    assert "expert dispatch over several domains: borrowed from h100" in own.notes


def test_hybrid_is_no_slower_than_nccl_and_says_it_is_assumed() -> None:
    b200, x = cost("b200"), exchange()
    assert b200.parts(x, "dispatch", hybrid=True).nvlink_s < b200.parts(x, "dispatch").nvlink_s
    assert any("HybridEP" in note and "assumed" in note for note in b200.notes)


def test_a_rack_stays_on_nvlink_until_it_is_left() -> None:
    rack = cost("gb200")
    inside = rack.parts(exchange(ranks=64), "dispatch")
    beyond = rack.parts(exchange(ranks=128, domains=2), "dispatch")
    assert inside.nic_s == 0.0 < beyond.nic_s and beyond.latency_s > inside.latency_s


def test_one_rank_sends_nothing() -> None:
    parts = cost("h100").parts(exchange(ranks=np.array([1, 8])), "dispatch")
    assert parts.total_s[0] == 0.0 < parts.total_s[1]


@pytest.mark.parametrize("name", ["dgx-h100", "h800", "dgx-b200", "gb200-nvl72"])
def test_columns_on_a_cluster_are_its_numbers(name: str) -> None:
    costs, domain = comm(name), cluster(name).domain_devices
    sizes = np.array([1, 2, 8, 64, 256])
    intra = np.minimum(sizes, domain)
    sizes_of: dict[str, Any] = {"top_k": 8, "hidden": 7168, "experts": 256, "phase": "combine", "group_limit": 4}
    column = costs.dispatch(1e9, Group(size=sizes, intra=intra), **sizes_of).alone_s
    alone = [costs.dispatch(1e9, Group(size=n, intra=i), **sizes_of).alone_s for n, i in zip(sizes, intra, strict=True)]
    np.testing.assert_allclose(column, np.array(alone, dtype=float), rtol=1e-12)


def test_fp8_halves_what_the_links_carry() -> None:
    costs, grp = comm("dgx-h100"), Group(size=64, intra=8)
    sizes_of: dict[str, Any] = {"top_k": 8, "hidden": 7168, "experts": 256, "phase": "dispatch", "group_limit": 4}
    wide, narrow = (costs.dispatch(1e9, grp, payload=payload, **sizes_of) for payload in ("bf16", "fp8"))
    # scales travel too
    assert float(narrow.out_s / wide.out_s) == pytest.approx((1 + 4 / 128) / 2, rel=1e-3)
