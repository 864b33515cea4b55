"""Packed documents: what attention sees of a sequence, from laws and from files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from sim.build.layer import layer_ops
from sim.families import load_model
from sim.flop import step_flop_per_token
from sim.lengths import mean_pairs, mean_tokens, met_tokens, read_lengths
from sim.model import AttentionSpec, attention_pairs
from sim.ops import Op
from sim.plan import Plan
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Lengths, Workload

SEQ = 8192


def scenario(lengths: Lengths | None, plan: Plan | None = None, model: str = "Llama3-8B") -> Scenario:
    plan = plan or Plan(dp=8, edp=8)
    return Scenario(
        model=load_model(model), cluster=catalogue.cluster("dgx-h100", gpus=8),
        software=catalogue.software("megatron-lm", device="H100"), plan=plan,
        workload=Workload(seq_tokens=SEQ, global_batch_seqs=4 * plan.dp, lengths=lengths),
    )  # fmt: skip


def core(s: Scenario) -> Op:
    return next(op for op in layer_ops(s.context(), s.model.layers[0]) if op.name == "core_attn")


def step_s(s: Scenario) -> float:
    return simulate(s, trace=False).step_s.value


def of(*tokens: float) -> Lengths:
    return Lengths(tokens=tokens, source="test")


def test_one_document_a_sequence_is_no_packing() -> None:
    assert step_s(scenario(of(SEQ))) == step_s(scenario(None))
    assert step_flop_per_token(scenario(of(SEQ))) == step_flop_per_token(scenario(None))


@given(st.lists(st.integers(1, SEQ), min_size=1, max_size=20))
def test_attention_follows_the_sum_of_squares(tokens: list[int]) -> None:
    s = scenario(of(*map(float, tokens)))
    packs = SEQ / sum(tokens)  # of the same documents, to fill a sequence
    pairs = packs * sum(t * t for t in tokens) / 2
    assert core(s).flop == pytest.approx(2 * pairs * 32 * 256)
    assert core(s).seq * core(s).batch == pytest.approx(SEQ)


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=20), st.integers(1, 5000))
def test_a_window_cuts_each_document_for_itself(tokens: list[int], window: int) -> None:
    work = Workload(seq_tokens=SEQ, global_batch_seqs=8, lengths=of(*map(float, tokens)))
    mean = sum(t * attention_pairs(t, window) for t in tokens) / sum(tokens)
    windowed, full = (
        mean_pairs(work, AttentionSpec(heads=1, kv_heads=1, head_dim=1, v_head_dim=1, window=w)) for w in (window, None)
    )
    assert windowed == pytest.approx(mean)
    assert windowed <= full * (1 + 1e-12)


def test_equal_documents_are_a_batch_of_short_sequences() -> None:
    packed = core(scenario(of(1024.0)))
    short = scenario(None, Plan(dp=8, edp=8, micro_batch_seqs=8))
    apart = core(replace(short, workload=replace(short.workload, seq_tokens=1024, global_batch_seqs=64)))
    assert (packed.flop, packed.seq, packed.batch) == (apart.flop, apart.seq, apart.batch)


def test_shorter_documents_are_faster_and_cost_no_other_work() -> None:
    steps = [step_s(scenario(of(float(t)))) for t in (SEQ, 4096, 1024, 256)]
    assert steps == sorted(steps, reverse=True) and steps[-1] < steps[0]
    long, short = (simulate(scenario(of(float(t))), trace=False) for t in (SEQ, 256))
    for name in ("gemm", "memory-bound"):
        assert long.breakdown[name] == pytest.approx(short.breakdown[name])
    assert long.peak_mem_bytes == short.peak_mem_bytes


def test_uneven_documents_cost_more_than_equal_ones_of_the_same_mean() -> None:
    assert step_s(scenario(of(100.0, 4000.0))) > step_s(scenario(of(2050.0)))


def test_laws() -> None:
    law = read_lengths("lognormal:500:0.5", 10**6)
    assert mean_tokens(law) == pytest.approx(500, rel=0.01)
    # of a lognormal, Σ l² / Σ l is the mean times exp(sigma²)
    assert met_tokens(law) == pytest.approx(500 * 2.718281828**0.25, rel=0.03)
    assert max(read_lengths("lognormal:5000:2", 8192).tokens) == 8192
    points = sorted(read_lengths("percentiles:p10=100,p50=1000,p90=4000", 8192).tokens)
    assert points[0] == points[99] == 100 and points[-1] == 4000
    assert points[500] == pytest.approx(1000, rel=0.01)
    assert read_lengths("fixed:512", 8192).tokens == (512.0,)


def test_file(tmp_path: Path) -> None:
    file = tmp_path / "lengths.csv"
    file.write_text("# tokens\n100\n\n9000 # cut to the sequence\n")
    assert read_lengths(str(file), 8192).tokens == (100.0, 8192.0)
    file.write_text("100\n-5\nlong\n")
    with pytest.raises(UserError, match=r"line 2(.|\n)*line 3"):
        read_lengths(str(file), 8192)
    file.write_text("")
    with pytest.raises(UserError, match="no lengths"):
        read_lengths(str(file), 8192)


@pytest.mark.parametrize(
    "text",
    [
        "fixed:", "fixed:-1", "lognormal:100", "lognormal:nan:1", "lognormal:10:99", "percentiles:50=3",
        "percentiles:p50=3,p50=4", "percentiles:p50=9,p90=4", "percentiles:p100=9", "nowhere.csv", "",
    ],
)  # fmt: skip
def test_a_law_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        read_lengths(text, 8192)
