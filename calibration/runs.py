"""Published or own runs as cases: what is known of the configuration, and what was measured.

A case holds the scenario as far as the row states it; `unknown` names the cells that planning must
fill. Measured columns are read last and kept apart, so nothing of them can reach a prediction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from calibration.case import Case, NotStated, Unusable
from calibration.cells import coupled_etp, needed, number, read_csv, whole
from calibration.cells import recompute as _recompute
from calibration.layout import stages_of
from calibration.run_routing import routing_of
from hwprofiles import catalogue
from hwprofiles.errors import UserError
from hwprofiles.software_profiles import override_from_columns, software_for_run
from hwprofiles.specs import Source
from sim.families import gpt_model, load_model, model_from_dims
from sim.model import LayerSpec, ModelSpec, total_params
from sim.workload import Workload

REQUIRED = ("model", "gpu", "n_gpus", "seq_len", "gbs")
PRECISIONS = {
    "BF16": "bf16", "FP16": "bf16", "FP8": "fp8", "FP8-CS": "fp8", "FP8-DELAYED": "fp8", "FP8-TENSORWISE": "fp8",
    "FP8-BLOCKWISE": "fp8_block", "FP8-SC": "fp8_block", "MXFP8": "mxfp8", "NVFP4": "nvfp4",
}  # fmt: skip
FIGURE_SEQ_TOKENS = 2048  # sequence length of every model of arXiv 2205.05198
GPT_TOKENS = 50_257  # of the GPT-2 tokenizer
GPT_VOCAB = 51_200  # Megatron-LM's padded GPT-2 vocabulary
SMALL_PARAMS = 1e9  # below this a dense model is scored apart: its steps are launch bound
DIMENSIONS = ("layers", "hidden", "heads")
# Key/value heads of the one-node runs where they differ from the released model: the source's own configuration
# (MooreThreads/SimuMax, configs/models/llama3-405b.json).
ONE_NODE_KV_HEADS = {"llama3-405b": 16}


def read_cases(path: Path) -> list[Case | Unusable]:
    """All rows of a file of runs, whichever of the supported column sets it has.

    Raises UserError naming missing columns.
    """
    rows = read_csv(path)
    if not rows:
        raise UserError("has a header but no rows", where=str(path))
    header = set(rows[0])
    reader = next((read for marks, read in READERS if marks <= header), None)
    if reader is None:
        missing = [c for c in REQUIRED if c not in header]
        raise UserError(
            f"unknown columns; a file of runs needs {', '.join(REQUIRED)} (missing: {', '.join(missing)})",
            where=str(path),
        )
    out: list[Case | Unusable] = []
    for place, row in enumerate(rows, start=1):
        ident = row.get("id") or row.get("case") or f"row {place}"
        group = {k: row.get(k, "") for k in ("model", "gpu", "n_gpus", "seq_len", "framework_version", "source")}
        try:
            case = reader(ident, row)
            out += [case, *_peaks(case, row)]
        except UserError as error:
            status = "undetermined" if isinstance(error, NotStated) else "unsupported"
            out.append(Unusable(id=ident, status=status, reason=str(error), group=group))
    return out


GIB, GB = 2.0**30, 1e9
AGREE = 0.02  # two columns that state one measurement may differ by rounding
PEAK_COLUMNS = ("measured_peak_alloc_gib", "peak_memory")


def _peaks(case: Case, row: Mapping[str, str]) -> list[Case]:
    """The run's measured peak, where it states one, as a case of its own (measure "peak_bytes")."""
    found = re.match(r"(\d+(?:\.\d+)?)( GiB| GB|$)", next((row[c] for c in PEAK_COLUMNS if row.get(c)), ""))
    if found is None:
        return []
    measured = float(found[1]) * (GB if found[2] == " GB" else GIB)
    if measured <= 0.0:
        raise UserError("the peak memory must be positive; mend the cell or leave it empty", where=case.id)
    peak = replace(case, id=f"{case.id} (peak memory)", measure="peak_bytes", measured=measured)
    scored = case.scored and "recompute" not in case.assumed
    return [replace(peak, weight_key=f"{case.weight_key} (peak memory)", scored=scored)]


def _seconds(row: Mapping[str, str], name: str) -> float | None:
    """A measured cell in milliseconds as seconds."""
    value = number(row, name)
    return None if value is None else value / 1e3


