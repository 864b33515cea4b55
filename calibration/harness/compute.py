"""Dense GEMM: forward, dgrad and wgrad of the linear layers of the catalogue's models.

A linear layer y[m,n] = x[m,k] W[n,k]^T. dgrad: dx[m,k] = dy[m,n] W. wgrad: dW[n,k] = dy^T x. Each is
2 m n k FLOP; a row keeps the layer's m, n, k and names the pass. fp8 is e4m3 with one scale per
tensor ("fp8") or per row ("fp8_row"), 16-bit output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

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
    relative_error,
    shapes,
    torch_dtype,
    torch_module,
)

FAMILY = "gemm"
PASSES = ("forward", "dgrad", "wgrad")
LADDER = (1, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
# One row under, over and between the tiles that kernels use.
OFF_TILE = (127, 129, 1000, 2040, 4095, 4097, 5000, 8200, 12288, 20000)
# Beyond this a GEMM is as efficient as it gets, and one point costs as much as fifty others.
LARGEST_FLOP = 3e13


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the dense GEMM family, most wanted first, no point twice."""
    seen: dict[tuple[str, str, int, int, int], None] = {}
    found = []
    for key in _tiny() if suite == "tiny" else (_cpu(suite) if device == "cpu" else _sweep(suite)):
        if key not in seen:
            seen[key] = None
            found.append(gemm_point(*key))
    return found


def _tiny() -> Iterator[tuple[str, str, int, int, int]]:
    for pass_ in PASSES:
        for dtype in ("bf16", "fp16"):
            yield dtype, pass_, 48, 64, 32
        yield "bf16", pass_, 33, 64, 32
    yield "fp8", "forward", 32, 64, 32


def _cpu(suite: Suite) -> Iterator[tuple[str, str, int, int, int]]:
    """Rows by widths, all pairs of n and k; and the narrow and the wide layers: router and head."""
    table = shapes()["cpu"]["gemm"]
    wide = table["width"] if suite == "full" else table["width"][::2]
    pairs = [(n, k) for n in wide for k in wide] + [(n, k) for n in table["edge_width"] for k in table["edge_inner"]]
    for m in table["rows"]:
        for n, k in pairs:
            yield from (("bf16", pass_, m, n, k) for pass_ in PASSES)


def _sweep(suite: Suite) -> Iterator[tuple[str, str, int, int, int]]:
    dims = models()
    if suite == "quick":
        yield from _grid(("bf16",), dims[:3], (1,), (256, 4096, 16384))
        yield from _grid(("fp8",), dims[:2], (1,), (4096,))
        yield from _grid(("bf16",), dims[3:5], (1, 8), (4096,))
        yield from _grid(("bf16",), dims[:1], (1,), LADDER + OFF_TILE)
        return
    yield from _grid(("bf16",), dims, (1,), (1024, 4096, 16384))
    yield from _grid(("bf16",), dims[:4], (1,), LADDER)
    yield from _grid(("fp8",), dims[:4], (1,), (1024, 4096, 16384))
    yield from _grid(("bf16",), dims, (2, 4, 8), (4096, 8192))
    yield from _grid(("bf16",), dims[:2], (1,), OFF_TILE)
    yield from _grid(("fp8_row", "fp16"), dims[:3], (1,), (4096, 16384))
    yield from _grid(("fp8",), dims[:3], (1,), LADDER)
    yield from _grid(("fp8",), dims[3:], (1, 8), (4096,))


def _grid(
    dtypes: tuple[str, ...], dims: tuple[ModelDims, ...], tps: tuple[int, ...], rows: tuple[int, ...]
) -> Iterator[tuple[str, str, int, int, int]]:
    for dtype in dtypes:
        for model in dims:
            for tp in tps:
                for n, k in layer_shapes(model, tp):
                    for m in rows:
                        if 2.0 * m * n * k <= LARGEST_FLOP:
                            yield from ((dtype, pass_, m, n, k) for pass_ in PASSES)


def layer_shapes(model: ModelDims, tp: int = 1) -> tuple[tuple[int, int], ...]:
    """(n, k) of the linear layers of one block and the head, on one of `tp` ranks.

    Shapes that tp does not divide are left out; MLA down-projections are not divided by tp.
    """
    d = model.hidden
    shapes: list[tuple[float, float]] = []
    if model.kv_lora_rank:
        nope = model.head_dim - model.qk_rope_dim
        shapes += [
            (model.q_lora_rank, d),
            (model.heads * model.head_dim / tp, model.q_lora_rank),
            (model.kv_lora_rank + model.qk_rope_dim, d),
            (model.heads * (nope + model.dv) / tp, model.kv_lora_rank),
        ]
    else:
        shapes.append(((model.heads + 2 * max(model.kv_heads, tp)) * model.head_dim / tp, d))
    shapes.append((d, model.heads * model.dv / tp))
    for width in (model.ffn, model.moe_ffn):
        if width:
            shapes += [(2 * width / tp, d), (d, width / tp)]
    if model.experts and tp == 1:
        shapes.append((model.experts, d))
    shapes.append((model.vocab / tp, d))
    whole = [(int(n), int(k)) for n, k in shapes if n == int(n) and k == int(k) and n > 0]
    return tuple(dict.fromkeys(whole))


