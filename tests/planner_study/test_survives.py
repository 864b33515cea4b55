"""A study whose workers and whose client are killed: no case is lost, none is answered twice."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from planner.study.pools import Batch, Work, quiet_tracker
from planner.study.store import FAILED, OK, Row, writing
from planner.study.work import digests_of, run_study
from tests.planner_study import toy_work

pytest.importorskip("joblib")
ROOT = Path(__file__).resolve().parents[2]


def client(folder: Path, *more: str) -> tuple[int, str]:
    """Exit code and output; to a file, as workers that outlive a killed client would keep a pipe open."""
    words = [sys.executable, "-m", "tests.planner_study.toy_work", str(folder), *more]
    with (folder / "said").open("w+") as said:
        code = subprocess.run(words, cwd=ROOT, stdout=said, stderr=said, timeout=120).returncode
        said.seek(0)
        return code, said.read()


def runs(folder: Path) -> Counter[int]:
    return Counter(map(int, (folder / "runs.log").read_text().split()))


def kept(folder: Path) -> dict[int, Row]:
    cases = digests_of(toy_work.study(folder))
    with writing(folder / "toy.db") as store:
        assert store.differences() == 0
        return {cases[digest]["number"]: row for digest, row in store.rows(cases).items()}


def test_killed_worker_and_killed_client_lose_nothing(tmp_path: Path) -> None:
    code, said = client(tmp_path, "dies")
    assert code == -9, said
    before = kept(tmp_path)
    assert toy_work.CLIENT_DIES_AT <= len(before) < toy_work.CASES
    runs_before = runs(tmp_path)
    code, said = client(tmp_path)
    assert code == 0, said
    assert (tmp_path / "killed").exists()
    after = kept(tmp_path)
    assert {n: (row.status, dict(row.result)) for n, row in after.items()} == {
        n: (OK, toy_work.answer(n)) for n in range(toy_work.CASES)
    }
    # what was committed before the kill was not asked again
    assert {n: runs(tmp_path)[n] for n in before} == {n: runs_before[n] for n in before}
    assert "asked=0" in client(tmp_path)[1]


def holding(path: Path) -> list[str]:
    """Processes that have a file open: what a killed client left behind."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):
            if entry.resolve(strict=True) == path:
                found.append(entry.parts[2])
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_what_outlives_a_killed_client_says_nothing(tmp_path: Path) -> None:
    """Semaphores of the killed pool are cleaned up by loky's tracker, without warnings of leaks."""
    assert client(tmp_path, "dies")[0] == -9
    said = tmp_path / "said"
    until = time.monotonic() + 30.0
    while holding(said) and time.monotonic() < until:
        time.sleep(0.2)
    assert not holding(said)
    assert said.read_text() == ""


def test_filters_of_the_environment_are_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (None, "error::FutureWarning"):
        monkeypatch.delenv("PYTHONWARNINGS", raising=False)
        if value:
            monkeypatch.setenv("PYTHONWARNINGS", value)
        quiet_tracker()
        assert os.environ.get("PYTHONWARNINGS") == value


def test_case_that_kills_its_worker_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "poison").touch()
    code, said = client(tmp_path)
    assert code == 0, said
    rows = kept(tmp_path)
    bad = {n for n, row in rows.items() if row.status == FAILED}
    assert bad == {toy_work.POISON}
    assert "died" in rows[toy_work.POISON].error
    assert len(rows) == toy_work.CASES


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with (
        writing(tmp_path / "a.db"),
        pytest.raises(UserError, match="another study is writing"),
        writing(tmp_path / "a.db"),
    ):
        pass
    with writing(tmp_path / "a.db") as store:
        assert store.done(["x"]) == {}


def test_second_result_is_kept_aside_and_counted(tmp_path: Path) -> None:
    with writing(tmp_path / "a.db") as store:
        row = Row(digest="d", status=OK, result={"a": 1})
        store.add([row, row], {"d": {}}, "p")
        assert store.differences() == 0
        store.add([Row(digest="d", status=OK, result={"a": 2})], {"d": {}}, "p")
        assert store.differences() == 1
        assert store.rows(["d"])["d"].result == {"a": 1}


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.db").write_text("this is a text, not a database of results\n" * 200)
    with pytest.raises(UserError, match="not a database"), writing(tmp_path / "a.db"):
        pass


def test_an_interrupt_keeps_what_was_done(tmp_path: Path) -> None:
    """Ctrl-C while batches are under way: what came back is committed, the rest is asked the next time."""

    def pool(work: Work, batches: Sequence[Batch]) -> Iterator[tuple[Row, ...]]:
        for i, batch in enumerate(batches):
            if i == 3:
                raise KeyboardInterrupt
            yield work(batch)

    def plain(work: Work, batches: Sequence[Batch]) -> Iterator[tuple[Row, ...]]:
        return (work(batch) for batch in batches)

    def one_by_one(batch: Batch) -> tuple[Row, ...]:
        return tuple(Row(digest=d, status=OK, result=toy_work.answer(c["number"])) for d, c in batch)

    asked = replace(toy_work.study(tmp_path), verb="plan")  # a batch per case
    seen: list[tuple[int, int, int, float | None]] = []
    with writing(tmp_path / "toy.db") as store:
        first = run_study(asked, store, one_by_one, pool, progress=lambda *said: seen.append(said))
        assert first.stopped and first.asked == 3 and first.missing == toy_work.CASES - 3
        second = run_study(asked, store, one_by_one, plain)
    assert not second.stopped and second.asked == toy_work.CASES - 3 and second.missing == 0
    assert [done for done, *_ in seen] == [0, 1, 2, 3]
    assert seen[0][3] is None and all(left is not None and left >= 0.0 for *_, left in seen[1:])


def test_a_database_of_another_release_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as old:
        old.execute("CREATE TABLE cases (digest TEXT PRIMARY KEY, status TEXT)")
        old.execute("INSERT INTO cases VALUES ('a', 'ok')")
    with pytest.raises(UserError, match="another release"), writing(path):
        pass
    with sqlite3.connect(path) as old:
        assert old.execute("SELECT * FROM cases").fetchall() == [("a", "ok")]


def test_a_full_disk_keeps_what_was_committed(tmp_path: Path) -> None:
    path = tmp_path / "full.db"
    row = Row(digest="a", status=OK, result={"step_s": 1.0})
    with pytest.raises(UserError, match="every row committed before is kept"), writing(path) as store:
        store.add([row], {"a": {}}, "p")
        pages = store._base.execute("PRAGMA page_count").fetchone()[0]
        store._base.execute(f"PRAGMA max_page_count = {pages}")
        store.add([replace(row, digest="b", error="x" * 100_000)], {"b": {}}, "p")
    with writing(path) as store:
        assert set(store.rows(["a", "b"])) == {"a"}


def test_an_interrupt_in_an_endless_case_ends_the_study_and_keeps_the_rest(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "tests.planner_study.toy_work", str(tmp_path), "endless"]
    with (tmp_path / "said").open("w+") as said:
        made = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=said)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (tmp_path / "endless").exists():
            time.sleep(0.05)
        os.kill(made.pid, signal.SIGINT)
        assert made.wait(30) == 0
        said.seek(0)
        text = said.read()
    assert "stopped=True" in text and "Traceback" not in text, text
    assert all(row.status == OK for row in kept(tmp_path).values())
