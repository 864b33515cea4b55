"""Screening against the event run: the bound is true and tight, the peak the same, columns as good as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from hwprofiles.catalogue import cluster, software
from hwprofiles.specs import ClusterSpec, SoftwareProfile
from planner.rules import apply, context, rules_of
from planner.space import space
from sim.build.forms import in_first, layout_of, plain_form, stage_forms
from sim.build.schedule import lane_order
from sim.columns import Columns, columns_of
from sim.cost.prices import distinct
from sim.families import load_model
from sim.mesh import DEFAULT_MAP, RankMap
from sim.model import ModelSpec
from sim.pipelines import Pipelines
from sim.plan import Plan
from sim.routing import Routing, parse_routing, resolve
from sim.run import Simulation
from sim.scenario import Scenario
from sim.screen import ROWS_AT_ONCE, Screened, Screener, screen
from sim.workload import Offload, Workload

ROUNDING = 1e-9
PLANS_PER_CASE = 250
MIN_MEDIAN_RATIO = 0.85


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question with many legal plans. MoE and dense, paired and unpaired, FSDP, blocking sends, m % pp != 0."""

    model: str
    cluster: str
    gpus: int
    software: str
    seq_tokens: int
    batch: int
    precision: str
    target: str = "layout"
    with_mtp: bool = False

    def spec(self) -> tuple[ModelSpec, ClusterSpec, SoftwareProfile, Workload]:
        work = Workload(
            seq_tokens=self.seq_tokens, global_batch_seqs=self.batch, precision=self.precision, with_mtp=self.with_mtp
        )  # fmt: skip
        return load_model(self.model), cluster(self.cluster, gpus=self.gpus), software(self.software), work


CASES = (
    Case(model="DeepSeek-V3", cluster="h800", gpus=32, software="megatron-lm", seq_tokens=4096, batch=96,
         precision="fp8_block", with_mtp=True),
    Case(model="DeepSeek-V2-Lite", cluster="dgx-h100", gpus=24, software="megatron-core-0.9", seq_tokens=4096,
         batch=120, precision="bf16"),
    Case(model="Mixtral-8x7B", cluster="dgx-h100", gpus=32, software="megatron-bridge-26.04", seq_tokens=8192,
         batch=96, precision="bf16"),
    Case(model="GPT-OSS-20B", cluster="dgx-b200", gpus=32, software="mlperf-v6.0", seq_tokens=8192, batch=160,
         precision="mxfp8"),
    Case(model="Qwen3-30B-A3B", cluster="gb200-nvl72", gpus=36, software="megatron-bridge-25.11", seq_tokens=4096,
         batch=144, precision="mxfp8"),
    Case(model="GPT-1.3B-MoE-128", cluster="dgx-a100-80g", gpus=32, software="megatron-deepspeed-2022",
         seq_tokens=2048, batch=128, precision="bf16"),
    Case(model="Nemotron-3-Nano", cluster="dgx-h100", gpus=32, software="megatron-bridge-26.04", seq_tokens=8192,
         batch=96, precision="bf16"),
    Case(model="OLMoE-1B-7B", cluster="dgx-h100", gpus=32, software="torchtitan-2024-12", seq_tokens=4096, batch=128,
         precision="bf16", target="torchtitan"),
    Case(model="Llama2-13B", cluster="dgx-a100-80g", gpus=32, software="megatron-lm-2021", seq_tokens=2048, batch=64,
         precision="bf16"),
    # clusters with levels of the network above the port
    Case(model="Qwen3-30B-A3B", cluster="hgx-h100-2to1", gpus=64, software="megatron-bridge-26.04", seq_tokens=4096,
         batch=256, precision="bf16"),
    Case(model="DeepSeek-V2-Lite", cluster="h100-roce-pods", gpus=64, software="megatron-core-0.9", seq_tokens=4096,
         batch=128, precision="bf16"),
)  # fmt: skip


def legal_blocks(case: Case) -> list[Columns]:
    model, machines, trainer, work = case.spec()
    ctx, rules = context(model, machines, trainer, work), rules_of(case.target)
    blocks = [block.take(apply(block, ctx, rules)[0]) for block in space(model, machines, work, None, trainer)]
    return [block for block in blocks if len(block)]


