"""Two results side by side: the parts add up, and what cannot be compared is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.errors import UserError
from planner.compare import compare, compare_studies, read_side
from planner.study.store import NO_FIT, OK, Row, writing
from tests.planner_cli.running import SMALL, moecast


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("compare")
    out = {name: str(folder / f"{name}.json") for name in ("plan", "full", "none")}
    pinned = (*SMALL, "--tp", "1", "--pp", "1", "--micro-batch", "1")
    assert moecast("plan", *pinned, "--top", "3", "--out", out["plan"]).code == 0
    for name in ("full", "none"):
        done = moecast("simulate", *SMALL, "--ep", "8", "--recompute", name, "--json", out[name])
        assert done.code in (0, 4)
    return out


def test_changes_by_class_sum_to_the_change_of_the_step(files: dict[str, str]) -> None:
    found = compare(read_side(files["none"]), read_side(files["full"]))
    step = next(line for line in found.figures if line.name == "step_s")
    assert step.change is not None and step.change > 0.0
    assert sum(line.change or 0.0 for line in found.breakdown) == pytest.approx(step.change)
    assert [line.name for line in found.plan] == ["recompute"]
    assert found.asked == ()
    assert sum(line.change or 0.0 for line in found.memory) < 0.0


def test_a_side_against_itself_differs_in_nothing(files: dict[str, str]) -> None:
    found = compare(read_side(files["plan"]), read_side(files["plan"] + "#1"))
    assert found.asked == found.plan == ()
    for part in (found.figures, found.breakdown, found.exposed, found.memory, found.links):
        assert all(line.a == line.b for line in part)


def test_degrees_and_counts_differ_by_a_number_not_by_percent(files: dict[str, str], tmp_path: Path) -> None:
    """tp 4 -> 8 is no gain of 100 %, nor are half as many micro-batches a loss of 50 %; figures with a unit keep it."""
    data = json.loads(Path(files["full"]).read_text())
    data["plan"] |= {"tp": 2 * data["plan"]["tp"]}
    data |= {"num_micro_batches": data["num_micro_batches"] + 4, "devices": 2 * data["devices"]}
    data["step_s"]["value"] *= 1.25
    other = tmp_path / "other.json"
    other.write_text(json.dumps(data))
    shown = moecast("compare", files["full"], str(other)).out
    lines = {line.split()[0]: line.split() for line in shown.splitlines() if line.split()}
    assert lines["tp"][-1] == "+1" and lines["devices"][-1].startswith("+") and "%" not in lines["devices"][-1]
    assert next(x for x in shown.splitlines() if x.startswith("num micro batches")).split()[-1] == "+4"
    assert next(x for x in shown.splitlines() if x.startswith("step s ")).split()[-1] == "+25.00%"


def test_second_plan_of_a_file_and_the_table(files: dict[str, str]) -> None:
    side = read_side(files["plan"] + "#2")
    assert side.record["rank"] == 2
    done = moecast("compare", files["plan"], files["plan"] + "#2")
    assert done.code == 0, done.err
    assert "Where the time goes" in done.out and "B against A" in done.out
    data = json.loads(moecast("compare", files["plan"], files["full"], "--json", "-").out)
    assert data["figures"][0]["name"] == "step_s"


@pytest.mark.parametrize("rank", ["#9", "#x", "#0"])
def test_ranks_that_are_not_there_are_refused(files: dict[str, str], rank: str) -> None:
    with pytest.raises(UserError, match="plans 1 to 3"):
        read_side(files["plan"] + rank)


def test_mangled_records_are_user_errors(files: dict[str, str], tmp_path: Path) -> None:
    data = json.loads(Path(files["full"]).read_text())
    (tmp_path / "bad.json").write_text(json.dumps(data | {"breakdown": 3}))
    with pytest.raises(UserError, match="mangles"):
        compare(read_side(str(tmp_path / "bad.json")), read_side(files["full"]))
    assert moecast("compare", files["full"], str(tmp_path / "none.json")).code == 2


def database(path: Path, rows: dict[str, tuple[str, dict[str, Any]]]) -> str:
    with writing(path) as store:
        for digest, (status, result) in rows.items():
            store.add([Row(digest=digest, status=status, result=result)], {digest: {"tp": digest}}, "p")
    return str(path)


def test_studies_are_compared_case_by_case(tmp_path: Path, files: dict[str, str]) -> None:
    a = database(tmp_path / "a.db", {"1": (OK, {"step_s": 1.0}), "2": (OK, {"step_s": 2.0}), "3": (NO_FIT, {})})
    b = database(tmp_path / "b.db", {"1": (OK, {"step_s": 1.5}), "2": (OK, {"step_s": 2.0}), "3": (OK, {"step_s": 1.0}),
                                     "4": (OK, {"step_s": 1.0})})  # fmt: skip
    found = compare_studies(a, b)
    assert (found.both, found.only_a, found.only_b) == (3, 0, 1)
    assert found.ratio == 1.25
    assert {line.name: (line.a, line.b) for line in found.moved} == {"tp=1": (1.0, 1.5), "tp=3": (NO_FIT, 1.0)}
    done = moecast("compare", a, b)
    assert done.code == 0 and "2 differ" in done.out
    assert moecast("compare", a, files["full"]).code == 2
