"""The file of jobs: what is shared, and rows of each job, written down or read from a plan file or scaling curve."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from hwprofiles.reader import build, positive, read_toml
from planner.planfile import MAX_FILE_BYTES
from planner.share.records import ANY_POOL, OBJECTIVES, Job, JobRow, Shared


@dataclass(frozen=True, kw_only=True)
class WrittenRow:
    """A row as a person writes it. tokens_per_s: of all its devices, for throughput."""

    devices: int
    time_s: float
    label: str = ""
    usd: float | None = None
    tokens_per_s: float | None = None
    pool: str = ANY_POOL


@dataclass(frozen=True, kw_only=True)
class WrittenJob:
    """A job as a person writes it. file: of `plan --out` (with --tokens) or `scale --json`, relative to this file;
    tokens: to train, for rows of a scaling curve; mode: which of its curves; pool: where rows of the file run.
    """

    name: str
    weight: float = 1.0
    deadline_s: float | None = None
    optional: bool = False
    file: str | None = None
    tokens: float | None = None
    mode: str = "strong"
    pool: str = ANY_POOL
    rows: tuple[WrittenRow, ...] = ()


@dataclass(frozen=True, kw_only=True)
class WrittenShare:
    """What is shared. devices: of one pool, or `pools`: devices of each."""

    objective: str = "throughput"
    devices: int | None = None
    pools: Mapping[str, float] | None = None
    budget_usd: float | None = None
    deadline_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class JobsFile:
    """The whole file."""

    share: WrittenShare
    jobs: tuple[WrittenJob, ...]


def read_jobs(file: str, objective: str | None = None) -> tuple[tuple[Job, ...], Shared]:
    """(jobs, what they share) of a TOML file; objective: instead of the file's. Raises UserError with every problem."""
    return jobs_from(read_toml(Path(file), file), where=file, folder=Path(file).parent, objective=objective)


def jobs_from(
    data: Mapping[str, Any], *, where: str, folder: Path, objective: str | None = None
) -> tuple[tuple[Job, ...], Shared]:
    """(jobs, what they share) of a parsed file; see `read_jobs`."""
    made = build(JobsFile, data, where=where)
    if objective is not None:
        made = replace(made, share=replace(made.share, objective=objective))
    problems = positive(made.share, prefix="share.")
    problems += _share_problems(made)
    jobs = []
    for i, job in enumerate(made.jobs):
        problems += positive(job, prefix=f"jobs.{i}.")
        for r, row in enumerate(job.rows):
            problems += positive(row, zero_ok=("usd",), prefix=f"jobs.{i}.rows.{r}.")
        try:
            jobs.append(_job(job, folder))
        except UserError as error:
            problems += [f"jobs.{i} ({job.name}): {problem}" for problem in error.problems]
    shared = _shared(made.share)
    if not problems:
        problems += _row_problems(jobs, shared)
    if problems:
        raise UserError(problems, where=where)
    return tuple(jobs), shared


def _shared(said: WrittenShare) -> Shared:
    pools = None if said.pools is None else {name: int(count) for name, count in said.pools.items()}
    devices = pools if said.devices is None else {ANY_POOL: said.devices}
    return Shared(
        objective=said.objective, devices=devices, budget_usd=said.budget_usd, deadline_s=said.deadline_s
    )  # fmt: skip


def _share_problems(made: JobsFile) -> list[str]:
    said, problems = made.share, []
    if said.objective not in OBJECTIVES:
        problems.append(f"share.objective = {said.objective!r}: use one of {', '.join(OBJECTIVES)}")
    if said.devices is not None and said.pools is not None:
        problems.append("share.devices and share.pools both say what there is; give one of them")
    if said.devices is None and said.pools is None and said.budget_usd is None:
        problems.append("nothing is shared; give share.devices, [share.pools] or share.budget_usd")
    problems += [f"share.pools.{name} = {count:g}: give a whole number of devices"
                 for name, count in (said.pools or {}).items() if count != int(count)]  # fmt: skip
    if not made.jobs:
        problems.append("no [[jobs]]; give two or more")
    names = [job.name for job in made.jobs]
    problems += [f"two jobs are named {name!r}; give each its own name" for name in sorted(set(names))
                 if names.count(name) > 1]  # fmt: skip
    if said.objective != "throughput":
        problems += [f"jobs.{i}.optional: a job may only be left out for throughput; drop it or change the objective"
                     for i, job in enumerate(made.jobs) if job.optional]  # fmt: skip
    return problems