def _model(row: Mapping[str, str]) -> ModelSpec:
    if all(row.get(c) for c in DIMENSIONS):
        return model_from_dims(row)
    return load_model(row["model"].replace(" (SFT)", ""))


def class_of(model: ModelSpec) -> str:
    """Class a run is scored in: "moe", "dense" (1B parameters and more) or "dense below 1B"."""
    return "moe" if model.is_moe else "dense" if total_params(model) >= SMALL_PARAMS else "dense below 1B"


def strict(row: Mapping[str, str]) -> dict[str, str]:
    """The row without the switch cells that a strict reading leaves open.

    `sw_ambiguous_fields` names cells that another commit of equal degrees sets otherwise. Where the nearest public
    recipe shards differently from the row ("fsdp table=1 recipe=0"), its recompute choice is not the row's.
    """
    out = dict(row)
    for name in row.get("sw_ambiguous_fields", "").split(";"):
        out.pop(f"sw_{name}", None)
    if "fsdp table=" in row.get("sw_match_detail", ""):
        for name in [c for c in out if c.startswith("sw_recompute")]:
            del out[name]
    return out


def _part(row: Mapping[str, str]) -> str:
    """The device of a row; where the remarks on the machine name a variant ("H100 HBM2e 96GB 500W"), that one."""
    name = row["gpu"].replace(" (96GB)", "-96GB")
    variant = re.search(rf"{re.escape(name)}\b[^;]*\b96 ?GB", row.get("interconnect", ""))
    return f"{name}-96GB" if variant else name


def read_training(ident: str, row: Mapping[str, str]) -> Case:
    """A row of training_runs.csv, or anyone's CSV with (some of) its columns."""
    missing = [c for c in REQUIRED if not row.get(c)]
    if missing:
        raise UserError(f"empty: {', '.join(missing)}", where=ident)
    row = strict(row)
    model = _model(row)
    gpus, seq, gbs = whole(row, "n_gpus"), whole(row, "seq_len"), whole(row, "gbs")
    assert gpus is not None and seq is not None and gbs is not None
    cluster = catalogue.cluster(row.get("cluster") or _part(row), gpus=gpus)
    assumed: dict[str, str] = {}
    device = catalogue.device_of(cluster)
    text = row.get("precision", "").upper()
    precision: Any = PRECISIONS.get(text)
    if text and precision is None:
        raise UserError(f"precision {text!r}: use one of {', '.join(sorted(PRECISIONS))}", where=ident)
    if precision == "bf16" and text == "FP16" and "bf16" not in device.peak_flop_per_s:
        precision = "fp16"  # elsewhere both are one recipe
    name = software_for_run(row.get("framework", ""), row.get("framework_version", ""), notes=row.get("notes", ""))
    if name is None:
        name = catalogue.default_software(device.name)
        assumed["software"] = name
    arch = "moe" if model.is_moe else "dense"
    if precision is None:
        rule = catalogue.software(name, device=device.name, model=model.name, arch=arch).unstated_precision
        lowest = next(p for p in ("nvfp4", "fp8", "bf16") if p in device.peak_flop_per_s)
        precision = lowest if rule == "lowest" else "bf16"
        assumed["precision"] = precision
    software = catalogue.software(name, device=device.name, model=model.name, arch=arch, precision=precision)
    software = override_from_columns(software, row)
    mtp = row.get("sw_mtp_layers", "")
    with_mtp = model.mtp_layers > 0 and not mtp.startswith("none")
    known: dict[str, Any] = {
        "tp": whole(row, "tp"), "pp": whole(row, "pp"), "cp": whole(row, "cp"), "ep": whole(row, "ep"),
        "etp": whole(row, "etp") or whole(row, "sw_etp") or coupled_etp(row),
        "vpp": whole(row, "vpp") or whole(row, "sw_vpp"),
        "micro_batch_seqs": whole(row, "mbs"), "recompute": _recompute(row, software),
    }  # fmt: skip
    layout = row.get("sw_pp_layout", "")
    if "|" in layout:
        known["stages"] = stages_of(layout)
    # without a stated layout the split is even where it can be, lighter at the ends where it cannot
    known["account_ends"] = "acct" in layout if layout not in ("", "na") else None
    sharding = row.get("sharding", "").lower() + row.get("method", "").lower()
    fsdp = "fsdp" in sharding or "zero-3" in sharding or row.get("sw_fsdp", "off") not in ("off", "", "na")
    known["zero_stage"] = 3 if fsdp and "zero-2" not in sharding else 2 if "zero-2" in sharding else 1
    work = Workload(seq_tokens=seq, global_batch_seqs=gbs, precision=precision, with_mtp=with_mtp)
    measured = _measured_rate(row, gbs * seq / gpus, ident)
    exact = row.get("norm_how", "given") in ("given", "gbs*seq/step/gpus", "")
    return Case(
        id=ident, model=model, cluster=cluster, software=software, workload=work, known=known, assumed=assumed,
        measure="tokens_per_s_gpu",
        group={
            "model": model.name, "gpu": device.name, "n_gpus": str(gpus), "seq_len": str(seq), "arch": arch,
            "release": software.name, "precision": precision, "source": row.get("source", ""), "class": class_of(model),
            "global_batch": str(gbs),
        },
        # rows of one key that another profile describes (eager, compiled) are cases of their own
        measured=measured, weight_key=f"{row.get('case_key') or ident} {software.name}",
        scored=exact and not row.get("doubt"), ranked=not row.get("doubt"),
        routing=routing_of(row, model, assumed),
    )  # fmt: skip


