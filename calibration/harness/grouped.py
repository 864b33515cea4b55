"""Grouped GEMM of the experts: torch's grouped kernel against a loop of one GEMM per expert.

`groups` local experts, m rows each on average (sizes: m, m_max, rows); x[rows,k] W[g][n,k]^T. Rows are spread
"even" or "uneven" (weights 1/rank, so the fullest expert has several times the mean). dgrad and
wgrad as in `compute`; op "grouped_gemm" is the kernel, "grouped_gemm_loop" the baseline.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from calibration.harness.compute import PASSES, fp8_kernel
from calibration.harness.points import (
    ELEMENT_BYTES,
    Bench,
    ModelDims,
    Point,
    Prepared,
    Skip,
    Suite,
    is_fp8,
    models,
    shapes,
    torch_module,
    worst_error,
)

FAMILY = "grouped_gemm"
ALIGN_ROWS = 16  # trainers pad groups so; fp8 kernels refuse anything else
Key = tuple[str, str, str, int, int, int, int, str]


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the grouped GEMM family, most wanted first, no point twice."""
    if suite == "tiny":
        return [grouped_point(*key) for key in _tiny()]
    keys = dict.fromkeys(_cpu(suite) if device == "cpu" else _sweep(suite))
    return [grouped_point(*key) for key in keys]


def _tiny() -> Iterator[Key]:
    for op in ("grouped_gemm", "grouped_gemm_loop"):
        for pass_ in PASSES:
            for spread in ("even", "uneven"):
                yield op, "bf16", pass_, 4, 32, 48, 32, spread
    yield "grouped_gemm", "fp8_row", "forward", 4, 32, 48, 32, "even"


def _cpu(suite: Suite) -> Iterator[Key]:
    table = shapes()["cpu"]["grouped"]
    for m in table["rows"]:
        for groups in table["groups"] if suite == "full" else table["groups"][::2]:
            for n, k in table["widths"]:
                for spread in ("even", "uneven"):
                    yield from (("grouped_gemm", "bf16", pass_, groups, m, n, k, spread) for pass_ in PASSES)
    for pass_ in PASSES:
        yield "grouped_gemm_loop", "bf16", pass_, table["groups"][0], table["rows"][-1], *table["widths"][0], "even"


def _sweep(suite: Suite) -> Iterator[Key]:
    dims = tuple(model for model in models() if model.experts)
    if suite == "quick":
        yield from _grid("grouped_gemm", "bf16", dims[:3], (8,), (128, 1024, 4096), ("even",))
        yield from _grid("grouped_gemm", "bf16", dims[:2], (8,), (1024, 4096), ("uneven",))
        yield from _grid("grouped_gemm_loop", "bf16", dims[:2], (8,), (1024,), ("even",))
        yield from _grid("grouped_gemm", "fp8_row", dims[:2], (8,), (1024,), ("even", "uneven"))
        return
    yield from _grid("grouped_gemm", "bf16", dims, (8,), (256, 1024, 4096), ("even",))
    yield from _grid("grouped_gemm_loop", "bf16", dims[:3], (8,), (256, 1024, 4096), ("even",))
    yield from _grid("grouped_gemm", "bf16", dims[:4], (8,), (256, 1024, 4096), ("uneven",))
    yield from _grid("grouped_gemm", "fp8_row", dims, (8,), (256, 1024, 4096), ("even",))
    yield from _grid("grouped_gemm", "fp8_row", dims[:3], (8,), (1024, 4096), ("uneven",))
    yield from _grid("grouped_gemm", "bf16", dims[:3], (4, 16, 32), (1024, 4096), ("uneven",))
    yield from _grid("grouped_gemm", "bf16", dims, (1, 2, 4, 16, 32, 64), (512, 2048), ("even",))
    yield from _grid("grouped_gemm", "bf16", dims[:3], (8, 32), (16, 64, 128, 512, 8192, 16384), ("even",))
    yield from _grid("grouped_gemm_loop", "bf16", dims[:2], (1, 32), (64, 1024), ("even", "uneven"))


def _grid(
    op: str,
    dtype: str,
    dims: tuple[ModelDims, ...],
    groups: tuple[int, ...],
    rows: tuple[int, ...],
    spreads: tuple[str, ...],
) -> Iterator[Key]:
    for m in rows:
        for g in groups:
            for model in dims:
                for n, k in ((2 * model.moe_ffn, model.hidden), (model.hidden, model.moe_ffn)):
                    for spread in spreads:
                        for pass_ in PASSES:
                            # fp8 weight gradients need groups laid out otherwise; not measured.
                            if g <= model.experts and not (is_fp8(dtype) and pass_ == "wgrad"):
                                yield op, dtype, pass_, g, m, n, k, spread


