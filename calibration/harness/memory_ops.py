"""Memory-bound ops: what a step does between its GEMMs, as torch's eager kernels do it.

`bytes` is the least a fused kernel must move (each input read once, each output written once), so
bytes / seconds is a rate that shows what missing fusion costs. "tokens" rows of "hidden" columns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from calibration.harness.points import (
    Bench,
    ModelDims,
    Point,
    Prepared,
    Suite,
    models,
    torch_dtype,
    torch_module,
    worst_error,
)
from calibration.harness.update_ops import FAMILY, accumulate, element_points, memory_point, quantise, residual

__all__ = ["FAMILY", "points"]


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the memory-bound family, most wanted first."""
    if suite == "tiny":
        tiny = ModelDims(
            name="tiny", hidden=32, heads=2, kv_heads=1, head_dim=16, vocab=64, experts=8, top_k=2, moe_ffn=48
        )
        return [*_of_model(tiny, 64), *element_points(suite, device)]
    dims = models(device)
    if device == "cpu":
        rows: tuple[int, ...] = (1024, 256, 4096, 64) if suite == "full" else (1024, 256, 4096)
    else:
        dims = dims[:2] if suite == "quick" else dims[:6]
        rows = (4096, 1024, 256) if suite == "quick" else (4096, 1024, 16384, 256)
    out = element_points(suite, device)
    for tokens in rows:
        for model in dims:
            out += _of_model(model, tokens)
    # Two models may share a shape.
    return list({(p.op, p.pass_, tuple(p.sizes.items())): p for p in out}.values())


def _of_model(model: ModelDims, tokens: int) -> list[Point]:
    t, d = tokens, model.hidden
    width = model.moe_ffn or model.ffn
    out = _both("rmsnorm", {"tokens": t, "hidden": d}, 4.0 * t * d, 6.0 * t * d, lambda b: rmsnorm(b, t, d))
    out += _both(
        "rotary",
        {"tokens": t, "heads": model.heads, "head_dim": model.head_dim},
        4.0 * t * model.heads * model.head_dim,
        4.0 * t * model.heads * model.head_dim,
        lambda b: rotary(b, t, model.heads, model.head_dim),
    )
    angle_sizes = {"tokens": t, "head_dim": model.head_dim}
    out.append(memory_point("angles", angle_sizes, 4.0 * t * model.head_dim, lambda b: angle(b, t, model.head_dim)))
    out += _both(
        "swiglu", {"tokens": t, "ffn": width}, 6.0 * t * width, 10.0 * t * width, lambda b: swiglu(b, t, width)
    )
    out += _both(
        "cross_entropy",
        {"tokens": t, "vocab": model.vocab},
        2.0 * t * model.vocab,
        4.0 * t * model.vocab,
        lambda b: cross_entropy(b, t, model.vocab),
    )
    out.append(memory_point("quantise_fp8", {"tokens": t, "hidden": d}, 3.0 * t * d, lambda b: quantise(b, t, d)))
    out.append(memory_point("residual", {"tokens": t, "hidden": d}, 6.0 * t * d, lambda b: residual(b, t, d)))
    out += _both(
        "embedding",
        {"tokens": t, "hidden": d, "vocab": model.vocab},
        4.0 * t * d,
        2.0 * (t + model.vocab) * d,
        lambda b: embedding(b, t, d, model.vocab),
    )
    out.append(memory_point("grad_accumulate", {"tokens": t, "hidden": d}, 10.0 * t * d, lambda b: accumulate(b, t, d)))
    if model.experts:
        e, k = model.experts, model.top_k
        moe = {"tokens": t, "hidden": d, "experts": e, "top_k": k}
        out += _both(
            "router",
            {"tokens": t, "experts": e, "top_k": k},
            4.0 * t * e,
            8.0 * t * e,
            lambda b: router(b, t, e, k),
            dtype="fp32",
        )
        out.append(
            memory_point(
                "sort_rows",
                {"tokens": t, "experts": e, "top_k": k},
                16.0 * t * k,
                lambda b: sort_rows(b, t, e, k),
                dtype="int64",
            )
        )
        out += _both("permute", moe, 2.0 * t * d * (1 + k), 2.0 * t * d * (1 + k), lambda b: permute(b, t, d, e, k))
        out += _both(
            "unpermute", moe, 2.0 * t * d * (1 + k), 2.0 * t * d * (1 + 2 * k), lambda b: unpermute(b, t, d, e, k)
        )
    return out


