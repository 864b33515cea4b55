"""What the harness measures: right kernels, unique points, sizes that add up, a whole step equal to plain torch."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
torch.set_num_threads(1)  # tiny kernels; threads that wait for each other only cost time

from calibration.harness import (  # noqa: E402
    attention,
    compute,
    copies,
    grouped,
    memory_ops,
    moe_block,
    small_model,
    sustained,
    train_step,
)
from calibration.harness.peak import peak_bytes  # noqa: E402
from calibration.harness.points import Bench, Point, models, relative_error  # noqa: E402
from calibration.harness.suites import FAMILIES, PATIENCE, budget_s  # noqa: E402
from calibration.harness.timing import Timer  # noqa: E402


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench(device="cpu", timer=Timer("cpu", PATIENCE["tiny"]), seed=3)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("suite", ["tiny", "quick", "full"])
def test_every_point_is_unique_and_has_work(suite: Any, device: str) -> None:
    for name, family in FAMILIES.items():
        points = family(suite, device)
        keys = [(p.op, p.dtype, p.pass_, tuple(sorted(p.sizes.items()))) for p in points]
        assert points and len(set(keys)) == len(keys)
        assert all(p.family == name for p in points)
        assert name == "launch" or all(p.bytes > 0 for p in points)
        assert budget_s(suite, device, name) > 0


def test_layer_shapes_add_up_to_the_model() -> None:
    # Public parameter counts, norms apart (below 0.01 %): Llama 3 8B 8.03e9, Llama 3 70B 70.55e9.
    dims = {model.name: model for model in models()}
    for name, layers, total in (("llama3-8b", 32, 8.03e9), ("llama3-70b", 80, 70.55e9)):
        sizes = [n * k for n, k in compute.layer_shapes(dims[name])]
        assert layers * sum(sizes[:-1]) + 2 * sizes[-1] == pytest.approx(total, rel=1e-3)
    whole = sum(n * k for n, k in compute.layer_shapes(dims["llama3-70b"]))
    assert sum(n * k for n, k in compute.layer_shapes(dims["llama3-70b"], tp=8)) * 8 == whole


@given(groups=st.integers(1, 64), blocks=st.integers(1, 40))
def test_uneven_groups_keep_the_rows(groups: int, blocks: int) -> None:
    rows = grouped.group_rows(groups, 16 * blocks, "uneven")
    assert sum(rows) == groups * 16 * blocks
    assert all(count >= 0 and count % 16 == 0 for count in rows)
    assert rows == sorted(rows, reverse=True)


@pytest.mark.parametrize("spread", ["even", "uneven"])
@pytest.mark.parametrize("pass_", compute.PASSES)
def test_grouped_gemm_equals_reference(bench: Bench, pass_: str, spread: str) -> None:
    rows = grouped.group_rows(4, 32, spread)
    x, w, dy = bench.randn(128, 32), bench.randn(4, 48, 32, seed=1), bench.randn(128, 48, seed=2)
    ends = torch.tensor(rows).cumsum(0).to(torch.int32)
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(rows))
    one_hot = torch.nn.functional.one_hot(owner, 4).float()
    exact = {
        "forward": lambda: torch.einsum("rg,gnk,rk->rn", one_hot, w.float(), x.float()),
        "dgrad": lambda: torch.einsum("rg,gnk,rn->rk", one_hot, w.float(), dy.float()),
        "wgrad": lambda: torch.einsum("rg,rn,rk->gnk", one_hot, dy.float(), x.float()),
    }[pass_]()
    loop = grouped.loop_mm(pass_, x, w, dy, rows)
    joined = torch.stack(loop) if pass_ == "wgrad" else torch.cat(loop)
    assert relative_error(grouped.kernel_mm(pass_, x, w, dy, ends), exact) < 0.005
    assert relative_error(joined, exact) < 0.005


@pytest.mark.parametrize("loop", [False, True])
def test_moe_block_equals_naive_block(bench: Bench, loop: bool) -> None:
    dims = moe_block.BlockDims(batch=2, seq=24, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=6, top_k=2, ffn=40)
    assert moe_block.block_error(bench, dims, "fp32", loop=True, gradients=True) < 1e-4
    assert moe_block.block_error(bench, dims, "bf16", loop=loop, gradients=True) < 0.03


def test_moe_block_check_sees_a_wrong_block(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    dims = moe_block.BlockDims(batch=1, seq=24, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=6, top_k=2, ffn=40)
    right = moe_block.block

    def mixed(x: Any, weights: Any, dims: Any, experts: Any = None) -> Any:
        return right(x, weights, dims, moe_block.loop_experts(weights | {"up": weights["up"].flip(0)}))

    monkeypatch.setattr(moe_block, "block", mixed)
    assert moe_block.block_error(bench, dims, "fp32", loop=True, gradients=False) > 0.1


@pytest.mark.parametrize(
    "point", compute.points("tiny", "cpu") + attention.points("tiny", "cpu"), ids=lambda p: p.label
)
def test_gemm_and_attention_points_pass_their_check(bench: Bench, point: Point) -> None:
    prepared = point.prepare(bench)
    assert prepared.check is not None and prepared.check() < 0.02


def test_memory_points_pass_their_check(bench: Bench) -> None:
    for point in memory_ops.points("tiny", "cpu"):
        prepared = point.prepare(bench)
        assert prepared.check is not None and prepared.check() < 0.02, point.label


def test_attention_backward_flop_is_two_and_a_half_forward() -> None:
    forward = attention.attention_flop("forward", 2, 64, 4, 128, 128, True)
    assert attention.attention_flop("backward", 2, 64, 4, 128, 128, True) == 2.5 * forward
    assert attention.attention_flop("forward", 2, 64, 4, 128, 128, False) == 2 * forward == 4 * 2 * 64**2 * 4 * 128


def test_copies_and_sustained_points_pass_their_check(bench: Bench) -> None:
    for point in (copies.points("tiny", "cpu")[0], *sustained.points("tiny", "cpu")):
        prepared = point.prepare(bench)
        assert prepared.check is not None and prepared.check() < 0.02, point.label


def test_quick_on_a_cpu_has_enough_to_fit_and_to_check() -> None:
    rows = [point for family in FAMILIES.values() for point in family("quick", "cpu")]
    blocks = {tuple(p.sizes.items()) for p in rows if p.op == "moe_block"}
    steps = {tuple(p.sizes.items()) for p in rows if p.op == "train_step"}
    assert len(blocks) >= 10 and len(steps) >= 4
    grid = {(p.sizes["m"], p.sizes["n"], p.sizes["k"]) for p in rows if p.op == "gemm" and p.pass_ == "wgrad"}
    assert {(m, n, k) for m in (16, 512, 4096) for n in (128, 512, 2048) for k in (128, 512, 2048)} <= grid
    for pass_ in compute.PASSES:
        spreads = [p.sizes["spread"] for p in rows if p.op == "grouped_gemm" and p.pass_ == pass_]
        assert spreads.count("even") == spreads.count("uneven") > 10


def test_parameters_of_a_step_are_those_of_its_model(bench: Bench) -> None:
    (point,) = [p for p in train_step.points("tiny", "cpu") if p.op == "train_step"]
    dims = small_model.StepDims(**point.sizes)  # sizes alone build the model again
    model = small_model.Model(bench, dims)
    assert sum(weight.numel() for weight in model.weights.values()) == dims.parameters == dims.local_parameters
    assert sum(flat.master.numel() for flat in (model.dense, model.experts)) == dims.parameters


STEP = small_model.StepDims(
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    experts=4,
    top_k=2,
    ffn=24,
    vocab=40,
    seq=16,
    batch=1,
    micro_batches=2,
)


def test_two_steps_move_the_weights_as_plain_torch_does(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    assert train_step.step_error(bench, STEP) < 1e-3
    monkeypatch.setattr(small_model, "LEARNING_RATE", 2e-3)
    assert train_step.step_error(bench, STEP) > 0.5


def test_the_loss_of_a_step_falls(bench: Bench) -> None:
    model, data = small_model.Model(bench, STEP), small_model.batches(bench, STEP, 0)
    first = float(model.loss(*data[0]).detach())
    for _ in range(10):
        model.step(data)
    assert float(model.loss(*data[0]).detach()) < first - 0.05


def test_peak_counts_live_storages_once() -> None:
    standing = torch.zeros(1000)

    def run() -> None:
        a = standing + 1  # 4,000 bytes
        view = a[10:].view(-1)  # the same storage
        standing.add_(view.sum())  # a number: 4 bytes, and it is gone behind the line
        b = torch.cat([a, a])  # 12,000 bytes live
        del a, view
        c = b * 2  # 16,000 bytes live: b and c
        del b
        c.mul_(2)

    assert peak_bytes(run, "cpu") == 16_000


def test_peak_of_a_backward_pass() -> None:
    x = torch.zeros(1000, requires_grad=True)

    def run() -> None:
        y = (x.exp() * 2.0).sum()  # exp keeps its result for the backward pass; the product dies in sum
        y.backward()  # ones, expanded: 4 bytes; grad of exp: grad * 2, times exp

    # Alive at most: exp, the product and nothing else in the forward pass; exp, 2 * grad and the gradient later.
    assert 12_000 <= peak_bytes(run, "cpu") <= 12_100
    assert x.grad is not None


def test_peak_of_a_step_is_its_state_and_a_little_more(bench: Bench) -> None:
    (point,) = [p for p in train_step.points("tiny", "cpu") if p.op == "train_step"]
    prepared = point.prepare(bench)
    assert prepared.peak is not None
    state = 18 * small_model.StepDims(**point.sizes).parameters  # weight 2, gradient, master and two moments 4 each
    assert state < peak_bytes(prepared.peak, "cpu") < 1.5 * state


def test_buckets_keep_the_order_of_time() -> None:
    samples = [{"time_s": 0.1 * i, "call_s": 1.0 if i <= 50 else 2.0} for i in range(1, 101)]
    seen = sustained.buckets(samples)
    assert len(seen) == sustained.BUCKETS
    assert [bucket["call_s"] for bucket in seen] == [1.0] * 4 + [2.0] * 4
    assert [bucket["time_s"] for bucket in seen] == sorted(bucket["time_s"] for bucket in seen)
