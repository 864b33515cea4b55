"""What `--routing` takes: laws with options, files of counts and traces, and every way in which they can be wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwprofiles.errors import UserError
from sim.families import load_model
from sim.imbalance import few_tokens
from sim.model import ModelSpec
from sim.routing import ExpertLoads, Routing, parse_routing, resolve
from sim.routing.distribution import Layout
from sim.routing.popularity import inclusion, law_weights
from sim.routing.sample import sample_tokens
from sim.routing.spec import moe_layers
from sim.routing.tables import Trace, clumping, coactivation, read_routing, transitions

LAYERS, EXPERTS, K = 32, 8, 2


@pytest.fixture(scope="module")
def model() -> ModelSpec:
    return load_model("mixtral-8x7b")


def drawn(tokens: int, seed: int = 0) -> list[np.ndarray]:
    weights = law_weights("lognormal", 0.5, layers=LAYERS, experts=EXPERTS, seed=7)
    loads = ExpertLoads(chance=inclusion(weights, K), top_k=K)
    return [sample_tokens(loads, layer, tokens, seed=seed + layer) for layer in range(LAYERS)]


def write_trace(path: Path, chosen: list[np.ndarray]) -> Path:
    head = ",".join(["token_idx", *(f"L{i}" for i in range(len(chosen)))])
    rows = [",".join([str(t), *("|".join(map(str, layer[t])) for layer in chosen)]) for t in range(len(chosen[0]))]
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def write_counts(path: Path, chosen: list[np.ndarray]) -> Path:
    rows = ["layer,expert,count"]
    for i, layer in enumerate(chosen):
        rows += [f"{i},{e},{n}" for e, n in enumerate(np.bincount(layer.ravel(), minlength=EXPERTS))]
    path.write_text("\n".join(rows) + "\n")
    return path


def problems_of(path: Path, model: ModelSpec, options: str = "") -> tuple[str, ...]:
    with pytest.raises(UserError) as caught:
        resolve(parse_routing(f"{path}{options}"), model)
    return caught.value.problems


def test_counts_and_trace_of_the_same_tokens_say_the_same(tmp_path: Path, model: ModelSpec) -> None:
    chosen = drawn(800)
    by_count = resolve(parse_routing(str(write_counts(tmp_path / "c.csv", chosen))), model)
    by_trace = resolve(parse_routing(str(write_trace(tmp_path / "t.csv", chosen))), model)
    np.testing.assert_allclose(by_count.loads[0].chance, by_trace.loads[0].chance, rtol=1e-9)
    for ep in (2, 8):
        assert by_count.max_over_mean_for(ep, 1e5) == pytest.approx(by_trace.max_over_mean_for(ep, 1e5), rel=0.02)


def test_a_trace_predicts_tokens_that_it_does_not_hold(tmp_path: Path, model: ModelSpec) -> None:
    routing = resolve(parse_routing(str(write_trace(tmp_path / "t.csv", drawn(1500)))), model)
    fresh = drawn(1500, seed=1000)
    for ep in (2, 4, 8):
        ranks = [np.bincount(layer.ravel() * ep // EXPERTS, minlength=ep) for layer in fresh]
        seen = np.mean([r.max() / r.mean() for r in ranks])
        assert routing.max_over_mean_for(ep, 1500) == pytest.approx(seen, rel=0.03)


def test_longer_tables_add_up_over_datasets_and_pick_the_model(tmp_path: Path, model: ModelSpec) -> None:
    rows = ["model,dataset,layer,expert,count,tokens_in_layer"]
    for name, most in (("org/Mixtral-8x7B-Instruct", 30), ("other/thing", 20)):
        for data in ("a", "b"):
            for layer in range(LAYERS):
                counts = [most] + [(80 - most) // 7] * 6 + [80 - most - 6 * ((80 - most) // 7)]
                rows += [f"{name},{data},{layer},{e},{n},40" for e, n in enumerate(counts)]
    path = tmp_path / "long.csv"
    path.write_text("\n".join(rows))
    routing = resolve(parse_routing(str(path)), model)
    chance = routing.loads[0].chance[0]
    assert chance[0] == pytest.approx(30 / 40, rel=0.05) and chance.sum() == pytest.approx(2.0)
    other = load_model("qwen3-30b-a3b")
    assert "none of which is" in problems_of(path, other)[0]


def test_laws_options_and_seeds(model: ModelSpec) -> None:
    plain = resolve(parse_routing("lognormal:0.5"), model)
    tamed = resolve(parse_routing("lognormal:0.5,balance=0.5"), model)
    even = resolve(parse_routing("lognormal:0.5,balance=1"), model)
    uniform = resolve(parse_routing("uniform"), model)
    at = [r.max_over_mean_for(8, 65536) for r in (plain, tamed, even)]
    assert at[0] > at[1] > at[2] == pytest.approx(uniform.max_over_mean_for(8, 65536))
    assert resolve(parse_routing("zipf:0"), model).max_over_mean_for(8, 4096) == uniform.max_over_mean_for(8, 4096)
    again, other = (resolve(parse_routing("lognormal:0.5"), model, seed=s) for s in (0, 1))
    assert again.max_over_mean_for(8, 4096) == plain.max_over_mean_for(8, 4096) != other.max_over_mean_for(8, 4096)
    spec = parse_routing("dirichlet:50,drift=0.1/0.2,pad=16,clump=2")
    assert spec is not None and (spec.drift.spread, spec.drift.rate, spec.pad_to, spec.clumping) == (0.1, 0.2, 16, 2.0)
    assert parse_routing("balanced") is None and resolve(None, model) == Routing()


def test_routing_like_a_recorded_model(model: ModelSpec) -> None:
    spec = parse_routing("like:mixtral-8x7b")
    assert spec is not None and spec.law == "lognormal" and spec.clumping is not None and spec.clumping > 1.0
    # the recorded trace itself: 1.35 over 8 ranks and all its tokens
    over = [resolve(spec, model, seed=seed).max_over_mean_for(8, 583) for seed in range(5)]
    assert np.mean(over) == pytest.approx(1.35, rel=0.1)
    with pytest.raises(UserError, match="use one of: mixtral-8x7b"):
        parse_routing("like:nobody")


def test_group_limits_come_from_the_model() -> None:
    routing = resolve(parse_routing("uniform"), load_model("deepseek-v3"))
    assert (routing.loads[0].num_groups, routing.loads[0].top_k_groups) == (8, 4)
    assert routing.loads[0].num_layers == len(next(iter(moe_layers(load_model("deepseek-v3")).values())))


@pytest.mark.parametrize(
    ("text", "count", "says"),
    [
        ("zipf", 1, "needs a number"),
        ("zipf:x,balance=q,bar", 3, "is not known"),
        ("uniform:2", 1, "takes no number"),
        ("popular:1", 1, "give balanced"),
        ("balanced,pad=2", 1, "no options"),
        ("zipf:1,drift=1/7", 1, "not in (0, 1]"),
    ],
)
def test_bad_options_are_listed_at_once(text: str, count: int, says: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_routing(text)
    assert len(caught.value.problems) == count and any(says in p for p in caught.value.problems)


def test_a_law_out_of_range_a_missing_file_and_a_dense_model(model: ModelSpec, tmp_path: Path) -> None:
    for text, says in (("dirichlet:0", "above 0"), ("nothing.csv", "no file"), ("lognormal:0.1,balance=2", "0..1")):
        with pytest.raises(UserError, match=says):
            resolve(parse_routing(text), model)
    with pytest.raises(UserError, match="no routed experts"):
        resolve(parse_routing("uniform"), load_model("llama3-8b"))


def test_a_file_with_layers_missing_names_them_and_repeat_helps(tmp_path: Path, model: ModelSpec) -> None:
    path = write_trace(tmp_path / "t.csv", drawn(60)[:30])
    (problem,) = problems_of(path, model)
    assert "2 of 32 MoE layers are missing: 30, 31" in problem and "repeat" in problem
    routing = resolve(parse_routing(f"{path},repeat"), model)
    np.testing.assert_array_equal(routing.loads[0].chance[30], routing.loads[0].chance[0])


def test_bad_count_rows_are_all_listed_with_their_numbers(tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "c.csv"
    path.write_text("layer,expert,count\n0,0,5\n0,1,-3\n0,x,2\n1,0,1.5e999\n0,0,4\n0,2\n")
    problems = problems_of(path, model)
    assert len(problems) == 5
    for row, what in ((3, "negative"), (4, "not a number"), (5, "not a number"), (6, "again"), (7, "2 of 3 columns")):
        assert any(f"row {row}" in p and what in p for p in problems), (row, problems)


def test_counts_that_contradict_the_model(tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "c.csv"
    rows = ["layer,expert,count,tokens_in_layer"]
    for layer in range(LAYERS):
        rows += [f"{layer},{e},{100 if layer != 3 else 0},400" for e in range(8)]
    rows[1] = "0,0,100,999"
    rows += ["5,8,1,400", "6,0,1,400"]
    path.write_text("\n".join(rows[:-1]))
    problems = problems_of(path, model)
    assert any("layer 3: all counts are 0" in p for p in problems)
    assert any("layer 5: expert 8 is out of range" in p for p in problems)


def test_bad_trace_cells_are_all_listed(tmp_path: Path, model: ModelSpec) -> None:
    chosen = drawn(5)
    path = write_trace(tmp_path / "t.csv", chosen)
    lines = path.read_text().splitlines()
    for row, cell in ((1, "3|3"), (2, "1|-2"), (3, "1|2|3"), (4, "a|b")):
        parts = lines[row].split(",")
        parts[2] = cell
        lines[row] = ",".join(parts)
    path.write_text("\n".join(lines))
    problems = problems_of(path, model)
    for row, what in ((2, "twice"), (3, "negative"), (4, "3 experts where row 2 has 2"), (5, "joined by |")):
        assert any(f"row {row}, layer 1" in p and what in p for p in problems), (row, problems)


def test_experts_out_of_range_and_a_wrong_k(tmp_path: Path, model: ModelSpec) -> None:
    chosen = drawn(5)
    chosen[4][2] = [1, 9]
    (problem,) = problems_of(write_trace(tmp_path / "t.csv", chosen), model)
    assert "row 4, layer 4: expert 9 is out of range" in problem
    path = tmp_path / "k.csv"
    path.write_text("seq_no,topk_ids\n0,1|2|3\n1,0|1|2\n")
    assert "3 experts per token, the model chooses 2" in problems_of(path, model, ",repeat")[0]


@pytest.mark.parametrize(
    ("text", "says"), [("", "is empty"), ("layer,expert,count\n", "no rows"), ("a,b\n1,2\n", "neither counts nor")]
)
def test_files_that_hold_nothing(text: str, says: str, tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "x.csv"
    path.write_text(text)
    assert says in problems_of(path, model)[0]


def test_many_problems_are_counted(tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "c.csv"
    path.write_text("layer,expert,count\n" + "0,0,-1\n" * 50)
    problems = problems_of(path, model)
    assert len(problems) == 21 and problems[-1] == "and 30 more problems"


def test_cells_left_empty_were_not_recorded(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("token_idx,L0,L1\n0,0|1,2|3\n1,,1|2\n2,4|5,0|1\n")
    trace = read_routing(path)
    assert isinstance(trace, Trace)
    assert len(trace.chosen[0]) == 2 and len(trace.chosen[1]) == 3
    joint = transitions(trace, 0, 6)
    assert joint.sum() == 2 * 4 and joint[0, 2] == joint[1, 3] == joint[4, 0] == 1 and joint[:, 5].sum() == 0
    with pytest.raises(UserError, match="not both recorded"):
        transitions(trace, 1, 6)


def test_coactivation_counts_pairs_and_its_diagonal_counts_experts() -> None:
    chosen = drawn(200)[0]
    joint = coactivation(chosen, EXPERTS)
    np.testing.assert_array_equal(joint, joint.T)
    np.testing.assert_array_equal(np.diagonal(joint), np.bincount(chosen.ravel(), minlength=EXPERTS))
    assert joint.sum() == 200 * K * K
    assert joint[1, 2] == sum({1, 2} <= set(row) for row in chosen.tolist())


def test_tokens_of_one_text_clump() -> None:
    """Runs that prefer one half of the experts: variance grows with the run; independent tokens have 1."""
    rng = np.random.default_rng(0)
    alone = np.stack([rng.permutation(8)[:2] for _ in range(4096)])
    halves = np.repeat(rng.integers(0, 2, 32), 128)
    texts = np.stack([rng.permutation(4)[:2] + 4 * h for h in halves])
    assert clumping(alone, 8) == pytest.approx(1.0, abs=0.25)
    assert clumping(texts, 8) > 20.0
    assert clumping(alone[:256], 8) == 1.0


def test_all_classes_of_mistakes_are_listed_at_once(tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "c.csv"
    good = [f"{layer},{e},100" for layer in range(LAYERS) for e in range(8)]
    path.write_text("\n".join(["layer,expert,count", *good, "0,128,1", "1,-1,1", "99,0,1", "2,3,1.5"]))
    said = " ".join(problems_of(path, model))
    for part in ("expert 128 is out of range", "expert -1 is negative", "layer 99 is out of range", "count 1.5 is not"):
        assert part in said
    path.write_text("\n".join(["layer,expert,count", *good, "99,0,1", "0,128,1"]))
    said = " ".join(problems_of(path, model))
    assert "layer 99 is out of range" in said and "expert 128 is out of range" in said
    path.write_text("\n".join(["topk_ids,layer", "0|128,0", "-1|2,0", "0|1,99", "3|x,1"] + ["x,0"] * 40))
    said = " ".join(problems_of(path, model))
    for part in ("expert 128 is out of range", "expert -1 is negative", "layer 99 is out of range", "more problems"):
        assert part in said


def test_where_the_tokens_of_a_contradiction_come_from(tmp_path: Path, model: ModelSpec) -> None:
    path = tmp_path / "c.csv"
    rows = [f"{layer},{e},{1000 if e == 0 else 0}" for layer in range(LAYERS) for e in range(8)]
    path.write_text("\n".join(["layer,expert,count", *rows]))
    assert any("1000 tokens of 500 (1000 choices over top_k = 2)" in p for p in problems_of(path, model))
    with pytest.raises(UserError, match="whole number of rows"):
        parse_routing("uniform,pad=1.5")


def test_few_tokens_and_empty_cells_are_told(tmp_path: Path, model: ModelSpec) -> None:
    for tokens, told in ((300, True), (20_000, False)):
        routing = resolve(parse_routing(str(write_counts(tmp_path / "c.csv", drawn(tokens)))), model)
        assert routing.recorded_tokens == tokens and not routing.notes
        warned = few_tokens(1.2, 1.0, 1.4, routing, Layout(ep=8, tokens=4096, micro_batches=4))
        assert bool(warned) is told
        assert not told or f"{tokens} tokens" in warned[0]
    path = write_trace(tmp_path / "t.csv", drawn(50))
    lines = path.read_text().splitlines()
    lines[4] = lines[4].replace(lines[4].split(",")[1], "", 1)
    path.write_text("\n".join(lines))
    assert resolve(parse_routing(str(path)), model).notes[0].startswith("1 cells of the trace are empty")


def test_the_sampling_error_is_that_of_drawn_recordings(model: ModelSpec) -> None:
    weights = law_weights("lognormal", 0.5, layers=1, experts=EXPERTS, seed=7)
    loads = ExpertLoads(chance=inclusion(weights, K), top_k=K)
    hot = int(loads.chance[0].argmax())
    seen = [np.mean(sample_tokens(loads, 0, 400, seed=s) == hot) * EXPERTS for s in range(300)]
    routing = Routing(loads=(loads,), recorded_tokens=400)
    (said,) = few_tokens(1.2, 1.0, 1.4, routing, Layout(ep=EXPERTS, tokens=4096, micro_batches=4))
    error = float(said.split("error of ")[1].split("%")[0]) / 100
    assert error == pytest.approx(np.std(seen), rel=0.2)
