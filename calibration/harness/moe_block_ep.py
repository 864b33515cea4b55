"""The MoE block over ranks: experts split over all of them, rows sent by the real router's counts.

Each rank has its own tokens, all weights but the experts, and experts_local = experts / ep experts. Rows
sorted by expert go out in one all-to-all, are sorted by local expert, run, and come back in a
second one; the counts go ahead and are read back to the host, as dispatchers without a fused kernel do.
A row is the slowest rank's; `observed` says how many rows the busiest rank received.
"""

from __future__ import annotations

from typing import Any

from calibration.harness.group import all_to_all, distributed, exchange
from calibration.harness.moe_block import (
    BlockDims,
    Experts,
    block,
    check_dims,
    grouped_experts,
    loop_experts,
    make_weights,
)
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

FAMILY = "moe_block_ep"


def points(suite: Suite, device: str, ranks: int) -> list[Point]:
    """Blocks over `ranks` ranks, forward and backward; those whose experts do not divide are left out."""
    wanted = [dims for dims in _sweep(suite, device) if dims.experts % ranks == 0]
    return [_point(dims, pass_, ranks) for dims in wanted for pass_ in ("forward", "backward")]


def _sweep(suite: Suite, device: str) -> list[BlockDims]:
    if suite == "tiny":
        return [BlockDims(batch=1, seq=32, hidden=32, heads=4, kv_heads=2, head_dim=8, experts=8, top_k=2, ffn=48)]
    if device == "cpu":
        return [BlockDims(**row) for row in shapes()["cpu"]["block"]][: 5 if suite == "quick" else 10]
    moe = [m for m in models() if m.experts and not m.kv_lora_rank][: 2 if suite == "quick" else None]
    return [
        BlockDims(
            batch=1,
            seq=seq,
            hidden=m.hidden,
            heads=m.heads,
            kv_heads=m.kv_heads,
            head_dim=m.head_dim,
            experts=m.experts,
            top_k=m.top_k,
            ffn=m.moe_ffn,
        )
        for seq in ((4096,) if suite == "quick" else (4096, 8192, 1024))
        for m in moe
    ]


def _point(dims: BlockDims, pass_: str, ranks: int, dtype: str = "bf16") -> Point:
    local = dims.experts // ranks
    sizes = {**dims.__dict__, "tokens": dims.tokens, "ep": ranks, "ranks": ranks, "experts_local": local}
    other = dims.parameters - 3 * (dims.experts - local) * dims.hidden * dims.ffn
    return Point(
        family=FAMILY,
        op="moe_block_ep",
        dtype=dtype,
        pass_=pass_,
        sizes=sizes,
        flop=dims.flop(pass_),
        bytes=float(ELEMENT_BYTES[dtype] * other * (1 if pass_ == "forward" else 2)),
        prepare=lambda bench: _prepare(bench, dims, pass_, dtype),
    )


def local_weights(bench: Bench, weights: dict[str, Any]) -> dict[str, Any]:
    """The weights of this rank: its share of the experts, all of the rest."""
    group = bench.group
    if group is None:
        return weights

    def share(weight: Any) -> Any:
        count = weight.shape[0] // group.ranks
        return weight.detach()[group.rank * count : (group.rank + 1) * count].clone().requires_grad_(True)

    return {name: share(w) if name in ("up", "down") else w for name, w in weights.items()}


def dispatched(local: Experts, ranks: int, seen: list[int] | None = None) -> Experts:
    """Experts of all ranks: sends rows to their owner, runs `local` there, brings the results back.

    The rows received are written into `seen`.
    """
    torch = torch_module()

    def run(rows: Any, counts: Any) -> Any:
        here = counts.numel() // ranks
        arriving = all_to_all(torch.empty_like(counts), counts)  # [source rank, local expert]
        both = torch.stack([counts.view(ranks, here).sum(1), arriving.view(ranks, here).sum(1)])
        sent, got = both.tolist()
        if seen is not None:
            seen[:] = [sum(got)]
        rows = exchange()(rows, got, sent)
        owner = torch.arange(here, device=rows.device).repeat(ranks)
        order = torch.argsort(owner.repeat_interleave(arriving, output_size=sum(got)), stable=True)
        mine = arriving.view(ranks, here).sum(0).to(torch.int32)
        out = local(rows.index_select(0, order), mine)
        return exchange()(out.index_select(0, torch.argsort(order)), sent, got)

    return run


def _prepare(bench: Bench, dims: BlockDims, pass_: str, dtype: str) -> Prepared:
    torch, group = torch_module(), bench.group
    if group is None:
        raise Skip("a group of one rank has nobody to send to")
    weights = local_weights(bench, make_weights(bench, dims, dtype))
    x = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=1000 + group.rank).requires_grad_(True)
    seen = [0]
    experts = dispatched(grouped_experts(weights), group.ranks, seen)

    def forward() -> Any:
        return block(x, weights, dims, experts)

    def check() -> float:
        small = check_dims(dims)
        return bench.once(("moe_block_ep", small, dtype), lambda: ep_error(bench, small, dtype) / 3)

    out = forward()
    rows_max = int(group.worst([float(seen[0])])[0])
    observed = {"rows_max": rows_max, "rows_mean": dims.tokens * dims.top_k}
    if pass_ == "forward":
        return Prepared(run=forward, check=check, hide_launch=False, peak=forward, observed=lambda: observed)
    dout = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=99)
    leaves = [x, *weights.values()]

    def backward() -> Any:
        return torch.autograd.grad(out, leaves, dout, retain_graph=True)

    return Prepared(run=backward, check=check, hide_launch=False, peak=backward, observed=lambda: observed)


def ep_error(bench: Bench, dims: BlockDims, dtype: str, *, loop: bool = False) -> float:
    """Relative error of the block over ranks, and of its gradients, against all experts on one rank.

    An expert's gradient sums over the tokens of all ranks, so the reference's is summed over ranks first.
    """
    torch, group = torch_module(), bench.group
    assert group is not None
    kind = loop_experts if loop else grouped_experts
    whole = make_weights(bench, dims, dtype)
    weights = local_weights(bench, whole)
    x = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=1000 + group.rank).requires_grad_(True)
    dout = bench.randn(dims.tokens, dims.hidden, dtype=dtype, seed=2000 + group.rank)
    out = block(x, weights, dims, dispatched(kind(weights), group.ranks))
    exact = block(x, whole, dims, kind(whole))
    got = torch.autograd.grad(out, [x, *weights.values()], dout)
    want = torch.autograd.grad(exact, [x, *whole.values()], dout)
    pairs = [(out.detach(), exact.detach())]
    for name, mine, reference in zip(["x", *whole], got, want, strict=True):
        if name in ("up", "down"):
            total = reference.float()
            distributed().all_reduce(total)
            count = mine.shape[0]
            reference = total[group.rank * count : (group.rank + 1) * count]
        if name != "router" or dims.top_k > 1:  # with one expert its gradient is nothing but rounding
            pairs.append((mine, reference))
    return worst_error(pairs)