def _measured_rate(row: Mapping[str, str], tokens: float, ident: str) -> float | None:
    """Measured tokens/s of one device; `tokens`: of a step on one. Raises UserError where two columns disagree."""
    step_s = number(row, "step_time_s")
    stated = {name: number(row, name) for name in ("tok_s_gpu_norm", "tokens_per_s_gpu")}
    if step_s is not None:
        stated["step_time_s"] = tokens / step_s
    rates = {name: rate for name, rate in stated.items() if rate is not None}
    if rates and max(rates.values()) > (1.0 + AGREE) * min(rates.values()):
        said = ", ".join(f"{name} gives {rate:,.4g} tokens/s" for name, rate in rates.items())
        raise UserError(f"measured twice, and not alike: {said}; correct one or leave it empty", where=ident)
    return next(iter(rates.values()), None)


def trainer_of(source: str) -> str:
    """The trainer that a source of fits and out-of-memory outcomes stands for: the word its name begins with."""
    return source.partition(" ")[0]


def read_feasibility(ident: str, row: Mapping[str, str]) -> Case:
    """A fits / OOM row: the batch may be missing (micro-batches of one rank enough for memory).

    A run that fails with one allocator setting and passes with another decides nothing: it is not scored.
    """
    if not row.get("seq_len"):
        raise NotStated("sequence length not stated", where=ident)
    filled = dict(row)
    filled["gbs"] = row.get("gbs") or str((whole(row, "n_gpus") or 1) * 8 * (whole(row, "mbs") or 1))
    method = row.get("method", "")
    if not row.get("framework"):
        filled["framework"], filled["notes"] = trainer_of(row.get("source", "")), f"{row.get('source', '')}; {method}"
    if not row.get("precision"):
        filled["precision"] = "FP8" if "fp8" in method.lower() or "float8" in method.lower() else "BF16"
    case = read_training(f"{ident} {row.get('model', '')} {row.get('gpu', '')} {row.get('recompute', '')}", filled)
    outcome = row["outcome"].lower()
    fits = 0.0 if outcome.startswith("oom") else 1.0
    stated = all(row.get(c) for c in ("seq_len", "mbs", "tp", "pp")) and "passes" not in outcome
    return replace(case, measure="fits", measured=fits, scored=stated)