def gemm_point(dtype: str, pass_: str, m: int, n: int, k: int) -> Point:
    """One GEMM of a linear layer; m, n, k are those of its forward pass."""
    out_bytes = 2 if is_fp8(dtype) else ELEMENT_BYTES[dtype]
    rows, cols, inner = extents(pass_, m, n, k)
    return Point(
        family=FAMILY,
        op="gemm",
        dtype=dtype,
        pass_=pass_,
        sizes={"m": m, "n": n, "k": k},
        flop=2.0 * m * n * k,
        bytes=float(ELEMENT_BYTES[dtype] * inner * (rows + cols) + out_bytes * rows * cols),
        prepare=lambda bench: _prepare(bench, dtype, pass_, m, n, k),
    )


def extents(pass_: str, m: int, n: int, k: int) -> tuple[int, int, int]:
    """(rows, columns, inner) of the matrix product that a pass does."""
    return {"forward": (m, n, k), "dgrad": (m, k, n), "wgrad": (n, k, m)}[pass_]


def _prepare(bench: Bench, dtype: str, pass_: str, m: int, n: int, k: int) -> Prepared:
    if is_fp8(dtype):
        return _prepare_fp8(bench, dtype, pass_, *extents(pass_, m, n, k))
    torch = torch_module()
    if pass_ == "forward":
        a, b = bench.randn(m, k, dtype=dtype), bench.randn(n, k, dtype=dtype, seed=1).t()
    elif pass_ == "dgrad":
        a, b = bench.randn(m, n, dtype=dtype), bench.randn(n, k, dtype=dtype, seed=1)
    else:
        a, b = bench.randn(m, n, dtype=dtype).t(), bench.randn(m, k, dtype=dtype, seed=1)
    return Prepared(run=lambda: torch.mm(a, b), check=lambda: corner_error(torch.mm(a, b), a, b))


def _prepare_fp8(bench: Bench, dtype: str, pass_: str, rows: int, cols: int, inner: int) -> Prepared:
    torch = torch_module()
    scaled_mm = fp8_kernel(bench, "_scaled_mm")
    if inner % 16 or cols % 16:
        raise Skip("fp8 kernels need inner and column sizes divisible by 16")
    a = bench.randn(rows, inner, dtype=dtype)
    b = bench.randn(cols, inner, dtype=dtype, seed=1).t()
    if dtype == "fp8_row":
        scale_a = bench.randn(rows, 1, dtype="fp32", seed=2).abs_().add_(0.5)
        scale_b = bench.randn(1, cols, dtype="fp32", seed=3).abs_().add_(0.5)
    else:
        scale_a = torch.full((), 0.5, device=bench.device)
        scale_b = torch.full((), 0.25, device=bench.device)

    # Trainers accumulate fast in the forward pass only; the gradients need the full accumulator.
    fast = bench.cuda and pass_ == "forward"

    def run() -> Any:
        return scaled_mm(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=torch.bfloat16, use_fast_accum=fast)

    def check() -> float:
        exact = corner(a, b)
        i, j = corner_index(rows, bench.device), corner_index(cols, bench.device)
        exact = exact * (scale_a[i] * scale_b[:, j] if dtype == "fp8_row" else scale_a * scale_b)
        return relative_error(run()[i][:, j], exact)

    return Prepared(run=run, check=check)


def fp8_kernel(bench: Bench, name: str) -> Callable[..., Any]:
    """A scaled-matmul function of torch. Raises Skip where torch or the device has none."""
    torch = torch_module()
    torch_dtype("fp8")
    if not hasattr(torch, name):
        raise Skip(f"this torch has no {name}")
    if bench.cuda and torch.version.cuda and torch.cuda.get_device_capability(torch.device(bench.device)) < (8, 9):
        raise Skip("fp8 needs compute capability 8.9 or newer")
    return getattr(torch, name)  # type: ignore[no-any-return]


def corner_index(size: int, device: str) -> Any:
    """The first and last 32 indices below `size`: an off-tile edge shows in the last ones."""
    torch = torch_module()
    edge = 32
    if size <= 2 * edge:
        return torch.arange(size, device=device)
    first = torch.arange(edge, device=device)
    return torch.cat([first, first + (size - edge)])


def corner(a: Any, b: Any) -> Any:
    """float32 product of the corner rows of a[M,K] and columns of b[K,N]."""
    rows, cols = corner_index(a.shape[0], str(a.device)), corner_index(b.shape[1], str(a.device))
    # fp8 tensors have no index_select on every device, so widen them first.
    wide_a = a.to(torch_dtype("bf16")) if a.element_size() == 1 else a
    wide_b = b.to(torch_dtype("bf16")) if b.element_size() == 1 else b
    return wide_a[rows].float() @ wide_b[:, cols].float()


def corner_error(out: Any, a: Any, b: Any) -> float:
    """Relative error of the corners of out[M,N] = a b against float32."""
    rows, cols = corner_index(a.shape[0], str(a.device)), corner_index(b.shape[1], str(a.device))
    return relative_error(out[rows][:, cols], corner(a, b))
