"""Devices and clusters: every shipped file is sound; every kind of bad file is refused well."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwprofiles.catalogue import cluster, default_software, device, device_of, names
from hwprofiles.errors import UserError
from hwprofiles.reader import shipped
from hwprofiles.topology import device_bytes_per_s

DEVICES, CLUSTERS = names("devices"), names("clusters")
SHARED_MEMORY = ("Jetson AGX Orin", "EPYC 9654", "Xeon 8480+")

CLUSTER = """
name = "mine"
device = "H100"
num_nodes = 4
devices_per_node = 8
domain_devices = 8
host_mem_bytes = "2 TB"
[scale_up]
name = "scale_up"
bytes_per_s = "450 GB/s"
latency_s = "2 us"
[scale_out]
name = "scale_out"
bytes_per_s = "200 Gb/s"
latency_s = "5 us"
[host_link]
name = "host"
bytes_per_s = "64 GB/s"
latency_s = "2 us"
[source]
kind = "user"
title = "our lab"
where = "inventory"
date = 2026-01-05
"""

DEVICE = """
name = "X1"
mem_bytes = "90 GiB"
mem_bytes_per_s = "3 TB/s"
power_w = "600 W"
usd_per_s = "2 USD/h"
num_sms = 100
launch_s = "3 us"
measured = "h100"
peak_flop_per_s = { bf16 = "800 TFLOP/s" }
"""


def _file(folder: Path, text: str, name: str = "mine.toml") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def _refused(folder: Path, text: str) -> str:
    with pytest.raises(UserError) as caught:
        cluster(_file(folder, text))
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize("kind", ["devices", "clusters", "software"])
def test_every_shipped_file_has_a_full_source(kind: str) -> None:
    for name, file in shipped(kind).items():
        source = tomllib.loads(file.read_text())["source"]
        assert all(source.get(key) for key in ("kind", "title", "where", "date", "licence", "note")), name


TENSOR_CORES = ("A100", "A100-40GB", "A800", "H100", "H100-96GB", "H800", "H200", "B200", "GB200")


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_data_centre_devices_are_plausible(name: str) -> None:
    spec = device(name)
    peak = spec.peak_flop_per_s
    assert peak["bf16"] == peak["fp16"] > peak["tf32"] > peak["fp32"]
    for low in ("fp8", "fp8_block", "mxfp8"):
        assert peak.get(low, 2 * peak["bf16"]) == pytest.approx(2 * peak["bf16"])
    assert peak.get("nvfp4", 4 * peak["bf16"]) == pytest.approx(4 * peak["bf16"])
    # Machine balance of every generation of tensor-core GPU: some 100 to 500 FLOP per byte.
    assert 100 < peak["bf16"] / spec.mem_bytes_per_s < 500
    assert 10 < spec.mem_bytes / spec.mem_bytes_per_s * 1e3 < 50  # ms to read all of the memory


@pytest.mark.parametrize("name", DEVICES)
def test_devices_are_plausible(name: str) -> None:
    spec = device(name)
    peak = spec.peak_flop_per_s
    sixteen = peak.get("bf16", peak.get("fp16", 0.0))
    assert sixteen > peak.get("tf32", 0.0) >= 0.0
    assert peak.get("tf32", sixteen) >= peak.get("fp32", 0.0)
    assert all(sixteen <= peak[low] < 2.01 * sixteen + 1e13 for low in ("fp8", "fp8_block", "mxfp8") if low in peak)
    assert sixteen > 0.9 * peak.get("bf16", 0.0)
    # FLOP per byte: some 30 for CPUs, 100 to 600 for what has matrix units
    assert 30 < sixteen / spec.mem_bytes_per_s < 600
    assert 1e-6 < spec.launch_s < 1e-5
    assert spec.usd_per_s == 0.0 or 0.5 < spec.usd_per_s * 3600 < 10
    assert spec.mem_bytes > 20e9 and (spec.power_w == 0.0 or 50 < spec.power_w < 1500)


def test_generations_are_in_order() -> None:
    line = [device(n) for n in ("A100-40GB", "A100", "H100", "H200", "B200", "GB200")]
    for key in ("mem_bytes", "mem_bytes_per_s", "power_w", "num_sms"):
        values = [getattr(spec, key) for spec in line]
        if key == "mem_bytes":
            values[2] = max(values[1], values[2])  # A100 and H100 both carry 80 GB
        assert values == sorted(values), key
    assert [s.peak_flop_per_s["bf16"] for s in line] == sorted(s.peak_flop_per_s["bf16"] for s in line)
    assert "fp8" not in device("A100").peak_flop_per_s
    assert "mxfp8" not in device("H100").peak_flop_per_s
    assert device("H800").peak_flop_per_s == device("H100").peak_flop_per_s


@pytest.mark.parametrize("name", TENSOR_CORES)
def test_usable_memory_is_below_the_marketed_size(name: str) -> None:
    marketed_gb = {"A100-40GB": 40 * 1.0737, "H100-96GB": 96 * 1.0737, "H200": 151.4, "B200": 192, "GB200": 198.7}
    assert 0.9 < device(name).mem_bytes / (marketed_gb.get(name, 80 * 1.0737) * 1e9) < 1


def test_measured_folders_and_borrowing() -> None:
    assert device("H800").measured == device("H100").measured == "h100"
    assert device("A100-40GB").measured == "a100"
    assert device("A800").measured == "a100" and not device("A800").scaled_from
    own = {device(n).measured for n in DEVICES} - {""}
    assert own == {"a100", "h100", "h200", "b200", "gb200", "gb300", "l40s"}
    assert all(bool(device(n).measured) or bool(device(n).scaled_from) for n in DEVICES)


@pytest.mark.parametrize("alias", ["a100-80gb", "A100-SXM4-80GB", "h100-SXM", "GB200"])
def test_aliases_in_any_case(alias: str) -> None:
    assert device(alias) == device(alias.upper()) == device(alias.lower())
    assert device(alias).name == alias.upper().split("-")[0]


def test_no_name_stands_for_two_things() -> None:
    for kind in ("devices", "clusters", "software"):
        seen: dict[str, str] = {}
        for stem, file in shipped(kind).items():
            data = tomllib.loads(file.read_text())
            for key in {stem, data["name"], *data.get("aliases", ()), *data.get("preset", {}).get("aliases", ())}:
                assert seen.setdefault(key.lower(), stem) == stem


@pytest.mark.parametrize("name", CLUSTERS)
def test_clusters_are_plausible(name: str) -> None:
    made = cluster(name)
    assert made.name == name
    assert device_of(made).name == made.device
    assert made.scale_up.bytes_per_s >= made.host_link.bytes_per_s  # equal where cards meet over PCIe alone
    assert made.scale_up.bytes_per_s > device_bytes_per_s(made, made.scale_out)
    assert 0 < made.scale_up.latency_s < made.scale_out.latency_s < 1e-4
    assert made.domain_devices % made.devices_per_node == 0 or made.devices_per_node % made.domain_devices == 0
    own = made.device in SHARED_MEMORY  # the memory of the device is the host's: what is left for the host
    assert (0 if own else 64e9) <= made.host_mem_bytes / made.devices_per_node < 1e12


@pytest.mark.parametrize("name", DEVICES)
def test_every_device_has_a_usual_cluster_and_software(name: str) -> None:
    assert device_of(cluster(name)).name == name
    assert cluster(name.lower()) == cluster(name)
    assert default_software(name) in names("software")


def test_rates_of_the_known_fabrics() -> None:
    assert cluster("h100").scale_out.bytes_per_s == 50e9
    assert cluster("dgx-a100-80g").scale_out.bytes_per_s == 25e9
    assert cluster("H800").scale_up.bytes_per_s == 200e9
    assert cluster("GB200").domain_devices == 72
    assert cluster("gb200-nvl72-800g").scale_out.bytes_per_s == 2 * cluster("gb200").scale_out.bytes_per_s


@given(st.sampled_from(CLUSTERS), st.integers(1, 4000))
def test_gpus_scale_whole_nodes_or_one_partial_node(name: str, gpus: int) -> None:
    per_node = cluster(name).devices_per_node
    if gpus < per_node or gpus % per_node == 0:
        made = cluster(name, gpus=gpus)
        assert made.num_devices == gpus
        assert made.num_nodes == max(1, gpus // per_node)
        assert (made.scale_up, made.scale_out) == (cluster(name).scale_up, cluster(name).scale_out)
    else:
        with pytest.raises(UserError, match=f"use {gpus // per_node * per_node} or"):
            cluster(name, gpus=gpus)


@pytest.mark.parametrize("gpus", [0, -8, 2.5, True, "8", float("nan")])
def test_bad_gpu_counts(gpus: int) -> None:
    with pytest.raises(UserError, match="gpus ="):
        cluster("h100", gpus=gpus)


@pytest.mark.parametrize(("ask", "near"), [("h10", "H100"), ("gb20", "GB200"), ("dgx-h10", "dgx-h100")])
def test_unknown_names_suggest_near_ones(ask: str, near: str) -> None:
    with pytest.raises(UserError, match=f"Did you mean.*{near}"):
        cluster(ask)


def test_user_cluster_by_device_name(tmp_path: Path) -> None:
    made = cluster(_file(tmp_path, CLUSTER), gpus=64)
    assert (made.num_nodes, made.device, made.scale_out.bytes_per_s) == (8, "H100", 25e9)
    assert made.source.kind == "user"
    assert made.source.date == "2026-01-05"
    assert device_of(made) == device("H100")


def test_user_cluster_with_its_own_device_inline_or_in_a_file(tmp_path: Path) -> None:
    inline = CLUSTER.replace('device = "H100"\n', "") + "[device_spec]" + DEVICE
    made = cluster(_file(tmp_path, inline))
    assert made.device == device_of(made).name == "X1"
    assert device_of(made).mem_bytes == 90 * 2**30
    assert device_of(made).source == made.source

    _file(tmp_path, DEVICE + CLUSTER[CLUSTER.index("[source]") :], "x1.toml")
    beside = cluster(_file(tmp_path, CLUSTER.replace('"H100"', '"./x1.toml"')))
    assert device_of(beside) == dataclasses.replace(device_of(made), source=beside.source)


def test_another_device_than_the_inline_one_is_looked_up(tmp_path: Path) -> None:
    inline = cluster(_file(tmp_path, CLUSTER.replace('device = "H100"\n', "") + "[device_spec]" + DEVICE))
    assert device_of(dataclasses.replace(inline, device="B200")) == device("B200")


def test_a_cluster_without_a_source_is_refused(tmp_path: Path) -> None:
    said = _refused(tmp_path, CLUSTER[: CLUSTER.index("[source]")])
    assert "missing 'source'" in said
    assert "[source] table" in said


def test_every_problem_is_listed_at_once_with_its_key(tmp_path: Path) -> None:
    text = CLUSTER.replace("devices_per_node", "device_per_node").replace('"450 GB/s"', '"450 GB"')
    text = text.replace('kind = "user"', 'kind = "rumour"').replace("num_nodes = 4", 'num_nodes = "four"')
    said = _refused(tmp_path, text)
    assert "unknown key 'device_per_node'; did you mean 'devices_per_node'?" in said
    assert "missing 'devices_per_node'" in said
    assert "scale_up.bytes_per_s: read '450 GB'" in said
    assert "source.kind = 'rumour'" in said
    assert "num_nodes = 'four'" in said
    assert len(said.splitlines()) == 5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("num_nodes = 4", "num_nodes = 0", "num_nodes = 0: must be greater than zero"),
        ("num_nodes = 4", "num_nodes = -4", "num_nodes = -4: must be greater than zero"),
        ("num_nodes = 4", "num_nodes = 4.0", "num_nodes = 4.0"),
        ("num_nodes = 4", "num_nodes = true", "num_nodes = True"),
        ("num_nodes = 4", "num_nodes = nan", "num_nodes = nan"),
        ('"450 GB/s"', "nan", "scale_up.bytes_per_s: read nan"),
        ('"450 GB/s"', "inf", "scale_up.bytes_per_s: read inf"),
        ('"450 GB/s"', "0.0", "scale_up.bytes_per_s = 0: must be greater than zero"),
        ('"450 GB/s"', '"-450 GB/s"', "zero or more"),
        ('"450 GB/s"', "true", "bool"),
        ('"H100"', '"H10"', "Did you mean"),
        ('"H100"', "7", "device = 7"),
        ("domain_devices = 8", "domain_devices = 12", "multiple"),
        ('name = "host"', "", "missing 'host_link.name'"),
        ("[scale_up]", "[scale-up]", "did you mean 'scale_up'"),
        ("[scale_up]", "[scale_up", "not valid TOML"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in CLUSTER
    assert says in _refused(tmp_path, CLUSTER.replace(old, new))


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    binary = tmp_path / "b.toml"
    binary.write_bytes(b"\x7fELF\x00\xff\xfe" * 100)
    large = tmp_path / "l.toml"
    large.write_text("# x\n" * 2_500_000)
    cases = ((binary, "not a text"), (large, "at most"), (tmp_path, "cannot be read"), (tmp_path / "no", "no such"))
    for path, says in cases:
        with pytest.raises(UserError, match=says):
            cluster(str(path))


def test_device_files_are_checked_too(tmp_path: Path) -> None:
    source = CLUSTER[CLUSTER.index("[source]") :]
    good = DEVICE + source
    assert device(_file(tmp_path, good)).name == "X1"
    for old, new, says in (
        ('"800 TFLOP/s"', '"800 TB/s"', "peak_flop_per_s.bf16: read '800 TB/s'"),
        ("bf16 =", "bf61 =", "unknown key 'peak_flop_per_s.bf61'"),
        ('{ bf16 = "800 TFLOP/s" }', "{}", "peak_flop_per_s is empty"),
        ('"90 GiB"', "0", "mem_bytes = 0"),
        (source, "", "missing 'source'"),
    ):
        with pytest.raises(UserError) as caught:
            device(_file(tmp_path, good.replace(old, new)))
        assert says in str(caught.value)
