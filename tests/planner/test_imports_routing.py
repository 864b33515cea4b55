"""Recorded routing of others: counts by hand, rank by rank; pickles, bombs and damage refused."""

from __future__ import annotations

import json
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hwprofiles.errors import UserError
from planner.imports import routing as module
from planner.imports import routing_logs
from planner.imports.routing import Imported, import_routing
from planner.placement.read import read_loads
from sim.families import load_model
from sim.mesh import DEFAULT_MAP, axis_dims
from sim.plan import Plan
from sim.routing import parse_routing, resolve

MODEL = load_model("OLMoE-1B-7B")
LAYERS, EXPERTS = len(MODEL.layers), 64
RNG = np.random.default_rng(11)


def write_trace(folder: Path, rank: int, records: list[tuple[int, np.ndarray]], **more: Any) -> None:
    with (folder / f"router_trace_rank{rank}.jsonl").open("a") as file:
        for layer, chosen in records:
            record = {
                "step": 0, "stage": "pre_dispatch", "block": "decoder", "layer": layer, "rank": rank,
                "num_tokens": len(chosen), "topk": chosen.shape[1], "top_indices": chosen.tolist(),
            }  # fmt: skip
            file.write(json.dumps(record | more) + "\n")


def tokens(n: int = 20) -> np.ndarray:
    return np.stack([RNG.choice(EXPERTS, size=8, replace=False) for _ in range(n)])


def test_a_routing_trace_is_counted_and_read_back(tmp_path: Path) -> None:
    want = np.zeros((LAYERS, EXPERTS))
    for rank in range(2):
        for _ in range(2):  # micro-batches
            records = [(layer, tokens()) for layer in range(LAYERS)]
            for layer, chosen in records:
                want[layer] += np.bincount(chosen.ravel(), minlength=EXPERTS)
            write_trace(tmp_path, rank, records)
    write_trace(tmp_path, 0, [(0, tokens())], block="mtp", mtp_idx=0)
    made = import_routing([str(tmp_path)], model=MODEL)
    assert np.array_equal(np.stack([made.counts[i] for i in range(LAYERS)]), want)
    assert any("1 records of multi-token" in note for note in made.notes)
    counts, trace = tmp_path / "counts.csv", tmp_path / "trace.csv"
    counts.write_text(made.text())
    table, layers = read_loads(counts)
    assert np.array_equal(table, want) and layers == tuple(range(LAYERS))
    assert made.tokens is not None
    trace.write_text(made.tokens.trace_text())
    assert len(trace.read_text().splitlines()) == 1 + 2 * 2 * 20
    for path in (counts, trace):
        assert resolve(parse_routing(str(path)), MODEL).recorded_tokens == 80
    again = import_routing([str(trace)], model=MODEL)
    assert all(np.array_equal(again.counts[i], want[i]) for i in range(LAYERS))


@pytest.mark.parametrize(
    "plan", [Plan(dp=8, ep=4, edp=2), Plan(tp=2, pp=2, dp=2, ep=2, etp=2, edp=1), Plan(pp=2, dp=4, ep=4, edp=1)]
)
def test_tokens_per_expert_go_to_their_layer_and_expert(plan: Plan, tmp_path: Path) -> None:
    held, per_stage = EXPERTS // plan.ep, LAYERS // plan.pp
    folder = tmp_path / "tokens_per_expert"
    folder.mkdir()
    want = np.zeros((LAYERS, EXPERTS))
    for rank in range(plan.num_devices):
        ((_, ep_stride),), ((_, pp_stride),) = axis_dims(plan, "ep", DEFAULT_MAP), axis_dims(plan, "pp", DEFAULT_MAP)
        part, stage = rank // ep_stride % plan.ep, rank // pp_stride % plan.pp
        lines = []
        for local in range(per_stage):
            tpe = RNG.integers(0, 50, size=(3, held))
            want[stage * per_stage + local, part * held : (part + 1) * held] += tpe.sum(axis=0)
            lines.append(json.dumps({"iter": 10, "block": "decoder", "layer": local, "tpe": tpe.tolist()}))
        (folder / f"rank{rank}.jsonl").write_text("\n".join(lines) + "\n")
    asked = (plan, DEFAULT_MAP, (per_stage,) * plan.pp)
    made = import_routing([str(tmp_path)], model=MODEL, plan=asked)
    assert np.array_equal(np.stack([made.counts[i] for i in range(LAYERS)]), want)
    if plan.pp == 1 and plan.etp == 1:
        assert np.array_equal(made.counts[0], import_routing([str(tmp_path)], model=MODEL).counts[0])


