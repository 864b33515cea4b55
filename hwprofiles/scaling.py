"""Kernels of a device that has no tables of its own: those of a measured device, scaled by stated rules.

`DeviceSpec.scaled_from` names the measured device. The rules, applied to the parameters of the fitted forms so that
each size finds the bound it meets on the new device:

- what is bound by arithmetic (GEMM, grouped GEMM, products of the attention core): by the dense peak of its dtype;
- what is bound by memory (operands of the same kernels, tiles of keys and values, casts): by the memory rate;
- waves: tiles are spread over the new device's multiprocessors;
- launch floors and start-ups are kept, and so is what measured kernels differ by from their form;
- collectives and dispatch: start-ups kept, bytes by the rate of the scale-up link (`sim.cost`);
- the sustained clock is the source's, at the new device's own power limit;
- a device of another vendor makes no more of its peak in a dense GEMM than the median of the measured devices does
  (`hwprofiles/fitted/vendors.toml`), however good the source is at it.

A device scaled onto itself is unchanged. A dtype that the device has no peak of has no kernels. A device with some
tables of its own (`DeviceSpec.measured`) takes only the missing families from `scaled_from`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from hwprofiles.catalogue import device as device_named
from hwprofiles.errors import UserError
from hwprofiles.factors import Factors, factors
from hwprofiles.folders import fitted_file
from hwprofiles.forms.attention import AttentionForm, Curve
from hwprofiles.forms.gemm import GemmSurface
from hwprofiles.forms.grouped import GroupedForm, grouped_forms
from hwprofiles.measured import KernelTables, tables
from hwprofiles.specs import DeviceSpec

SIXTEEN = ("bf16", "fp16")  # one kernel stands for both: the peaks are equal wherever a device has both
TABLES_16 = "bf16"


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Ratios of a device over the measured one whose kernels it takes.

    name, source: the device, and the folder of the measured one. compute: ratio of dense peaks by dtype of the tables,
    for the dtypes that the device has. memory: ratio of memory rates. multiprocessors: of the device; spread: over
    those of the source. foreign: the source is known to be another vendor's.
    """

    name: str
    source: str
    compute: tuple[tuple[str, float], ...]
    memory: float
    multiprocessors: float
    spread: float
    foreign: bool = False

    @property
    def by_dtype(self) -> Mapping[str, float]:
        """`compute` as a mapping."""
        return dict(self.compute)

    def has(self, dtype: str) -> float:
        """Ratio of the peak of `dtype`. Raises UserError where the device has no such units, naming those it has."""
        found = self.by_dtype.get(dtype)
        if found is None:
            raise UserError(f"{self.name} has no {dtype} units; use one of: {', '.join(self.by_dtype)}", where="dtype")
        return found


def scale_of(device: DeviceSpec) -> Scale | None:
    """Ratios of a device to the one it is scaled from; None where all its tables are its own or borrowed as they are.

    Raises UserError where that device is not in the catalogue, is itself scaled, or has no 16-bit peak in common.
    """
    if not device.scaled_from:
        return None
    return _scale(
        device.name, device.scaled_from, tuple(device.peak_flop_per_s.items()), device.mem_bytes_per_s,
        float(device.num_sms), device.vendor,
    )  # fmt: skip


@cache
def _scale(
    name: str, source_name: str, peaks: tuple[tuple[str, float], ...], mem_bytes_per_s: float, multiprocessors: float,
    vendor: str,
) -> Scale:  # fmt: skip
    source = device_named(source_name)
    if source.scaled_from or source.measured.lower() != source.name.lower():
        raise UserError(
            f"scaled_from = {source_name!r}: {source.name} has no complete tables of its own; name a measured device, "
            "for example H100",
            where=name,
        )
    have, known = dict(peaks), source.peak_flop_per_s
    sixteen = next((have[dtype] for dtype in SIXTEEN if dtype in have), None)
    if sixteen is None:
        raise UserError(f"peak_flop_per_s has neither of {', '.join(SIXTEEN)}: give one of them", where=name)
    ratios = {TABLES_16: sixteen / known[TABLES_16]}
    ratios |= {dtype: have[dtype] / known[dtype] for dtype in known if dtype in have and dtype not in SIXTEEN}
    return Scale(
        name=name, source=source.measured, compute=tuple(ratios.items()),
        memory=mem_bytes_per_s / source.mem_bytes_per_s, multiprocessors=multiprocessors,
        spread=multiprocessors / source.num_sms, foreign=bool(vendor) and vendor != source.vendor,
    )  # fmt: skip


@cache
def median_shares() -> Mapping[str, float]:
    """Of the measured devices the median share of the dense peak that long GEMMs sustain, by dtype of the tables."""
    file = resources.files("hwprofiles") / "fitted" / "vendors.toml"
    return dict(tomllib.loads(file.read_text(encoding="utf-8"))["gemm_share"])


def sustained_share(name: str, dtype: str) -> float:
    """Share of its dense peak that a measured device sustains in long GEMMs: the rate of its form at the clock of whole
    steps. Raises KeyError where it has no such table or peak."""
    found, rates = device_named(name), factors(device_named(name).measured)
    clock = rates.clock * (rates.clock_16bit if dtype == TABLES_16 else 1.0)
    return tables(found.measured).gemm[dtype].form.flop_per_s * clock / found.peak_flop_per_s[dtype]


def held_share(dtype: str, scale: Scale) -> float:
    """What a source's GEMM rate is held to on another vendor's device (1: it is no better than the median)."""
    if not scale.foreign or dtype not in median_shares():
        return 1.0
    return min(1.0, median_shares()[dtype] / sustained_share(scale.source, dtype))


