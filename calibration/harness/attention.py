"""Attention core: scaled_dot_product_attention forward and backward, by backend.

Shapes: grouped queries (kv_heads < heads), MLA (dqk 192, dv 128), causal or full. FLOP of one causal
forward: batch s^2 heads (dqk + dv), half of the full product; backward recomputes the scores:
batch s^2 heads (3 dqk + 2 dv). A backend that cannot take dqk != dv is also timed with the values
padded to dqk (op "..._pad_v"); its FLOP stay those of the unpadded core.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from typing import Any

from calibration.harness.points import (
    ELEMENT_BYTES,
    Bench,
    Point,
    Prepared,
    Skip,
    Suite,
    models,
    shapes,
    torch_module,
    worst_error,
)

FAMILY = "attention"
CHECK_SEQ = 256
# (backend, pad_v, batch, seq, heads, kv_heads, dqk, dv, causal)
Key = tuple[str, bool, int, int, int, int, int, int, bool]


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the attention family, most wanted first, no point twice."""
    sweep = _tiny() if suite == "tiny" else (_cpu(suite) if device == "cpu" else _sweep(suite))
    keys = dict.fromkeys(sweep)
    return [attention_point(*key, pass_=pass_) for key in keys for pass_ in ("forward", "backward")]


def _tiny() -> Iterator[Key]:
    yield "math", False, 1, 32, 4, 2, 16, 16, True
    yield "math", False, 1, 32, 2, 2, 24, 16, True
    yield "flash", True, 1, 32, 2, 2, 24, 16, True
    yield "flash", False, 2, 32, 2, 2, 16, 16, False


def _cpu(suite: Suite) -> Iterator[Key]:
    table = shapes()["cpu"]["attention"]
    wanted = table["shape"] if suite == "full" else table["shape"][:3]
    for seq in table["seq"]:
        for batch, heads, kv_heads, head_dim in wanted:
            if batch * heads * seq**2 <= table["largest"]:
                yield "flash", False, batch, seq, heads, kv_heads, head_dim, head_dim, True


