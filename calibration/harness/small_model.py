"""A small MoE transformer with the training state a real trainer keeps: what `train_step` steps.

Embedding, `layers` equal MoE blocks (those of `moe_block`), norm, untied head, cross-entropy in float32. Weights
are 16 bit; gradients are added to flat float32 buffers as they come; one fused AdamW per buffer
updates float32 master weights, which are copied back. Dense weights and experts have a
buffer each: over ranks the dense gradients are averaged in one all-reduce, the experts stay local.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from calibration.harness.group import distributed
from calibration.harness.memory_ops import rms_norm
from calibration.harness.moe_block import BlockDims, block, grouped_experts, loop_experts, make_weights
from calibration.harness.moe_block_ep import dispatched, local_weights
from calibration.harness.points import Bench, torch_dtype, torch_module

EXPERTS = ("up", "down")
LEARNING_RATE = 1e-3
LARGEST_NORM = 1.0
EPSILON = 1e-6
LAYER_SEEDS = 100  # seeds of one layer's weights lie apart from the next one's


@dataclass(frozen=True, kw_only=True)
class StepDims:
    """Sizes of a step. batch is sequences per rank and micro-batch; experts are those of all `ep` ranks."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    experts: int
    top_k: int
    ffn: int
    vocab: int
    seq: int
    batch: int
    micro_batches: int
    ranks: int = 1
    ep: int = 1

    @property
    def block(self) -> BlockDims:
        """Sizes of one block, with the experts of all ranks."""
        names = ("batch", "seq", "hidden", "heads", "kv_heads", "head_dim", "experts", "top_k", "ffn")
        return BlockDims(**{name: getattr(self, name) for name in names})

    @property
    def parameters(self) -> int:
        """Weights of the whole model, on all ranks together."""
        return self.layers * self.block.parameters + (2 * self.vocab + 1) * self.hidden

    @property
    def local_parameters(self) -> int:
        """Weights that one rank holds."""
        experts = 3 * self.layers * self.experts * self.hidden * self.ffn
        return self.parameters - experts + experts // self.ep

    @property
    def flop(self) -> float:
        """Useful FLOP of one step of one rank: blocks and head, forward and backward, without recompute."""
        head = 2.0 * self.block.tokens * self.hidden * self.vocab
        layer = self.block.flop("forward") + self.block.flop("backward")
        return self.micro_batches * (self.layers * layer + 3 * head)


class Flat:
    """Weights of one kind in one buffer: 16 bit weights, float32 main gradients, master weights, AdamW."""

    def __init__(self, weights: list[Any], dtype: Any) -> None:
        """Move `weights` into the buffer; `self.weights` are the leaves that replace them, in order."""
        torch = torch_module()
        self.stored = torch.cat([w.detach().reshape(-1) for w in weights]).to(dtype)
        self.grad = torch.zeros_like(self.stored, dtype=torch.float32)
        self.master = torch.nn.Parameter(self.stored.float())
        self.adam = torch.optim.AdamW([self.master], lr=LEARNING_RATE, fused=True)
        self.weights: list[Any] = []
        start = 0
        for weight in weights:
            end = start + weight.numel()
            leaf = self.stored[start:end].view(weight.shape).detach().requires_grad_(True)
            leaf.register_post_accumulate_grad_hook(_adder(self.grad[start:end].view(weight.shape)))
            self.weights.append(leaf)
            start = end

    def update(self, scale: Any) -> None:
        """One AdamW step on scale * gradient; the 16 bit weights follow, the gradients are cleared."""
        self.grad.mul_(scale)
        self.master.grad = self.grad
        self.adam.step()
        self.stored.copy_(self.master.detach())
        self.grad.zero_()


def _adder(main: Any) -> Callable[[Any], None]:
    def add(weight: Any) -> None:
        main.add_(weight.grad)
        weight.grad = None  # freed at once: a step never holds all 16 bit gradients

    return add


class Model:
    """Weights and state of one rank; `step` is one training step on the rank's own tokens."""

    def __init__(self, bench: Bench, dims: StepDims, dtype: str = "bf16", *, loop: bool = False) -> None:
        """`loop`: experts as single GEMMs, for types that the grouped kernel does not take."""
        torch = torch_module()
        self.dims, self._group = dims, bench.group
        self._kind = loop_experts if loop else grouped_experts
        scale = 1 / math.sqrt(dims.hidden)
        dense = {
            "embedding": bench.randn(dims.vocab, dims.hidden, dtype=dtype, seed=1),
            "norm": torch.ones(dims.hidden, device=bench.device, dtype=torch_dtype(dtype)),
            "head": bench.randn(dims.vocab, dims.hidden, dtype=dtype, scale=scale, seed=2),
        }
        experts: dict[str, Any] = {}
        for layer in range(dims.layers):
            made = local_weights(bench, make_weights(bench, dims.block, dtype, seed=LAYER_SEEDS * (layer + 1)))
            for name, weight in made.items():
                (experts if name in EXPERTS else dense)[f"{layer}.{name}"] = weight
            del made
        self.dense = Flat(list(dense.values()), torch_dtype(dtype))
        self.experts = Flat(list(experts.values()), torch_dtype(dtype))
        self.weights = dict(zip([*dense, *experts], self.dense.weights + self.experts.weights, strict=True))

    def loss(self, tokens: Any, targets: Any) -> Any:
        """Mean cross-entropy of one micro-batch [batch * seq]."""
        functional, w, dims = torch_module().nn.functional, self.weights, self.dims
        x = functional.embedding(tokens, w["embedding"])
        for layer in range(dims.layers):
            start = f"{layer}."
            mine = {name[len(start) :]: weight for name, weight in w.items() if name.startswith(start)}
            local = self._kind(mine)
            x = block(x, mine, dims.block, local if self._group is None else dispatched(local, self._group.ranks))
        logits = rms_norm(x, w["norm"]) @ w["head"].t()
        return functional.cross_entropy(logits.float(), targets)

    def reduce(self) -> None:
        """Sum the dense gradients over the ranks; an expert's already holds the tokens of all of them."""
        if self._group is not None:
            distributed().all_reduce(self.dense.grad)

    def optimise(self) -> Any:
        """Clip to the norm of all gradients and update; returns the norm, on the device."""
        torch = torch_module()
        share = 1 / (self.dims.micro_batches * (1 if self._group is None else self._group.ranks))
        local = self.experts.grad.norm().square()
        if self._group is not None:
            distributed().all_reduce(local)
        norm = (self.dense.grad.norm().square() + local).sqrt() * share
        scale = torch.clamp(LARGEST_NORM / (norm + EPSILON), max=1.0) * share
        self.dense.update(scale)
        self.experts.update(scale)
        return norm

    def step(self, batches: list[tuple[Any, Any]], mark: Callable[[str], None] = lambda part: None) -> None:
        """One step; `mark` is told the part that has just been launched."""
        for tokens, targets in batches:
            loss = self.loss(tokens, targets)
            mark("forward")
            loss.backward()
            mark("backward")
        self.reduce()
        mark("reduce")
        self.optimise()
        mark("optimizer")


def batches(bench: Bench, dims: StepDims, rank: int) -> list[tuple[Any, Any]]:
    """Random tokens and targets of the micro-batches of one rank."""
    torch = torch_module()
    generator = bench.generator(7000 + rank)

    def draw() -> Any:
        return torch.randint(dims.vocab, (dims.block.tokens,), generator=generator, device=bench.device)

    return [(draw(), draw()) for _ in range(dims.micro_batches)]
