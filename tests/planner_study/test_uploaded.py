"""A study's database that somebody sent: its rows, and nothing of what else such a file may hold."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from hwprofiles.errors import UserError
from planner.study import uploaded
from planner.study.store import NO_PLAN, OK, Row, writing
from planner.study.uploaded import study_rows


@pytest.fixture
def database(tmp_path: Path) -> Path:
    file = tmp_path / "study.db"
    rows = [
        Row(digest="a", status=OK, result={"step_s": 1.5, "label": "TP1", "record": {"deep": 1}}, seconds=0.1),
        Row(digest="b", status=NO_PLAN, error="nothing fits", result={}),
    ]
    with writing(file) as store:
        store.add(rows, {"a": {"tp": 1, "recompute": ["moe_act", "mlp"]}, "b": {"tp": 2}}, "program")
    return file


def test_rows_are_what_was_asked_and_found(database: Path) -> None:
    first, second = study_rows(database.read_bytes())
    assert first == {
        "ask.tp": 1, "ask.recompute": "moe_act,mlp", "status": OK, "error": "", "step_s": 1.5, "label": "TP1",
        "seconds": 0.1,
    }  # fmt: skip
    assert second["status"] == NO_PLAN and second["error"] == "nothing fits"


def made(tmp_path: Path, *statements: str) -> bytes:
    file = tmp_path / "odd.db"
    base = sqlite3.connect(file)
    for statement in statements:
        base.execute(statement)
    base.commit()
    base.close()
    return file.read_bytes()


TABLE = "CREATE TABLE {} (inputs TEXT, status TEXT, error TEXT, result TEXT, seconds REAL)"


@pytest.mark.parametrize(
    ("statements", "why"),
    [
        (("CREATE TABLE other (x)",), "no table of cases"),
        ((TABLE.format("t"), "CREATE VIEW cases AS SELECT * FROM t"), "no table of cases"),
        (("CREATE TABLE cases (inputs TEXT, status TEXT)",), "no column error, result, seconds"),
        ((TABLE.format("cases"), "INSERT INTO cases VALUES ('no json', 'ok', '', '{}', 1)"), "not a database"),
        ((TABLE.format("cases"), "INSERT INTO cases VALUES ('[1]', 'ok', '', '{}', 1)"), "a case is no table"),
        ((TABLE.format("cases"), "INSERT INTO cases VALUES ('{}', 'ok', '', '{}', 'long')"), "not a database"),
    ],
)
def test_other_databases_are_refused(statements: tuple[str, ...], why: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=why):
        study_rows(made(tmp_path, *statements))


@pytest.mark.parametrize("data", [b"", b"text", b"SQLite format 3\x00", b"SQLite format 3\x00" + b"\xff" * 5000])
def test_what_is_no_database_is_refused(data: bytes) -> None:
    with pytest.raises(UserError, match="not a database"):
        study_rows(data)


def test_a_truncated_file_is_refused(database: Path) -> None:
    data = database.read_bytes()
    with pytest.raises(UserError, match="not a database"):
        study_rows(data[: len(data) - 5000])


def test_the_file_is_left_alone(database: Path) -> None:
    before = database.read_bytes()
    study_rows(before)
    assert database.read_bytes() == before and sorted(p.name for p in database.parent.iterdir()) == [
        "study.db", "study.db.lock",
    ]  # fmt: skip


def test_size_rows_and_work_are_bounded(database: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(uploaded, "MAX_ROWS", 1)
    assert len(study_rows(database.read_bytes())) == 1
    monkeypatch.setattr(uploaded, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="at most"):
        study_rows(database.read_bytes())
    monkeypatch.setattr(uploaded, "MAX_BYTES", 1 << 26)
    long = made(tmp_path, TABLE.format("cases"),
                "INSERT INTO cases VALUES ('{}', 'ok', printf('%.*c', 3000000, 'x'), '{}', 1)")  # fmt: skip
    with pytest.raises(UserError, match="not a database"):
        study_rows(long)