def _sweep(suite: Suite) -> Iterator[Key]:
    cores = list(dict.fromkeys((m.heads, m.kv_heads, m.head_dim, m.dv) for m in models()))
    backends = ("flash", "cudnn")
    # Long sequences with the few heads of one tensor-parallel rank: grouped queries, and MLA.
    few = ((8, 1, 128, 128), (16, 16, 192, 128))
    for seq in (1024, 16384) if suite == "quick" else (1024, 4096, 16384, 65536, 131072):
        for heads, kv_heads, dqk, dv in few:
            for backend in backends if suite == "full" else ("flash",):
                yield (backend, False, 1, seq, heads, kv_heads, dqk, dv, True)
                if dqk != dv and seq <= 65536:
                    yield ("flash", True, 1, seq, heads, kv_heads, dqk, dv, True)
    seqs = (4096,) if suite == "quick" else (4096, 8192, 2048, 1024, 16384, 32768)
    tps = (1,) if suite == "quick" else (1, 4, 8)
    for tp in tps:
        for seq in seqs:
            for heads, kv_heads, dqk, dv in cores[:4] if suite == "quick" else cores:
                if heads % tp:
                    continue
                shape = (1, seq, heads // tp, max(kv_heads // tp, 1), dqk, dv)
                for backend in backends:
                    yield (backend, False, *shape, True)
                if dqk != dv:
                    yield ("flash", True, *shape, True)
    if suite == "full":
        for backend in backends:
            for batch in (2, 4, 8):
                yield backend, False, batch, 4096, 32, 8, 128, 128, True
            yield backend, False, 1, 4096, 32, 8, 128, 128, False


def attention_flop(pass_: str, batch: int, seq: int, heads: int, dqk: int, dv: int, causal: bool) -> float:
    """FLOP of one pass; causal counts the half that is needed.

    >>> attention_flop("forward", 1, 2, 1, 1, 1, False)
    16.0
    """
    products = dqk + dv if pass_ == "forward" else 3 * dqk + 2 * dv
    return (1.0 if causal else 2.0) * batch * seq**2 * heads * products


def attention_point(
    backend: str,
    pad_v: bool,
    batch: int,
    seq: int,
    heads: int,
    kv_heads: int,
    dqk: int,
    dv: int,
    causal: bool,
    *,
    pass_: str,
    dtype: str = "bf16",
) -> Point:
    """One attention core of a backend ("flash", "cudnn", "efficient", "math")."""
    tokens = batch * seq
    operands = tokens * (heads * (dqk + dv) + kv_heads * (dqk + dv))  # q, out; k, v
    passes = 1 if pass_ == "forward" else 2  # backward also reads the output's gradient and writes three
    return Point(
        family=FAMILY,
        op=f"attention_{backend}" + ("_pad_v" if pad_v else ""),
        dtype=dtype,
        pass_=pass_,
        sizes={
            "batch": batch,
            "seq": seq,
            "heads": heads,
            "kv_heads": kv_heads,
            "dqk": dqk,
            "dv": dv,
            "causal": causal,
        },
        flop=attention_flop(pass_, batch, seq, heads, dqk, dv, causal),
        bytes=float(passes * ELEMENT_BYTES[dtype] * operands),
        prepare=lambda bench: _prepare(
            bench, backend, pad_v, batch, seq, heads, kv_heads, dqk, dv, causal, pass_, dtype
        ),
    )


def backend_context(name: str) -> Any:
    """Context in which torch may use this backend only. Raises Skip where torch does not know it."""
    try:
        attention = importlib.import_module("torch.nn.attention")
        backend = getattr(
            attention.SDPBackend,
            {
                "flash": "FLASH_ATTENTION",
                "cudnn": "CUDNN_ATTENTION",
                "efficient": "EFFICIENT_ATTENTION",
                "math": "MATH",
            }[name],
        )
    except (ImportError, AttributeError) as error:
        raise Skip(f"this torch has no {name} attention") from error
    return attention.sdpa_kernel([backend])


def core(backend: str, pad_v: bool, q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Attention output [batch, heads, seq, dv] through one backend."""
    functional = torch_module().nn.functional
    dv = v.shape[-1]
    if pad_v:
        v = functional.pad(v, (0, q.shape[-1] - dv))
    kwargs: dict[str, Any] = {"enable_gqa": True} if k.shape[1] != q.shape[1] else {}
    with backend_context(backend):
        # The scale is given: padding must not change it.
        out = functional.scaled_dot_product_attention(
            q, k, v, is_causal=causal, scale=1 / math.sqrt(q.shape[-1]), **kwargs
        )
    return out[..., :dv] if pad_v else out


def reference(q: Any, k: Any, v: Any, causal: bool) -> Any:
    """Plain float32 attention: softmax(q k^T / sqrt(dqk)) v, heads of k and v repeated."""
    torch = torch_module()
    q, k, v = q.float(), k.float(), v.float()
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, dim=1), v.repeat_interleave(repeat, dim=1)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    if causal:
        keep = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        scores = scores.masked_fill(~keep, float("-inf"))
    return scores.softmax(-1) @ v


def _operands(
    bench: Bench, batch: int, seq: int, heads: int, kv_heads: int, dqk: int, dv: int, dtype: str
) -> tuple[Any, Any, Any, Any]:
    """q, k, v, d(out), stored [batch, seq, heads, dim] as a linear layer leaves them."""

    def make(count: int, dim: int, seed: int) -> Any:
        return bench.randn(batch, seq, count, dim, dtype=dtype, seed=seed).transpose(1, 2)

    return make(heads, dqk, 0), make(kv_heads, dqk, 1), make(kv_heads, dv, 2), make(heads, dv, 3)


def _prepare(
    bench: Bench,
    backend: str,
    pad_v: bool,
    batch: int,
    seq: int,
    heads: int,
    kv_heads: int,
    dqk: int,
    dv: int,
    causal: bool,
    pass_: str,
    dtype: str,
) -> Prepared:
    torch = torch_module()

    def check() -> float:
        q, k, v, dout = _operands(bench, 1, min(seq, CHECK_SEQ), heads, kv_heads, dqk, dv, dtype)
        leaves = [t.detach().clone().requires_grad_(pass_ == "backward") for t in (q, k, v)]
        out = core(backend, pad_v, leaves[0], leaves[1], leaves[2], causal)
        exact_leaves = [t.detach().float().clone().requires_grad_(pass_ == "backward") for t in (q, k, v)]
        exact = reference(exact_leaves[0], exact_leaves[1], exact_leaves[2], causal)
        pairs = [(out.detach(), exact.detach())]
        if pass_ == "backward":
            got = torch.autograd.grad(out, leaves, dout)
            want = torch.autograd.grad(exact, exact_leaves, dout.float())
            pairs += list(zip(got, want, strict=True))
        return worst_error(pairs)

    key = ("attention", backend, pad_v, min(seq, CHECK_SEQ), heads, kv_heads, dqk, dv, causal, pass_, dtype)

    def once() -> float:
        return bench.once(key, check)

    q, k, v, dout = _operands(bench, batch, seq, heads, kv_heads, dqk, dv, dtype)
    if pass_ == "forward":

        def forward() -> Any:
            with torch.no_grad():
                return core(backend, pad_v, q, k, v, causal)

        return Prepared(run=forward, check=once)
    leaves = [t.requires_grad_(True) for t in (q, k, v)]
    out = core(backend, pad_v, leaves[0], leaves[1], leaves[2], causal)
    return Prepared(run=lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True), check=once)
