"""Vocabularies that nothing pads, and launches under a profiler: what each changes, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from hwprofiles import catalogue
from sim.build.context import Context
from sim.build.layer import end_ops, layer_ops
from sim.cost.model import CostModel
from sim.cost.timing import BACKWARD, FORWARD, part_time
from sim.families import load_model
from sim.workload import Workload

PADDED = replace(catalogue.software("megatron-lm-2021"), padded_vocab=True)
UNPADDED = replace(PADDED, padded_vocab=False)
CLUSTER = catalogue.cluster("A100", gpus=8)
WORK = Workload(seq_tokens=2048, global_batch_seqs=8)


def context(vocab: int, tp: object, software: object = UNPADDED) -> Context:
    plan = SimpleNamespace(
        tp=tp, cp=1, ep=1, etp=1, dp=1, edp=1, pp=1, micro_batch_seqs=1, recompute=(), zero_stage=0, schedule="1f1b"
    )
    model = replace(load_model("Llama3-8B"), vocab_size=vocab)
    return Context(model=model, workload=WORK, plan=plan, software=software)  # type: ignore[arg-type]


def head_s(vocab: int, tp: object = 1, software: object = UNPADDED) -> dict[str, np.ndarray]:
    cost = CostModel(CLUSTER, software)  # type: ignore[arg-type]
    ops = [op for op in end_ops(context(vocab, tp, software), "head") if op.kind == "gemm"]
    assert {op.name for op in ops} == {"head", "head.dgrad", "head.wgrad"}
    return {op.name: np.asarray(cost.device_s(op)) for op in ops}


@pytest.mark.parametrize(("vocab", "tp", "loss"), [
    (50_304, 1, None), (50_257, 1, "halves"), (50_260, 1, "words"), (50_258, 1, "words"), (50_257, 2, None),
    (50_257, 4, "words"), (50_257, 8, "words"),
])  # fmt: skip
def test_products_of_the_head_by_the_bytes_of_its_rows(vocab: int, tp: int, loss: str | None) -> None:
    """All three products lose alike: the logits are their output or their operand."""
    factors = CostModel(CLUSTER, UNPADDED).factors.unaligned_gemm
    apart, padded = head_s(vocab, tp), head_s(vocab, tp, PADDED)
    # the sum into the main gradient is not part of the product
    for name in ("head", "head.dgrad"):
        assert apart[name] == pytest.approx((factors[loss] if loss else 1.0) * padded[name])
    slower = apart["head.wgrad"] > padded["head.wgrad"]
    assert slower if loss else apart["head.wgrad"] == padded["head.wgrad"]


def test_columns_give_what_numbers_give() -> None:
    degrees = np.array([1, 2, 4, 8])
    columns = head_s(50_257, degrees)
    for i, tp in enumerate(degrees):
        for name, seconds in head_s(50_257, int(tp)).items():
            assert columns[name][i] == pytest.approx(float(seconds))


def test_layers_are_no_wider_than_the_model_says() -> None:
    layer = load_model("Llama3-8B").layers[0]
    assert layer_ops(context(50_257, 1), layer) == layer_ops(context(50_257, 1, PADDED), layer)


def test_a_tracing_profiler_slows_launches_and_nothing_else() -> None:
    layer = load_model("Llama3-8B").layers[0]
    parts = []
    for traced in (False, True):
        software = replace(PADDED, traced=traced)
        ctx = context(128_256, 1, software)
        parts.append(part_time(CostModel(CLUSTER, software), ctx, layer_ops(ctx, layer)))
    plain, slow = parts
    longer = CostModel(CLUSTER, PADDED).factors.traced_launch
    assert longer > 1.0
    for way in (FORWARD, BACKWARD):
        assert slow.host[way] == pytest.approx(longer * plain.host[way])
        assert slow.device_s(way) == plain.device_s(way)
