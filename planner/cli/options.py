"""Every option of the question, once: `plan` and `simulate` take the same ones.

Values arrive as text and are read in `planner.cli.inputs`, so that all mistakes are reported at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from functools import wraps
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

_QUESTION = "Question"
_LAYOUT = "Layout (whatever is left out is free in `plan`, 1 in `simulate`)"
_TRAINING = "Training (default: Adam on all weights, everything on the device)"
_OUTPUT = "Output"


def _option(name: str, text: str, metavar: str, panel: str) -> Any:
    return typer.Option(name, help=text, metavar=metavar, rich_help_panel=panel, show_default=False)


Text = str | None

JSON_OPTION = _option("--json", "Write the result as JSON to FILE, or to the terminal with -.", "FILE|-", _OUTPUT)
STRICT_OPTION = typer.Option(
    "--strict", help="Treat extrapolated or assumed numbers as errors (exit code 2).", rich_help_panel=_OUTPUT
)
ANCHOR_OPTION = _option(
    "--anchor", "Own measured runs (CSV as of `moecast validate`) that predictions are anchored to; may be repeated.",
    "RUNS.csv", _QUESTION,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the user typed. Field defaults are the option defaults."""

    model: Annotated[
        Text, _option("--model", "Catalogue name, config.json or TOML file (see `moecast show models`).",
                      "NAME|FILE", _QUESTION)
    ] = None  # fmt: skip
    cluster: Annotated[
        Text, _option("--cluster", "Preset or TOML file (see `moecast show clusters`).", "NAME|FILE", _QUESTION)
    ] = None  # fmt: skip
    gpus: Annotated[
        Text, _option("--gpus", "Devices to use; a preset grows to it. Default: the cluster's own.", "N", _QUESTION)
    ] = None  # fmt: skip
    seq_len: Annotated[
        str, _option("--seq-len", "Tokens per sequence. Default: 4096.", "N", _QUESTION)
    ] = "4096"  # fmt: skip
    global_batch: Annotated[
        str, _option("--global-batch", "Sequences per step over all devices. Default: 1024.", "N", _QUESTION)
    ] = "1024"  # fmt: skip
    precision: Annotated[
        str, _option("--precision", "Large GEMMs in bf16, fp16, fp8, fp8_block, mxfp8 or nvfp4. Default: bf16.", "NAME",
                     _QUESTION)
    ] = "bf16"  # fmt: skip
    software: Annotated[
        Text, _option("--software", "Trainer release, name or TOML file. Default: the device's usual one.",
                      "NAME|FILE", _QUESTION)
    ] = None  # fmt: skip
    micro_batch: Annotated[Text, _option("--micro-batch", "Sequences per micro-batch.", "N", _LAYOUT)] = None
    tp: Annotated[Text, _option("--tp", "Tensor parallel degree of attention and dense layers.", "N", _LAYOUT)] = None
    pp: Annotated[Text, _option("--pp", "Pipeline stages.", "N", _LAYOUT)] = None
    vpp: Annotated[Text, _option("--vpp", "Virtual stages per pipeline stage.", "N", _LAYOUT)] = None
    cp: Annotated[Text, _option("--cp", "Context parallel degree.", "N", _LAYOUT)] = None
    ep: Annotated[Text, _option("--ep", "Expert parallel degree.", "N", _LAYOUT)] = None
    etp: Annotated[Text, _option("--etp", "Tensor parallel degree inside an expert.", "N", _LAYOUT)] = None
    recompute: Annotated[
        Text, _option("--recompute", "none, full, or modules such as moe_act,layernorm.", "MODULES", _LAYOUT)
    ] = None  # fmt: skip
    zero: Annotated[
        Text, _option("--zero", "Shard 0 nothing, 1 optimizer, 2 and gradients, 3 and parameters (FSDP).", "0-3",
                      _LAYOUT)
    ] = None  # fmt: skip
    schedule: Annotated[
        Text, _option("--schedule", "Pipeline schedule: 1f1b, interleaved, gpipe, zb-h1, zb-h2, zb-v, dualpipe "
                      "or dualpipe-v; plan takes several, with commas. Default: 1f1b and interleaved.", "NAMES",
                      _LAYOUT)
    ] = None  # fmt: skip
    micro_batch_group: Annotated[
        Text, _option("--micro-batch-group", "Micro-batches that the interleaved schedule runs of one virtual stage "
                      "before it turns to the next. Default: pp, or the next size that leaves no stall.", "N", _LAYOUT)
    ] = None  # fmt: skip
    routing: Annotated[
        str, _option("--routing", "Popularity of experts: balanced, uniform, zipf:1.0, lognormal:0.4, dirichlet:50, "
                     "like:mixtral-8x7b, counts.csv or trace.csv. Default: balanced.", "LAW|FILE", _QUESTION)
    ] = "balanced"  # fmt: skip
    placement: Annotated[
        Text, _option("--placement", "Placement written by `moecast place --out` (with --ep and --routing), or auto: "
                      "experts are placed for every expert-parallel size.", "FILE|auto", _QUESTION)
    ] = None  # fmt: skip
    redundant_experts: Annotated[
        Text, _option("--redundant-experts", "Slots a layer for further copies of experts, under --placement auto; for "
                      "targets that run them (layout, sglang). Default: 0.", "N", _QUESTION)
    ] = None  # fmt: skip
    rank_order: Annotated[
        Text, _option("--rank-order", "Axes from the innermost out, such as tp-cp-ep-dp-pp (the default of simulate; "
                      "free in plan).", "AXES", _LAYOUT)
    ] = None  # fmt: skip
    host_map: Annotated[
        Text, _option("--host-map", "Device of each rank: CSV with rank,device or node,ranks.", "FILE", _LAYOUT)
    ] = None  # fmt: skip
    nodes: Annotated[
        Text, _option("--nodes", "Nodes of the allocation and the blocks they sit in, in any order: CSV with "
                      "node,<level>...", "FILE", _QUESTION)
    ] = None  # fmt: skip
    anchor: Annotated[list[str] | None, ANCHOR_OPTION] = None
    optimizer: Annotated[
        Text, _option("--optimizer", "adam, sgd or muon, with settings such as adam:exp_avg=bf16,exp_avg_sq=bf16.",
                      "NAME[:SETTINGS]", _TRAINING)
    ] = None  # fmt: skip
    offload: Annotated[
        Text, _option("--offload", "To host memory: optimizer=0.5,overlap and layers=4 or modules=core_attn+moe_act.",
                      "WHAT", _TRAINING)
    ] = None  # fmt: skip
    lora: Annotated[
        Text, _option("--lora", "Train adapters of this rank: 16, or 16:linear_qkv+linear_proj.", "RANK[:TARGETS]",
                      _TRAINING)
    ] = None  # fmt: skip
    lengths: Annotated[
        Text, _option("--lengths", "Lengths of documents packed into a sequence: lognormal:800:1.2, "
                      "percentiles:p10=100,p50=600,p90=4000, fixed:1024 or a file.", "LAW|FILE", _TRAINING)
    ] = None  # fmt: skip
    rampup_batch_size: Annotated[
        Text, _option("--rampup-batch-size", "Batch ramp-up: sequences at the start, increment, sequences it lasts.",
                      "START:INCREMENT:SAMPLES", _TRAINING)
    ] = None  # fmt: skip
    train_samples: Annotated[
        Text, _option("--train-samples", "Sequences of the whole training, for the time of a ramp-up and what follows.",
                      "N", _TRAINING)
    ] = None  # fmt: skip
    target: Annotated[
        str, _option("--target", "Software whose rules must hold: megatron-lm, megatron-bridge, torchtitan, deepspeed, "
                     "accelerate, sglang, or layout alone. Default: megatron-lm.", "NAME", _LAYOUT)
    ] = "megatron-lm"  # fmt: skip
    top: Annotated[str, _option("--top", "Plans to list. Default: 5.", "N", _OUTPUT)] = "5"
    seed: Annotated[str, _option("--seed", "Seed of everything random. Default: 0.", "N", _OUTPUT)] = "0"
    json: Annotated[Text, JSON_OPTION] = None
    out: Annotated[Text, _option("--out", "Save the plans to a file `moecast explain` reads.", "FILE", _OUTPUT)] = None
    trace: Annotated[
        Text, _option("--trace", "Write the timeline of the step (Chrome, Perfetto); FILE.gz is compressed.", "FILE",
                      _OUTPUT)
    ] = None  # fmt: skip
    trace_lanes: Annotated[
        Text, _option("--trace-lanes", "Write one timeline per lane into a folder, for trace analysers; DIR:gz "
                      "compresses them.", "DIR[:gz]", _OUTPUT)
    ] = None  # fmt: skip
    report: Annotated[
        Text, _option("--report", "Write a page with pictures (HTML, works offline).", "FILE", _OUTPUT)
    ] = None  # fmt: skip
    strict: Annotated[bool, STRICT_OPTION] = False