def played(plan: Plan, stage: int, m: int) -> list[tuple[str, int, int]]:
    """(F or B, micro-batch, chunk) of a stage, written down from the interleaved schedule's description."""
    group = plan.micro_batch_group or plan.pp
    forward = [(b, c) for at in range(0, m, group) for c in range(plan.vpp) for b in range(at, min(at + group, m))]
    ahead = min(len(forward), 2 * (plan.pp - stage - 1) + (plan.vpp - 1) * group)
    backward = [("B", b, plan.vpp - 1 - c) for b, c in forward]
    steps = [("F", b, c) for b, c in forward]
    mixed = [one for pair in zip(steps[ahead:], backward, strict=False) for one in pair]
    return [*steps[:ahead], *mixed, *backward[len(steps) - ahead :]]


VIRTUAL = (
    (Plan(pp=2, vpp=2, dp=2, ep=2, schedule="interleaved"), (4, 4, 4, 4), 6),
    (Plan(pp=4, vpp=2, dp=2, ep=2, schedule="interleaved"), (1, 3, 2, 2, 3, 2, 2, 1), 8),
    (Plan(pp=2, vpp=4, tp=2, dp=2, ep=2, edp=2, schedule="interleaved", micro_batch_group=3), (2,) * 8, 9),
)


@pytest.mark.parametrize("again", [(), ("moe",), ("full",), ("layernorm",)], ids=str)
@pytest.mark.parametrize(("plan", "stages", "m"), VIRTUAL, ids=[f"pp{p.pp}vpp{p.vpp}" for p, _, _ in VIRTUAL])
def test_virtual_stages_are_told_apart_by_their_order(
    plan: Plan, stages: tuple[int, ...], m: int, again: tuple[str, ...], tmp_path: Path
) -> None:
    plan = replace(plan, recompute=again)
    rerun = "moe" in again or "full" in again
    first = np.concatenate([[0], np.cumsum(stages)])
    traces, logs = tmp_path / "trace", tmp_path / "logs"
    traces.mkdir()
    logs.mkdir()
    counts, held = np.zeros((LAYERS, EXPERTS)), np.zeros((LAYERS, EXPERTS))
    per_rank = EXPERTS // plan.ep
    for rank in range(plan.num_devices):
        ((_, ep_stride),), ((_, pp_stride),) = axis_dims(plan, "ep", DEFAULT_MAP), axis_dims(plan, "pp", DEFAULT_MAP)
        part, stage = rank // ep_stride % plan.ep, rank // pp_stride % plan.pp
        for step in range(2):
            tables: dict[int, list[list[int]]] = {}
            seen: dict[tuple[int, int], tuple[np.ndarray, list[int]]] = {}  # a backward runs the same tokens again
            for kind, b, chunk in played(plan, stage, m):
                slot = chunk * plan.pp + stage
                order = range(stages[slot]) if kind == "F" else reversed(range(stages[slot]))
                for local in order if kind == "F" or rerun else ():
                    layer = int(first[slot]) + local
                    if kind == "F":
                        seen[layer, b] = (tokens(2), RNG.integers(0, 50, size=per_rank).tolist())
                        counts[layer] += np.bincount(seen[layer, b][0].ravel(), minlength=EXPERTS)
                        held[layer, part * per_rank : (part + 1) * per_rank] += seen[layer, b][1]
                    write_trace(traces, rank, [(local, seen[layer, b][0])], step=step)
                    tables.setdefault(local, []).append(seen[layer, b][1])
            with (logs / f"rank{rank}.jsonl").open("a") as file:
                file.writelines(
                    json.dumps({"iter": step, "block": "decoder", "layer": n, "tpe": rows}) + "\n"
                    for n, rows in tables.items()
                )
    for folder, want in ((traces, counts), (logs, held)):
        made = import_routing([str(folder)], model=MODEL, plan=(plan, DEFAULT_MAP, stages))
        assert np.array_equal(np.stack([made.counts[i] for i in range(LAYERS)]), want), folder
        assert any("virtual stages" in note for note in made.notes)


