"""Trainer releases as sets of switches: base state, overrides by case, and a run's own columns.

A file of `hwprofiles/software` holds the fields of `SoftwareProfile`, and beside them
`[[override]]` (`match` and the switches it sets or `unset`s; later ones win), `[[applies]]` (which
published runs it stands for), `aliases` and `default_for`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hwprofiles.errors import UserError
from hwprofiles.reader import build, looks_like_path, positive, read_toml, shipped, unknown_name
from hwprofiles.specs import RECOMPUTE_MODULES, SoftwareProfile

GRAPH_MODULES = ("attn", "moe_router", "moe_preprocess", "moe", "mlp", "full_iteration")
_APPLIES_KEYS = ("framework", "version", "notes")
MATCH_KEYS = ("device", "model", "arch", "precision")
_EXTRA = ("override", "applies", "aliases", "default_for")
_OVERRIDE_WORDS = ("match", "unset", "note")
_NOT_SWITCHES = ("name", "trainer", "version", "source")
SWITCH_NAMES = tuple(f.name for f in dataclasses.fields(SoftwareProfile) if f.name not in _NOT_SWITCHES)
_ZERO_OK = ("reserved_bytes", "activation_offload_layers", "bucket_params")
_ABSENT = ("", "na", "nan", "none(table)", "?")


def load(
    name_or_path: str,
    *,
    device: str | None = None,
    model: str | None = None,
    arch: str | None = None,
    precision: str | None = None,
) -> SoftwareProfile:
    """A profile by name, alias or TOML file, with the overrides of this case applied. Raises UserError.

    arch is "moe" or "dense"; precision as in training tables ("FP8-CS", "mxfp8", ...).
    """
    data, where = _data(name_or_path)
    case = {"device": device, "model": model, "arch": arch, "precision": precision_key(precision)}
    body = {key: value for key, value in data.items() if key not in _EXTRA}
    for entry in data.get("override", ()):
        if _fits(entry["match"], case):
            body |= {key: value for key, value in entry.items() if key not in _OVERRIDE_WORDS}
            for key in entry.get("unset", ()):  # TOML has no null: back to the default of the record
                body.pop(key, None)
    made = build(SoftwareProfile, body, where=where)
    problems = positive(made, zero_ok=_ZERO_OK) + _wrong_names(made) + _wrong_switches(made)
    if problems:
        raise UserError(problems, where=where)
    return made


def switches_from(data: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Switches that a file states beside a profile, as the record holds them; UserError for names and values that none
    has. How they go together is not asked: whoever wrote them down ran them."""
    plain = {name: "file" for name in ("name", "trainer", "version")}
    source = {"kind": "user", **dict.fromkeys(("title", "where", "date"), "file")}
    fixed = [f"{name!r} is not a switch" for name in data if name in _NOT_SWITCHES]
    if fixed:
        raise UserError(fixed, where=where)
    unset = {f.name for f in dataclasses.fields(SoftwareProfile) if f.default is None}
    stated = {name: value for name, value in data.items() if not (value is None and name in unset)}
    made = build(SoftwareProfile, {**plain, "source": source, **stated}, where=where)
    problems = positive(made, zero_ok=_ZERO_OK) + _wrong_names(made)
    if problems:
        raise UserError(problems, where=where)
    return {name: getattr(made, name) for name in data}


def default_for(device_name: str) -> str:
    """The profile whose file claims to be the default of this device, else that of any device."""
    claims = {d.lower(): name for name, data in _all().items() for d in data.get("default_for", ())}
    return claims.get(device_name.lower(), claims["any"])


def software_for_run(framework: str, version: str, *, notes: str = "") -> str | None:
    """Profile for the `framework` and `framework_version` columns of a run; None when no file claims them.

    A version that is the name of a profile is that profile. Else each `[[applies]]` entry gives what it asks for; the
    entry that asks for most wins: `framework`, or `version` alone, `version` too, and `notes`, a word that the run's
    notes must contain.
    """
    best: tuple[int, str] | None = None
    if version.strip().lower() in _all():
        return version.strip().lower()
    for name, data in _all().items():
        for entry in data.get("applies", ()):
            asked = [
                entry["framework"].lower() == framework.strip().lower() if "framework" in entry else None,
                entry["version"].lower() == version.strip().lower() if "version" in entry else None,
                entry["notes"].lower() in notes.lower() if "notes" in entry else None,
            ]
            if False not in asked and (best is None or asked.count(True) > best[0]):
                best = (asked.count(True), name)
    return best[1] if best else None


def precision_key(text: str | None) -> str | None:
    """A precision as tables print it ("FP8-CS") to the project's name ("fp8")."""
    if text is None:
        return None
    low = text.strip().lower().replace("_", "-")
    if "block" in low:
        return "fp8_block"
    return "fp8" if low.startswith("fp8") else low