@dataclass(frozen=True, kw_only=True)
class AskedStep(Asked):
    """What the user typed after `simulate`: the question, and how closely to look at the step."""

    detail: Annotated[
        str, _option("--detail", "What the timeline shows: pipeline (passes of micro-batches) or layers (attention, "
                     "dispatch, experts, ...). Default: pipeline.", "NAME", _OUTPUT)
    ] = "pipeline"  # fmt: skip
    stages: Annotated[
        Text, _option("--stages", "Layers per virtual stage in model order, as 3,4*14,2 or as Megatron-LM's pipeline "
                      "layout. Default: even, lighter ends where that does not divide.", "COUNTS", _LAYOUT)
    ] = None  # fmt: skip
    lanes: Annotated[
        str, _option("--lanes", "Ranks of a stage in --detail layers: hottest, median (hottest and median), or nodes "
                     "(hottest of each). Default: hottest.", "NAME", _OUTPUT)
    ] = "hottest"  # fmt: skip


Record = TypeVar("Record", bound=Asked)


def takes_question(verb: Callable[[Asked], None]) -> Callable[..., None]:
    """Give a verb of one `Asked` argument the options of its fields."""
    return _takes(Asked, verb)


def takes_step(verb: Callable[[AskedStep], None]) -> Callable[..., None]:
    """Give a verb of one `AskedStep` argument the options of its fields."""
    return _takes(AskedStep, verb)


def takes(record: type[Record]) -> Callable[[Callable[[Record], None]], Callable[..., None]]:
    """Give a verb of one argument of this record the options of its fields."""
    return lambda verb: _takes(record, verb)


def _takes(record: type[Record], verb: Callable[[Record], None]) -> Callable[..., None]:
    hints = get_type_hints(record, include_extras=True)
    parameters = [
        inspect.Parameter(
            item.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if item.default is MISSING else item.default,
            annotation=hints[item.name],
        )
        for item in fields(record)
    ]

    @wraps(verb)
    def run(**typed: Any) -> None:
        verb(record(**typed))

    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
