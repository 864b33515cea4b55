"""The verbs on real inputs: what they print, the JSON they write, and their exit codes."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from planner.question.asked import Asked, AskedStep
from tests.planner_cli.running import LAYOUT, SMALL, moecast

ROOT = Path(__file__).resolve().parents[2]
TIGHT = ("--vpp", "1", "--pp", "1", "--cp", "1", "--micro-batch", "1")  # keeps the search small


def only_json(text: str) -> Any:
    """Strict JSON and nothing else; NaN and Infinity are not JSON."""

    def refuse(name: str) -> Any:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    """One plan as JSON from stdout."""
    done = moecast("simulate", *SMALL, *LAYOUT, "--json", "-")
    assert done.code == 0, done.err
    data: dict[str, Any] = only_json(done.out)
    return data


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A search as JSON from stdout, and its plan file."""
    path = tmp_path_factory.mktemp("plan") / "plan.json"
    done = moecast("plan", *SMALL, *TIGHT, "--top", "2", "--json", "-", "--out", str(path))
    assert done.code == 0, done.err
    return only_json(done.out), path


def test_options_are_exactly_those_promised() -> None:
    promised = (
        "model cluster gpus seq-len global-batch precision software micro-batch tp pp vpp cp ep etp recompute zero "
        "schedule micro-batch-group routing placement redundant-experts "
        "rank-order host-map nodes anchor optimizer offload lora lengths "
        "rampup-batch-size train-samples target top seed json out trace trace-lanes report strict"
    )
    assert [name.replace("_", "-") for name in Asked.__dataclass_fields__] == promised.split()
    for verb in ("plan", "simulate"):
        text = moecast(verb, "--help").out
        assert all(f"--{name}" in text for name in promised.split())
        assert all((f"--{name}" in text) == (verb == "simulate") for name in ("detail", "lanes"))
        assert "--stages" in text and ("--search" in text) == (verb == "plan")
    assert set(AskedStep.__dataclass_fields__) - set(Asked.__dataclass_fields__) == {"stages", "detail", "lanes"}