def read_one_node(ident: str, row: Mapping[str, str]) -> Case:
    """A row of megatron_b200_one_node.csv: cut-down models on one 8 x B200 node, micro-batch 1."""
    base = load_model({"llama3-70b": "Llama3-70B", "llama3-405b": "Llama3.1-405B"}.get(row["model"], row["model"]))
    layers = needed(row, "layers")
    kept = tuple(_with_kv_heads(x, ONE_NODE_KV_HEADS.get(row["model"])) for x in _cut(base, layers))
    model = replace(base, name=f"{base.name} ({layers} layers)", layers=kept)
    cluster = catalogue.cluster("B200", gpus=needed(row, "world"))
    arch = "moe" if model.is_moe else "dense"
    software = catalogue.software("megatron-lm-te-2.11", device="B200", arch=arch, precision="bf16")
    degrees = {k: needed(row, k) for k in ("tp", "cp", "ep", "pp", "vpp")}
    gbs = needed(row, "micro_batches") * needed(row, "dp")
    work = Workload(seq_tokens=needed(row, "seq_len"), global_batch_seqs=gbs, precision="bf16")
    known = {**degrees, "micro_batch_seqs": 1, "recompute": (), "zero_stage": 1, "account_ends": False, "etp": 1}
    group = {"model": model.name, "gpu": "B200", "n_gpus": row["world"], "seq_len": row["seq_len"], "arch": "",
             "release": software.name, "precision": "bf16", "source": "one node of B200"}  # fmt: skip
    return Case(
        id=ident, model=model, cluster=cluster, software=software, workload=work, known=known, measure="step_s",
        group=group, measured=_seconds(row, "measured_ms"), weight_key=ident,
    )  # fmt: skip


def _with_kv_heads(layer: LayerSpec, kv_heads: int | None) -> LayerSpec:
    return replace(layer, attention=replace(layer.attention, kv_heads=kv_heads)) if kv_heads else layer


def _cut(model: ModelSpec, layers: int) -> tuple[Any, ...]:
    """The first `layers` layers; a MoE model keeps one dense layer in front where it has any.

    One, not three, for DeepSeek-V3: 4 layers on ep 8 hold 104.3 GiB, while one routed layer more or less of
    32 local experts moves weights, gradients and optimizer state by 23.6 GiB.
    """
    kinds = model.layers
    dense = sum(1 for x in kinds if x.moe is None)
    if model.is_moe and dense:
        return (*kinds[:1], *(kinds[-1],) * (layers - 1)) if layers > 1 else kinds[-1:]
    return kinds[:layers]


def _gpt(row: Mapping[str, str], name: str) -> ModelSpec:
    """GPT-3 style dense model with Megatron-LM's padded vocabulary."""
    source = Source(kind="published", title=name, where="the row's own dimensions", date="")
    return gpt_model(
        name=name, hidden_dim=needed(row, "hidden"), heads=needed(row, "heads"), num_layers=needed(row, "layers"),
        vocab_size=GPT_VOCAB, max_positions=needed(row, "seq_len"), source=source,
    )  # fmt: skip


def _vtrain(ident: str, row: Mapping[str, str], cluster: str, release: str, recompute: tuple[str, ...]) -> Case:
    model = _gpt(row, f"GPT-h{row['hidden']}-l{row['layers']}")
    degrees = {k: needed(row, k) for k in ("tp", "pp")}
    used = needed(row, "tp") * needed(row, "pp") * needed(row, "dp")
    work = Workload(seq_tokens=needed(row, "seq_len"), global_batch_seqs=needed(row, "global_batch"))
    software = catalogue.software(release)
    known = {**degrees, "cp": 1, "ep": 1, "etp": 1, "vpp": 1, "micro_batch_seqs": needed(row, "micro_batch"),
             "recompute": recompute, "zero_stage": 0, "account_ends": False}  # fmt: skip
    group = {"model": model.name, "gpu": "A100", "n_gpus": str(used), "seq_len": row["seq_len"], "arch": "dense",
             "release": software.name, "precision": "bf16", "source": ident.split(":")[0],
             "global_batch": row["global_batch"]}  # fmt: skip
    return Case(
        id=ident, model=model, cluster=catalogue.cluster(cluster, gpus=used), software=software, workload=work,
        known=known, measure="step_s", group=group, measured=_seconds(row, "measured_iter_ms"), weight_key=ident,
    )  # fmt: skip


def read_vtrain_multi(ident: str, row: Mapping[str, str]) -> Case:
    """vTrain, several nodes of 8 A100 with 800 Gb/s."""
    return _vtrain(f"vtrain multi: {ident}", row, "a100-80g-800g", "megatron-deepspeed-2022", ("full",))