def draw(case: Case, count: int, seed: int) -> Iterator[tuple[int, int, Plan]]:
    """(block, row, plan) of random legal rows, every row as likely."""
    blocks = legal_blocks(case)
    ends = np.cumsum([len(block) for block in blocks])
    rng = np.random.default_rng(seed)
    for at in rng.choice(int(ends[-1]), size=min(count, int(ends[-1])), replace=False):
        block = int(np.searchsorted(ends, at, side="right"))
        row = int(at - (ends[block - 1] if block else 0))
        yield block, row, blocks[block].plan(row)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model}-{case.software}")
def test_bound_and_peak_against_event_runs(case: Case) -> None:
    model, machines, trainer, work = case.spec()
    screener = Screener(model, machines, trainer, work)
    screened = [screener(block) for block in legal_blocks(case)]
    ratios = []
    for block, row, plan in draw(case, PLANS_PER_CASE, seed=11):
        scenario = Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
        report = Simulation(scenario, cost=screener.cost).report(trace=False)
        seen = screened[block]
        ratios.append(float(seen.bound_s[row]) / report.step_s.value)
        assert ratios[-1] <= 1.0 + ROUNDING, plan
        assert seen.peak_bytes[row] == pytest.approx(report.peak_mem_bytes, rel=ROUNDING), plan
        assert bool(seen.fits[row]) == (report.out_of_memory is None), plan
    assert len(ratios) >= 100
    assert float(np.median(ratios)) >= MIN_MEDIAN_RATIO


@pytest.mark.parametrize(("case", "text"), [(CASES[0], "lognormal:0.5"), (CASES[1], "zipf:0.6,drift=0.2,pad=16")])
@pytest.mark.parametrize("capacity", [None, 1.2])
def test_bound_and_peak_where_every_layer_has_its_own_load(case: Case, text: str, capacity: float | None) -> None:
    model, machines, trainer, work = case.spec()
    trainer = replace(trainer, capacity_factor=capacity)
    routing = resolve(parse_routing(text), model, seed=2)
    screener = Screener(model, machines, trainer, work, routing=routing)
    screened = [screener(block) for block in legal_blocks(case)]
    ratios = []
    for block, row, plan in draw(case, 25, seed=4):
        scenario = Scenario(
            model=model, cluster=machines, software=trainer, workload=work, plan=plan, routing=routing
        )  # fmt: skip
        sim = Simulation(scenario, cost=screener.cost)
        assert any(content.own_loads for stage in sim.contents for content in stage)
        report = sim.report(trace=False)
        ratios.append(float(screened[block].bound_s[row]) / report.step_s.value)
        assert ratios[-1] <= 1.0 + ROUNDING, plan
        assert screened[block].peak_bytes[row] == pytest.approx(report.peak_mem_bytes, rel=ROUNDING), plan
    assert float(np.median(ratios)) >= MIN_MEDIAN_RATIO


@pytest.mark.parametrize("case", CASES[:2] + CASES[6:7], ids=lambda case: case.model)
def test_a_row_screened_alone_gives_what_it_gives_in_its_block(case: Case) -> None:
    model, machines, trainer, work = case.spec()
    screener = Screener(model, machines, trainer, work)
    screened = [screener(block) for block in legal_blocks(case)]
    for block, row, plan in draw(case, 12, seed=5):
        (alone,) = columns_of([plan])
        got = screen(model, machines, trainer, work, alone)
        assert got.bound_s[0] == pytest.approx(screened[block].bound_s[row], rel=ROUNDING)
        assert got.peak_bytes[0] == pytest.approx(screened[block].peak_bytes[row], rel=ROUNDING)


def test_blocks_expected_beforehand_are_priced_in_one_go_and_alike() -> None:
    model, machines, trainer, work = CASES[0].spec()
    few, many = min(legal_blocks(CASES[0]), key=len), max(legal_blocks(CASES[0]), key=len)
    blocks = [few.take(np.arange(1)), replace(many, **few.discrete())]
    plain, told = Screener(model, machines, trainer, work), Screener(model, machines, trainer, work)
    for block in blocks:
        told.expect(block)
    for block in blocks:
        one, other = plain(block), told(block)
        assert np.array_equal(one.bound_s, other.bound_s) and np.array_equal(one.peak_bytes, other.peak_bytes)
    passes = [[parts.passes for parts in each._pipelines.parts.values()] for each in (told, plain)]
    assert passes == [[1], [2]]