def group_rows(groups: int, mean_rows: int, spread: str) -> list[int]:
    """Rows of each group: all equal, or in proportion to 1/rank; multiples of ALIGN_ROWS that keep the sum.

    >>> group_rows(4, 32, "even"), sum(group_rows(4, 32, "uneven"))
    ([32, 32, 32, 32], 128)
    """
    if spread == "even":
        return [mean_rows] * groups
    total = groups * mean_rows
    weight = sum(1 / (i + 1) for i in range(groups))
    rows = [int(total / (i + 1) / weight) // ALIGN_ROWS * ALIGN_ROWS for i in range(groups)]
    rows[0] += total - sum(rows)
    return rows


def grouped_point(op: str, dtype: str, pass_: str, groups: int, m: int, n: int, k: int, spread: str) -> Point:
    """One grouped GEMM; m is the mean number of rows per group."""
    rows = group_rows(groups, m, spread)
    total, element = sum(rows), ELEMENT_BYTES[dtype]
    moved = {
        "forward": element * (total * k + groups * n * k) + 2 * total * n,
        "dgrad": element * (total * n + groups * n * k) + 2 * total * k,
        "wgrad": element * total * (n + k) + 2 * groups * n * k,
    }[pass_]
    return Point(
        family=FAMILY,
        op=op,
        dtype=dtype,
        pass_=pass_,
        sizes={"groups": groups, "m": m, "n": n, "k": k, "m_max": max(rows), "rows": total, "spread": spread},
        flop=2.0 * total * n * k,
        bytes=float(moved),
        prepare=lambda bench: _prepare(bench, op, dtype, pass_, rows, n, k),
    )


def grouped_mm() -> Callable[..., Any]:
    """torch's grouped matmul (a, b, offs=ends of the groups). Raises Skip where it has none."""
    torch = torch_module()
    public = getattr(torch.nn.functional, "grouped_mm", None)
    if public is not None:
        return public  # type: ignore[no-any-return]
    if hasattr(torch, "_grouped_mm"):
        return torch._grouped_mm  # type: ignore[no-any-return]
    raise Skip("this torch has no grouped_mm")


def loop_mm(pass_: str, x: Any, w: Any, dy: Any, rows: list[int]) -> list[Any]:
    """One GEMM per group: x[rows,k], w[groups,n,k], dy[rows,n]; a list of one result per group."""
    out, start = [], 0
    for g, count in enumerate(rows):
        part = slice(start, start + count)
        if pass_ == "forward":
            out.append(x[part] @ w[g].t())
        elif pass_ == "dgrad":
            out.append(dy[part] @ w[g])
        else:
            out.append(dy[part].t() @ x[part])
        start += count
    return out


def kernel_mm(pass_: str, x: Any, w: Any, dy: Any, ends: Any) -> Any:
    """The same through the grouped kernel; operand layouts are those autograd would use."""
    mm = grouped_mm()
    if pass_ == "forward":
        return mm(x, w.transpose(-2, -1), offs=ends)
    if pass_ == "dgrad":
        return mm(dy, w, offs=ends)
    return mm(dy.t(), x, offs=ends)


def _prepare(bench: Bench, op: str, dtype: str, pass_: str, rows: list[int], n: int, k: int) -> Prepared:
    torch = torch_module()
    total = sum(rows)
    ends = torch.tensor(rows, device=bench.device).cumsum(0).to(torch.int32)
    if is_fp8(dtype):
        return _prepare_fp8(bench, op, dtype, pass_, rows, n, k, ends)
    x = bench.randn(total, k, dtype=dtype)
    # A pass gets only the operands it reads: memory is what limits the largest points.
    w: Any = bench.randn(len(rows), n, k, dtype=dtype, seed=1) if pass_ != "wgrad" else None
    dy: Any = bench.randn(total, n, dtype=dtype, seed=2) if pass_ != "forward" else None

    def run() -> Any:
        if op == "grouped_gemm":
            return kernel_mm(pass_, x, w, dy, ends)
        return loop_mm(pass_, x, w, dy, rows)

    def check() -> float:
        out = run()
        outs = list(out) if pass_ == "wgrad" else (list(out.split(rows)) if op == "grouped_gemm" else out)
        start, pairs = 0, []
        for g, count in enumerate(rows):
            if count and g in (0, len(rows) - 1):  # the fullest and the last group
                some = slice(start, start + min(count, 64))
                whole = slice(start, start + count)
                if pass_ == "forward":
                    pairs.append((outs[g][:64], x[some].float() @ w[g].float().t()))
                elif pass_ == "dgrad":
                    pairs.append((outs[g][:64], dy[some].float() @ w[g].float()))
                else:
                    pairs.append((outs[g][:64], dy[whole, :64].float().t() @ x[whole].float()))
            start += count
        return worst_error(pairs)

    return Prepared(run=run, check=check)


def _prepare_fp8(bench: Bench, op: str, dtype: str, pass_: str, rows: list[int], n: int, k: int, ends: Any) -> Prepared:
    torch = torch_module()
    if op != "grouped_gemm" or pass_ == "wgrad":
        raise Skip("fp8 is measured for forward and dgrad of the grouped kernel only")
    kernel = fp8_kernel(bench, "_scaled_grouped_mm")
    if bench.cuda and torch.version.cuda and torch.cuda.get_device_capability(torch.device(bench.device)) < (9, 0):
        raise Skip("the fp8 grouped kernel needs compute capability 9.0 or newer")
    cols, inner = (n, k) if pass_ == "forward" else (k, n)
    if cols % 16 or inner % 16:
        raise Skip("fp8 kernels need inner and column sizes divisible by 16")
    total = sum(rows)
    a = bench.randn(total, inner, dtype=dtype)
    b = bench.randn(len(rows), cols, inner, dtype=dtype, seed=1).transpose(-2, -1)
    scale_a = bench.randn(total, dtype="fp32", seed=2).abs_().add_(0.5)
    scale_b = bench.randn(len(rows), cols, dtype="fp32", seed=3).abs_().add_(0.5)

    def run() -> Any:
        return kernel(a, b, scale_a, scale_b, offs=ends, out_dtype=torch.bfloat16, use_fast_accum=True)

    def check() -> float:
        first = min(rows[0], 64)
        exact = a[:first].float() @ b[0].float()
        return worst_error([(run()[:first], exact * scale_a[:first, None] * scale_b[0][None, :])])

    return Prepared(run=run, check=check)