def override_from_columns(profile: SoftwareProfile, row: Mapping[str, str]) -> SoftwareProfile:
    """The profile with a run's own `sw_*` cells applied; empty and "na" cells change nothing.

    The columns are those of the published recipe tables of Megatron-Bridge. Switches so set
    leave `unknown`. Raises UserError that lists every cell that is not understood.
    """
    changes: dict[str, Any] = {}
    problems: list[str] = []
    for column, apply in _COLUMNS.items():
        cell = str(row.get(column) or "").strip()
        if cell.lower() in _ABSENT:
            continue
        try:
            changes |= apply(cell, row)
        except ValueError as error:
            problems.append(f"{column} = {cell!r}: {error}; leave the cell empty if it is not known")
    if problems:
        raise UserError(problems, where="run columns")
    unknown = tuple(u for u in profile.unknown if u not in changes)
    return dataclasses.replace(profile, **changes, unknown=unknown)


def _on_off(field: str) -> Callable[[str, Mapping[str, str]], dict[str, Any]]:
    return lambda cell, row: {field: _flag(cell)}


def _flag(cell: str) -> bool:
    word = cell.lower().split("(")[0]
    if word in ("on", "true", "yes", "1"):
        return True
    if word in ("off", "false", "no", "none", "0"):
        return False
    raise ValueError("expected on or off")