@pytest.mark.parametrize("text", ["", "lognormal:0.5"])
def test_variants_that_share_what_they_know_give_what_each_gives_alone(text: str) -> None:
    """Rank maps, software and offload differ; blocks are told beforehand, which screens all their recompute at once."""
    model, machines, trainer, work = CASES[0].spec()
    routing = resolve(parse_routing(text), model, seed=2) if text else Routing()
    blocks = [block.take(np.arange(min(len(block), 30))) for block in legal_blocks(CASES[0])]
    shared = Pipelines(model, work, routing)
    variants = [
        (trainer, work, DEFAULT_MAP),
        (trainer, work, RankMap(order="tp-cp-pp-ep-dp")),
        (replace(trainer, dispatcher="deepep"), work, DEFAULT_MAP),
        (trainer, replace(work, offload=Offload(modules=("moe_act",))), DEFAULT_MAP),
        (trainer, replace(work, offload=Offload(optimizer=0.5)), DEFAULT_MAP),
    ]
    for software_, workload, ranks in variants:
        together = Screener(model, machines, software_, workload, routing=routing, ranks=ranks, pipelines=shared)
        for block in blocks[::2]:
            together.expect(block)
        alone = Screener(model, machines, software_, workload, routing=routing, ranks=ranks)
        for block in blocks:
            got, want = together(block), alone(block)
            assert np.array_equal(got.bound_s, want.bound_s) and np.array_equal(got.peak_bytes, want.peak_bytes)
    assert len(shared.parts) == len(variants) - 1  # where the optimizer lives changes no part


def test_order_and_length_of_a_block_do_not_matter() -> None:
    model, machines, trainer, work = CASES[0].spec()
    block = max(legal_blocks(CASES[0]), key=len)
    rng = np.random.default_rng(3)
    rows = rng.integers(len(block), size=ROWS_AT_ONCE + 500)
    want = screen(model, machines, trainer, work, block)
    got = screen(model, machines, trainer, work, block.take(rows))
    np.testing.assert_allclose(got.bound_s, want.bound_s[rows], rtol=ROUNDING)
    np.testing.assert_allclose(got.peak_bytes, want.peak_bytes[rows], rtol=ROUNDING)


def one(plan: Plan, case: Case) -> tuple[Screened, float, float]:
    """(screened, simulated step, simulated peak) of one plan."""
    model, machines, trainer, work = case.spec()
    (block,) = columns_of([plan])
    report = Simulation(
        Scenario(model=model, cluster=machines, software=trainer, workload=work, plan=plan)
    ).report(trace=False)  # fmt: skip
    return screen(model, machines, trainer, work, block), report.step_s.value, report.peak_mem_bytes


@pytest.mark.parametrize(
    ("tp", "dp", "vpp", "micro_batch", "num_micro_batches"),
    [(1, 4, 2, 1, 22), (1, 4, 4, 1, 22), (1, 4, 2, 2, 11), (2, 2, 3, 4, 11), (2, 2, 1, 2, 22), (2, 2, 3, 1, 44)],
)
def test_peak_where_the_stages_do_not_divide_the_micro_batches(
    tp: int, dp: int, vpp: int, micro_batch: int, num_micro_batches: int
) -> None:
    case = Case(
        model="DeepSeek-V3", cluster="h800", gpus=64, software="megatron-lm", seq_tokens=4096, batch=88,
        precision="fp8_block", with_mtp=True,
    )  # fmt: skip
    plan = Plan(
        tp=tp, dp=dp, pp=16, vpp=vpp, ep=4, edp=1, micro_batch_seqs=micro_batch, account_ends=True,
        schedule="interleaved" if vpp > 1 else "1f1b",
    )  # fmt: skip
    assert plan.num_micro_batches(case.batch) == num_micro_batches
    seen, step_s, peak = one(plan, case)
    assert seen.peak_bytes[0] == pytest.approx(peak, rel=ROUNDING)
    assert seen.bound_s[0] <= step_s * (1.0 + ROUNDING)


def test_more_virtual_stages_than_layers_are_laid_out_when_the_ends_count() -> None:
    """24 layers, embedding and loss on 26 slots: the ends hold no layer."""
    case = Case(
        model="GPT-1.3B-MoE-128", cluster="dgx-a100-80g", gpus=104, software="megatron-deepspeed-2022",
        seq_tokens=2048, batch=208, precision="bf16",
    )  # fmt: skip
    layout = layout_of(case.spec()[0], 13, 2, account_ends=True, mtp=False)
    assert layout.contents[0][0].num_layers == layout.contents[12][1].num_layers == 0
    plan = Plan(pp=13, vpp=2, dp=8, ep=8, schedule="interleaved", account_ends=True)
    seen, step_s, peak = one(plan, case)
    assert MIN_MEDIAN_RATIO * step_s <= seen.bound_s[0] <= step_s * (1.0 + ROUNDING)
    assert seen.peak_bytes[0] == pytest.approx(peak, rel=ROUNDING)


