"""The closed loop: known devices are predicted, a tiny CPU run goes all the way, memory is what torch allocates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from calibration import check as loop
from calibration import measure as measuring
from calibration.accuracy_kernels import folders, kernel_section
from calibration.check_cases import Measured, measured, model_of, scenario
from calibration.check_predict import predict
from calibration.harness.moe_block import BlockDims, block, make_weights
from calibration.harness.peak import peak_bytes
from calibration.harness.points import Bench, torch_module
from calibration.harness.session import one_rank
from calibration.harness.small_model import Model, StepDims, batches
from calibration.harness.timing import Patience, Timer
from calibration.profile import build
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.factors import factors
from hwprofiles.software_profiles import load
from planner.cli.app import app
from sim.build.layer import end_ops, layer_ops
from sim.model import layer_params, total_params
from tests.calibration import made_rows as made

BLOCK = {
    "batch": 1, "seq": 1024, "tokens": 1024, "hidden": 1024, "heads": 8, "kv_heads": 1, "head_dim": 128, "experts": 16,
    "top_k": 4, "ffn": 1024, "ep": 1,
}  # fmt: skip
STEP = {**BLOCK, "layers": 2, "vocab": 4096, "micro_batches": 2, "ranks": 1}
BOTH = ("rmsnorm", "rotary", "swiglu", "router", "permute", "unpermute", "cross_entropy", "embedding")
ONCE = {
    "copy": "forward", "residual": "forward", "grad_accumulate": "forward", "angles": "forward", "sort_rows": "forward",
    "fused_adam": "update", "grad_norm_clip": "update", "cast_16": "update", "clear": "update",
}  # fmt: skip
ELEMENT = 2.0  # bytes


def memory_rows() -> list[dict[str, str]]:
    kinds = [(op, p) for op in BOTH for p in ("forward", "backward")] + list(ONCE.items())
    sizes = [2.0**power for power in range(14, 31)]
    return [
        made.row("memory", op, made.kernel_s(n), {"elements": n}, bytes=n, **{"pass": pass_})
        for op, pass_ in kinds
        for n in sizes
    ]


def block_s(sizes: dict[str, Any]) -> tuple[float, float]:
    """Forward and backward device seconds of a block on the made device, added up by hand."""
    t, d, k, f, e = (float(sizes[name]) for name in ("tokens", "hidden", "top_k", "ffn", "experts"))
    heads, kv, dim = sizes["heads"], sizes["kv_heads"], sizes["head_dim"]
    width, rows = (heads + 2 * kv) * dim, t * k
    linears = ((width, d), (d, heads * dim), (e, d))
    dense = sum(float(made.GEMM.time_s(t, n, m)) for n, m in linears)
    dgrad, wgrad = (made.PASSES[name] for name in ("dgrad", "wgrad"))
    back = sum(dgrad * float(made.GEMM.time_s(t, m, n)) + wgrad * float(made.GEMM.time_s(n, m, t)) for n, m in linears)
    core = float(made.CORE.time_s(heads, kv, sizes["seq"]))
    pairs = ((2 * f, d), (d, f))
    grouped = sum(float(made.GROUPED.product_s(rows, e, n, m)) for n, m in pairs)
    gradient = sum(
        float(made.GROUPED.dgrad_s(rows, e, m, n) + made.GROUPED.wgrad_s(rows, e, n, m)) for n, m in pairs
    )  # fmt: skip
    x = ELEMENT * t * d
    turned = ELEMENT * t * (heads + kv) * dim
    forward = [3 * x, 2 * x, 3 * x, 2 * x, 2 * turned, 4 * sizes["seq"] * dim, 4 * t * e, 16 * rows]
    forward += [x * (1 + k), 3 * ELEMENT * rows * f, x * (1 + k)]
    # two norms, rotary, joining q, k and v, router, permute, SwiGLU, unpermute, three sums of gradients
    backward = [3 * x, 3 * x, 2 * turned, 2 * ELEMENT * t * width, 8 * t * e, x * (1 + k)]
    backward += [5 * ELEMENT * rows * f, x * (1 + 2 * k), 3 * x, 3 * x, 3 * x]
    return (
        (dense + core + grouped) / made.CLOCK + sum(made.kernel_s(n) for n in forward),
        (back + made.RATIO * core + gradient) / made.CLOCK + sum(made.kernel_s(n) for n in backward),
    )


@pytest.fixture(scope="module")
def made_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forward, backward = block_s(BLOCK)
    own = [r for r in made.everything() if r["family"] != "memory"]
    rows = [*own, *memory_rows(), *made.collectives()]
    for part, seconds in (("forward", forward), ("backward", backward)):
        for op in ("moe_block_device", "moe_block"):
            cells = {"pass": part, "p10_s": seconds, "p90_s": seconds}
            rows.append(made.row("moe_block", op, seconds, BLOCK, **cells))
    for part in ("", "_forward", "_backward", "_optimizer"):
        rows.append(made.row("train_step", f"train_step{part}", 0.1, STEP, p10_s=0.1, p90_s=0.1, **{"pass": "step"}))
    rows.append(made.row("train_step", "train_step", 1.0, {}, status="skipped: no time"))
    return made.write(tmp_path_factory.mktemp("check") / "rows", rows)


@pytest.fixture(scope="module")
def result(made_rows: Path) -> loop.Checked:
    return loop.check(made_rows)


def test_block_of_a_known_device_is_predicted(result: loop.Checked) -> None:
    hidden = [p for p in result.points if p.measured.launch_hidden]
    assert [p.measured.part for p in hidden] == ["forward", "backward"]
    assert all(abs(p.error) < 0.01 for p in hidden), [p.error for p in hidden]
    assert not any(p.predicted.host_bound for p in hidden)


def test_points_that_the_host_holds_up_are_flagged(result: loop.Checked) -> None:
    forward = next(p for p in result.points if p.measured.part == "forward" and not p.measured.launch_hidden)
    assert forward.predicted.host_bound
    assert forward.predicted.seconds == pytest.approx(forward.predicted.host_s)
    assert any(p["host_bound"] for p in result.to_json()["points"])


def test_step_is_its_parts_and_the_update_is_its_kernels(result: loop.Checked) -> None:
    parts = {p.measured.part: p.predicted.seconds for p in result.points if p.measured.is_step}
    assert set(parts) == {"step", "forward", "backward", "optimizer"}
    assert parts["step"] == pytest.approx(parts["forward"] + parts["backward"] + parts["optimizer"], rel=1e-9)
    model = model_of(STEP)
    routed = sum(layer_params(layer, 1024).routed for layer in model.layers)
    counts = (float(total_params(model) - routed), float(routed))
    want = sum(made.kernel_s(n * count) for count in counts for n in (12.0, 28.0, 6.0, 4.0))
    assert parts["optimizer"] == pytest.approx(want, rel=0.01)


def test_backward_is_said_to_be_measured(result: loop.Checked) -> None:
    for what in ("gemm bf16, weight gradient", "grouped GEMM bf16, weight gradient", "attention backward over forward"):
        assert f"{what}: measured" in result.provenance
    assert "memory-bound backward: measured" in result.provenance
    point = next(p.measured for p in result.points if p.measured.part == "backward")
    shipped = predict(point, catalogue.cluster("dgx-h200"), load(loop.SOFTWARE)).provenance
    for what in ("gemm bf16, weight gradient", "grouped GEMM bf16, weight gradient", "attention backward over forward"):
        assert f"{what}: assumed" in shipped
    assert any(note.startswith("memory-bound backward") and note.endswith(": assumed") for note in shipped)


def test_summaries_and_verdicts_are_of_the_points(result: loop.Checked) -> None:
    assert {s.name: s.count for s in result.times()}["moe_block forward"] == 2
    block, step, memory = result.verdicts()
    errors = [abs(p.error) for p in result.points if not p.measured.is_step]
    assert (block.count, block.mean) == (4, pytest.approx(sum(errors) / 4)) and block.target == 0.05
    assert step.count == 1 and (memory.count, memory.met) == (0, None)
    assert json.loads(json.dumps(result.to_json())) == result.to_json()


def test_command_shows_the_verdict_and_succeeds_whatever_it_is(made_rows: Path, tmp_path: Path) -> None:
    profile = build(made_rows, tmp_path / "profile").folder
    found = CliRunner().invoke(app, ["calibrate", "check", str(profile), "--rows", str(made_rows)])
    assert found.exit_code == 0, found.output
    assert "block time: mean error" in found.output and "peak memory: not measured" in found.output
    with pytest.raises(UserError, match="--rows"):
        loop.check(profile)
    with pytest.raises(UserError, match=r"cluster\.toml"):
        loop.check(made_rows, rows=made_rows)


def test_rows_without_blocks_say_what_to_measure(tmp_path: Path) -> None:
    rows = made.write(tmp_path / "rows", made.everything())
    with pytest.raises(UserError, match="families moe_block"):
        loop.check(rows)


def test_kernels_are_launched_under_autograd(tmp_path: Path) -> None:
    rows = [*made.everything(), made.row("launch", "autograd_node", 24e-6, {"queue": 500})]
    folder = build(made.write(tmp_path / "rows", rows), tmp_path / "profile").folder
    device = catalogue.device(str(folder / "device.toml"))
    assert factors(device.measured).host_launch_s == pytest.approx(12e-6)


def test_ranks_share_experts_and_the_busiest_one_counts() -> None:
    sizes = {**BLOCK, "ep": 2, "ranks": 2, "experts_local": 8}
    observed = json.dumps({"rows_max": 5000, "rows_mean": 4000})
    row = made.row("moe_block_ep", "moe_block_ep", 1.0, sizes, observed=observed, p10_s=1.0, p90_s=1.2)
    (point,) = measured([row])
    case = scenario(point, catalogue.cluster("dgx-h200"), load(loop.SOFTWARE))
    assert (case.plan.dp, case.plan.ep, case.cluster.num_devices) == (2, 2, 2)
    assert case.routing.max_over_mean == 1.25 and point.spread == pytest.approx(0.2)
    names = [op.name for op in layer_ops(case.context(), case.model.layers[0]) if op.collective == "all_to_all"]
    assert names == ["counts", "dispatch", "dispatch.bwd", "combine", "combine.bwd"]


def test_plain_torch_ops_name_classes_that_are_measured() -> None:
    case = scenario(
        Measured(op="train_step", part="step", sizes=STEP, seconds=1.0, spread=0.0, peak_bytes=None),
        catalogue.cluster("dgx-h200"), load(loop.SOFTWARE),
    )  # fmt: skip
    ctx = case.context()
    ops = [*layer_ops(ctx, case.model.layers[0]), *end_ops(ctx, "embedding"), *end_ops(ctx, "head")]
    named = {op.kernel for op in ops if op.kind == "memory" and float(op.bytes) > 0}
    assert named == {*BOTH, "copy", "residual", "grad_accumulate", "angles", "sort_rows"}


SHAPES = (
    StepDims(layers=2, hidden=128, heads=4, kv_heads=2, head_dim=32, experts=4, top_k=2, ffn=192, vocab=1024, seq=128,
             batch=2, micro_batches=2),
    StepDims(layers=3, hidden=192, heads=3, kv_heads=3, head_dim=64, experts=8, top_k=3, ffn=128, vocab=512, seq=256,
             batch=1, micro_batches=1),
)  # fmt: skip


def bench() -> Bench:
    return Bench(device="cpu", timer=Timer("cpu", Patience(flush=False)), seed=0)


@pytest.mark.parametrize("dims", SHAPES)
def test_peak_of_a_step_is_what_torch_allocates(dims: StepDims) -> None:
    def two_steps() -> None:
        own = bench()
        model, data = Model(own, dims), batches(own, dims, 0)
        for _ in range(2):
            model.step(data)

    with one_rank("cpu"):
        peak = peak_bytes(two_steps, "cpu")
    point = Measured(op="train_step", part="step", sizes=vars(dims), seconds=1.0, spread=0.0, peak_bytes=peak)
    found = predict(point, catalogue.cluster("dgx-h200"), load(loop.SOFTWARE, device="cpu")).peak_bytes
    assert found == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("dims", [d.block for d in SHAPES])
def test_peak_of_a_block_is_what_torch_allocates(dims: BlockDims) -> None:
    torch = torch_module()
    with one_rank("cpu"):
        weights = make_weights(bench(), dims, "bf16")
        x = bench().randn(dims.tokens, dims.hidden, dtype="bf16").requires_grad_(True)
        out = block(x, weights, dims)
        dout = torch.ones_like(out)
        forward = peak_bytes(lambda: block(x, weights, dims), "cpu")
        leaves = [x, *weights.values()]
        backward = peak_bytes(lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True), "cpu")
    software = load(loop.SOFTWARE, device="cpu")
    for part, peak in (("forward", forward), ("backward", backward)):
        sizes = {**vars(dims), "tokens": dims.tokens}
        point = Measured(op="moe_block", part=part, sizes=sizes, seconds=1.0, spread=0.0, peak_bytes=peak)
        found = predict(point, catalogue.cluster("dgx-h200"), software)
        assert found.peak_bytes == pytest.approx(peak, rel=0.02), part
        assert predict(replace(point, peak_bytes=None), catalogue.cluster("dgx-h200"), software).peak_bytes is None


def test_tiny_run_of_this_cpu_goes_all_the_way(tmp_path: Path) -> None:
    families = ("launch", "gemm", "attention", "memory", "grouped_gemm", "moe_block", "train_step", "sustained")
    rows = measuring.measure("cpu", tmp_path, suite="tiny", families=families, ranks=1)
    result = loop.check(rows)
    assert {p.measured.op for p in result.points} == {"moe_block", "train_step"} and result.kind == "cpu"
    assert all(0.0 < p.predicted.seconds < 60.0 and abs(p.error) < 1e3 for p in result.points)
    assert not result.left


def test_page_says_what_was_not_measured(made_rows: Path, tmp_path: Path) -> None:
    text = "\n".join(kernel_section(tmp_path / "nothing"))
    assert "NVIDIA H200: not measured (no GPU was available)." in text
    assert "| h200 | gemm | bf16 | nothing (in-sample) | 1352 | 1.4 % |" in text
    assert "| h200 | grouped | bf16 | whole models |" in text and "| h200 | attention | mla |" in text
    (tmp_path / "my-h200").symlink_to(made_rows)
    assert folders(tmp_path) == [tmp_path / "my-h200"]
    text = "\n".join(kernel_section(tmp_path))
    assert "not measured (no GPU" not in text
    assert "| Test GPU | blocks, time | 4 |" in text and "| Test GPU | peak memory | 0 | – | 3.0 % | – |" in text
