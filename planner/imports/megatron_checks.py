"""What Megatron-LM's parser would refuse, or a reader of a plan would miss, in flags that were read from a script."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

from sim.model import ModelSpec

Given = Mapping[str, list[str]]
# Flags that decide something of a plan, as Megatron-LM 0.19.2 names them; those of the first line take one value.
VALUED = (
    "tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size", "expert-model-parallel-size",
    "expert-tensor-parallel-size", "num-virtual-stages-per-pipeline-rank", "num-layers-per-virtual-pipeline-stage",
    "decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers", "pipeline-model-parallel-layout",
    "microbatch-group-size-per-virtual-pipeline-stage", "num-distributed-optimizer-instances", "micro-batch-size",
    "global-batch-size", "seq-length", "num-layers", "num-experts", "moe-token-dispatcher-type", "recompute-method",
    "moe-flex-dispatcher-backend", "moe-expert-capacity-factor", "recompute-granularity", "recompute-num-layers",
    "data-parallel-sharding-strategy", "optimizer", "optimizer-offload-fraction", "main-params-dtype",
    "main-grads-dtype", "exp-avg-dtype", "exp-avg-sq-dtype", "fp8-format", "fp4-format", "cuda-graph-impl",
    "cpu-offloading-num-layers", "attention-backend", "mtp-num-layers",
)  # fmt: skip
SWITCHES = (
    "sequence-parallel", "use-distributed-optimizer", "use-megatron-fsdp", "use-torch-fsdp2", "use-tp-pp-dp-mapping",
    "overlap-grad-reduce", "overlap-param-gather", "overlap-moe-expert-parallel-comm", "delay-wgrad-compute",
    "moe-shared-expert-overlap", "moe-permute-fusion", "tp-comm-overlap", "grad-reduce-in-bf16", "recompute-modules",
    "recompute-activations", "use-precision-aware-optimizer", "optimizer-cpu-offload", "cross-entropy-loss-fusion",
    "no-overlap-p2p-communication", "account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split",
    "fine-grained-activation-offloading", "offload-modules", "rampup-batch-size", "cuda-graph-modules", "fp8-recipe",
    "moe-grouped-gemm",
)  # fmt: skip
READ = frozenset((*VALUED, *SWITCHES))
# Options of Megatron-LM whose names are near those above and mean something else.
OTHERS = frozenset(
    {
        "eval-global-batch-size", "eval-micro-batch-size", "fp4-recipe", "moe-expert-rank-capacity-factor",
        "moe-router-fusion", "tp-comm-overlap-cfg",
    }
)  # fmt: skip
LIKENESS = 0.88
_APART: tuple[tuple[tuple[str, ...], str], ...] = (
    (("fp16", "bf16"), "one precision"),
    (("fp8-format", "fp4-format"), "one low precision"),
    (("use-torch-fsdp2", "use-distributed-optimizer"), "one way to shard"),
    (("use-torch-fsdp2", "use-megatron-fsdp"), "one way to shard"),
    (
        ("num-layers-per-virtual-pipeline-stage", "num-virtual-stages-per-pipeline-rank",
         "pipeline-model-parallel-layout"), "one way to ask for virtual stages",
    ),
    (("pipeline-model-parallel-layout", "decoder-first-pipeline-num-layers"), "one way to lay out stages"),
    (("pipeline-model-parallel-layout", "decoder-last-pipeline-num-layers"), "one way to lay out stages"),
    (("pipeline-model-parallel-layout", "account-for-embedding-in-pipeline-split"), "one way to lay out stages"),
    (("pipeline-model-parallel-layout", "account-for-loss-in-pipeline-split"), "one way to lay out stages"),
)  # fmt: skip


def refused(given: Given) -> list[str]:
    """Flags that the parser refuses: misspelt, without a value, or that exclude each other."""
    out = []
    for name in given:
        if name in READ or name in OTHERS:
            continue
        near = difflib.get_close_matches(name.replace("_", "-"), READ, n=1, cutoff=LIKENESS)
        if near:
            out.append(f"--{name[:60]} is no option of Megatron-LM; did you mean --{near[0]}?")
    out += [f"--{name} has no value; give it one" for name in VALUED if name in given and not given[name]]
    for names, what in _APART:
        both = [f"--{name}" for name in names if name in given]
        if len(both) > 1:
            out.append(f"{' and '.join(both)} exclude each other; keep {what}")
    if "moe_act" in given.get("recompute-modules", []) and "moe-grouped-gemm" not in given:
        out.append(
            "moe-act-grouped-gemm: Megatron-LM's transformer_config.py takes --recompute-modules moe_act with "
            "--moe-grouped-gemm only; add it, or leave moe_act out"
        )
    return out


def other_model(given: Given, model: ModelSpec) -> list[str]:
    """Sizes in the flags that are not the model's."""
    moes = [layer.moe for layer in model.layers if layer.moe is not None]
    have: dict[str, set[int]] = {
        "hidden-size": {model.hidden_dim},
        "num-attention-heads": {layer.attention.heads for layer in model.layers},
        "num-experts": {moe.num_experts for moe in moes},
        "moe-router-topk": {moe.top_k for moe in moes},
    }
    out = []
    for name, sizes in have.items():
        said = given.get(name, [""])[:1]
        if sizes and said and said[0].isdecimal() and int(said[0][:12]) not in sizes:
            shown = ", ".join(map(str, sorted(sizes)))
            out.append(f"--{name} {said[0][:12]} is not {model.name}, which has {shown}; give its --model")
    if not moes and given.get("num-experts"):
        out.append(f"--num-experts is given, and {model.name} has none; give its --model")
    return out


def unpriced(given: Given) -> list[str]:
    """Notes on flags that change a step and that the simulator takes no notice of."""
    out = []
    ring = given.get("cp-comm-type", ["p2p"])
    if any(kind != "p2p" for kind in ring):
        out.append(f"--cp-comm-type {' '.join(ring)[:40]} is taken as p2p, the ring: no other is modelled")
    if "use-hybrid-shard" in given or "hierarchical-context-parallel-sizes" in given:
        out.append("hierarchical context parallelism is taken as one ring")
    if "num-experts" in given and "moe-grouped-gemm" not in given:
        out.append(
            "no --moe-grouped-gemm: Megatron-LM runs local experts one after the other (SequentialMLP), whose "
            "kernels and launches beside the GEMMs are not priced: the step is slower than said; add --moe-grouped-gemm"
        )
    return out


def doubts(unsure: Iterable[tuple[str, str, str]], used: Sequence[str]) -> list[str]:
    """Notes on what a test decides that only a shell can: variables that stand in flags, and flags of a plan."""
    out: dict[str, str] = {}
    for name, value, test in unsure:
        shown = "".join(c if c.isprintable() else "?" for c in test)[:60]
        if name.startswith("--"):
            if name[2:] in READ:
                out[name] = f"{name} is read, though only a shell can say whether {shown} holds"
        elif name in used:
            out[name] = f"{name} is taken as {value[:40]}, though only a shell can say whether {shown} holds"
    return list(out.values())