def test_wrong_plans_are_said(tmp_path: Path) -> None:
    write_trace(tmp_path, 0, [(0, tokens())])
    chunked = Plan(pp=2, vpp=2, dp=2, schedule="interleaved")
    with pytest.raises(UserError, match=r"wrote 1 records in one step.*multiple of the 2"):
        import_routing([str(tmp_path)], model=MODEL, plan=(chunked, DEFAULT_MAP, (4, 4, 4, 4)))
    with pytest.raises(UserError, match=r"layer 0 of pipeline stage 0 .*multiple of the 0"):
        dense = load_model("Llama3-8B")
        import_routing([str(tmp_path)], model=dense, plan=(chunked, DEFAULT_MAP, (8, 8, 8, 8)))
    v_shaped = replace(chunked, schedule="zb-v")
    with pytest.raises(UserError, match="schedule zb-v is none of Megatron-LM's"):
        import_routing([str(tmp_path)], model=MODEL, plan=(v_shaped, DEFAULT_MAP, (4, 4, 4, 4)))
    (tmp_path / "rank0.jsonl").write_text(json.dumps({"layer": 0, "tpe": [[1, 2, 3, 4]]}))
    with pytest.raises(UserError, match="ep 2 in the plan"):
        import_routing(
            [str(tmp_path / "rank0.jsonl")], model=MODEL, plan=(Plan(dp=2, ep=2), DEFAULT_MAP, (LAYERS,))
        )  # fmt: skip


def test_a_step_of_records_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chunked = Plan(pp=2, vpp=2, dp=2, schedule="interleaved")
    write_trace(tmp_path, 0, [(0, tokens())] * 2)
    monkeypatch.setattr(routing_logs, "MAX_HELD", 200)
    with pytest.raises(UserError, match="more than 200 choices"):
        import_routing([str(tmp_path)], model=MODEL, plan=(chunked, DEFAULT_MAP, (4, 4, 4, 4)))


TABLE = RNG.integers(0, 9, size=(3, EXPERTS)).astype(float)


def write(kind: str, folder: Path) -> Path:
    path = folder / f"counts.{kind}"
    rows = pd.DataFrame(
        [(layer, e, TABLE[layer, e]) for layer in range(3) for e in range(EXPERTS)],
        columns=["layer", "expert", "count"],
    )  # fmt: skip
    if kind == "json":
        padded = np.concatenate([TABLE, np.zeros((LAYERS - 3, EXPERTS))])
        path.write_text(json.dumps({"rank": 0, "logical_count": [(padded / 2).tolist(), (padded / 2).tolist()]}))
    elif kind == "npz":
        np.savez_compressed(path, counts=TABLE[::-1], layers=np.array([2, 1, 0]))
    elif kind == "npy":
        np.save(path, TABLE.astype(np.int32))
    elif kind == "parquet":
        rows.astype({"count": int}).to_parquet(path)
    else:
        rows.astype({"count": int}).to_csv(path, index=False)
    return path


@pytest.mark.parametrize("kind", ["json", "npz", "npy", "parquet", "csv"])
def test_every_form_has_the_same_counts(kind: str, tmp_path: Path) -> None:
    made = import_routing([str(write(kind, tmp_path))], model=MODEL)
    assert sorted(made.counts) == [0, 1, 2]
    assert all(np.array_equal(made.counts[i], TABLE[i]) for i in range(3))
    twice = import_routing([str(write(kind, tmp_path))] * 2)
    assert np.array_equal(twice.counts[1], 2 * TABLE[1])


