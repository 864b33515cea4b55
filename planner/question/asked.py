"""Every option of the question, once: `plan` and `simulate` take the same ones, and so do studies and the dashboard.

Values are text, as typed, and are read in `planner.question.read`, so that all mistakes are reported at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, get_type_hints

QUESTION = "Question"
LAYOUT = "Layout (whatever is left out is free in `plan`, 1 in `simulate`)"
_TRAINING = "Training (default: Adam on all weights, everything on the device)"
OUTPUT = "Output"


@dataclass(frozen=True)
class Option:
    """What people are told of a field: its option, what it means, how its value is written, where it stands."""

    name: str
    text: str
    metavar: str
    panel: str


Text = str | None

JSON = Option("--json", "Write the result as JSON to FILE, or to the terminal with -.", "FILE|-", OUTPUT)
STRICT = Option("--strict", "Treat extrapolated or assumed numbers as errors (exit code 2).", "", OUTPUT)
ANCHOR = Option(
    "--anchor", "Own measured runs (CSV as of `moecast validate`) that predictions are anchored to; may be repeated.",
    "RUNS.csv", QUESTION,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user typed. Field defaults are the option defaults."""

    model: Annotated[
        Text, Option("--model", "Catalogue name, config.json or TOML file (see `moecast show models`).",
                      "NAME|FILE", QUESTION)
    ] = None  # fmt: skip
    cluster: Annotated[
        Text, Option("--cluster", "Preset or TOML file (see `moecast show clusters`).", "NAME|FILE", QUESTION)
    ] = None  # fmt: skip
    gpus: Annotated[
        Text, Option("--gpus", "Devices to use; a preset grows to it. Default: the cluster's own.", "N", QUESTION)
    ] = None  # fmt: skip
    seq_len: Annotated[
        str, Option("--seq-len", "Tokens per sequence. Default: 4096, or those of the model's image.", "N",
                     QUESTION)
    ] = "4096"  # fmt: skip
    global_batch: Annotated[
        str, Option("--global-batch", "Sequences per step over all devices. Default: 1024.", "N", QUESTION)
    ] = "1024"  # fmt: skip
    precision: Annotated[
        str, Option("--precision", "Large GEMMs in bf16, fp16, fp8, fp8_block, mxfp8 or nvfp4. Default: bf16.", "NAME",
                     QUESTION)
    ] = "bf16"  # fmt: skip
    software: Annotated[
        Text, Option("--software", "Trainer release, name or TOML file. Default: the device's usual one, or the "
                      "target's.", "NAME|FILE", QUESTION)
    ] = None  # fmt: skip
    micro_batch: Annotated[Text, Option("--micro-batch", "Sequences per micro-batch.", "N", LAYOUT)] = None
    tp: Annotated[Text, Option("--tp", "Tensor parallel degree of attention and dense layers.", "N", LAYOUT)] = None
    pp: Annotated[Text, Option("--pp", "Pipeline stages.", "N", LAYOUT)] = None
    vpp: Annotated[Text, Option("--vpp", "Virtual stages per pipeline stage.", "N", LAYOUT)] = None
    cp: Annotated[Text, Option("--cp", "Context parallel degree.", "N", LAYOUT)] = None
    ep: Annotated[Text, Option("--ep", "Expert parallel degree.", "N", LAYOUT)] = None
    etp: Annotated[Text, Option("--etp", "Tensor parallel degree inside an expert.", "N", LAYOUT)] = None
    recompute: Annotated[
        Text, Option("--recompute", "none, full, or modules such as moe_act,layernorm.", "MODULES", LAYOUT)
    ] = None  # fmt: skip
    zero: Annotated[
        Text, Option("--zero", "Shard 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters (FSDP).", "0-3",
                      LAYOUT)
    ] = None  # fmt: skip
    schedule: Annotated[
        Text, Option("--schedule", "Pipeline schedule: 1f1b, interleaved, gpipe, zb-h1, zb-h2, zb-v, dualpipe "
                      "or dualpipe-v; plan takes several, with commas. Default: 1f1b and interleaved.", "NAMES",
                      LAYOUT)
    ] = None  # fmt: skip
    micro_batch_group: Annotated[
        Text, Option("--micro-batch-group", "Micro-batches that the interleaved schedule runs of one virtual stage "
                      "before it turns to the next. Default: pp, or the next size that leaves no stall.", "N", LAYOUT)
    ] = None  # fmt: skip
    routing: Annotated[
        str, Option("--routing", "Popularity of experts: balanced, consecutive, uniform, zipf:1.0, lognormal:0.4, "
                     "dirichlet:50, like:mixtral-8x7b, counts.csv or trace.csv. Default: balanced.", "LAW|FILE",
                     QUESTION)
    ] = "balanced"  # fmt: skip
    placement: Annotated[
        Text, Option("--placement", "Placement written by `moecast place --out` (with --ep and --routing), or auto: "
                      "experts are placed for every expert-parallel size.", "FILE|auto", QUESTION)
    ] = None  # fmt: skip
    redundant_experts: Annotated[
        Text, Option("--redundant-experts", "Slots a layer for further copies of experts, under --placement auto; for "
                      "targets that run them (layout, sglang). Default: 0.", "N", QUESTION)
    ] = None  # fmt: skip
    rank_order: Annotated[
        Text, Option("--rank-order", "Axes from the innermost out, such as tp-cp-ep-dp-pp (the default of simulate; "
                      "free in plan).", "AXES", LAYOUT)
    ] = None  # fmt: skip
    host_map: Annotated[
        Text, Option("--host-map", "Device of each rank: CSV with rank,device or node,ranks.", "FILE", LAYOUT)
    ] = None  # fmt: skip
    nodes: Annotated[
        Text, Option("--nodes", "Nodes of the allocation and the blocks they sit in, in any order: CSV with "
                      "node,<level>...", "FILE", QUESTION)
    ] = None  # fmt: skip
    anchor: Annotated[list[str] | None, ANCHOR] = None
    optimizer: Annotated[
        Text, Option("--optimizer", "adam, sgd or muon, with settings such as adam:exp_avg=bf16,exp_avg_sq=bf16.",
                      "NAME[:SETTINGS]", _TRAINING)
    ] = None  # fmt: skip
    offload: Annotated[
        Text, Option("--offload", "To host memory: optimizer=0.5,overlap and layers=4 or modules=core_attn+moe_act.",
                      "WHAT", _TRAINING)
    ] = None  # fmt: skip
    lora: Annotated[
        Text, Option("--lora", "Train adapters of this rank: 16, or 16:linear_qkv+linear_proj.", "RANK[:TARGETS]",
                      _TRAINING)
    ] = None  # fmt: skip
    lengths: Annotated[
        Text, Option("--lengths", "Lengths of documents packed into a sequence: lognormal:800:1.2, "
                      "percentiles:p10=100,p50=600,p90=4000, fixed:1024 or a file.", "LAW|FILE", _TRAINING)
    ] = None  # fmt: skip
    rampup_batch_size: Annotated[
        Text, Option("--rampup-batch-size", "Batch ramp-up: sequences at the start, increment, sequences it lasts.",
                      "START:INCREMENT:SAMPLES", _TRAINING)
    ] = None  # fmt: skip
    train_samples: Annotated[
        Text, Option("--train-samples", "Sequences of the whole training, for the time of a ramp-up and what follows.",
                      "N", _TRAINING)
    ] = None  # fmt: skip
    target: Annotated[
        str, Option("--target", "Software whose rules must hold: megatron-lm, megatron-bridge, torchtitan, deepspeed, "
                     "accelerate, sglang, or layout alone. Default: megatron-lm.", "NAME", LAYOUT)
    ] = "megatron-lm"  # fmt: skip
    top: Annotated[str, Option("--top", "Plans to list. Default: 5.", "N", OUTPUT)] = "5"
    seed: Annotated[str, Option("--seed", "Seed of everything random. Default: 0.", "N", OUTPUT)] = "0"
    json: Annotated[Text, JSON] = None
    out: Annotated[Text, Option("--out", "Save the plans to a file `moecast explain` reads.", "FILE", OUTPUT)] = None
    trace: Annotated[
        Text, Option("--trace", "Write the timeline of the step (Chrome, Perfetto); FILE.gz is compressed.", "FILE",
                      OUTPUT)
    ] = None  # fmt: skip
    trace_lanes: Annotated[
        Text, Option("--trace-lanes", "Write one timeline per lane into a folder, for trace analysers; DIR:gz "
                      "compresses them.", "DIR[:gz]", OUTPUT)
    ] = None  # fmt: skip
    report: Annotated[
        Text, Option("--report", "Write a page with pictures (HTML, works offline).", "FILE", OUTPUT)
    ] = None  # fmt: skip
    strict: Annotated[bool, STRICT] = False


