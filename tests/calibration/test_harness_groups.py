"""Measuring over ranks: two gloo ranks end to end, splits that keep the rows, groups that hang or die."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from calibration import measure as measuring
from calibration.harness import collectives, launcher, suites
from calibration.harness.environment import Monitor, environment
from calibration.harness.group_worker import plan
from calibration.harness.launcher import GroupRun, run_group
from calibration.harness.rows import Row, read_rows

GROUPS = tuple(suites.GROUP_FAMILIES)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("groups")
    return measuring.measure("cpu", out, suite="tiny", families=GROUPS) / "rows.csv"


@pytest.fixture(scope="module")
def rows(measured: Path) -> list[Row]:
    return read_rows(measured)


def test_two_ranks_end_to_end(rows: list[Row]) -> None:
    assert [row["status"] for row in rows if row["status"] != "ok"] == []
    assert {row["family"] for row in rows} == set(GROUPS)
    assert {row["op"] for row in rows if row["family"] == "collectives"} == {
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "send_recv",
    }
    for row in rows:
        assert json.loads(row["sizes"])["ranks"] == 2
        assert 0 < float(row["p10_s"]) <= float(row["median_s"]) <= float(row["p90_s"])
        assert row["device"].endswith(", 1 thread")


def test_the_block_and_the_step_over_ranks_equal_those_of_one_rank(rows: list[Row]) -> None:
    # Checked while measuring: all experts on one rank, and plain torch on the tokens of both ranks.
    blocks = [float(row["relative_error"]) for row in rows if row["family"] == "moe_block_ep"]
    steps = [float(row["relative_error"]) for row in rows if row["op"] == "train_step"]
    assert len(blocks) == 2 and max(blocks) < 0.01
    assert len(steps) == 1 and steps[0] < 1e-3


def test_the_busiest_rank_and_the_peak_are_recorded(rows: list[Row]) -> None:
    for row in rows:
        if row["family"] == "moe_block_ep":
            seen, sizes = json.loads(row["observed"]), json.loads(row["sizes"])
            routed = sizes["tokens"] * sizes["top_k"]
            assert seen["rows_mean"] == routed <= seen["rows_max"] <= 2 * routed
    (step,) = [row for row in rows if row["op"] == "train_step"]
    assert float(step["peak_bytes"]) > float(step["bytes"])  # more than weights and optimizer state


def test_nothing_is_measured_twice(measured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "run_group", lambda job, on_point: pytest.fail("started a group for nothing"))
    before = measured.read_bytes()
    measuring.measure("cpu", measured.parent.parent, suite="tiny", families=GROUPS)
    assert measured.read_bytes() == before


def test_one_rank_says_how_to_get_more(tmp_path: Path) -> None:
    for _ in range(2):  # saying it once is enough
        path = measuring.measure("cpu", tmp_path, suite="tiny", families=GROUPS, ranks=1) / "rows.csv"
    assert len(path.read_text().splitlines()) == 1 + len(GROUPS)
    assert all(row["status"].startswith("skipped: ") and "--ranks 2" in row["status"] for row in read_rows(path))


# ---------------------------------------------------------------- groups that go wrong


def _job(tmp_path: Path) -> GroupRun:
    return GroupRun(
        device="cpu",
        suite="tiny",
        out=tmp_path,
        path=tmp_path / "rows.csv",
        families=("collectives",),
        ranks=2,
        seed=0,
        resume=True,
        env=environment("cpu", Monitor("cpu")),
    )


def _stands_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[int]:
    """Ranks are replaced by `program`, which finds the index of its first point in `first`."""
    firsts: list[int] = []

    def command(job: GroupRun, first: int, late_s: float) -> list[str]:
        firsts.append(first)
        return [sys.executable, "-c", f"import sys, time\nfirst = {first}\n{program}"]

    monkeypatch.setattr(launcher, "_command", command)
    return firsts


def test_a_silent_group_is_ended_and_costs_one_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "SILENCE_S", 1.0)
    hang = "print('@start 2 x', flush=True)\nif first == 0: time.sleep(60)\nprint('@done 2')"
    firsts = _stands_in(monkeypatch, hang)
    labels: list[str] = []
    run_group(_job(tmp_path), labels.append)
    (row,) = read_rows(tmp_path / "rows.csv")
    point = plan("tiny", "cpu", ("collectives",), 2)[2]
    assert (row["op"], json.loads(row["sizes"])) == (point.op, dict(point.sizes))
    assert row["status"] == "failed: the group of 2 ranks ended: it said nothing for 1 s"
    assert firsts == [0, 3] and labels == ["x", "x"]


def test_a_dying_group_goes_on_behind_the_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Written by the group itself at first, then lost without a word, then well.
    program = (
        "if first == 0: print('@start 0 x'); print('@done 0'); sys.exit(3)\n"
        "if first == 1: print('@start 4 y', flush=True); raise MemoryError('no room')"
    )
    firsts = _stands_in(monkeypatch, program)
    run_group(_job(tmp_path), lambda label: None)
    assert firsts == [0, 1, 5]
    (row,) = read_rows(tmp_path / "rows.csv")
    assert row["status"] == "failed: the group of 2 ranks ended: MemoryError: no room"


def test_a_group_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    firsts = _stands_in(monkeypatch, "raise ImportError('no distributed')")
    run_group(_job(tmp_path), lambda label: None)
    (row,) = read_rows(tmp_path / "rows.csv")
    assert row["status"].endswith("ImportError: no distributed") and firsts == [0]


# ---------------------------------------------------------------- what is measured


@given(rows=st.integers(1, 10**6), ranks=st.integers(1, 64), uneven=st.booleans())
def test_shares_keep_the_rows(rows: int, ranks: int, uneven: bool) -> None:
    shares = collectives.shares(rows, ranks, uneven=uneven)
    assert sum(shares) == rows and len(shares) == ranks and min(shares) >= 0
    if uneven:
        assert shares == sorted(shares, reverse=True)


@pytest.mark.parametrize("ranks", [2, 8])
def test_bytes_of_collectives(ranks: int) -> None:
    for point in collectives.points("quick", "cuda", ranks):
        size, most, off = (point.sizes[name] for name in ("bytes", "bytes_max", "bytes_off_max"))
        assert isinstance(size, int) and isinstance(most, int) and isinstance(off, int)
        if point.sizes["spread"] == "uneven":
            # Rank 0 gets 1 / (1 + 1/2 + ... + 1/ranks) of what each of the ranks sends.
            share = 1 / sum(1 / (rank + 1) for rank in range(ranks))
            assert most == pytest.approx(ranks * share * size, rel=0.02)
            assert off == pytest.approx(max((ranks - 1) * share, 1 - share / ranks) * size, rel=0.02)
        else:
            assert most == size
            passes = {"all_reduce": 2 * (ranks - 1) / ranks, "send_recv": 1.0}.get(point.op, (ranks - 1) / ranks)
            assert off == passes * size


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", ["tiny", "quick", "full"])
def test_points_over_ranks_are_unique(suite: Any, device: str) -> None:
    for name, family in suites.GROUP_FAMILIES.items():
        points = family(suite, device, 2)
        keys = [(p.op, p.dtype, p.pass_, tuple(sorted(p.sizes.items()))) for p in points]
        assert points and len(set(keys)) == len(keys)
        assert all(p.family == name and p.bytes > 0 and p.sizes["ranks"] == 2 for p in points)
        assert suites.budget_s(suite, device, name) > 0


def test_quick_on_a_cpu_has_enough_points_over_ranks() -> None:
    points = plan("quick", "cpu", GROUPS, 2)
    assert len([p for p in points if p.op == "moe_block_ep" and p.pass_ == "forward"]) >= 3
    assert len([p for p in points if p.op == "train_step"]) >= 2
    sizes = [p.sizes["bytes"] for p in points if p.op == "all_reduce"]
    assert min(sizes) == 4096 and max(sizes) >= 1 << 24