def test_rows_without_a_layout_have_no_bound_and_do_not_disturb_the_others() -> None:
    model, machines, trainer, work = CASES[2].spec()
    sound = max(legal_blocks(CASES[2]), key=len).plan(0)
    no_batch = Plan(dp=32 * CASES[2].batch, ep=8, edp=4, recompute=sound.recompute, schedule=sound.schedule,
                    account_ends=sound.account_ends)  # fmt: skip
    (both,) = columns_of([no_batch, sound])
    (alone,) = columns_of([sound])
    got, want = screen(model, machines, trainer, work, both), screen(model, machines, trainer, work, alone)
    assert got.bound_s[0] == got.peak_bytes[0] == np.inf
    assert not got.fits[0]
    assert got.bound_s[1] == want.bound_s[0]
    assert got.peak_bytes[1] == want.peak_bytes[0]


# ---------------------------------------------------------------- the integers behind it

LAYOUTS = [
    (schedule, pp, vpp, m)
    for schedule in ("1f1b", "interleaved", "gpipe")
    for pp in (1, 2, 4, 5)
    for vpp in ((2, 3, 5) if schedule == "interleaved" else (1,))
    for m in (1, 3, 4, 7, 8, 10, 22, 45)
]


@pytest.mark.parametrize("model_name", ["DeepSeek-V2-Lite", "GPT-OSS-20B"])
def test_forms_are_what_playing_the_order_counts(model_name: str) -> None:
    """Steps alone and paired per content, and the peak for random bytes, by walking through `lane_order`."""
    model = load_model(model_name)
    rng = np.random.default_rng(1)
    for schedule, pp, vpp, m in LAYOUTS:
        layout = layout_of(model, pp, vpp, account_ends=True, mtp=False)
        contents = {content for row in layout.contents for content in row}
        saved = {content: rng.random() for content in contents}
        working = {content: 3.0 * rng.random() for content in contents}
        form, peaks = plain_form(layout, schedule, m), stage_forms(layout, schedule, m)
        numbers, (before, count) = list(layout.distinct), layout.before
        passed = np.zeros(len(numbers), dtype=np.int64)
        for k, stage in enumerate(layout.kept):
            mine = layout.contents[stage]
            held = peak = 0.0
            counts = {(c, kind, paired): 0 for c in mine for kind in "FB" for paired in (False, True)}
            for step in lane_order(schedule, pp=pp, vpp=vpp, stage=stage, num_micro_batches=m):
                content = mine[step.chunk]
                counts[content, step.kind, step.paired] += 1
                held += saved[content] if step.kind == "F" else 0.0
                peak = max(peak, held + working[content])
                held -= saved[content] if step.kind == "B" else 0.0
            order = [(kind, paired) for paired in (False, True) for kind in "FB"]
            for slot, number in enumerate(dict.fromkeys(layout.own[:, k].tolist())):
                want = [counts[numbers[number], *each] for each in order]
                assert form.steps[:, slot, k].tolist() == want
            np.add.at(passed, before[:, k], count[:, k])
            met = {content: n for content, n in zip(numbers, passed.tolist(), strict=True) if n}
            assert met == Counter(row[0] for row in layout.contents[:stage])
            most = max(sum(saved[c] * n for c, n in each.held) + working[each.running] for each in peaks[k].peaks)
            assert most == pytest.approx(peak, rel=ROUNDING), (schedule, pp, vpp, m, stage)


def test_steps_of_a_chunk_among_the_first_are_counted_in_closed_form() -> None:
    # groups of 4 micro-batches over 2 chunks: 0000 1111, then a last group of 3: 000 111
    order = [0] * 4 + [1] * 4 + [0] * 3 + [1] * 3
    for count in range(len(order) + 1):
        for chunk in (0, 1):
            got = in_first(count, chunk, vpp=2, num_micro_batches=7, group=4)
            assert got == order[:count].count(chunk)


def test_distinct_gives_every_row_its_combination() -> None:
    rng = np.random.default_rng(2)
    columns = [rng.integers(1, 4, size=200) for _ in range(3)]
    first, which = distinct(columns)
    rows = list(zip(*(c.tolist() for c in columns), strict=True))
    assert len(first) == len(set(rows))
    for i, row in enumerate(rows):
        assert rows[first[which[i]]] == row
