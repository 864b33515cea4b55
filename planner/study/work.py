"""A study at work: what is missing in the database goes to a pool in batches, what comes back is committed at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from planner.study.identity import case_digest, program_digest
from planner.study.pools import Batch, Work
from planner.study.spec import Case, Study, resolved
from planner.study.store import FAILED, Row, Store

BATCH = {"simulate": 16, "plan": 1}  # cases a worker takes at once: cheap ones together
Pool = Callable[[Work, Sequence[Batch]], Iterator[tuple[Row, ...]]]
Progress = Callable[[int, int, int, float | None], None]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a study came to. digests: of the cases in order; status: cases by status; asked: cases that ran now;
    stopped: interrupted before the end."""

    digests: tuple[str, ...]
    status: dict[str, int]
    asked: int
    stopped: bool
    differences: int

    @property
    def missing(self) -> int:
        """Cases without a row."""
        return len(self.digests) - sum(self.status.values())


def digests_of(study: Study) -> dict[str, Case]:
    """Digest of every case -> the case, in order of the file."""
    program = program_digest()
    return {case_digest(study.verb, case, resolved(case, study.folder), program): case for case in study.cases}


def run_study(
    study: Study, store: Store, work: Work, pool: Pool, *, retry: bool = False, progress: Progress | None = None
) -> Outcome:
    """Ask every case that has no row yet (with `retry` also those whose row is an error) and commit each batch.

    work: runs a batch on a worker. progress(done, total, failed, seconds left or None). An interrupt ends the study
    early and loses nothing that was done.
    """
    cases = digests_of(study)
    status = store.done(cases)
    if retry:
        again = [digest for digest, said in status.items() if said == FAILED]
        store.forget(again)
        status = {digest: said for digest, said in status.items() if said != FAILED}
    missing = [(digest, resolved(case, study.folder)) for digest, case in cases.items() if digest not in status]
    size = BATCH[study.verb]
    batches = [tuple(missing[i : i + size]) for i in range(0, len(missing), size)]
    counts: Counter[str] = Counter(status.values())
    program, started, done, stopped = program_digest(), time.monotonic(), 0, False

    def tell() -> None:
        if progress is not None:
            left = None if not done else (time.monotonic() - started) / done * (len(missing) - done)
            progress(len(cases) - len(missing) + done, len(cases), counts[FAILED], left)

    tell()
    try:
        with closing(pool(work, batches)) as made:  # type: ignore[type-var]
            for rows in made:
                store.add(rows, cases, program)
                done += len(rows)
                counts.update(row.status for row in rows)
                tell()
    except KeyboardInterrupt:
        stopped = True
    now = store.done(cases)
    return Outcome(
        digests=tuple(cases), status=dict(sorted(Counter(now.values()).items())), asked=done, stopped=stopped,
        differences=store.differences(),
    )  # fmt: skip


def table_of(study: Study, store: Store) -> list[dict[str, Any]]:
    """One flat row per case in order of the file: what it asked, its status, its figures; a case without a row in the
    database is "missing"."""
    cases = digests_of(study)
    rows = store.rows(cases)
    names = list(dict.fromkeys(key for case in study.cases for key in case))
    out = []
    for digest, case in cases.items():
        row = rows.get(digest)
        asked = {f"ask.{name}": _cell(case.get(name)) for name in names}
        figures = {} if row is None else {k: _cell(v) for k, v in row.result.items() if not isinstance(v, dict)}
        said = {"status": "missing" if row is None else row.status, "error": "" if row is None else row.error}
        out.append({"digest": digest, **asked, **said, **figures})
    return out


def _cell(value: Any) -> Any:
    """Lists as text, so that a column has one type."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