def test_help_imports_no_numerical_library() -> None:
    code = (
        "import sys, planner.cli.app\n"
        "print(sorted({'numpy', 'pandas', 'plotly', 'simpy', 'pulp', 'scipy', 'networkx', 'rich.progress'}"
        " & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_simulate_json_adds_up(simulated: dict[str, Any]) -> None:
    step = simulated["step_s"]
    assert step["low"] <= step["value"] <= step["high"]
    assert sum(simulated["breakdown"].values()) == pytest.approx(step["value"], rel=1e-6)
    assert max(sum(stage.values()) for stage in simulated["memory"]) == pytest.approx(simulated["peak_mem_bytes"])
    assert simulated["link_use"]
    assert 0.5 * step["value"] < simulated["bound_s"] <= step["value"] * (1 + 1e-9)
    assert simulated["plan"]["recompute"] == ["moe_act", "layernorm"]
    assert simulated["plan"]["dp"] == 32
    tokens = 64 * 4096 / 32 / step["value"]
    assert simulated["tokens_per_s_per_gpu"]["value"] == pytest.approx(tokens)


def test_simulate_table_says_what_the_json_says(simulated: dict[str, Any]) -> None:
    done = moecast("simulate", *SMALL, *LAYOUT)
    assert done.code == 0
    assert f"{100 * simulated['mfu']['value']:.1f}%" in done.out
    assert "Where the time goes" in done.out
    assert "Memory at the peak" in done.out


def test_simulate_is_the_same_byte_for_byte(tmp_path: Path) -> None:
    texts = []
    for name in ("a", "b"):
        files = [str(tmp_path / f"{name}.{kind}") for kind in ("json", "trace", "html")]
        done = moecast("simulate", *SMALL, *LAYOUT, "--json", files[0], "--trace", files[1], "--report", files[2])
        assert done.code == 0
        texts.append([Path(f).read_bytes() for f in files])
    assert texts[0] == texts[1]
    assert only_json(texts[0][1].decode())["traceEvents"]


def test_pictures_show_the_whole_step_even_where_the_simulator_skips_periods(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    question = (*SMALL, "--global-batch", "2048", "--pp", "4", "--ep", "4", "--recompute", "full", "--json", "-")
    done = moecast("simulate", *question, "--trace", str(path))
    data = only_json(done.out)
    assert data == only_json(moecast("simulate", *question).out)
    kernels = [e for e in only_json(path.read_text())["traceEvents"] if e.get("cat") == "kernel"]
    step_s = data["step_s"]["value"]
    assert max(e["ts"] + e["dur"] for e in kernels) == pytest.approx(step_s * 1e6, rel=1e-6)
    forwards = {(e["pid"], e["args"]["micro_batch"]) for e in kernels if e["args"]["class"] == "forward"}
    assert len(forwards) == 4 * data["num_micro_batches"]


def test_layers_draw_the_layer_level_run_and_leave_the_figures_alone(tmp_path: Path) -> None:
    paths = [str(tmp_path / name) for name in ("trace.json", "report.html", "step.json")]
    question = (*SMALL, *LAYOUT, "--routing", "zipf:0.4", "--pp", "2")
    said = moecast("simulate", *question, "--detail", "layers", "--lanes", "median", "--trace", paths[0],
                   "--report", paths[1], "--json", paths[2])  # fmt: skip
    assert said.code == 0, said.err
    trace, data = (only_json(Path(path).read_text()) for path in (paths[0], paths[2]))
    layers = data.pop("layers")
    assert data == only_json(moecast("simulate", *question, "--json", "-").out)
    assert layers["lanes"] == "median" and layers["step_s"] == pytest.approx(data["step_s"]["value"], rel=0.02)
    assert [lane["name"] for lane in layers["each"]] == [
        f"stage {s}, {r} rank" for s in (0, 1) for r in ("hottest", "median")
    ]
    assert layers["each"][1]["idle_s"] > layers["each"][0]["idle_s"]
    assert trace["moecast"]["run"] == "layers" and trace["moecast"]["drawn_step_s"] == layers["step_s"]
    assert "Layer-level run (lanes: median)" in said.out and "figures above are of the pipeline run" in said.out
    assert "layer by layer" in Path(paths[1]).read_text()


def test_lanes_without_layers_and_unknown_words_are_refused_at_once() -> None:
    done = moecast("simulate", *SMALL, *LAYOUT, "--lanes", "nodes")
    assert done.code == 2 and "add --detail layers" in done.err
    done = moecast("simulate", *SMALL, *LAYOUT, "--detail", "layer", "--lanes", "medians")
    assert done.code == 2 and "did you mean layers" in done.err and "did you mean median" in done.err


def test_virtual_stages_turn_on_the_interleaved_schedule() -> None:
    done = moecast("simulate", *SMALL, "--pp", "4", "--vpp", "2", "--ep", "4", "--json", "-")
    assert done.code == 0, done.err
    assert only_json(done.out)["plan"]["schedule"] == "interleaved"


def test_plan_that_does_not_fit_exits_4_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    done = moecast("simulate", *SMALL, "--micro-batch", "2", "--json", str(path))
    assert done.code == 4
    assert "out of memory on lane 0" in done.err
    short = only_json(path.read_text())["out_of_memory"]
    assert short["need_bytes"] > short["have_bytes"]
    for part in (short["tag"], f"needs {short['need_bytes'] / 2**30:.1f} GiB", f"{short['have_bytes'] / 2**30:.1f}"):
        assert part in done.err


def test_plan_json_has_the_promised_schema(planned: tuple[dict[str, Any], Path]) -> None:
    data, _ = planned
    assert [p["rank"] for p in data["plans"]] == [1, 2]
    for record in data["plans"]:
        plan = record["plan"]
        assert {"tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs", "recompute", "zero_stage",
                "schedule"} <= set(plan)  # fmt: skip
        assert plan["tp"] * plan["cp"] * plan["dp"] * plan["pp"] == 32
        assert plan["etp"] * plan["ep"] * plan["edp"] * plan["pp"] == 32
        assert plan["micro_batch_seqs"] == 1
        for name in ("step_s", "tokens_per_s_per_gpu", "mfu"):
            assert record[name]["low"] <= record[name]["value"] <= record[name]["high"]
        assert math.isfinite(record["peak_mem_bytes"])
        assert {"bubble_fraction", "exposed_comm_s", "provenance"} <= set(record)
    assert {"raw", "legal", "fits", "simulated", "bound_s", "gap", "rejected"} <= set(data["search"])
    assert data["plans"][0]["step_s"]["value"] <= data["plans"][1]["step_s"]["value"]
    assert data["timing"]["seconds"] > 0


def test_plan_table_lists_plans_and_what_was_ruled_out() -> None:
    done = moecast("plan", *SMALL, *TIGHT, "--top", "2")
    assert done.code == 0, done.err
    assert "candidates" in done.out
    assert "Ruled out" in done.out
    assert "tok/s/GPU" in done.out


def test_the_best_plan_simulates_to_the_same_step(planned: tuple[dict[str, Any], Path]) -> None:
    data, _ = planned
    best = data["plans"][0]
    plan = best["plan"]
    done = moecast(
        "simulate", *SMALL, "--tp", str(plan["tp"]), "--ep", str(plan["ep"]), "--etp", str(plan["etp"]),
        "--recompute", ",".join(plan["recompute"]) or "none", "--json", "-",
    )  # fmt: skip
    assert only_json(done.out)["step_s"]["value"] == best["step_s"]["value"]


def test_explain_reads_the_plan_file(planned: tuple[dict[str, Any], Path]) -> None:
    data, path = planned
    done = moecast("explain", str(path))
    assert done.code == 0, done.err
    assert data["plans"][0]["label"] in done.out
    explained = only_json(moecast("explain", str(path), "--json", "-").out)
    assert explained["step_s"] == data["plans"][0]["step_s"]["value"]


def test_no_plan_exits_3_with_counts_per_rule() -> None:
    done = moecast("plan", "--model", "DeepSeek-V3", "--cluster", "dgx-h100", "--gpus", "8", "--vpp", "1")
    assert done.code == 3
    assert done.out == ""
    assert "lost to" in done.err
    assert "out of memory" in done.err


def test_no_plan_as_json_still_has_the_counts() -> None:
    small = ("--vpp", "1", "--pp", "1", "--tp", "1", "--cp", "1", "--micro-batch", "1")
    done = moecast("plan", "--model", "DeepSeek-V3", "--cluster", "dgx-h100", "--gpus", "8", *small, "--json", "-")
    assert done.code == 3
    data = only_json(done.out)
    assert data["plans"] == []
    assert data["error"].splitlines()[0] in done.err
    search = data["search"]
    assert sum(search["rejected"].values()) == search["raw"] > 0
    assert search["rejected"]["out of memory"] > 0


def test_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("planner.search.find_plans", stop)
    done = moecast("plan", *SMALL)
    assert done.code == 130
    assert "stopped" in done.err


def test_interrupt_during_event_runs_keeps_what_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import sim.run

    real, calls = sim.run.simulate, []

    def twice(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*arguments, **named)

    monkeypatch.setattr("sim.run.simulate", twice)
    done = moecast("plan", *SMALL, *TIGHT, "--json", "-")
    assert done.code == 130
    data = only_json(done.out)
    assert len(data["plans"]) == 1
    assert data["search"]["stopped"] == "interrupted"


def test_plan_table_fits_a_narrow_terminal() -> None:
    from io import StringIO

    from rich.console import Console

    from planner.cli.tables import plans_grid

    record = {
        "rank": 1, "plan": {"tp": 2, "cp": 1, "dp": 4, "pp": 4, "vpp": 1, "ep": 8, "etp": 1, "micro_batch_seqs": 1,
                            "recompute": ["moe_act", "layernorm", "mla_up_proj"]},
        "step_s": {"value": 2.0, "low": 1.8, "high": 2.2}, "tokens_per_s_per_gpu": {"value": 1000.0},
        "mfu": {"value": 0.4}, "peak_mem_bytes": 64 * 2.0**30, "bubble_fraction": 0.1, "exposed_comm_s": {"ep": 0.3},
    }  # fmt: skip
    console = Console(file=StringIO(), width=80)
    console.print(plans_grid([record], 80 * 2.0**30, "", console.width))
    assert isinstance(console.file, StringIO)
    lines = console.file.getvalue().strip("\n").splitlines()
    assert len(lines) == 2
    assert "moe_act +2" in lines[1]
    assert "CP" not in lines[0].split()


@pytest.mark.parametrize("kind", ["models", "devices", "clusters", "software"])
def test_show_lists_and_shows_every_entry(kind: str) -> None:
    rows = only_json(moecast("show", kind, "--json", "-").out)
    assert rows
    table = moecast("show", kind).out
    assert all(row["name"].split()[0] in table for row in rows)
    full = only_json(moecast("show", kind, rows[0]["name"], "--json", "-").out)
    assert {"title", "where", "date", "licence"} <= set(full["source"])
    text = moecast("show", kind, rows[0]["name"]).out
    assert full["source"]["title"][:30] in text


RUNS = (
    "id,model,gpu,n_gpus,seq_len,gbs,mbs,tp,pp,ep,precision,framework,release,tok_s_gpu_norm,norm_how\n"
    "good,Qwen3-30B-A3B,H100,32,4096,64,1,1,1,8,bf16,Megatron-Bridge,26.06,12000,given\n"
    "alien,NoSuchModel-7B,H100,32,4096,64,1,1,1,8,bf16,Megatron-Bridge,26.06,12000,given\n"
)


def test_validate_scores_rows_and_says_why_others_are_not_scored(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(RUNS)
    done = moecast("validate", str(path), "--json", "-")
    assert done.code == 0, done.err
    rows = {row["id"]: row for row in only_json(done.out)["rows"]}
    good = rows["good"]
    assert good["status"] == "ok"
    assert good["error"] == pytest.approx(good["predicted"] / 12000 - 1)
    assert good["low"] <= good["predicted"] <= good["high"]
    assert rows["alien"]["status"] == "unsupported"
    table = moecast("validate", str(path)).out
    assert "2 rows (1 ok, 1 unsupported)" in table
    assert "Worst rows" in table
    assert "NoSuchModel-7B" in table
    twice = only_json(moecast("validate", str(path), str(path), "--json", "-").out)
    assert len(twice["rows"]) == 4
    strict = moecast("validate", str(path), "--strict")
    assert strict.code == 2
    assert "row alien is unsupported" in strict.err


def test_validate_prints_predictions_where_nothing_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("model,gpu,n_gpus,seq_len,gbs,tp,pp,ep,mbs\nQwen3-30B-A3B,H100,16,4096,64,1,1,8,1\n")
    row = only_json(moecast("validate", str(path), "--json", "-").out)["rows"][0]
    table = moecast("validate", str(path)).out
    assert "Error of predictions" not in table and "Worst rows" not in table
    line = next(text for text in table.splitlines() if text.startswith("row 1"))
    assert row["plan"] in line and f"{row['predicted']:,.0f}" in line


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff" * 40, b"a,b\n1,2\n"])
def test_validate_refuses_other_files(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "runs.csv"
    if content is not None:
        path.write_bytes(content)
    done = moecast("validate", str(path))
    assert done.code == 2
    assert "runs.csv" in done.err