class Evil:
    """Unpickled, it writes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_no_pickle_is_loaded_whatever_it_is_called(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    evil = pickle.dumps(Evil(mark))
    for name in ("dump.pt", "dump.json", "dump.csv", "dump.npz", "dump.npy", "dump.pkl", "dump.parquet"):
        (tmp_path / name).write_bytes(evil)
        with pytest.raises(UserError):
            import_routing([str(tmp_path / name)])
    with pytest.raises(UserError, match=r"a pickle.*numpy\.savez"):
        import_routing([str(tmp_path / "dump.pt")])
    np.savez(tmp_path / "objects.npz", counts=np.array([[Evil(mark)]], dtype=object))
    np.save(tmp_path / "objects.npy", np.array([[Evil(mark)]], dtype=object))
    with zipfile.ZipFile(tmp_path / "torch.npz", "w") as archive:  # a torch file under the name of arrays
        archive.writestr("archive/data.pkl", evil)
    for name in ("objects.npz", "objects.npy", "torch.npz"):
        with pytest.raises(UserError):
            import_routing([str(tmp_path / name)])
    assert not mark.exists()


def test_archives_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.npz"
    np.savez_compressed(bomb, counts=np.zeros((1000, 1000)))
    parquet = tmp_path / "bomb.parquet"
    pd.DataFrame({"layer": [0] * 10**5, "expert": range(10**5), "count": 0}).to_parquet(parquet)
    assert bomb.stat().st_size < 2**15
    monkeypatch.setattr(module, "MAX_UNPACKED_BYTES", 2**16)
    for path in (bomb, parquet):
        with pytest.raises(UserError, match="refused"):
            import_routing([str(path)])
    many = tmp_path / "many.npz"
    np.savez(many, **{f"a{i}": np.zeros(1) for i in range(100)})
    with pytest.raises(UserError, match="100 arrays"):
        import_routing([str(many)])


def log(text: str, folder: Path, name: str = "rank0.jsonl") -> Imported:
    (folder / name).write_text(text)
    return import_routing([str(folder / name)], model=MODEL)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no records of one kind"),
        ("{", "not JSON"),
        ("[1]", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('{"layer": 0}', "neither top_indices"),
        ('{"tpe": [[1]]}', "without rank or layer"),
        ('{"layer": 99, "tpe": [[1]]}', "give its --model"),
        ('{"layer": 0, "tpe": [[1, -1]]}', "not whole numbers"),
        ('{"layer": 0, "tpe": [[1, 2], [1]]}', "not whole numbers"),
        ('{"layer": 0, "tpe": [[1, 2, 3]]}', "do not divide 64"),
        ('{"layer": 0, "top_indices": [[64]]}', "expert 64 of 64"),
        ('{"layer": 0, "top_indices": [["a"]]}', "not whole numbers"),
        ('{"layer": 0, "top_indices": [[1]]}\n{"layer": 0, "tpe": [[1]]}', "no records of one kind"),
    ],
)
def test_what_is_no_log_is_refused(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        log(text, tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "x", "is none of"),
        ("a.json", "{}", "no table logical_count"),
        ("a.json", '{"logical_count": [1, 2]}', "shape"),
        ("a.json", '{"logical_count": [[1, -2]]}', "negative"),
        ("a.json", '{"logical_count": [[1, "x"]]}', "no table"),
        ("a.csv", "layer,expert,count\n0,1.5,2\n", "whole"),
        ("a.csv", "layer,expert,count\n0,9999999,2\n", "beyond 1,000,000"),
        ("a.json", json.dumps({"logical_count": [[1] * 8] * 16}), "has 64 experts there"),
        ("a.json", json.dumps({"logical_count": [[1] * 64] * 17}), "no experts there"),
    ],
)
def test_what_is_no_table_is_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        import_routing([str(tmp_path / name)], model=MODEL)
