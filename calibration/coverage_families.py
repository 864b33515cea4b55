"""What the layers of each family of models rest on, by device: the second half of docs/reference/coverage.md.

A family's kernel time is priced once, on `PRICED_ON`, and split by kernel family; what each of these rests on is the
device's (`hwprofiles.coverage`). Devices whose kernels rest on the same things stand together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import gcd

import numpy as np

from hwprofiles import catalogue
from hwprofiles.coverage import coverage
from sim.build.layer import layer_ops
from sim.cost.model import CostModel
from sim.families import load_model, model_names
from sim.model import LayerSpec, ModelSpec, total_params
from sim.plan import Plan
from sim.scenario import Scenario
from sim.workload import Workload

PRICED_ON, GPUS, SEQ_TOKENS = "dgx-h100", 8, 4096
KERNELS = ("gemm", "attention", "grouped GEMM", "memory-bound", "core without table")
_KINDS = {"gemm": "gemm", "attention": "attention", "grouped_gemm": "grouped GEMM", "memory": "memory-bound"}
# What a kernel family may rest on, best first; "borrowed" is the measurement of a part of the same silicon.
RESTS = ("measured", "scaled", "datasheet", "assumed")


def families() -> Mapping[str, ModelSpec]:
    """The model with fewest parameters of every family of the catalogue, by family."""
    found: dict[str, ModelSpec] = {}
    for model in sorted(map(load_model, model_names()), key=lambda m: (total_params(m), m.name)):
        found.setdefault(model.family, model)
    return dict(sorted(found.items()))


def layer_words(layer: LayerSpec) -> list[str]:
    """The kinds of work in a layer, in words."""
    att, moe = layer.attention, layer.moe
    words: list[str] = []
    if layer.mixer is not None:
        words.append(layer.mixer.kind)
    elif att.kind != "none":
        form = "latent" if att.kind == "mla" else "full"
        if att.compress_rate:
            form = "compressed sparse" if att.index_topk else "compressed"
            return [f"{form} attention", *(["experts"] if moe is not None else ["dense FFN"])]
        words.append("sparse" if att.index_topk else "chunked" if att.chunk else "windowed" if att.window else form)
        words[-1] += " attention"
    if moe is not None:
        words.append("experts")
    return [*words, "dense FFN"] if layer.ffn_dim or (moe is not None and moe.residual_ffn_dim) else words


def shares(model: ModelSpec) -> Mapping[str, float]:
    """Share of each of `KERNELS` in the kernel time of a model's layers: both passes, without communication."""
    experts = gcd(*(x.moe.num_experts for x in model.layers if x.moe is not None), 0)
    ep = gcd(GPUS, experts) if experts else 1
    cluster = catalogue.cluster(PRICED_ON, gpus=GPUS)
    software = catalogue.software("megatron-lm", device=cluster.device, arch="moe" if model.is_moe else "dense")
    scenario = Scenario(
        model=model, cluster=cluster, software=software, plan=Plan(dp=GPUS, ep=ep, edp=GPUS // ep),
        workload=Workload(seq_tokens=min(SEQ_TOKENS, model.max_positions or SEQ_TOKENS), global_batch_seqs=GPUS),
    )  # fmt: skip
    cost, ctx = CostModel(cluster, software), scenario.context()
    seconds = dict.fromkeys(KERNELS, 0.0)
    kinds, index = model.layer_kinds()
    for number, layer in enumerate(kinds):
        for op in layer_ops(ctx, layer):
            if op.kind in _KINDS:
                name = KERNELS[-1] if op.rests_on else _KINDS[op.kind]
                seconds[name] += index.count(number) * float(np.max(cost.compute.seconds(op)))
    return {name: value / sum(seconds.values()) for name, value in seconds.items()}


def classes() -> Mapping[tuple[str, ...], list[str]]:
    """Devices by what their kernels rest on: one word of `RESTS` for each of `KERNELS`."""
    found: dict[tuple[str, ...], list[str]] = {}
    for name in catalogue.names("devices"):
        said = coverage(catalogue.device(name))
        words = [_word(said[kernel]) for kernel in KERNELS[:-1]]
        found.setdefault((*words, "assumed"), []).append(name)
    return found


def _word(said: str) -> str:
    first = said.split()[0]
    return "measured" if first in ("calibrated", "borrowed") else first


def rests(parts: Mapping[str, float], words: Sequence[str]) -> str:
    """Percent of the kernel time per word of `RESTS`, those above half a percent."""
    total = dict.fromkeys(RESTS, 0.0)
    for kernel, word in zip(KERNELS, words, strict=True):
        total[word] += parts[kernel]
    return ", ".join(f"{word} {100 * share:.0f}" for word, share in total.items() if share >= 0.005)


def rows() -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: a family a row, its kernel time by kernel and by what it rests on per class."""
    found = classes()
    header = ["family", "model", "layers", *KERNELS, *(f"class {n}" for n in range(1, len(found) + 1))]
    out = []
    for family, model in families().items():
        words = dict.fromkeys(word for layer in model.layers for word in layer_words(layer))
        parts = shares(model)
        said = [f"{100 * parts[kernel]:.0f} %" if parts[kernel] else "" for kernel in KERNELS]
        out.append([family, model.name, ", ".join(words), *said, *(rests(parts, word) for word in found)])
    return header, out


def class_lines() -> list[str]:
    """The classes of devices in words, and who is in each."""
    lines = []
    for n, (words, names) in enumerate(classes().items(), start=1):
        said = ", ".join(f"{kernel} {word}" for kernel, word in zip(KERNELS, words, strict=True))
        lines.append(f"- class {n} ({said}): {', '.join(names)}")
    return lines
