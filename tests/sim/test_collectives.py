"""Collectives: closed forms, conserved bytes, monotone in bandwidth and bytes, uneven exchanges, columns as numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.collectives import collective_forms
from hwprofiles.factors import factors
from hwprofiles.forms import collectives as form
from hwprofiles.measured import tables
from sim.cost.comm import CommCost
from sim.mesh import Group

# No waiting, every share 1: what is left is bytes over rates.
DOMAIN = form.DomainForm(
    start_s=0.0, short_s=0.0, long_s=0.0, half_bytes=1.0, ring=1.0, own=1e30, tree=1.0, nvls=1.0, nvls_s=0.0,
    exchange=1.0, exchange_s=0.0, exchange_own=1e30, p2p=1.0,
)  # fmt: skip
FABRIC = form.FabricForm(
    line=1.0, short_s=0.0, long_s=0.0, half_bytes=1.0, tree=1.0, exchange=1.0, p2p=1.0, message_s=0.0,
    message_long_s=0.0, message_half_bytes=1.0, congestion=0.0, tree_slices=32.0, norm=1.0,
)  # fmt: skip
UP, OUT = 400e9, 50e9
FORMS = collective_forms()
MIB = 2.0**20
KINDS = st.sampled_from(form.KINDS)
SIZES = st.floats(min_value=1.0, max_value=2.0**34)
GROUPS = st.tuples(st.sampled_from([1, 2, 3, 16, 70, 512]), st.sampled_from([1, 2, 4, 8, 72])).filter(
    lambda g: g[0] * g[1] > 1
)


def span(size: int, intra: int, up: float = UP, out: float = OUT) -> form.Span:
    return form.Span(size=size, intra=intra, up_bytes_per_s=up, out_bytes_per_s=out)


def bare(kind: str, size: int, intra: int, algorithm: form.Algorithm = "library") -> form.Parts:
    return form.collective(kind, 1e9, span(size, intra), DOMAIN, FABRIC, algorithm)


def cost(name: str = "dgx-h100", nodes: int = 64) -> CommCost:
    cluster = replace(catalogue.cluster(name), num_nodes=nodes)
    return CommCost(cluster, tables("h100"), factors("h100"))


@pytest.mark.parametrize(
    ("kind", "algorithm", "up", "out"),
    [
        ("all_gather", "ring", 63 / 64, 63 / 64 / 8),
        ("reduce_scatter", "ring", 63 / 64, 63 / 64 / 8),
        ("all_reduce", "ring", 2 * 63 / 64, 2 * 63 / 64 / 8),
        ("all_reduce", "tree", 2 * 63 / 64, 2 / 8),
        ("all_reduce", "nvls", 9 / 8, 2 / 8),
        ("all_gather", "hierarchical", 7 / 8, 7 / 64),
        ("all_reduce", "hierarchical", 2 * 7 / 8, 2 * 7 / 64),
        ("all_to_all", "library", 7 / 64, 56 / 64),
        ("all_to_all", "hierarchical", 7 / 8, 56 / 64),
        ("ring", "library", 63 / 64, 63 / 64),
        ("p2p", "library", 0.0, 1.0),
    ],
)
def test_bytes_on_each_link_are_those_of_the_algorithm(
    kind: str, algorithm: form.Algorithm, up: float, out: float
) -> None:
    found = bare(kind, 64, 8, algorithm)
    assert found.up_s * UP == pytest.approx(up * 1e9)
    assert found.out_s * OUT == pytest.approx(out * 1e9)
    assert found.alone_s == pytest.approx(max(up / UP, out / OUT) * 1e9)


def test_switches_that_add_send_the_buffer_little_more_than_once() -> None:
    found = bare("all_reduce", 8, 8)
    assert found.up_s * UP == pytest.approx(9 / 8 * 1e9) and found.out_s == 0.0
    assert bare("all_reduce", 8, 8, "ring").up_s * UP == pytest.approx(2 * 7 / 8 * 1e9)
    none = form.collective("all_reduce", 1e9, span(8, 8), replace(DOMAIN, nvls=0.0), FABRIC)
    assert none.up_s == pytest.approx(bare("all_reduce", 8, 8, "ring").up_s)


def test_waiting_counts_hops_and_messages() -> None:
    hop = replace(FABRIC, short_s=1e-3, long_s=1e-3, message_s=1e-2, message_long_s=1e-2)
    cases: tuple[tuple[str, int, int, form.Algorithm], ...] = (
        ("all_gather", 16, 1, "ring"),  # n - 1 hops
        ("all_reduce", 16, 1, "ring"),
        ("all_reduce", 16, 1, "tree"),  # up and down log2 n levels
        ("all_gather", 64, 8, "hierarchical"),  # domains - 1
        ("all_to_all", 64, 8, "library"),  # a message to each far rank
        ("all_to_all", 64, 8, "hierarchical"),  # to each other domain
    )
    wait = [
        form.collective(kind, 0.0, span(size, intra), DOMAIN, hop, algorithm).latency_s
        for kind, size, intra, algorithm in cases
    ]
    assert wait == pytest.approx([15e-3, 30e-3, 8e-3, 7e-3, 0.56, 0.07])


def test_the_library_takes_the_faster_algorithm() -> None:
    h100, net = FORMS.domain("h100"), FORMS.fabrics["infiniband"]
    sizes = np.array([1e4, 1e6, 1e8, 1e10])
    of = {a: form.collective("all_reduce", sizes, span(512, 8), h100, net, a).alone_s for a in ("ring", "tree", "nvls")}
    found = form.collective("all_reduce", sizes, span(512, 8), h100, net).alone_s
    np.testing.assert_allclose(found, np.minimum.reduce(list(of.values())))
    assert of["ring"][0] > 10 * found[0]  # a thousand hops for a small buffer


@given(kind=KINDS, nbytes=SIZES, group=GROUPS, more=st.floats(1.0, 8.0), which=st.booleans())
def test_more_bandwidth_is_never_slower_and_more_bytes_never_faster(
    kind: str, nbytes: float, group: tuple[int, int], more: float, which: bool
) -> None:
    size, intra = group[0] * group[1], group[1]
    up, out = (UP * more, OUT) if which else (UP, OUT * more)
    args = FORMS.domain("h100"), FORMS.fabrics["slingshot"]
    slow = form.collective(kind, nbytes, span(size, intra), *args).alone_s
    fast = form.collective(kind, nbytes, span(size, intra, up, out), *args).alone_s
    large = form.collective(kind, nbytes * more, span(size, intra), *args).alone_s
    assert fast <= slow * (1 + 1e-9) and large >= slow * (1 - 1e-9)


@given(kind=KINDS, nbytes=st.lists(SIZES, min_size=1, max_size=4), group=GROUPS)
def test_a_column_is_its_numbers(kind: str, nbytes: list[float], group: tuple[int, int]) -> None:
    comm = cost()
    grp = Group(size=group[0] * min(group[1], 8), intra=min(group[1], 8))
    column = Group(size=np.full(len(nbytes), grp.size), intra=np.full(len(nbytes), grp.intra))
    whole = comm.collective(kind, np.array(nbytes), column)
    for i, one in enumerate(nbytes):
        single = comm.collective(kind, one, grp)
        for name in ("latency_s", "up_s", "out_s"):
            assert getattr(whole, name)[i] == pytest.approx(float(getattr(single, name)), rel=1e-12, abs=1e-15)


def test_mixed_columns_take_the_table_inside_a_domain_and_the_form_across() -> None:
    comm = cost()
    size, intra = np.array([1, 8, 64, 64]), np.array([1, 8, 8, 1])
    whole = comm.collective("all_gather", 64 * MIB, Group(size=size, intra=intra))
    for i in range(4):
        single = comm.collective("all_gather", 64 * MIB, Group(size=int(size[i]), intra=int(intra[i])))
        assert whole.alone_s[i] == pytest.approx(float(single.alone_s))
    measured, _ = tables("h100").collective_s("all_gather", 8, 64 * MIB)
    assert whole.alone_s[0] == 0.0 and whole.alone_s[1] == pytest.approx(float(measured))
    assert any(note.startswith("all_gather across domains: ") for note in comm.provenance)


pairs = st.integers(2, 12).flatmap(
    lambda n: st.lists(st.lists(st.floats(0, 1e9), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(matrix=pairs, intra=st.integers(1, 4))
def test_an_exchange_conserves_bytes_and_loads_are_those_of_counting(matrix: list[list[float]], intra: int) -> None:
    sent = np.array(matrix)
    found = form.loads(sent, intra)
    assert found.near_sent.sum() == pytest.approx(found.near_received.sum(), rel=1e-9)
    assert found.far_sent.sum() == pytest.approx(found.far_received.sum(), rel=1e-9)
    whole = found.near_sent + found.far_sent + found.own
    np.testing.assert_allclose(whole, sent.sum(1), rtol=1e-9, atol=1e-3)
    n, worst = len(sent), 0.0
    for r in range(n):
        away = [p for p in range(n) if p // intra != r // intra]
        worst = max(worst, sum(sent[r, p] for p in away), sum(sent[p, r] for p in away))
    assert found.far == pytest.approx(worst, rel=1e-6, abs=1e-3)


@pytest.mark.parametrize(("size", "intra"), [(64, 8), (16, 1), (8, 8)])
def test_an_even_matrix_is_the_even_exchange(size: int, intra: int) -> None:
    comm, grp = cost(), Group(size=size, intra=intra)
    found = form.loads(np.full((size, size), 64 * MIB / size), intra)
    uneven, even = comm.exchange(found.near, found.far, grp), comm.collective("all_to_all", 64 * MIB, grp)
    for name in ("latency_s", "up_s", "out_s"):
        assert getattr(uneven, name) == pytest.approx(float(getattr(even, name)), rel=1e-6)


def test_the_most_loaded_receiver_sets_the_time_and_the_order_inside_a_node_does_not() -> None:
    comm, grp = cost(), Group(size=64, intra=8)
    sent = np.full((64, 64), MIB)
    even = comm.exchange(form.loads(sent, 8).near, form.loads(sent, 8).far, grp)
    sent[:, 5] *= 3.0  # an expert that three times as many tokens want
    hot = form.loads(sent, 8)
    uneven = comm.exchange(hot.near, hot.far, grp)
    assert uneven.out_s == pytest.approx(3.0 * float(even.out_s), rel=1e-6)
    shuffled = np.concatenate([np.random.default_rng(1).permutation(np.arange(8 * d, 8 * d + 8)) for d in range(8)])
    moved = form.loads(sent[np.ix_(shuffled, shuffled)], 8)
    assert (moved.near, moved.far) == (hot.near, hot.far)


def test_ranks_that_share_their_rows_send_less_across_nodes() -> None:
    comm, grp, tp = cost(), Group(size=16, intra=2), Group(size=4, intra=4)
    plain, aware = comm.collective("all_to_all", 256 * MIB, grp), comm.tp_aware_all_to_all(256 * MIB, grp, tp)
    assert aware.out_s == pytest.approx(float(plain.out_s) / 4.0)
    assert aware.up_s > plain.up_s and aware.alone_s < plain.alone_s


@pytest.mark.parametrize("kind", form.KINDS)
def test_slower_links_above_the_port_and_slower_fabrics_cost(kind: str) -> None:
    grp = Group(size=64, intra=1, within=(8,))
    cluster = replace(catalogue.cluster("hgx-h100-2to1"), num_nodes=64)
    levels = len(cluster.fabric)
    grp = replace(grp, within=(8,) * levels)
    comm = CommCost(cluster, tables("h100"), factors("h100"))
    far = replace(cluster, scale_out=replace(cluster.scale_out, latency_s=1e-3))
    slow = replace(cluster, fabric=tuple(replace(level, oversubscription=64.0) for level in cluster.fabric))
    base = comm.collective(kind, 64 * MIB, grp).alone_s
    assert CommCost(far, tables("h100"), factors("h100")).collective(kind, 64 * MIB, grp).alone_s > base
    assert CommCost(slow, tables("h100"), factors("h100")).collective(kind, 64 * MIB, grp).alone_s > base


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="gossip"):
        bare("gossip", 8, 8)
    with pytest.raises(ValueError, match="square"):
        form.loads(np.zeros((2, 3)), 1)
    with pytest.raises(ValueError, match="negative"):
        form.loads(np.array([[0.0, -1.0], [0.0, 0.0]]), 1)
