"""Placements as maps of others and back, and the renumbering of checkpoints, which leaves their function unchanged."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwprofiles.errors import UserError
from planner.export import apply_permutation as script
from planner.export import write_export
from planner.export.expert_map import MAP_KEY, MAPS, PlacedModel, keeps_groups
from planner.imports.expert_map import map_text, read_map
from planner.placement.placefile import load_placement
from planner.placement.records import Placement
from sim.families import load_model
from sim.model import ModelSpec
from tests.planner import tensorrt_reader

QWEN = load_model("Qwen3-30B-A3B")
DEEPSEEK = load_model("DeepSeek-V3")
RNG = np.random.default_rng(7)


def placed(model: ModelSpec = QWEN, *, gpus: int = 8, replicas: int = 0, layers: tuple[int, ...] = ()) -> PlacedModel:
    rows = layers or tuple(i for i, layer in enumerate(model.layers) if layer.moe)
    moe = model.layers[rows[0]].moe
    assert moe is not None
    experts = moe.num_experts
    order = np.stack([np.concatenate([RNG.permutation(experts), np.arange(replicas)]) for _ in rows])
    return PlacedModel(
        model=model,
        placement=Placement.even(order.reshape(len(rows), gpus, -1), experts), layers=rows,
    )  # fmt: skip


@pytest.mark.parametrize("model", [QWEN, DEEPSEEK], ids=lambda m: m.name)
@pytest.mark.parametrize("replicas", [0, 32])
def test_sglang_map_and_back(model: object, replicas: int, tmp_path: Path) -> None:
    asked = placed(model, replicas=replicas)
    write_export(MAPS["sglang"](asked), tmp_path)
    placement, layers = read_map(str(tmp_path / "expert_location.json"), asked.gpus, asked.model)
    assert layers == asked.layers
    assert np.array_equal(placement.experts, asked.placement.experts)
    assert np.allclose(placement.share, asked.placement.share)
    path = tmp_path / "placement.json"
    path.write_text(map_text(placement, layers, "map.json"))
    again, numbers = load_placement(path)
    assert numbers == layers and np.array_equal(again.experts, placement.experts)
    assert np.allclose(again.share, placement.share)


def test_maps_have_the_rows_their_readers_want() -> None:
    asked = placed(DEEPSEEK, replicas=32)
    table = json.loads(MAPS["sglang"](asked).files["expert_location.json"])[MAP_KEY]
    dense = [i for i in range(len(DEEPSEEK.layers)) if DEEPSEEK.layers[i].moe is None]
    assert len(table) == len(DEEPSEEK.layers) and dense
    assert {len(row) for row in table} == {256 + 32} and all(set(row) == set(range(256)) for row in table)
    balancer = yaml.safe_load(MAPS["tensorrt-llm"](asked).files["moe_load_balancer.yaml"])
    assert balancer["num_slots"] == 288 and balancer["layer_updates_per_iter"] == 0
    assert sorted(balancer["initial_global_assignments"]) == list(asked.layers)
    assert balancer["initial_global_assignments"][asked.layers[0]] == table[asked.layers[0]]


@pytest.mark.parametrize("model", [QWEN, DEEPSEEK], ids=lambda m: m.name)
@pytest.mark.parametrize("replicas", [0, 32])
def test_a_balancer_is_what_its_reader_asks_for(model: ModelSpec, replicas: int, tmp_path: Path) -> None:
    asked = placed(model, replicas=replicas)
    made = MAPS["tensorrt-llm"](asked)
    write_export(made, tmp_path)
    assert tensorrt_reader.slots_of(tmp_path, model) == {
        layer: asked.placement.experts[row].tolist() for row, layer in enumerate(asked.layers)
    }
    assert any("multi-token prediction" in line for line in made.missing) == bool(model.mtp_layers)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("num_slots: 160", "num_slots: 161", "not divisible by ep_size"),
        ("num_slots: 160", "num_slots: 152", "does not match num_slots"),
        ("num_slots: 160", "num_slot: 160", "extra"),
        ("layer_updates_per_iter: 0", "layer_updates_per_iter: x", "integer"),
        ("  5: [", "  five: [", "integer"),
        ("  5: [", "  99: [", "layer_idx 5 not found"),
        ("  5: [0,", "  5: [1,", "every expert"),
        ("  5: [0,", "  5: [128,", "every expert"),
        ("  5: [0,", "  5: [0.5,", "integer"),
        ("moe_expert_parallel_size: 8", "moe_expert_parallel_size: 4", "moe_tp"),
        ("load_balancer: ", "load_balancers: ", "extra"),
        ('"moe_load_balancer.yaml"', '"gone.yaml"', "not found"),
    ],
)
def test_the_reader_of_balancers_finds_what_is_wrong(old: str, new: str, said: str, tmp_path: Path) -> None:
    hosts = np.concatenate([np.arange(128), np.arange(1, 33)]).reshape(1, 8, -1).repeat(48, axis=0)
    asked = PlacedModel(model=QWEN, placement=Placement.even(hosts, 128), layers=tuple(range(48)))
    write_export(MAPS["tensorrt-llm"](asked), tmp_path)
    tensorrt_reader.slots_of(tmp_path, QWEN)
    for path in tmp_path.glob("*.yaml"):
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(tensorrt_reader.Refused, match=said):
        tensorrt_reader.slots_of(tmp_path, QWEN)


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("target", sorted(MAPS))
def test_golden(target: str) -> None:
    model = load_model("Mixtral-8x7B")
    order = np.stack([np.roll(np.arange(8), layer) for layer in range(32)])
    if target != "permutation":
        order = np.concatenate([order, order[:, :4]], axis=1)
    placement = Placement.even(order.reshape(32, 4, -1), 8)
    made = MAPS[target](PlacedModel(model=model, placement=placement, layers=tuple(range(32))))
    files = sorted((name, text) for name, text in made.files.items() if not name.endswith(".py"))
    text = "".join(f"===== {name}\n{text}" for name, text in files)
    assert text == (GOLDEN / f"{target}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("target", sorted(MAPS))
def test_names_never_become_text_of_a_program(target: str, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = f"x\n$(touch {mark}); `touch {mark}` '\"\x1b[2J\r\n: y"
    asked = placed(layers=(0, 1))
    made = MAPS[target](replace(asked, model=replace(QWEN, name=hostile)))
    write_export(made, tmp_path / "out")
    if target == "sglang":
        done = subprocess.run(["bash", "-c", ". out/sglang_args.sh"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and done.stderr == ""
    for name, text in made.files.items():
        assert "\x1b" not in text and "\ny" not in text, name
        if name.endswith(".yaml"):
            assert isinstance(yaml.safe_load(text), dict)
    assert not mark.exists()


def test_what_a_map_cannot_say_stands_in_it() -> None:
    asked = placed(replicas=8, layers=(3, 4))
    share = asked.placement.share.copy()
    share[asked.placement.experts == 0] = [0.9, 0.1, 0.5, 0.5]
    uneven = PlacedModel(
        model=QWEN, placement=Placement(experts=asked.placement.experts, share=share), layers=asked.layers
    )  # fmt: skip
    for target in ("sglang", "tensorrt-llm"):
        made = MAPS[target](uneven)
        assert [line.split(":")[0] for line in made.missing] == [
            "uneven shares of the replicas of an expert", "layers 0, 1, 2, 5, 6, 7, ...",
        ]  # fmt: skip
        assert made.missing[0] in made.files["notes.txt"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda: placed(DEEPSEEK, layers=(3, 4, 70)), "expert-map-layers"),
        (lambda: PlacedModel(model=DEEPSEEK, placement=placed().placement, layers=tuple(range(48))), "map-layers"),
        (lambda: PlacedModel(model=DEEPSEEK, placement=placed().placement, layers=tuple(range(3, 51))), "map-complete"),
        (lambda: MAPS["permutation"](placed(replicas=8)), "permutation-no-replicas"),
        (lambda: MAPS["permutation"](placed(DEEPSEEK)), "permutation-groups"),
    ],
)
def test_what_cannot_be_handed_over_names_its_rule(asked: Callable[[], object], said: str) -> None:
    with pytest.raises(UserError, match=said):
        asked()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"logical_count": [[1, 2]]}', "import routing"),
        ('{"physical_to_logical_map": []}', "row per layer"),
        ('{"physical_to_logical_map": [[0, 1], [0]]}', "1 and 2 slots"),
        ('{"physical_to_logical_map": [[0, "1"]]}', "something else"),
        ('{"physical_to_logical_map": [[0, true]]}', "something else"),
        ('{"physical_to_logical_map": [[0, -1]]}', "something else"),
        ('{"physical_to_logical_map": [[0, 1, 2]]}', "do not divide"),
        ('{"physical_to_logical_map": [[0, 1], [0, 0]]}', "each at least once"),
    ],
)
def test_a_map_that_is_none_is_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_map(str(path), 2)


@pytest.mark.parametrize(("name", "data"), [("map.pt", b"{}"), ("map.json", b"\x80\x04."), ("m.json", b"PK\x03\x04x")])
def test_a_pickle_is_refused_whatever_its_name(name: str, data: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a pickle.*json\.dump"):
        read_map(str(path), 2)


@pytest.mark.parametrize("stacked", [False, True])
def test_renumbering_leaves_the_function_unchanged(stacked: bool, tmp_path: Path) -> None:
    weights = script.tiny_model(np.random.default_rng(3), experts=8, stacked=stacked)
    (tmp_path / "in").mkdir()
    names = list(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        script.write_tensors(tmp_path / "in" / file, {name: weights[name] for name in held})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (tmp_path / "in" / script.INDEX).write_text(json.dumps(index))
    orders = {0: [3, 1, 0, 2, 7, 5, 6, 4], 1: [1, 0, 3, 2, 4, 5, 6, 7]}
    assert script.permute(tmp_path / "in", tmp_path / "out", orders) == 2
    made: dict[str, np.ndarray] = {}
    where = json.loads((tmp_path / "out" / script.INDEX).read_text())["weight_map"]
    for file in shards:
        held_now = script.read_tensors(tmp_path / "out" / file)
        assert all(where[name] == file for name in held_now)
        made |= held_now
    assert set(made) == set(weights) == set(where)
    x = np.random.default_rng(4).normal(size=(32, 8))
    for groups in (1, 2):  # the orders keep the blocks of four
        before, after = script.forward(weights, x, groups=groups), script.forward(made, x, groups=groups)
        assert np.array_equal(before, after)
    router = "model.layers.0.mlp.router.weight" if stacked else "model.layers.0.mlp.gate.weight"
    assert np.array_equal(made[router], weights[router][orders[0]])
    # renumbering the router alone would not do
    broken = weights | {router: made[router]}
    assert not np.array_equal(script.forward(broken, x), script.forward(weights, x))


@settings(max_examples=20, deadline=None)
@given(st.permutations(range(8)))
def test_groups_are_kept_or_not(order: list[int]) -> None:
    blocks = [{order[i] // 4 for i in range(4)}, {order[i] // 4 for i in range(4, 8)}]
    assert keeps_groups(np.array(order), 2) == all(len(block) == 1 for block in blocks)


def damaged(tmp_path: Path, change: str) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    weights = script.tiny_model(np.random.default_rng(3), experts=4, stacked=False, layers=1)
    if change == "expert":
        del weights["model.layers.0.mlp.experts.2.up_proj.weight"]
    if change == "router":
        weights = {name: value for name, value in weights.items() if ".gate." not in name}
    path = folder / "model.safetensors"
    script.write_tensors(path, weights)
    data = path.read_bytes()
    if change == "short":
        path.write_bytes(data[:-4])
    if change == "bomb":
        path.write_bytes((2**62).to_bytes(8, "little") + data[8:])
    if change == "deep":
        path.write_bytes((200_000).to_bytes(8, "little") + b"[" * 200_000)
    if change == "none":
        path.rename(folder / "model.bin")
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("expert", "3 of 4 experts"), ("router", "no router"), ("short", "ends elsewhere"),
        ("bomb", "not a safetensors"), ("deep", "damaged"), ("none", "are pickles"), ("order", "beyond|does not count"),
    ],
)  # fmt: skip
def test_what_must_not_be_renumbered_is_refused(change: str, said: str, tmp_path: Path) -> None:
    folder = damaged(tmp_path, change)
    order = [1, 0, 2] if change == "order" else [1, 0, 2, 3]
    with pytest.raises(script.Refused, match=said if change != "order" else "4 of 3 experts"):
        script.permute(folder, tmp_path / "out", {0: order})


def test_the_script_stands_alone_and_streams(tmp_path: Path) -> None:
    """No import beyond the standard library and numpy; memory stays far below the checkpoint."""
    asked = placed(QWEN, gpus=8)
    write_export(MAPS["permutation"](asked), tmp_path)
    tree = ast.parse((tmp_path / "apply_permutation.py").read_text())
    used = {n.name for x in ast.walk(tree) if isinstance(x, ast.Import) for n in x.names}
    used |= {x.module.split(".")[0] for x in ast.walk(tree) if isinstance(x, ast.ImportFrom) and x.module}
    assert used - set(sys.stdlib_module_names) == {"numpy"}
    done = subprocess.run(
        [sys.executable, "-I", str(tmp_path / "apply_permutation.py"), "--self-test"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "output: 0" in done.stdout, done.stderr
    orders = script.read_permutation(tmp_path / "permutation.json")
    assert sorted(orders) == list(range(48)) and orders[5] == asked.rows()[5]
    big = {f"model.layers.0.mlp.experts.{e}.up_proj.weight": np.zeros((2048, 1024), "<f4") for e in range(8)}
    big["model.layers.0.mlp.gate.weight"] = np.ones((8, 4), "<f4")
    (tmp_path / "in").mkdir()
    script.write_tensors(tmp_path / "in" / "model.safetensors", big)
    (tmp_path / "p.json").write_text(json.dumps({"num_experts": 8, "layers": {"0": [7, 6, 5, 4, 3, 2, 1, 0]}}))
    watch = (
        "import resource, sys\nimport apply_permutation as a\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"code = a.main({[str(tmp_path / name) for name in ('in', 'out', 'p.json')]!r})\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", watch], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.splitlines()[-1]) < 40  # MiB, of a checkpoint of 64