def gemm_scaled(surface: GemmSurface, dtype: str, scale: Scale) -> GemmSurface:
    """A dense GEMM under the rules above; the residual around measured sizes is kept."""
    form = surface.form
    rate = form.flop_per_s * scale.has(dtype) * held_share(dtype, scale)
    made = replace(
        form, flop_per_s=rate, bytes_per_s=form.bytes_per_s * scale.memory,
        cast_s=form.cast_s / scale.memory, multiprocessors=form.multiprocessors * scale.spread,
    )  # fmt: skip
    return replace(surface, form=made)


def attention_form_scaled(form: AttentionForm, scale: Scale) -> AttentionForm:
    """The attention core: products by the 16-bit peak, tiles that are loaded and stored by the memory rate.

    Times of the form are those of one multiprocessor, whose share of peak and memory rate shrinks with their number.
    """
    per_unit = scale.spread
    return replace(
        form, multiprocessors=form.multiprocessors * scale.spread,
        pair_s=form.pair_s * (per_unit / scale.has(TABLES_16)), tile_s=form.tile_s * (per_unit / scale.memory),
        kv_tile_s=form.kv_tile_s * (per_unit / scale.memory), head_s=form.head_s * per_unit,
    )  # fmt: skip


def curve_scaled(curve: Curve, scale: Scale) -> Curve:
    """A measured table of the attention core: each point by what its form changes by."""
    form = attention_form_scaled(curve.form, scale)
    log_bh, log_seq = np.meshgrid(*curve.grid.log_axes, indexing="ij")
    made = replace(curve, form=form)
    change = np.log(made._form_s(log_bh, log_seq) / curve._form_s(log_bh, log_seq))
    return replace(made, grid=replace(curve.grid, log_time=curve.grid.log_time + change))


def grouped_scaled(form: GroupedForm, dtype: str, scale: Scale) -> GroupedForm:
    """A grouped GEMM under the rules above."""
    return replace(
        form, flop_per_s=form.flop_per_s * scale.has(dtype), bytes_per_s=form.bytes_per_s * scale.memory,
        tail_tiles=form.tail_tiles * scale.spread,
    )  # fmt: skip


def _backward(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Backward over forward of the attention core: the ratio is kept, but measured on this device it is not."""
    gone = ("measured_on", "measured_seq", "measured_ratio")
    return {name: {key: v for key, v in entry.items() if key not in gone} for name, entry in entries.items()}


@cache
def scaled_tables(scale: Scale) -> KernelTables:
    """All tables of `scale.source` under the rules above, for the dtypes that the device has."""
    base = tables(scale.source)
    return replace(
        base, scaled=scale.name, memory={}, backward=_backward(base.backward),
        gemm={d: gemm_scaled(s, d, scale) for d, s in base.gemm.items() if d in scale.by_dtype},
        attention={kind: curve_scaled(curve, scale) for kind, curve in base.attention.items()},
    )  # fmt: skip


def tables_of(device: DeviceSpec) -> KernelTables:
    """Kernel tables of a device: measured, scaled, or its own completed by scaled ones. Raises UserError."""
    scale = scale_of(device)
    if scale is None:
        return tables(device.measured)
    return scaled_tables(scale) if not device.measured else _completed(device.measured, scale)


@cache
def _completed(folder: str, scale: Scale) -> KernelTables:
    own, rest = tables(folder), scaled_tables(scale)
    return replace(
        own, scaled=scale.name, links=(folder, scale.source), attention={**rest.attention, **own.attention},
        collectives={**rest.collectives, **own.collectives},
    )  # fmt: skip


def families_scaled(device: DeviceSpec) -> tuple[str, ...]:
    """Kernel families of a device that are another's, scaled: of gemm, attention, grouped GEMM, collectives, dispatch.

    Empty for a device whose tables are its own or borrowed as they are.
    """
    if not device.scaled_from:
        return ()
    if not device.measured:
        return ("gemm", "attention", "grouped GEMM", "collectives", "dispatch")
    own = tables(device.measured)
    have = {
        "gemm": True,
        "attention": {"gqa", "mha", "mla"} <= set(own.attention),
        "grouped GEMM": fitted_file(device.measured, "grouped.toml").is_file(),
        "collectives": bool(own.collectives),
        "dispatch": fitted_file(device.measured, "dispatch.toml").is_file(),
    }
    return tuple(family for family, there in have.items() if not there)


def grouped_of(device: DeviceSpec, folder: str) -> Mapping[str, GroupedForm]:
    """Grouped GEMM forms by dtype: those of the tables `folder`, or scaled where the device has none of its own."""
    scale = scale_of(device)
    if scale is None or (device.measured and fitted_file(device.measured, "grouped.toml").is_file()):
        return grouped_forms(folder)
    return _scaled_grouped(scale)


@cache
def _scaled_grouped(scale: Scale) -> Mapping[str, GroupedForm]:
    forms = grouped_forms(scale.source)
    return {d: grouped_scaled(form, d, scale) for d, form in forms.items() if d in scale.by_dtype}


def factors_of(device: DeviceSpec) -> Factors:
    """Calibrated factors of a device; a scaled one sustains its source's clock at its own power limit."""
    scale = scale_of(device)
    if scale is None or device.measured:
        return factors(device.measured)
    return replace(
        factors(scale.source), reference_power_w=device.power_w or 1.0, clock_kind="assumed",
        clock_source=f"that of {scale.source}",
    )  # fmt: skip