Graph = tuple[Callable[..., Any], list[Any], Callable[..., Any]]  # function, leaves, float32 reference


def _both(
    op: str, sizes: dict[str, Any], forward: float, backward: float, make: Callable[[Bench], Graph], dtype: str = "bf16"
) -> list[Point]:
    """Forward and backward points of a differentiable op."""
    return [
        memory_point(op, sizes, forward, lambda bench: _forward(*make(bench)), dtype=dtype),
        memory_point(op, sizes, backward, lambda bench: _backward(bench, *make(bench)), pass_="backward", dtype=dtype),
    ]


def _forward(function: Callable[..., Any], leaves: list[Any], exact: Callable[..., Any]) -> Prepared:
    torch = torch_module()

    def run() -> Any:
        with torch.no_grad():
            return function(*leaves)

    def check() -> float:
        return worst_error([(run(), exact(*[leaf.float() for leaf in leaves]))])

    return Prepared(run=run, check=check)


def _backward(bench: Bench, function: Callable[..., Any], leaves: list[Any], exact: Callable[..., Any]) -> Prepared:
    torch = torch_module()
    leaves = [leaf.detach().requires_grad_(True) for leaf in leaves]
    out = function(*leaves)
    dout = torch.randn(out.shape, generator=bench.generator(7), device=bench.device, dtype=out.dtype)

    def run() -> Any:
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    def check() -> float:
        wide = [leaf.detach().float().requires_grad_(True) for leaf in leaves]
        want = torch.autograd.grad(exact(*wide), wide, dout.float())
        return worst_error(list(zip(run(), want, strict=True)))

    return Prepared(run=run, check=check)


def rms_norm(x: Any, weight: Any) -> Any:
    """x / rms(x) * weight over the last dimension, through torch's own kernel where it has one."""
    functional = torch_module().nn.functional
    if hasattr(functional, "rms_norm"):
        return functional.rms_norm(x, (x.shape[-1],), weight, 1e-6)
    return _plain_rms_norm(x, weight)


def _plain_rms_norm(x: Any, weight: Any) -> Any:
    return x * (x.float().square().mean(-1, keepdim=True) + 1e-6).rsqrt().to(x.dtype) * weight


def rmsnorm(bench: Bench, tokens: int, hidden: int) -> Graph:
    """RMSNorm with a weight."""
    return rms_norm, [bench.randn(tokens, hidden), bench.randn(hidden, seed=1)], _plain_rms_norm


def rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Rotary embedding of x[..., heads, dim] by halves."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch_module().cat([-second, first], dim=-1) * sin


def angles(tokens: int, dim: int, device: str, dtype: Any) -> tuple[Any, Any]:
    """cos and sin [tokens, 1, dim] of the rotary embedding (base 10,000)."""
    torch = torch_module()
    rate = 10000.0 ** (-torch.arange(0, dim, 2, device=device).float() / dim)
    angle = torch.arange(tokens, device=device).float()[:, None] * rate[None, :]
    angle = torch.cat([angle, angle], dim=-1)[:, None, :]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def angle(bench: Bench, tokens: int, dim: int) -> Prepared:
    """cos and sin of the rotary embedding, made anew as the block does."""
    dtype = torch_dtype("bf16")

    def check() -> float:
        cos, sin = angles(tokens, dim, bench.device, dtype)
        return worst_error([(cos.float().square() + sin.float().square(), cos.new_ones(cos.shape))])

    return Prepared(run=lambda: angles(tokens, dim, bench.device, dtype), check=check)


def rotary(bench: Bench, tokens: int, heads: int, dim: int) -> Graph:
    """Rotary embedding of queries."""
    cos, sin = angles(tokens, dim, bench.device, torch_dtype("bf16"))
    wide_cos, wide_sin = cos.float(), sin.float()
    return lambda x: rotate(x, cos, sin), [bench.randn(tokens, heads, dim)], lambda x: rotate(x, wide_cos, wide_sin)


def glu(x: Any) -> Any:
    """silu(gate) * up of x = [gate, up]."""
    gate, up = x.chunk(2, dim=-1)
    return torch_module().nn.functional.silu(gate) * up