def _job(said: WrittenJob, folder: Path) -> Job:
    rows = [
        JobRow(
            label=row.label or f"{row.devices} devices", devices=row.devices, time_s=row.time_s, usd=row.usd,
            rate=row.tokens_per_s or 1.0 / max(row.time_s, 1e-300), pool=row.pool or said.pool,
        )
        for row in said.rows
    ]  # fmt: skip
    if said.file is not None:
        rows += _rows_of_file(folder / said.file, said)
    if not rows:
        raise UserError("no rows; write [[jobs.rows]] or name a file of `plan --out` or `scale --json`")
    return Job(
        name=said.name, rows=tuple(dict.fromkeys(rows)), weight=said.weight, deadline_s=said.deadline_s,
        optional=said.optional,
    )  # fmt: skip


def _row_problems(jobs: list[Job], shared: Shared) -> list[str]:
    """What rows lack that the limits or the objective ask for."""
    problems = []
    for job in jobs:
        if (shared.budget_usd is not None or shared.objective == "cost") and any(r.usd is None for r in job.rows):
            problems.append(f"{job.name}: a row has no usd, which a budget and the objective cost need; give its price")
        strange = sorted({r.pool for r in job.rows} - set(shared.devices or {r.pool for r in job.rows}))
        known = ", ".join(repr(name) for name in shared.devices or {} if name)
        for pool in strange:
            if not known:
                problems.append(
                    f"{job.name}: pool {pool!r} is not shared; drop it from the rows (share.devices is one pool "
                    "without a name), or give [share.pools] with it"
                )
            elif pool:
                problems.append(f"{job.name}: pool {pool!r} is not shared; use {known}, or add it to [share.pools]")
            else:
                problems.append(f"{job.name}: rows name no pool; give pool = one of {known}")
    return problems


def _rows_of_file(path: Path, job: WrittenJob) -> list[JobRow]:
    """The points of a plan file, or of a scaling curve."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path} is too large for a plan file or a scaling curve")
        data = json.loads(read_bounded(path, MAX_FILE_BYTES))
        if "curves" in data:
            return _of_curve(data, job)
        return _of_plan(data, job)
    except OSError as error:
        raise UserError(
            f"cannot read {path}: {error.strerror}; give a file of `plan --out` or `scale --json`"
        ) from None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no plan file and no scaling curve ({error}); write it with `plan --out` or `scale --json`"
        ) from None


def _of_plan(data: Mapping[str, Any], job: WrittenJob) -> list[JobRow]:
    goal = data["goal"] or {}
    terms = goal.get("terms")
    if terms is None:
        raise UserError("the plan file is of one step; write it with --tokens, so that rows have a time and a price")
    tokens = float(terms["tokens"])
    points = [count["best"] for count in data["counts"] if count["best"] is not None] + list(data["pareto"])
    return [
        JobRow(
            label=p["label"], devices=p["devices"], time_s=p["time_s"], usd=p["usd"], rate=tokens / p["time_s"],
            pool=job.pool,
        )
        for p in points if p["time_s"]
    ]  # fmt: skip


def _of_curve(data: Mapping[str, Any], job: WrittenJob) -> list[JobRow]:
    if job.tokens is None:
        raise UserError("a scaling curve needs tokens, the size of the job")
    rows = []
    for curve in data["curves"]:
        for p in curve["points"] if curve["mode"] == job.mode else []:
            if p["plan"] is None:
                continue
            rate = float(p["tokens_per_s"]["value"])
            time_s = job.tokens / rate
            usd = None if p["usd_per_step"] is None else p["usd_per_step"] * time_s / p["step_s"]["value"]
            rows.append(
                JobRow(label=p["label"], devices=p["devices"], time_s=time_s, usd=usd, rate=rate, pool=job.pool)
            )
    if not rows:
        raise UserError(f"no point of mode {job.mode!r} in the curve; give mode = strong or weak as it was drawn")
    return rows
