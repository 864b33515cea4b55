"""Switches of the expert exchange: each reaches the cost and does what its closed form says."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.forms.dispatch import PAYLOAD_BYTES
from hwprofiles.specs import SoftwareProfile
from sim.build.context import Context
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, PartTime, pair_s
from sim.families import load_model
from sim.mesh import group
from sim.ops import Op
from sim.plan import Plan
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

SEQ = 4096
PLAN = Plan(dp=64, ep=32, edp=2)


@cache
def trainer(**changes: Any) -> SoftwareProfile:
    """A dropless release."""
    release = catalogue.software("megatron-bridge-26.04")
    return replace(release, capacity_factor=None, host_sync=False, a2a_overlap=False, **changes)


def ops_of(plan: Plan = PLAN, precision: str = "bf16", **switches: Any) -> dict[str, Op]:
    model = load_model("Qwen3-235B-A22B")
    work = Workload(seq_tokens=SEQ, global_batch_seqs=256, precision=precision)
    ctx = Context(model=model, workload=work, plan=plan, software=trainer(**switches))
    return {op.name: op for op in layer_ops(ctx, model.layers[0])}


def cost(plan: Plan = PLAN, **switches: Any) -> CostModel:
    return CostModel(catalogue.cluster("dgx-h100", gpus=plan.num_devices), trainer(**switches))


def time(name: str, plan: Plan = PLAN, **switches: Any) -> float:
    return float(cost(plan, **switches).comm_time(ops_of(plan, **switches)[name], plan, top_k=8).alone_s)


def step_s(plan: Plan = PLAN, precision: str = "bf16", **switches: Any) -> float:
    work = Workload(seq_tokens=SEQ, global_batch_seqs=256, precision=precision)
    scenario = Scenario(
        model=load_model("Qwen3-30B-A3B"), cluster=catalogue.cluster("dgx-h100", gpus=plan.num_devices),
        software=trainer(cuda_graph=("full_iteration",), **switches), workload=work, plan=plan,
    )  # fmt: skip
    return simulate(scenario, trace=False).step_s.value


def test_no_shipped_profile_turns_them_on() -> None:
    for name in catalogue.names("software"):
        made = catalogue.software(name)
        switches = made.dispatch_kernel, made.fp8_dispatch, made.all_to_all, made.tp_aware_dispatch
        assert switches == ("normal", False, "library", False), name


# ---------------------------------------------------------------- 8 bits


@pytest.mark.parametrize("dispatcher", ["alltoall", "deepep", "hybridep"])
def test_only_the_forward_dispatch_goes_out_in_8_bits(dispatcher: str) -> None:
    wide, narrow = ops_of(dispatcher=dispatcher), ops_of(dispatcher=dispatcher, fp8_dispatch=True)
    ratio = (1 + 4 / 128) / 2  # a byte an element and a 4-byte scale per 128
    assert float(narrow["dispatch"].bytes) == pytest.approx(ratio * float(wide["dispatch"].bytes))
    assert narrow["dispatch"].dtype == "fp8"
    for name in ("combine", "dispatch.bwd", "combine.bwd"):
        assert narrow[name] == wide[name]
    assert time("dispatch", dispatcher=dispatcher, fp8_dispatch=True) < time("dispatch", dispatcher=dispatcher)
    # rows in the kernel are the same: only what a row weighs changes
    on_wire = [
        cost(dispatcher=dispatcher, fp8_dispatch=on).comm_time(ops["dispatch"], PLAN, top_k=8).out_s
        for on, ops in ((False, wide), (True, narrow))
    ]
    assert float(on_wire[1] / on_wire[0]) == pytest.approx(ratio, rel=0.01)


def test_casts_read_and_write_the_rows_that_travel() -> None:
    d = load_model("Qwen3-235B-A22B").hidden_dim
    width = 2 + PAYLOAD_BYTES["fp8"]
    plain, by_token = (ops_of(dispatcher=name, fp8_dispatch=True) for name in ("alltoall", "deepep"))
    assert float(plain["dispatch.quantise"].bytes) == pytest.approx(SEQ * 8 * d * width)
    assert float(by_token["dispatch.quantise"].bytes) == pytest.approx(SEQ * d * width)
    received = ops_of(dispatcher="alltoall")["combine"].bytes / (d * 2)
    assert float(plain["dispatch.dequantise"].bytes) == pytest.approx(float(received) * d * width)
    # blocks of 128 are what these experts multiply; every other recipe scales its own way
    names = {p: set(ops_of(precision=p, fp8_dispatch=True)) for p in ("bf16", "fp8", "fp8_block", "mxfp8")}
    assert [p for p, found in names.items() if "dispatch.dequantise" not in found] == ["fp8_block"]
    assert all("dispatch.quantise" in found for found in names.values())
    alone = ops_of(Plan(dp=8, ep=1, edp=8), fp8_dispatch=True)
    assert float(alone["dispatch.quantise"].bytes) == float(alone["dispatch.quantise"].kernels) == 0.0


def test_blocks_are_gathered_over_expert_tensor_parallel_ranks_as_they_came() -> None:
    plan = Plan(tp=2, dp=32, etp=2, ep=16, edp=2)
    wide, taken, back = (
        float(ops_of(plan, precision=p, fp8_dispatch=on)["dispatch.etp"].bytes)
        for p, on in (("fp8_block", False), ("fp8_block", True), ("mxfp8", True))
    )
    assert taken == pytest.approx(wide * (1 + 4 / 128) / 2) and back == wide


def test_a_step_bound_by_the_exchange_gains_from_8_bits() -> None:
    assert step_s(dispatcher="alltoall", fp8_dispatch=True) < step_s(dispatcher="alltoall")


# ---------------------------------------------------------------- kernels


def test_low_latency_kernels_take_their_own_form() -> None:
    """Better for few tokens, worse for many: nothing is deduplicated."""
    for tokens, better in ((64, True), (8192, False)):
        nbytes, grp = tokens * 8 * 4096 * 2.0, group(PLAN, "ep", cost().cluster)
        sizes: dict[str, Any] = {"top_k": 8, "hidden": 4096, "experts": 128, "phase": "dispatch"}
        normal, low = (cost().comm.dispatch(nbytes, grp, mode=m, **sizes).alone_s for m in ("normal", "low_latency"))
        assert (low < normal) == better
    switched = time("dispatch", dispatcher="deepep", dispatch_kernel="low_latency")
    sizes = {"top_k": 8, "hidden": 4096, "experts": 128, "phase": "dispatch", "mode": "low_latency"}
    grp = group(PLAN, "ep", cost().cluster)
    nbytes = ops_of(dispatcher="deepep")["dispatch"].bytes
    assert switched == pytest.approx(float(cost().comm.dispatch(nbytes, grp, **sizes).alone_s))
    assert switched != pytest.approx(time("dispatch", dispatcher="deepep"), rel=0.01)


def test_low_latency_kernels_cast_themselves_and_say_where_they_are_extrapolated() -> None:
    names = set(ops_of(dispatcher="deepep", dispatch_kernel="low_latency", fp8_dispatch=True))
    assert "dispatch.dequantise" in names and "dispatch.quantise" not in names
    model = cost(dispatcher="deepep", dispatch_kernel="low_latency")
    op = ops_of(dispatcher="deepep")["dispatch"]
    model.comm_time(replace(op, bytes=op.bytes / 8), PLAN, top_k=8)
    assert not any("extrapolated" in note for note in model.comm.provenance)
    model.comm_time(op, PLAN, top_k=8)
    assert "expert dispatch, low latency, of more than 2048 tokens: extrapolated" in model.comm.provenance


def test_low_latency_kernels_take_no_multiprocessors_from_what_they_run_beside() -> None:
    def pair(comm_s: float, kernel: str) -> float:
        part = PartTime()
        for way in (FORWARD, BACKWARD):
            part.halves[way] = {"attn": np.array(2e-3), "ffn": np.array(2e-3)}
            part.classes[way] = {"gemm": np.array(4e-3)}
            part.exposed[way] = {"ep": np.array(2 * comm_s)}
        part.ep = {name: np.array(comm_s) for name in ("dispatch", "combine", "dispatch.bwd", "combine.bwd")}
        return float(pair_s(cost(dispatcher="deepep", dispatch_kernel=kernel, tuned_overlap=True), part))

    assert pair(1e-3, "low_latency") == pytest.approx(8e-3)
    assert pair(1e-3, "normal") > 8e-3
    assert pair(5e-3, "low_latency") == pytest.approx(20e-3)  # in the open once it is longer


# ---------------------------------------------------------------- the plain dispatcher


def test_a_hierarchical_all_to_all_goes_through_the_domain_first() -> None:
    name = "dispatch"
    model, op = cost(dispatcher="alltoall", all_to_all="hierarchical"), ops_of(dispatcher="alltoall")[name]
    direct, staged = cost(dispatcher="alltoall").comm_time(op, PLAN), model.comm_time(op, PLAN)
    want = model.comm.collective("all_to_all", op.bytes, group(PLAN, "ep", model.cluster), "hierarchical")
    assert float(staged.alone_s) == pytest.approx(float(want.alone_s))
    # the same bytes leave the domain, all others pass NVLink once more, in fewer messages
    assert float(staged.out_s) == pytest.approx(float(direct.out_s)) and staged.up_s > direct.up_s
    inside = Plan(dp=64, ep=8, edp=8)
    assert time(name, inside, dispatcher="alltoall", all_to_all="hierarchical") == pytest.approx(
        time(name, inside, dispatcher="alltoall")
    )
    # few bytes to each of many ranks: messages count, and there are fewer of them
    grp = group(Plan(dp=512, ep=512), "ep", catalogue.cluster("dgx-h100", gpus=512))
    small = [model.comm.collective("all_to_all", 2.0**20, grp, how).alone_s for how in ("hierarchical", "library")]
    assert small[0] < small[1]
    # other collectives are none of its business
    assert float(model.comm_time(replace(op, axis="cp"), Plan(cp=16, dp=4)).alone_s) == float(
        cost(dispatcher="alltoall").comm_time(replace(op, axis="cp"), Plan(cp=16, dp=4)).alone_s
    )


TP_PLAN = Plan(tp=4, dp=16, ep=16, edp=4)


def test_ranks_that_hold_the_same_rows_exchange_a_share_and_gather() -> None:
    held: dict[str, Any] = {"dispatcher": "alltoall", "sequence_parallel": False}
    whole, shared = (ops_of(TP_PLAN, tp_aware_dispatch=on, **held) for on in (False, True))
    for name in ("dispatch", "combine", "dispatch.bwd", "combine.bwd"):
        assert float(shared[name].bytes) < float(whole[name].bytes) / 3.5  # a quarter, as balanced as before
    for name in ("combine.tp", "dispatch.tp.bwd"):
        assert shared[name].axis == "tp" and float(shared[name].bytes) == pytest.approx(SEQ * 8 * 4096 * 2)
    model = cost(TP_PLAN, tp_aware_dispatch=True, **held)
    nbytes = SEQ * 8 * 4096 * 2.0
    closed = model.comm.tp_aware_all_to_all(
        nbytes, group(TP_PLAN, "ep", model.cluster), group(TP_PLAN, "tp", model.cluster)
    )
    pair = replace(shared["combine"], bytes=nbytes / 4), shared["combine.tp"]
    found = model.comm_time(pair[0], TP_PLAN) + model.comm_time(pair[1], TP_PLAN)
    for name in ("latency_s", "up_s", "out_s"):
        assert float(getattr(found, name)) == pytest.approx(float(getattr(closed, name)))
    assert step_s(TP_PLAN, tp_aware_dispatch=True, **held) < step_s(TP_PLAN, **held)


@pytest.mark.parametrize(
    ("plan", "parallel"), [(TP_PLAN, True), (PLAN, False), (Plan(tp=4, dp=16, etp=4, ep=16, edp=1), False)]
)
def test_nothing_is_shared_where_rows_differ_or_experts_are_split(plan: Plan, parallel: bool) -> None:
    """Under sequence parallelism each rank has rows of its own, and sends them once already."""
    switches: dict[str, Any] = {"dispatcher": "alltoall", "sequence_parallel": parallel}
    off, on = step_s(plan, **switches), step_s(plan, tp_aware_dispatch=True, **switches)
    assert on == pytest.approx(off, rel=1e-12)


def test_columns_of_shares_are_their_numbers() -> None:
    class Block:
        recompute, zero_stage, schedule = (), 1, "1f1b"

        def __getattr__(self, name: str) -> Any:
            return np.array([getattr(plan, name) for plan in plans])

    plans = [TP_PLAN, PLAN, Plan(tp=4, dp=16, etp=4, ep=16, edp=1), Plan(tp=2, dp=32, ep=4, edp=16)]
    switches: dict[str, Any] = {"dispatcher": "alltoall", "sequence_parallel": False, "tp_aware_dispatch": True}
    block: Any = Block()
    model, whole = cost(**switches), ops_of(block, fp8_dispatch=True, **switches)
    for name in ("dispatch", "combine.tp", "dispatch.tp.bwd", "dispatch.quantise", "dispatch.dequantise"):
        op = whole[name]
        column = model.comm_time(op, block).alone_s if op.kind == "collective" else model.device_s(op)
        for i, plan in enumerate(plans):
            single = ops_of(plan, fp8_dispatch=True, **switches)[name]
            alone = model.comm_time(single, plan).alone_s if op.kind == "collective" else model.device_s(single)
            assert column[i] == pytest.approx(float(alone), rel=1e-12, abs=1e-15), (name, plan)


# ---------------------------------------------------------------- at the door


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ('dispatch_kernel = "low_latency"', 'dispatch_kernel: dispatcher "alltoall" has no low-latency kernels'),
        (
            'dispatcher = "deepep"\nall_to_all = "hierarchical"',
            'all_to_all: dispatcher "deepep" has kernels of its own',
        ),
        ('all_to_all = "pairwise"', "all_to_all"),
    ],
)
def test_switches_that_do_not_fit_the_dispatcher_are_refused(tmp_path: Path, lines: str, words: str) -> None:
    path = tmp_path / "mine.toml"
    source = '[source]\nkind = "user"\ntitle = "t"\nwhere = "w"\ndate = "2026-11-22"\n'
    path.write_text(f'name = "mine"\ntrainer = "t"\nversion = "1"\n{lines}\n{source}')
    with pytest.raises(UserError) as caught:
        catalogue.software(str(path))
    assert any(words in problem for problem in caught.value.problems)


def test_the_all_gather_dispatcher_carries_every_row_to_every_rank() -> None:
    """Gathered forward and scattered back (mirrored in the backward pass), T x D of each of ep ranks, whatever k is."""
    ops = ops_of(dispatcher="allgather")
    for name, kind in (
        ("dispatch", "all_gather"), ("dispatch.bwd", "reduce_scatter"), ("combine", "reduce_scatter"),
        ("combine.bwd", "all_gather"),
    ):  # fmt: skip
        assert ops[name].collective == kind
        assert ops[name].bytes == SEQ * ops[name].n * 2 * PLAN.ep
    assert ops_of()["dispatch"].collective == "all_to_all"