@dataclass(frozen=True, kw_only=True)
class AskedStep(Asked):
    """What the user typed after `simulate`: the question, and how closely to look at the step."""

    detail: Annotated[
        str, Option("--detail", "What the timeline shows: pipeline (passes of micro-batches) or layers (attention, "
                     "dispatch, experts, ...). Default: pipeline.", "NAME", OUTPUT)
    ] = "pipeline"  # fmt: skip
    stages: Annotated[
        Text, Option("--stages", "Layers per virtual stage in model order, as 3,4*14,2 or as Megatron-LM's pipeline "
                      "layout. Default: even, lighter ends where that does not divide.", "COUNTS", LAYOUT)
    ] = None  # fmt: skip
    lanes: Annotated[
        str, Option("--lanes", "Ranks of a stage in --detail layers: hottest, median (hottest and median), or nodes "
                     "(hottest of each). Default: hottest.", "NAME", OUTPUT)
    ] = "hottest"  # fmt: skip


def options_of(record: type[Asked]) -> dict[str, Option]:
    """The option of each field of a record of this kind."""
    found: dict[str, Option] = {}
    for name, hint in get_type_hints(record, include_extras=True).items():
        for part in getattr(hint, "__metadata__", ()):
            if isinstance(part, Option):
                found[name] = part
    return found
