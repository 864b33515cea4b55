"""Fitting collectives: a known form is found again, the shipped scores are what the issue of fidelity asks."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from importlib import resources
from typing import Any

import numpy as np
import pandas as pd
import pytest

from calibration.kernels import network, network_fit
from calibration.kernels.network_fit import Forms, names, predicted_s, prepared
from hwprofiles.collectives import collective_forms
from hwprofiles.forms.collectives import FabricForm


@pytest.fixture(scope="module")
def shipped() -> dict[str, Any]:
    path = resources.files("hwprofiles") / "fitted" / "kernels" / "collectives.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def scored(shipped: dict[str, Any], left_out: str, source: str = "", op: str = "collectives") -> dict[str, Any]:
    wanted = {"left_out": left_out, "source": source, "op": op}
    (found,) = [e for e in shipped["errors"] if {key: e[key] for key in wanted} == wanted]
    return dict(found)


@pytest.mark.parametrize(
    ("left_out", "gpus"),
    [("each source", 2160), ("alcf-polaris", 2160), ("xxrjun", 80), ("waynehacking8", 6), ("apex_plus", 8)],
)
def test_sources_left_out_are_predicted(shipped: dict[str, Any], left_out: str, gpus: int) -> None:
    found = scored(shipped, left_out)
    assert found["gpus"][1] == gpus and found["cases"] > 50
    assert found["median"] <= 0.15 and found["p90"] <= 0.40


def test_in_sample_errors(shipped: dict[str, Any]) -> None:
    assert scored(shipped, "")["median"] <= 0.08 and scored(shipped, "", op="")["gpus"] == [2, 2160]
    assert shipped["source"]["kind"] == "fitted"
    across = [e for e in shipped["errors"] if e["source"] and e["gpus"][1] > 8]
    assert across and all(e["rate_read_off"] for e in across)


def test_the_shipped_table_can_be_had_again_from_what_is_shipped(shipped: dict[str, Any]) -> None:
    """Rows without a licence apart: the errors of a source that is here, under the shipped forms."""
    frame = network.points()
    forms = collective_forms()
    fabrics = {k: FabricForm(**{**names(f), "line": 1.0}) for k, f in forms.fabrics.items()}
    found = network.with_errors(frame[frame.fitted], Forms(domains=forms.domains, fabrics=fabrics))
    for source in ("apex_plus", "waynehacking8", "xxrjun"):
        off = found[found.source == source].off.abs()
        known = scored(shipped, "", source, "")
        assert len(off) == known["cases"]
        assert off.median() == pytest.approx(known["median"], abs=2e-4)
        assert off.quantile(0.9) == pytest.approx(known["p90"], abs=2e-4)


def test_leaving_a_source_out_is_not_seeing_it() -> None:
    frame = network.points()
    frame = frame[frame.device == "h100"].reset_index(drop=True)
    frame.loc[frame.source == "waynehacking8", "time_s"] *= 3.0
    forms = network.fit(frame, calls=8)
    honest = network.left_out(frame, "waynehacking8", forms, calls=8)
    assert set(honest.source) == {"waynehacking8"}
    assert (honest.off < 0).all() and honest.off.median() == pytest.approx(1 / 3 - 1, abs=0.1)


def test_a_known_form_is_found_again() -> None:
    truth = collective_forms()
    known = Forms(domains=truth.domains, fabrics={"infiniband": replace(truth.fabrics["slingshot"], line=1.0)})
    rows = [
        (op, nodes * 4, nodes, size, "")
        for op in ("all_gather", "all_reduce", "all_to_all")
        for nodes in (2, 8, 128)
        for size in 2.0 ** np.arange(13, 31, 2)
    ]
    frame = pd.DataFrame(rows, columns=["op", "num_gpus", "nodes", "bytes", "algorithm"])
    frame = frame.assign(device="a100", fabric="infiniband", rate=9e9, fitted=True)
    frame["time_s"] = predicted_s(prepared(frame), known)
    found = network_fit.fit_fabric(frame, truth.domains, "infiniband")
    refound = Forms(domains=truth.domains, fabrics={"infiniband": found})
    off = predicted_s(prepared(frame), refound) / frame.time_s - 1.0
    assert np.median(np.abs(off)) < 0.02 and np.quantile(np.abs(off), 0.9) < 0.08


def test_a_rate_is_read_off_the_largest_message_only() -> None:
    frame = pd.DataFrame(
        {
            "source": "s", "set": "", "device": "h100", "fabric": "infiniband", "algorithm": "",
            "op": ["all_gather", "all_gather", "p2p", "all_gather"], "num_gpus": [16, 16, 2, 8],
            "nodes": [2, 2, 2, 1], "bytes": [1e9, 1e6, 1e9, 1e9], "time_s": [1e-2, 1e-9, 1e-9, 1e-3],
        }
    )  # fmt: skip
    rates = network_fit.line_rates(frame)
    np.testing.assert_allclose(rates[:3], 1e9 / 1e-2 * 15 / 16 / 8)
    assert rates[3] == 1.0  # inside a domain no port counts


def test_slower_networks_have_dearer_hops() -> None:
    fabrics = collective_forms().fabrics
    small = np.array([1e3, 1e5, 1e7])
    assert (fabrics["slingshot"].hop_s(small) > fabrics["infiniband"].hop_s(small)).all()
    assert all(0.0 < f.exchange <= 1.0 and 0.0 < f.line <= 1.0 and f.norm >= 1.0 for f in fabrics.values())