def swiglu(bench: Bench, tokens: int, ffn: int) -> Graph:
    """Gated activation of an FFN."""
    return glu, [bench.randn(tokens, 2 * ffn)], glu


def cross_entropy(bench: Bench, tokens: int, vocab: int) -> Graph:
    """Mean cross-entropy of bf16 logits computed in float32, as trainers do."""
    torch = torch_module()
    target = torch.randint(vocab, (tokens,), generator=bench.generator(7), device=bench.device)
    loss = torch.nn.functional.cross_entropy
    return lambda x: loss(x.float(), target), [bench.randn(tokens, vocab)], lambda x: loss(x, target)


def embedding(bench: Bench, tokens: int, hidden: int, vocab: int) -> Graph:
    """Rows of a table by token; the gradient is a whole table, as a dense one is."""
    torch = torch_module()
    chosen = torch.randint(vocab, (tokens,), generator=bench.generator(7), device=bench.device)
    look_up = torch.nn.functional.embedding
    return lambda w: look_up(chosen, w), [bench.randn(vocab, hidden)], lambda w: look_up(chosen, w)


def route(logits: Any, top_k: int) -> tuple[Any, Any]:
    """Weights [tokens, k] (float32, sum 1) and experts [tokens, k] of softmax-then-top-k routing."""
    weights, chosen = logits.float().softmax(-1).topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), chosen


def router(bench: Bench, tokens: int, experts: int, top_k: int) -> Graph:
    """Softmax, top-k and renormalisation of router logits."""
    return lambda x: route(x, top_k)[0], [bench.randn(tokens, experts, dtype="fp32")], lambda x: route(x, top_k)[0]


def _order(bench: Bench, tokens: int, experts: int, top_k: int) -> Any:
    """Routed row -> token, rows sorted by expert, of a random routing."""
    torch = torch_module()
    chosen = bench.randn(tokens, experts, dtype="fp32", seed=5).topk(top_k, dim=-1).indices
    return torch.argsort(chosen.flatten(), stable=True) // top_k


def by_expert(chosen: Any, experts: int) -> tuple[Any, Any]:
    """Order of the routed rows sorted by expert, and rows of each expert; `chosen` is the expert of each row."""
    torch = torch_module()
    order = torch.argsort(chosen, stable=True)
    # Counts without a read-back: bincount would wait for the device.
    counts = torch.zeros(experts, dtype=torch.int32, device=chosen.device)
    counts.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=torch.int32))
    return order, counts


def sort_rows(bench: Bench, tokens: int, experts: int, top_k: int) -> Prepared:
    """Indices of routed rows: their order by expert, the way back, and the rows of each expert."""
    torch = torch_module()
    chosen = torch.randint(experts, (tokens * top_k,), generator=bench.generator(7), device=bench.device)

    def run() -> Any:
        order, counts = by_expert(chosen, experts)
        return order // top_k, torch.argsort(order), counts

    def check() -> float:
        _, back, counts = run()
        right = torch.equal(by_expert(chosen, experts)[0][back], torch.arange(tokens * top_k, device=bench.device))
        return 0.0 if right and int(counts.sum()) == tokens * top_k else 1.0

    return Prepared(run=run, check=check)


def permute(bench: Bench, tokens: int, hidden: int, experts: int, top_k: int) -> Graph:
    """Copy of each token to its k experts' rows."""
    order = _order(bench, tokens, experts, top_k)
    return lambda x: x.index_select(0, order), [bench.randn(tokens, hidden)], lambda x: x[order]


def unpermute(bench: Bench, tokens: int, hidden: int, experts: int, top_k: int) -> Graph:
    """Weighted sum of the k expert rows of each token."""
    torch = torch_module()
    order = _order(bench, tokens, experts, top_k)
    back = torch.argsort(order, stable=True)  # rows of token 0 first, then token 1, ...

    def gather(rows: Any, weights: Any) -> Any:
        return (rows.index_select(0, back).view(tokens, top_k, hidden) * weights[..., None]).sum(1)

    def exact(rows: Any, weights: Any) -> Any:
        flat = rows * weights.flatten()[torch.argsort(back)][:, None]
        return torch.zeros(tokens, hidden, device=rows.device).index_add(0, order, flat)

    return gather, [bench.randn(tokens * top_k, hidden), bench.randn(tokens, top_k, seed=1)], exact
