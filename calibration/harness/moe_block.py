"""One real MoE transformer block on one device: what the sum of the kernels must add up to.

norm, QKV, rotary, causal GQA attention, output GEMM, residual; norm, router (softmax, top-k), permute,
grouped experts (gated), weighted unpermute, residual. Forward and backward, with the peak of memory.
`experts` are the local experts of one of `ep` ranks: with balanced routing such a rank works on
top_k x tokens rows, whatever ep is, so no communication is needed to time its share; `moe_block_ep`
times the same block with its all-to-all.

Ops: "moe_block" as the host launches it; "moe_block_device" with the launch gaps hidden;
"moe_block_loop" with a loop over experts, which must read row counts back to the host.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from calibration.harness.attention import attention_flop, reference
from calibration.harness.grouped import grouped_mm
from calibration.harness.memory_ops import angles, by_expert, glu, rms_norm, rotate, route
from calibration.harness.points import (
    ELEMENT_BYTES,
    Bench,
    Point,
    Prepared,
    Suite,
    models,
    shapes,
    torch_dtype,
    torch_module,
    worst_error,
)

FAMILY = "moe_block"
CHECK_TOKENS = 128
Experts = Callable[[Any, Any], Any]  # (rows sorted by expert, rows of each expert) -> their outputs


@dataclass(frozen=True, kw_only=True)
class BlockDims:
    """Sizes of one block on one rank. tokens = batch * seq; experts are local, ep says of how many ranks."""

    batch: int
    seq: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    ffn: int
    ep: int = 1

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch."""
        return self.batch * self.seq

    @property
    def parameters(self) -> int:
        """Weights of the block."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        attention = self.hidden * (qkv + self.heads * self.head_dim)
        return attention + self.hidden * (self.experts + 2) + 3 * self.experts * self.hidden * self.ffn

    def flop(self, pass_: str) -> float:
        """Useful FLOP of a pass: GEMMs of the rows that are routed, and the causal attention core."""
        qkv = (self.heads + 2 * self.kv_heads) * self.head_dim
        per_token = self.hidden * (qkv + self.heads * self.head_dim + self.experts)
        gemm = 2.0 * self.tokens * (per_token + 3 * self.top_k * self.hidden * self.ffn)
        core = attention_flop(pass_, self.batch, self.seq, self.heads, self.head_dim, self.head_dim, True)
        return gemm * (1 if pass_ == "forward" else 2) + core


def points(suite: Suite, device: str) -> list[Point]:
    """Points of the block family, most wanted first."""
    if suite == "tiny":
        tiny = BlockDims(batch=1, seq=32, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=4, top_k=2, ffn=48)
        ops: tuple[str, ...] = ("moe_block", "moe_block_loop")
        return [block_point(op, tiny, pass_) for op in ops for pass_ in ("forward", "backward")]
    if device == "cpu":
        # A CPU runs what the host launches: there is no gap to hide.
        table = shapes()["cpu"]["block"]
        wanted = [BlockDims(**row) for row in (table if suite == "full" else table[: len(table) * 2 // 3])]
        first = [("moe_block_loop", wanted[0])]
        named = [("moe_block", dims) for dims in wanted] + first
        return [block_point(op, dims, pass_) for op, dims in named for pass_ in ("forward", "backward")]
    found = []
    for dims in _sweep(suite):
        # The loop is the old way: enough to know its price at one size.
        loop = ("moe_block_loop",) if dims.seq == 4096 and dims.batch == 1 else ()
        for op in ("moe_block", "moe_block_device", *loop):
            found += [block_point(op, dims, pass_) for pass_ in ("forward", "backward")]
    return found


def _sweep(suite: Suite) -> Iterator[BlockDims]:
    moe = [m for m in models() if m.experts and not m.kv_lora_rank]
    # (sequence, micro-batch): large, host-bound, and two micro-batches of one sequence length.
    inputs = ((4096, 1), (512, 1)) if suite == "quick" else ((4096, 1), (4096, 2), (512, 1), (8192, 1), (2048, 1))
    for seq, batch in inputs:
        for model in moe[:2] if suite == "quick" else moe:
            for ep in (8, 4) if suite == "quick" else (8, 2, 1, 4, 16):
                local = model.experts // ep
                if local < model.top_k:
                    continue  # a token needs top_k different experts
                yield BlockDims(
                    batch=batch,
                    seq=seq,
                    hidden=model.hidden,
                    heads=model.heads,
                    kv_heads=model.kv_heads,
                    head_dim=model.head_dim,
                    experts=local,
                    top_k=model.top_k,
                    ffn=model.moe_ffn,
                    ep=ep,
                )


def block_point(op: str, dims: BlockDims, pass_: str, dtype: str = "bf16") -> Point:
    """One block, one pass."""
    return Point(
        family=FAMILY,
        op=op,
        dtype=dtype,
        pass_=pass_,
        sizes={**dims.__dict__, "tokens": dims.tokens},
        flop=dims.flop(pass_),
        bytes=float(ELEMENT_BYTES[dtype] * dims.parameters * (1 if pass_ == "forward" else 2)),
        prepare=lambda bench: _prepare(bench, op, dims, pass_, dtype),
    )


def weight_shapes(dims: BlockDims) -> dict[str, tuple[int, ...]]:
    """Name and shape of each weight of the block."""
    d, f, e = dims.hidden, dims.ffn, dims.experts
    qkv = (dims.heads + 2 * dims.kv_heads) * dims.head_dim
    return {
        "norm1": (d,),
        "qkv": (qkv, d),
        "out": (d, dims.heads * dims.head_dim),
        "norm2": (d,),
        "router": (e, d),
        "up": (e, 2 * f, d),
        "down": (e, d, f),
    }


def make_weights(bench: Bench, dims: BlockDims, dtype: str, seed: int = 10) -> dict[str, Any]:
    """Random weights scaled by 1/sqrt(inputs), so that activations stay of order one."""
    weights = {}
    for place, (name, shape) in enumerate(weight_shapes(dims).items()):
        scale = 1.0 if len(shape) == 1 else 1 / math.sqrt(shape[-1])
        weights[name] = bench.randn(*shape, dtype=dtype, scale=scale, seed=seed + place).requires_grad_(True)
    return weights


def _attention(x: Any, weights: dict[str, Any], dims: BlockDims, exact: bool) -> Any:
    torch = torch_module()
    b, s, h, g, dim = dims.batch, dims.seq, dims.heads, dims.kv_heads, dims.head_dim
    qkv = (rms_norm(x, weights["norm1"]) @ weights["qkv"].t()).view(b, s, h + 2 * g, dim)
    q, k, v = qkv.split([h, g, g], dim=2)
    cos, sin = angles(s, dim, str(x.device), x.dtype)
    q, k, v = (t.transpose(1, 2) for t in (rotate(q, cos, sin), rotate(k, cos, sin), v))
    if exact:
        core = reference(q, k, v, True)
    else:
        # Any backend: the block is what a trainer would run, so torch picks.
        kwargs = {"enable_gqa": True} if g != h else {}
        core = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, **kwargs)
    return x + core.transpose(1, 2).reshape(b * s, h * dim) @ weights["out"].t()


def chosen_experts(x: Any, weights: dict[str, Any], top_k: int) -> tuple[Any, Any]:
    """Router weights and experts [tokens, k] of normalised activations."""
    return route(x @ weights["router"].t(), top_k)


def loop_experts(weights: dict[str, Any]) -> Experts:
    """The experts as one GEMM each; reads the row counts back to the host."""

    def run(rows: Any, counts: Any) -> Any:
        parts = rows.split(counts.tolist())
        grown = [glu(part @ weights["up"][e].t()) @ weights["down"][e].t() for e, part in enumerate(parts)]
        return torch_module().cat(grown)

    return run


def grouped_experts(weights: dict[str, Any]) -> Experts:
    """The experts as two grouped GEMMs."""

    def run(rows: Any, counts: Any) -> Any:
        mm, ends = grouped_mm(), counts.cumsum(0).to(torch_module().int32)
        hidden = glu(mm(rows, weights["up"].transpose(-2, -1), offs=ends))
        return mm(hidden, weights["down"].transpose(-2, -1), offs=ends)

    return run


def block(x: Any, weights: dict[str, Any], dims: BlockDims, experts: Experts | None = None) -> Any:
    """Output [tokens, hidden] of the block; `experts` runs the routed rows (default: grouped GEMMs here)."""
    torch = torch_module()
    x = _attention(x, weights, dims, exact=False)
    normed = rms_norm(x, weights["norm2"])
    share, chosen = chosen_experts(normed, weights, dims.top_k)
    order, counts = by_expert(chosen.flatten(), dims.experts)
    rows = normed.index_select(0, order // dims.top_k)
    out = (experts or grouped_experts(weights))(rows, counts)
    back = torch.argsort(order)
    gathered = out.index_select(0, back).view(dims.tokens, dims.top_k, dims.hidden)
    return x + (gathered * share[..., None].to(x.dtype)).sum(1)


def naive_block(x: Any, weights: dict[str, Any], dims: BlockDims, chosen: Any) -> Any:
    """The same in float32 with every expert on every token; `chosen` [tokens, k] fixes the routing.

    Routing is given because rounding may swap two experts of nearly equal weight, which is no error.
    """
    torch = torch_module()
    x = _attention(x, weights, dims, exact=True)
    normed = rms_norm(x, weights["norm2"])
    scores = (normed @ weights["router"].t()).softmax(-1)
    keep = torch.zeros_like(scores).scatter(1, chosen, 1.0)
    share = scores * keep
    share = share / share.sum(-1, keepdim=True)
    out = x
    for e in range(dims.experts):
        out = out + share[:, e : e + 1] * (glu(normed @ weights["up"][e].t()) @ weights["down"][e].t())
    return out


def block_error(bench: Bench, dims: BlockDims, dtype: str, *, loop: bool, gradients: bool) -> float:
    """Relative error of the block (and of its gradients) against `naive_block` on random data."""
    torch = torch_module()
    weights = make_weights(bench, dims, dtype)
    x = bench.randn(dims.tokens, dims.hidden, dtype=dtype).requires_grad_(True)
    out = block(x, weights, dims, loop_experts(weights) if loop else None)
    with torch.no_grad():
        middle = rms_norm(_attention(x, weights, dims, exact=False), weights["norm2"])
        chosen = chosen_experts(middle, weights, dims.top_k)[1]
    wide = {name: w.detach().float().requires_grad_(True) for name, w in weights.items()}
    wide_x = x.detach().float().requires_grad_(True)
    exact = naive_block(wide_x, wide, dims, chosen)
    pairs = [(out.detach(), exact.detach())]
    if gradients:
        dout = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=99)
        got = torch.autograd.grad(out, [x, *weights.values()], dout)
        want = torch.autograd.grad(exact, [wide_x, *wide.values()], dout.float())
        # One expert has all the weight whatever its score: the router's gradient is nothing but rounding.
        names = ["x", *weights]
        pairs += [(g, w) for n, g, w in zip(names, got, want, strict=True) if dims.top_k > 1 or n != "router"]
    return worst_error(pairs)


def check_dims(dims: BlockDims) -> BlockDims:
    """A small block of the same kind, for the check against the naive one."""
    return BlockDims(
        batch=1,
        seq=min(dims.seq, CHECK_TOKENS),
        hidden=min(dims.hidden, 256),
        heads=dims.heads // dims.kv_heads * min(dims.kv_heads, 2),
        kv_heads=min(dims.kv_heads, 2),
        head_dim=dims.head_dim,
        experts=dims.experts,
        top_k=dims.top_k,
        ffn=min(dims.ffn, 256),
    )


def _prepare(bench: Bench, op: str, dims: BlockDims, pass_: str, dtype: str) -> Prepared:
    torch = torch_module()
    torch_dtype(dtype)
    loop = op == "moe_block_loop"
    weights = make_weights(bench, dims, dtype)
    x = bench.randn(dims.tokens, dims.hidden, dtype=dtype).requires_grad_(True)
    experts = loop_experts(weights) if loop else None

    def check() -> float:
        # Rounding adds up over a chain of nine ops, hence a third of the single kernel's tolerance.
        small, gradients = check_dims(dims), pass_ == "backward"
        key = ("moe_block", small, dtype, loop, gradients)
        return bench.once(key, lambda: block_error(bench, small, dtype, loop=loop, gradients=gradients) / 3)

    def forward() -> Any:
        return block(x, weights, dims, experts)

    hide = op == "moe_block_device"
    if pass_ == "forward":
        return Prepared(run=forward, check=check, hide_launch=hide, peak=forward)
    dout = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=99)
    out = forward()
    leaves = [x, *weights.values()]

    def backward() -> Any:
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return Prepared(run=backward, check=check, hide_launch=hide, peak=backward)
