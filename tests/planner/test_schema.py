"""The plan file as others read it: schema, versions, digests, bytes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwprofiles.errors import UserError
from planner.explain import explain
from planner.migrate import STEPS, migrated
from planner.planfile import FORMAT, load_plan, plan_json
from planner.schema import check_plan, check_values, plan_schema, schema_text
from tests.planner.test_explain import answer
from tests.planner_cli.running import SMALL, moecast

ROOT = Path(__file__).resolve().parents[2]
OLD = ROOT / "tests/data/plan-format-1.json"
PINNED = (*SMALL, "--tp", "1", "--pp", "1")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("schema") / "plan.json"
    done = moecast("plan", *PINNED, "--routing", "zipf:0.5", "--tokens", "10B", "--max-gpus", "64", "--out", str(path))
    assert done.code == 0, done.err
    assert moecast("schema", "--check", str(path)).code == 0
    return load_plan(path)


def test_published_schema_is_what_the_command_prints() -> None:
    assert (ROOT / "docs/reference/plan.schema.json").read_text(encoding="utf-8") == schema_text()
    assert moecast("schema").out == schema_text()
    assert (ROOT / "docs/reference/mix.schema.json").read_text(encoding="utf-8") == schema_text("mix")
    assert moecast("schema", "--of", "mix").out == schema_text("mix")
    assert moecast("schema", "--of", "study").code == 2


def test_schema_names_every_key_that_is_written(real: dict[str, Any]) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(plan_schema())
    for data in (real, json.loads(json.dumps(plan_json(answer())))):
        errors = [f"{list(e.path)}: {e.message}" for e in Draft202012Validator(plan_schema()).iter_errors(data)]
        assert errors == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda d: d.pop("search"), lambda d: d["plans"][0].pop("step_s"), lambda d: d["plans"][0]["plan"].update(tp=0),
        lambda d: d["inputs"].update(digest="x"), lambda d: d["search"].update(certificate="sure"),
        lambda d: d["plans"][0]["step_s"].update(low="1"), lambda d: d.update(plans=[]),
        lambda d: d["plans"][0]["step_s"].update(value=-1), lambda d: d["plans"][0]["step_s"].update(value=0),
        lambda d: d["plans"][0].update(peak_mem_bytes=-1.0), lambda d: d["plans"][0].update(bubble_fraction=1.5),
        lambda d: d["plans"][0].update(usd_per_step=-2), lambda d: d["search"].update(gap=7),
    ],
)  # fmt: skip
def test_schema_refuses_what_is_no_plan(real: dict[str, Any], spoil: Any) -> None:
    data = copy.deepcopy(real)
    spoil(data)
    with pytest.raises(UserError, match="write it again"):
        check_plan(data)
    with pytest.raises(UserError, match="write it again"):
        check_values(data)


def test_keys_of_later_releases_are_left_alone_and_those_of_others_begin_with_x(real: dict[str, Any]) -> None:
    data = copy.deepcopy(real)
    data["plans"][0]["x-note"] = data["x-run"] = {"who": "me"}
    check_plan(data)
    data["plans"][0]["wished"] = 1
    check_values(data)
    with pytest.raises(UserError, match=r"plans\.0.*wished"):
        check_plan(data)


def test_broken_files_are_refused_with_words_by_every_verb(real: dict[str, Any], tmp_path: Path) -> None:
    data = copy.deepcopy(real)
    data["plans"][0]["step_s"]["value"], data["plans"][0]["stages"] = -1, [1.5]
    broken, nan = tmp_path / "broken.json", tmp_path / "nan.json"
    broken.write_text(json.dumps(data))
    nan.write_text(json.dumps(data | {"x-a": float("nan")}))
    for words in (
        ["explain", "--quick"],
        ["export", "--to", "megatron-lm", "--out", str(tmp_path)],
        ["compare", str(OLD)],
    ):
        for file, said in (
            (broken, ("plans.0.step_s.value", "plans.0.stages.0", "write it again")),
            (nan, ("not JSON",)),
        ):
            done = moecast(words[0], str(file), *words[1:])
            assert done.code == 2 and str(file) in done.err, done.err
            assert all(piece in done.err for piece in said), done.err


def test_old_files_are_read_and_keep_the_schema() -> None:
    old = json.loads(OLD.read_text(encoding="utf-8"))
    assert old["format"] == 1
    new = load_plan(OLD)
    assert new["format"] == FORMAT and set(STEPS) == set(range(1, FORMAT))
    check_plan(new)
    assert new["plans"][0]["plan"] == old["plans"][0]["plan"]
    assert explain(new).label == old["plans"][0]["label"]


@pytest.mark.parametrize("version", [0, FORMAT + 1, "1", None, True])
def test_other_versions_are_refused(version: Any) -> None:
    with pytest.raises(UserError, match="format"):
        migrated({"format": version, "plans": [], "inputs": {}}, FORMAT)


def test_digests_tell_which_input_changed() -> None:
    base, fixed = plan_json(answer())["inputs"], plan_json(answer(fixed={"tp": 1}))["inputs"]
    assert base["digest"] != fixed["digest"]
    assert {name for name in base["digests"] if base["digests"][name] != fixed["digests"][name]} == {"options"}
    assert set(base["digests"]) == {"model", "cluster", "software", "workload", "target", "options", "data"}


def test_other_processes_write_the_same_bytes(tmp_path: Path) -> None:
    texts = []
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.json"
        words = ["plan", *PINNED, "--out", str(path)]
        code = f"from planner.cli import main; import sys; sys.argv[1:] = {words!r}; main()"
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                              env={**os.environ, "PYTHONHASHSEED": seed})  # fmt: skip
        assert done.returncode == 0, done.stderr
        whole = path.read_text(encoding="utf-8")
        texts.append(whole[: whole.index('"timing"')])
    assert texts[0] == texts[1]