def _graph(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    scope = str(row.get("sw_cuda_graph_scope") or "").strip().lower()
    if cell.lower() == "none":  # a scope without an implementation captures nothing
        return {"cuda_graph": ()}
    if cell.lower() == "full_iteration" or scope in ("full", "full_iteration"):
        return {"cuda_graph": ("full_iteration",)}
    if scope in _ABSENT:
        return {}
    if scope == "none":
        return {"cuda_graph": ()}
    wanted = scope.split("+")
    strange = [m for m in wanted if m not in (*GRAPH_MODULES, "mamba")]
    if strange:
        raise ValueError(f"graph scope {'+'.join(strange)!r} is not one of {', '.join(GRAPH_MODULES)}")
    return {"cuda_graph": tuple(m for m in GRAPH_MODULES if m in wanted)}


def _dispatcher(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    name = cell.lower().removeprefix("flex:")
    if name not in ("alltoall", "deepep", "hybridep", "allgather"):
        raise ValueError("expected alltoall, flex:deepep, flex:hybridep or allgather")
    return {"dispatcher": name}


def _capacity(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    if cell.lower() == "none":
        return {"capacity_factor": None}
    factor = float(cell)
    if not 0 < factor < float("inf"):
        raise ValueError("expected none or a factor greater than zero")
    return {"capacity_factor": factor, "host_sync": False}


def _paged_stash(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    return {"host_sync": False} if _flag(cell) else {}


def _fused_experts(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    return {"fused_experts": cell.lower() != "off" and ("cutedsl" in cell.lower() or _flag(cell))}


def _dp_overlap(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    parts = cell.lower().split("+")
    return {
        "dp_overlap_grad": "grad_reduce" in parts,
        "dp_overlap_param": any(p.startswith("param_gather") for p in parts),
    }


def _low_precision_gather(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    return {"fp8_param_gather": _flag(cell.split(":")[-1])}


def _offload(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    if cell.lower().startswith("layers="):
        return {"activation_offload_layers": int(cell.split("=")[1])}
    if cell.lower() == "on(optimizer)":
        return {"optimizer_offload": True}
    if cell.lower() == "off(optimizer)":
        return {"optimizer_offload": False}
    if _flag(cell):
        raise ValueError("expected off, off(optimizer), on(optimizer) or layers=N")
    return {"activation_offload_layers": 0}


def _cross_entropy(cell: str, row: Mapping[str, str]) -> dict[str, Any]:
    # Transformer Engine's loss works on the 16-bit logits in place; the native one keeps an fp32 copy.
    fused = cell.lower() in ("te", "native") or _flag(cell)
    return {"fused_loss": fused, "loss_fp32_logits": cell.lower() != "te"}


# In order: what a source prints in its table first, the recipe's own switch after it.
_COLUMNS: dict[str, Callable[[str, Mapping[str, str]], dict[str, Any]]] = {
    "dispatcher": _dispatcher,
    "capacity_factor": _capacity,
    "sw_cuda_graph_impl": _graph,
    "sw_dispatcher": _dispatcher,
    "sw_a2a_overlap": _on_off("a2a_overlap"),
    "sw_delay_wgrad": _on_off("delay_wgrad"),
    "sw_shared_expert_overlap": _on_off("shared_expert_overlap"),
    "sw_tp_comm_overlap": _on_off("tp_overlap"),
    "sw_dp_overlap": _dp_overlap,
    "sw_grad_reduce_fp32": lambda cell, row: {"grad_dtype": "fp32" if _flag(cell) else "bf16"},
    "sw_permute_fusion": _on_off("permute_fusion"),
    "sw_fused_expert_path": _fused_experts,
    "sw_router_padding": _on_off("router_padding"),
    "sw_capacity_factor": _capacity,
    "sw_paged_stash": _paged_stash,
    "sw_fp8_param_gather": _low_precision_gather,
    "sw_fp8_dot_product_attention": _on_off("fp8_attention"),
    "sw_fp8_output_proj": _on_off("fp8_output_proj"),
    "sw_cpu_offload": _offload,
    "sw_ce_fusion": _cross_entropy,
    "sw_precision_aware_optimizer": _on_off("precision_aware_optimizer"),
}


def _fits(match: Mapping[str, Any], case: Mapping[str, str | None]) -> bool:
    for key, wanted in match.items():
        have = case[key]
        accepted = wanted if isinstance(wanted, list) else [wanted]
        if have is None or have.lower() not in [str(w).lower() for w in accepted]:
            return False
    return True


def _data(name_or_path: str) -> tuple[dict[str, Any], str]:
    if isinstance(name_or_path, str) and looks_like_path(name_or_path):
        data = read_toml(Path(name_or_path), name_or_path)
        _check_extras(data, name_or_path)
        return data, name_or_path
    files = _all()
    wanted = name_or_path.strip().lower() if isinstance(name_or_path, str) else ""
    for name, data in files.items():
        if wanted in (name.lower(), *(a.lower() for a in data.get("aliases", ()))):
            return data, f"software/{name}.toml"
    raise unknown_name("software profile", name_or_path, files)


@functools.cache
def _all() -> dict[str, dict[str, Any]]:
    found = {name: read_toml(file, f"software/{name}.toml") for name, file in shipped("software").items()}
    for name, data in found.items():
        _check_extras(data, f"software/{name}.toml")
    return found


def _check_extras(data: Mapping[str, Any], where: str) -> None:
    """Overrides and claims are not part of the record, so their shape is checked here."""
    switches = [f.name for f in dataclasses.fields(SoftwareProfile) if f.name not in _NOT_SWITCHES]
    problems: list[str] = []
    for number, entry in enumerate(_tables(data, "override", problems), start=1):
        match = entry.get("match")
        if not isinstance(match, Mapping) or not match:
            problems.append(f"override {number}: give match = {{...}} with any of {', '.join(MATCH_KEYS)}")
        else:
            problems += [f"override {number}: unknown match key {k!r}" for k in match if k not in MATCH_KEYS]
        strange = [k for k in (*entry, *entry.get("unset", ())) if k not in (*_OVERRIDE_WORDS, *switches)]
        problems += [f"override {number}: unknown switch {k!r}; known: {', '.join(switches)}" for k in strange]
    for number, entry in enumerate(_tables(data, "applies", problems), start=1):
        if not entry or any(k not in _APPLIES_KEYS or not isinstance(v, str) for k, v in entry.items()):
            problems.append(f"applies {number}: give any of {', '.join(_APPLIES_KEYS)} as text")
    if problems:
        raise UserError(problems, where=where)


def _tables(data: Mapping[str, Any], key: str, problems: list[str]) -> list[Mapping[str, Any]]:
    entries = data.get(key, [])
    if not isinstance(entries, list) or not all(isinstance(e, Mapping) for e in entries):
        problems.append(f"{key}: write it as [[{key}]] tables")
        return []
    return entries


def _wrong_names(made: SoftwareProfile) -> list[str]:
    """Modules and switches that are named and do not exist."""
    known = [f.name for f in dataclasses.fields(made) if f.name not in _NOT_SWITCHES]
    problems = [
        f"cuda_graph: unknown module {m!r}; known: {', '.join(GRAPH_MODULES)}"
        for m in made.cuda_graph
        if m not in GRAPH_MODULES
    ]
    problems += [
        f"recompute_modules: unknown module {m!r}; known: {', '.join(RECOMPUTE_MODULES)}"
        for m in made.recompute_modules or ()
        if m not in RECOMPUTE_MODULES
    ]
    strange = [u for u in made.unknown if u not in known]
    return problems + [f"unknown: {u!r} is not a switch; known: {', '.join(known)}" for u in strange]


def _wrong_switches(made: SoftwareProfile) -> list[str]:
    """Switches that do not go together."""
    problems: list[str] = []
    if "full_iteration" in made.cuda_graph and len(made.cuda_graph) > 1:
        problems.append('cuda_graph: "full_iteration" stands alone')
    if "moe" in made.cuda_graph and made.host_sync:
        problems.append(
            'cuda_graph: "moe" captures whole MoE layers, whose token counts must not go to the host; set host_sync = '
            "false (tokens dropped and padded to a capacity)"
        )
    if "moe" in made.cuda_graph and {"moe_router", "moe_preprocess"} & set(made.cuda_graph):
        problems.append('cuda_graph: "moe" holds "moe_router" and "moe_preprocess"; leave them out')
    if made.dispatch_kernel == "low_latency" and made.dispatcher != "deepep":
        problems.append(
            f'dispatch_kernel: dispatcher "{made.dispatcher}" has no low-latency kernels; use dispatcher = "deepep" or '
            'dispatch_kernel = "normal"'
        )
    if made.all_to_all != "library" and made.dispatcher in ("deepep", "hybridep"):
        problems.append(
            f'all_to_all: dispatcher "{made.dispatcher}" has kernels of its own; use dispatcher = "alltoall" or '
            'all_to_all = "library"'
        )
    if made.two_batch_overlap and made.a2a_overlap:
        problems.append("two_batch_overlap and a2a_overlap hide the same all-to-all; set one of them")
    return problems
