"""Devices scaled from a measured one: identity, monotone in every figure, honest about it."""

from __future__ import annotations

import dataclasses
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from hwprofiles import catalogue
from hwprofiles.coverage import FAMILIES, coverage
from hwprofiles.errors import UserError
from hwprofiles.forms.grouped import grouped_forms
from hwprofiles.measured import tables
from hwprofiles.scaling import grouped_of, tables_of
from hwprofiles.specs import ClusterSpec, DeviceSpec
from sim.families import load_model
from sim.interval import novelty
from sim.plan import Plan
from sim.report import Report
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

DEVICES = catalogue.names("devices")
MEASURED = ("A100", "H100", "H200", "B200", "GB200", "L40S")
SCALED = tuple(name for name in DEVICES if catalogue.device(name).scaled_from)
SIZES = [np.array(axis) for axis in ([64.0, 1000.0, 8192.0], [512.0, 4096.0, 14336.0], [4096.0, 7168.0, 1024.0])]


def itself(name: str, **changes: Any) -> DeviceSpec:
    """A measured device as scaled from itself, with other figures."""
    return dataclasses.replace(
        catalogue.device(name), **{"name": "twin", "measured": "", "scaled_from": name, **changes}
    )


def on(device: DeviceSpec, *, link: float = 1.0, gpus: int = 16) -> ClusterSpec:
    """The usual cluster of the source of `device`, with that device in it and `link` times the NVLink rate."""
    base = catalogue.cluster(device.scaled_from, gpus=gpus)
    up = dataclasses.replace(base.scale_up, bytes_per_s=base.scale_up.bytes_per_s * link)
    return dataclasses.replace(base, device=device.name, device_spec=device, scale_up=up)


def step(cluster: ClusterSpec, model: str = "Mixtral-8x7B", precision: Any = "bf16") -> Report:
    spec = load_model(model)
    software = catalogue.software("megatron-lm", precision=precision)
    work = Workload(seq_tokens=4096, global_batch_seqs=32, precision=precision)
    plan = Plan(tp=2, pp=1, dp=8, ep=8 if spec.is_moe else 1, edp=2 if spec.is_moe else 16, etp=1)
    return simulate(Scenario(model=spec, cluster=cluster, software=software, workload=work, plan=plan), trace=False)


@pytest.mark.parametrize("name", MEASURED)
def test_scaled_onto_itself_nothing_changes(name: str) -> None:
    twin, own = tables_of(itself(name)), tables(name.lower())
    assert twin.dtypes() == own.dtypes()
    for dtype in own.dtypes():
        np.testing.assert_allclose(twin.gemm_s(*SIZES, dtype)[0], own.gemm_s(*SIZES, dtype)[0], rtol=1e-12)
    for heads, kv, dqk, dv in ((32, 8, 128, 128), (128, 128, 192, 128), (16, 16, 64, 64)):
        both = [t.attention_s(2.0, np.array([300.0, 4096.0, 65536.0]), heads, kv, dqk, dv) for t in (twin, own)]
        np.testing.assert_allclose(*both, rtol=1e-12)
    forms = grouped_forms(name.lower())
    for dtype, form in grouped_of(itself(name), name.lower()).items():
        assert form == forms[dtype]


@pytest.mark.parametrize("name", ("A100", "H100", "B200"))
def test_a_step_on_itself_is_the_step(name: str) -> None:
    plain = step(catalogue.cluster(name, gpus=16)).step_s.value
    assert step(on(itself(name))).step_s.value == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize("name", ("A100", "H100"))
@pytest.mark.parametrize("figure", ("peak", "memory", "link"))
def test_more_is_never_slower(name: str, figure: str) -> None:
    source = catalogue.device(name)
    steps = []
    for times in (0.25, 0.5, 0.9, 1.0, 1.3, 2.0, 8.0):
        changes: dict[str, Any] = {}
        if figure == "peak":
            changes["peak_flop_per_s"] = {dtype: peak * times for dtype, peak in source.peak_flop_per_s.items()}
        if figure == "memory":
            changes["mem_bytes_per_s"] = source.mem_bytes_per_s * times
        steps.append(step(on(itself(name, **changes), link=times if figure == "link" else 1.0)).step_s.value)
    assert all(later <= earlier * (1 + 1e-9) for earlier, later in pairwise(steps)), steps
    assert steps[-1] < steps[0]


def test_compute_bound_by_peak_memory_bound_by_bandwidth_floor_kept() -> None:
    own = tables("h100")
    peaks = catalogue.device("H100").peak_flop_per_s
    fast = tables_of(itself("H100", peak_flop_per_s={d: 2 * p for d, p in peaks.items()}))
    wide = tables_of(itself("H100", mem_bytes_per_s=2 * catalogue.device("H100").mem_bytes_per_s))
    large, thin, tiny = (16384, 16384, 16384), (8, 16384, 16384), (1, 256, 256)

    def gain(found: Any, sizes: tuple[int, int, int]) -> float:
        return float(own.gemm_s(*sizes, "bf16")[0] / found.gemm_s(*sizes, "bf16")[0])

    # the clock of a long kernel recovers as it gets shorter, so that the gain may lie a little above two
    assert 1.9 < gain(fast, large) < 2.2 and gain(wide, large) < 1.05
    assert gain(wide, thin) > 1.6 and gain(fast, thin) < 1.3
    assert gain(fast, tiny) < 1.3 and gain(wide, tiny) < 1.3


@pytest.mark.parametrize("name", SCALED)
def test_it_is_said_and_counts_as_a_new_device(name: str) -> None:
    device = catalogue.device(name)
    found = coverage(device)
    assert set(found) == set(FAMILIES) and any(v.startswith("scaled from") for v in found.values())
    assert novelty("Mixtral-8x7B", device, catalogue.software("megatron-lm")).device
    assert "bf16" in tables_of(device).dtypes()


def test_a_scaled_result_names_its_source() -> None:
    report = step(catalogue.cluster("MI300X", gpus=16))
    assert any("MI300X: scaled from H200" in note for note in report.provenance)


def test_a_dtype_the_device_lacks_is_refused_with_those_it_has() -> None:
    with pytest.raises(UserError, match=r"V100 .*bf16.*fp16"):
        step(catalogue.cluster("V100", gpus=16))
    with pytest.raises(UserError, match="use one of: bf16"):
        step(catalogue.cluster("A800", gpus=16), precision="fp8")
    with pytest.raises(UserError, match="MI250X"):
        step(catalogue.cluster("MI250X", gpus=16), precision="fp8")


def test_fp16_costs_as_bf16() -> None:
    cluster = catalogue.cluster("H100", gpus=16)
    assert step(cluster, precision="fp16").step_s.value == step(cluster).step_s.value
    assert step(catalogue.cluster("V100", gpus=16), precision="fp16").step_s.value > 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"scaled_from": "MI300X"}, "no complete tables"), ({"scaled_from": "H1000"}, "H1000"),
     ({"peak_flop_per_s": {"fp8": 1e15}}, "bf16, fp16")],
)  # fmt: skip
def test_bad_sources_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tables_of(itself("H100", **changes))
