"""Jobs that share: equal to brute force for every objective, limits kept or named, rows read from files."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import NoPlanError, UserError
from planner.share.choose import keeps, share, value_of
from planner.share.read import jobs_from, read_jobs
from planner.share.records import Job, JobRow, Shared


def jobs_of(seed: int, count: int, pools: tuple[str, ...], optional: bool) -> tuple[Job, ...]:
    """Jobs whose time falls less than in proportion with the devices, so that money rises."""
    rng = np.random.default_rng(seed)
    jobs = []
    for j in range(count):
        work, rows = rng.uniform(1e5, 1e6), []
        for pool in pools:
            speed = rng.uniform(0.5, 2.0)
            for devices in rng.choice([8, 16, 24, 32, 64], size=2, replace=False).tolist():
                time_s = work / speed / devices**0.8
                usd = time_s * devices * float(rng.uniform(0.5, 1.5)) * 1e-3
                rows.append(JobRow(label=f"{devices} {pool}", devices=devices, time_s=time_s, usd=usd,
                                   rate=1.0 / time_s, pool=pool))  # fmt: skip
        jobs.append(Job(name=f"job{j}", rows=tuple(rows), weight=float(rng.uniform(0.5, 2.0)), optional=optional))
    return tuple(jobs)


def brute(jobs: tuple[Job, ...], shared: Shared) -> float | None:
    """Best value over every choice."""
    ways = [[*job.rows, None] if job.optional else list(job.rows) for job in jobs]
    values = []
    for rows in itertools.product(*ways):
        late = any(row is not None and shared.deadline_s is not None and row.time_s > shared.deadline_s for row in rows)
        if not late and keeps(rows, jobs, shared):
            values.append(value_of(rows, jobs, shared))
    if not values:
        return None
    return max(values) if shared.objective == "throughput" else min(values)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6), count=st.integers(1, 4), objective=st.sampled_from(["throughput", "makespan", "cost"]),
    most=st.integers(1, 20), money=st.floats(0.3, 3.0), late=st.booleans(), two=st.booleans(), optional=st.booleans(),
)  # fmt: skip
def test_the_choice_is_that_of_brute_force(
    seed: int, count: int, objective: str, most: int, money: float, late: bool, two: bool, optional: bool
) -> None:
    pools = ("a", "b") if two else ("",)
    jobs = jobs_of(seed, count, pools, optional and objective == "throughput")
    every = [row for job in jobs for row in job.rows]
    usual = sum(float(np.mean([row.usd or 0.0 for row in job.rows])) for job in jobs)
    shared = Shared(
        objective=objective, devices={pool: 8 * most for pool in pools}, budget_usd=money * usual,
        deadline_s=float(np.median([row.time_s for row in every])) * 1.5 if late else None,
    )  # fmt: skip
    best = brute(jobs, shared)
    if best is None:
        with pytest.raises(NoPlanError):
            share(jobs, shared)
        return
    found = share(jobs, shared)
    assert found.status == "optimal" and found.gap <= 1e-6
    assert found.value == pytest.approx(best, rel=1e-7)
    assert keeps(found.rows, jobs, shared)
    side = 1.0 if objective == "throughput" else -1.0
    assert side * found.bound >= side * found.value * (1 - side * 1e-9)
    if found.greedy is not None:
        assert side * found.value >= side * found.greedy - 1e-9 * abs(found.greedy)


def test_of_equal_ends_the_cheapest_is_taken() -> None:
    slow = Job(name="slow", rows=(JobRow(label="", devices=8, time_s=100.0, usd=5.0, rate=0.01),))
    rows = tuple(JobRow(label=str(n), devices=n, time_s=1000.0 / n, usd=float(n), rate=n / 1e3) for n in (8, 16, 32))
    quick = Job(name="quick", rows=rows)
    found = share((slow, quick), Shared(objective="makespan", devices={"": 64}))
    assert found.time_s == 100.0 and found.rows[1] is not None and found.rows[1].devices == 16
    assert found.usd == 21.0 and found.devices == {"": 24}


def test_a_stopped_programme_says_its_gap_and_is_not_worse_than_the_simple_choice() -> None:
    jobs = jobs_of(7, 4, ("a", "b"), False)
    found = share(jobs, Shared(objective="throughput", devices={"a": 64, "b": 64}), nodes=1)
    assert found.greedy is not None and found.value >= found.greedy
    assert found.bound >= found.value


def test_what_stands_in_the_way_is_named() -> None:
    jobs = jobs_of(1, 3, ("",), False)
    with pytest.raises(NoPlanError, match="devices at least"):
        share(jobs, Shared(devices={"": 8}))
    with pytest.raises(NoPlanError, match="USD at least"):
        share(jobs, Shared(devices={"": 640}, budget_usd=1e-3))
    with pytest.raises(NoPlanError, match=r"job0.*deadline"):
        share(jobs, Shared(devices={"": 640}, deadline_s=1.0))


FILE: dict[str, Any] = {
    "share": {"objective": "throughput", "devices": 64, "budget_usd": 1000.0, "deadline_s": "30 day"},
    "jobs": [
        {"name": "a", "weight": 2.0, "rows": [{"devices": 32, "time_s": "3 day", "usd": 10.0, "tokens_per_s": 5.0}]},
        {"name": "b", "rows": [{"devices": 16, "time_s": 100.0, "usd": 10.0}], "deadline_s": "1 day"},
    ],
}


def test_a_file_is_read_and_its_mistakes_are_named_at_once(tmp_path: Path) -> None:
    jobs, shared = jobs_from(FILE, where="jobs.toml", folder=tmp_path)
    assert shared.devices == {"": 64} and shared.deadline_s == 30 * 86400
    assert jobs[0].rows[0].time_s == 3 * 86400 and jobs[0].rows[0].rate == 5.0 and jobs[1].rows[0].rate == 0.01
    bad = {
        "share": {"objective": "fun", "budget_usd": 10.0},
        "jobs": [
            {"name": "a", "rows": [{"devices": 0, "time_s": 1.0}]},
            {"name": "a", "file": "none.json"}, {"name": "c"},
        ],
    }  # fmt: skip
    with pytest.raises(UserError) as caught:
        jobs_from(bad, where="jobs.toml", folder=tmp_path)
    said = "\n".join(caught.value.problems)
    for piece in ("fun", "devices = 0", "two jobs are named", "none.json", "no rows"):
        assert piece in said, piece
    unpriced = {"share": {"budget_usd": 10.0}, "jobs": [{"name": "a", "rows": [{"devices": 8, "time_s": 1.0}]}]}
    with pytest.raises(UserError, match="no usd"):
        jobs_from(unpriced, where="jobs.toml", folder=tmp_path)
    with pytest.raises(UserError, match="name no pool; give pool = one of 'h'"):
        jobs_from({"share": {"pools": {"h": 64}}, "jobs": FILE["jobs"]}, where="jobs.toml", folder=tmp_path)
    elsewhere = [{"name": "a", "rows": [{"devices": 8, "time_s": 1.0, "pool": "nosuch"}]}]
    for there, remedy in (({"pools": {"h": 64}}, "use 'h', or add it"), ({"devices": 64}, r"drop it from the rows")):
        with pytest.raises(UserError, match=f"pool 'nosuch' is not shared; {remedy}"):
            jobs_from({"share": there, "jobs": elsewhere}, where="jobs.toml", folder=tmp_path)


def test_rows_come_from_a_scaling_curve_and_a_plan_file(tmp_path: Path) -> None:
    point = {"devices": 8, "label": "TP1", "plan": {}, "tokens_per_s": {"value": 50.0}, "step_s": {"value": 2.0},
             "usd_per_step": 4.0}  # fmt: skip
    curve = {"curves": [{"mode": "strong", "points": [point, {"devices": 16, "plan": None}]}]}
    (tmp_path / "curve.json").write_text(json.dumps(curve))
    best = {"devices": 32, "label": "TP2", "time_s": 100.0, "usd": 7.0}
    plan = {"goal": {"terms": {"tokens": 1e4}}, "counts": [{"best": best}, {"best": None}], "pareto": [best]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "jobs.toml").write_text(
        '[share]\ndevices = 64\n[[jobs]]\nname = "a"\nfile = "curve.json"\ntokens = 1000\n'
        '[[jobs]]\nname = "b"\nfile = "plan.json"\n'
    )
    (a, b), shared = read_jobs(str(tmp_path / "jobs.toml"), "cost")
    assert shared.objective == "cost"
    assert a.rows == (JobRow(label="TP1", devices=8, time_s=20.0, usd=40.0, rate=50.0),)
    assert b.rows == (JobRow(label="TP2", devices=32, time_s=100.0, usd=7.0, rate=100.0),)
    without = replace_terms(plan)
    (tmp_path / "plan.json").write_text(json.dumps(without))
    with pytest.raises(UserError, match="--tokens"):
        read_jobs(str(tmp_path / "jobs.toml"))


def replace_terms(plan: dict[str, Any]) -> dict[str, Any]:
    return plan | {"goal": None}


def test_sixty_jobs_are_proved() -> None:
    jobs = jobs_of(3, 60, ("a", "b"), False)
    found = share(jobs, Shared(objective="throughput", devices={"a": 800, "b": 800}))
    assert found.status == "optimal" and found.gap <= 1e-6
    assert replace(found, seconds=0.0).to_json()["timing"] == {"seconds": 0.0}