def read_vtrain_single(ident: str, row: Mapping[str, str]) -> Case:
    """vTrain, up to 8 A100 of one node: sums of traced layers, which differ from the runs on several nodes.

    Nothing is recomputed: with full recompute a traced layer (hidden 2048, micro-batch 4, tp 1) would do its products
    and its least traffic at 82 % of both datasheet peaks; a layer costs the same on every stage, and the
    authors' tool recomputes nothing on the last one. The vocabulary is the tool's own, unpadded.
    """
    case = _vtrain(f"vtrain single: {ident}", row, "dgx-a100-80g", "megatron-layers-traced", ())
    return replace(case, model=replace(case.model, vocab_size=GPT_TOKENS))


def read_seqpar(ident: str, row: Mapping[str, str]) -> Case:
    """A row of calculon_megatron_a100_time.csv (arXiv 2205.05198, Table 5)."""
    del ident
    model = _gpt(row, row["model"])
    parallel = row["mode"] == "seqsel"
    software = catalogue.software("megatron-lm-seqpar-2022")
    software = replace(software, sequence_parallel=parallel)
    known = {"tp": needed(row, "tensor_par"), "pp": needed(row, "pipeline_par"), "cp": 1, "ep": 1, "etp": 1,
             "vpp": needed(row, "pipeline_interleaving"), "micro_batch_seqs": needed(row, "microbatch_size"),
             "recompute": ("core_attn",) if parallel else ("full",),
             "zero_stage": 0, "account_ends": False}  # fmt: skip
    work = Workload(seq_tokens=needed(row, "seq_len"), global_batch_seqs=needed(row, "batch_size"))
    group = {"model": model.name, "gpu": "A100", "n_gpus": row["num_procs"], "seq_len": row["seq_len"],
             "arch": "dense", "release": software.name, "precision": "bf16", "source": "arXiv 2205.05198"}  # fmt: skip
    return Case(
        id=f"{row['model']} {row['mode']}", model=model,
        cluster=catalogue.cluster("A100", gpus=needed(row, "num_procs")),
        software=software, workload=work, known=known, measure="step_s", group=group,
        measured=number(row, "measured_s"),
        weight_key=f"{row['model']} {row['mode']}",
    )  # fmt: skip


def read_seqpar_memory(ident: str, row: Mapping[str, str]) -> Case:
    """A row of calculon_megatron_a100_memory.csv (arXiv 2205.05198, Figures 1 and 7): the fullest stage with sequence
    parallelism and selective recompute, one replica, enough micro-batches to fill the pipeline."""
    model = load_model(row["model"])
    tp, pp, mbs = needed(row, "tp"), needed(row, "pp"), needed(row, "microbatch")
    known = {"tp": tp, "pp": pp, "vpp": needed(row, "interleave"), "cp": 1, "ep": 1, "etp": 1, "micro_batch_seqs": mbs,
             "recompute": ("core_attn",), "zero_stage": 0, "account_ends": False}  # fmt: skip
    state, activations = number(row, "params_and_optimizer_gib"), number(row, "act_gib_seqsel")
    measured = None if state is None or activations is None else (state + activations) * GIB
    software = catalogue.software("megatron-lm-seqpar-2022")
    group = {"model": model.name, "gpu": "A100", "n_gpus": str(tp * pp), "seq_len": str(FIGURE_SEQ_TOKENS),
             "arch": "dense", "release": software.name, "precision": "bf16", "source": "arXiv 2205.05198"}  # fmt: skip
    return Case(
        id=f"{row['model']} ({ident})", model=model, cluster=catalogue.cluster("A100", gpus=tp * pp), software=software,
        workload=Workload(seq_tokens=FIGURE_SEQ_TOKENS, global_batch_seqs=4 * pp * mbs), known=known,
        measure="peak_bytes", group=group, measured=measured, weight_key=f"{row['model']} memory",
    )  # fmt: skip


Reader = Callable[[str, Mapping[str, str]], Case]
READERS: tuple[tuple[set[str], Reader], ...] = (
    ({"measured_peak_alloc_gib", "micro_batches", "model"}, read_one_node),
    ({"outcome", "peak_memory"}, read_feasibility),
    ({"params_b", "measured_iter_ms", "hidden", "layers"}, read_vtrain_multi),
    ({"measured_iter_ms", "hidden", "layers"}, read_vtrain_single),
    ({"tensor_par_comm_type", "measured_s", "model", "mode"}, read_seqpar),
    ({"params_and_optimizer_gib", "act_gib_seqsel", "model"}, read_seqpar_memory),
    ({"model", "gpu", "n_gpus", "seq_len", "gbs"}, read_training),
)
