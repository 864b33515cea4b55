"""Links that lanes share: bytes are conserved, rates kept, and sharing is max-min fair."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import Engine, Task, run
from sim.engine.core import SHARED

PORT = 10.0
OWN = {"port": PORT}


def sending(lane: int, size: float, *, start_s: float = 0.0, names: tuple[str, ...] = ("node",)) -> Task:
    """A transfer of a lane over shared links, which begins at start_s."""
    return Task(
        id=lane, name=f"t{lane}", kind="ep", lane=lane, stream="ep", latency_s=start_s,
        flows=tuple((name, size) for name in names),
    )  # fmt: skip


def drained(sizes: list[float], starts: list[float], caps: list[float], rate: float) -> list[float]:
    """Ends of transfers on one link, found the slow way: from event to event, rates by filling up equally."""
    left, ends, now = list(sizes), [0.0] * len(sizes), 0.0
    while any(x > 0.0 for x in left):
        alive = [i for i, x in enumerate(left) if x > 0.0 and starts[i] <= now]
        rates = dict.fromkeys(alive, 0.0)
        growing, spare = set(alive), rate
        while growing and spare > 1e-15:
            step = min([spare / len(growing), *(caps[i] - rates[i] for i in growing)])
            for i in growing:
                rates[i] += step
            spare -= step * len(growing)
            growing = {i for i in growing if rates[i] < caps[i] * (1 - 1e-12)}
        events = [left[i] / rates[i] for i in alive if rates[i] > 0.0]
        events += [t - now for i, t in enumerate(starts) if t > now and left[i] > 0.0]
        step = min(events)
        for i in alive:
            left[i] -= rates[i] * step
            if left[i] <= 1e-12 * sizes[i]:
                left[i], ends[i] = 0.0, now + step
        now += step
    return ends


TRANSFERS = st.lists(st.tuples(st.floats(1.0, 50.0), st.floats(0.0, 5.0)), min_size=1, max_size=6)


@settings(max_examples=80)
@given(transfers=TRANSFERS, rate=st.floats(2.0, 40.0))
def test_lanes_share_a_link_max_min_fairly(transfers: list[tuple[float, float]], rate: float) -> None:
    tasks = [sending(i, size, start_s=start) for i, (size, start) in enumerate(transfers)]
    engine = Engine(tasks, OWN, shared={"node": rate})
    engine.run()
    sizes, starts = [list(x) for x in zip(*transfers, strict=True)]
    assert engine.end_s == pytest.approx(drained(sizes, starts, [rate] * len(sizes), rate), rel=1e-6)


@settings(max_examples=60)
@given(
    transfers=st.lists(st.tuples(st.floats(1.0, 50.0), st.floats(0.5, 8.0)), min_size=1, max_size=6),
    rate=st.floats(2.0, 20.0),
)
def test_background_traffic_is_capped_at_its_own_pace(transfers: list[tuple[float, float]], rate: float) -> None:
    """A task with work of its own sends no faster than the work goes; others take what it leaves."""
    tasks = [
        Task(id=i, name="t", kind="k", lane=i, stream="compute", busy_s=busy, flows=(("node", size),))
        for i, (size, busy) in enumerate(transfers)
    ]
    engine = Engine(tasks, OWN, shared={"node": rate})
    engine.run()
    caps = [size / max(busy, size / rate) for size, busy in transfers]
    slow = drained([size for size, _ in transfers], [0.0] * len(transfers), caps, rate)
    want = [max(end, busy) for end, (_, busy) in zip(slow, transfers, strict=True)]
    assert engine.end_s == pytest.approx(want, rel=1e-6)


@settings(max_examples=60)
@given(transfers=TRANSFERS, rate=st.floats(2.0, 40.0))
def test_bytes_are_conserved_and_no_link_exceeds_its_rate(transfers: list[tuple[float, float]], rate: float) -> None:
    nodes = {"node0": rate, "node1": rate / 2}
    tasks = [
        sending(i, size, start_s=start, names=("port", f"node{i % 2}")) for i, (size, start) in enumerate(transfers)
    ]
    engine = Engine(tasks, OWN, shared=nodes)
    trace = engine.run()
    for number in range(2):
        mine = [size for i, (size, _) in enumerate(transfers) if i % 2 == number]
        if not mine:
            assert (SHARED, f"node{number}") not in trace.link_bytes
            continue
        carried, busy_s = trace.link_bytes[SHARED, f"node{number}"], trace.link_busy_s[SHARED, f"node{number}"]
        assert carried == pytest.approx(sum(mine))
        assert carried <= nodes[f"node{number}"] * busy_s * (1 + 1e-9)
    for i, (size, _) in enumerate(transfers):
        assert trace.link_bytes[i, "port"] == pytest.approx(size)
        assert engine.end_s[i] >= size / PORT * (1 - 1e-9)


def test_an_uneven_exchange_ends_with_its_busiest_link() -> None:
    """Eight ranks on two nodes whose ports carry what two ranks' own would: the fuller node decides."""
    sizes = [5.0, 7.0, 9.0, 30.0, 4.0, 4.0, 4.0, 4.0]
    tasks = [sending(i, size, names=("port", f"node{i // 4}")) for i, size in enumerate(sizes)]
    trace = run(tasks, OWN, shared={"node0": 2 * PORT, "node1": 2 * PORT})
    # node 0 has 51 bytes at 20 a second, but its last rank alone needs 3 s of its own port
    assert trace.makespan_s == pytest.approx(max(sum(sizes[:4]) / (2 * PORT), sizes[3] / PORT))
    assert trace.link_bytes[SHARED, "node1"] == pytest.approx(16.0)


def test_a_name_is_either_per_lane_or_shared() -> None:
    with pytest.raises(ValueError, match="both per lane and shared"):
        Engine([sending(0, 1.0)], {"node": 1.0}, shared={"node": 1.0})
    with pytest.raises(ValueError, match="positive rate"):
        Engine([sending(0, 1.0)], {}, shared={"node": 0.0})


def test_lanes_do_not_share_a_link_of_their_own() -> None:
    own, shared = (
        run([sending(i, 10.0) for i in range(4)], links, shared=common).makespan_s
        for links, common in (({"node": PORT}, {}), ({}, {"node": PORT}))
    )
    assert (own, shared) == pytest.approx((1.0, 4.0))
