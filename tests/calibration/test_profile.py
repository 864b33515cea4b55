"""Profiles: known forms are found again in rows made from them, and every command's reader takes the result."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from calibration.harness.rows import read_rows
from calibration.kernels import collectives as collective_kernels
from calibration.profile import Profile, build
from calibration.profile_device import known_device
from hwprofiles import catalogue
from hwprofiles.collectives import collective_forms
from hwprofiles.errors import UserError
from hwprofiles.factors import factors
from hwprofiles.folders import contents
from hwprofiles.forms.grouped import grouped_forms
from hwprofiles.measured import KernelTables, tables
from hwprofiles.specs import DeviceSpec
from sim import Scenario, simulate
from sim.families import load_model
from sim.plan import Plan
from sim.report import Report
from sim.workload import Workload
from tests.calibration import made_rows as made


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Profile:
    root = tmp_path_factory.mktemp("profile")
    rows = made.write(root / "rows", [*made.everything(), *made.collectives()])
    return build(rows, root / "out", usd_per_s=0.001)


@pytest.fixture(scope="module")
def device(profile: Profile) -> DeviceSpec:
    return catalogue.device(str(profile.folder / "device.toml"))


@pytest.fixture(scope="module")
def kernels(device: DeviceSpec) -> KernelTables:
    return tables(device.measured)


def report(folder: Path, devices: int, software: str = "moecast-harness") -> Report:
    cluster = catalogue.cluster(str(folder / "cluster.toml"), gpus=devices)
    model = load_model(str(Path(__file__).parents[2] / "examples" / "model.toml"))
    own = catalogue.software(software, device=cluster.device, arch="moe", precision="bf16")
    plan = Plan(dp=devices, ep=devices, edp=1)
    return simulate(
        Scenario(
            model=model, cluster=cluster, software=own, plan=plan,
            workload=Workload(seq_tokens=512, global_batch_seqs=2 * devices),
        )
    )  # fmt: skip


def test_gemm_is_found_again(kernels: KernelTables) -> None:
    m, n, k = (np.array(axis) for axis in ([256.0, 1024, 4096], [1024.0, 4096, 4096], [4096.0, 1024, 4096]))
    time_s, provenance = kernels.gemm_s(m, n, k, "bf16")
    assert made.off(time_s, made.GEMM.time_s(m, n, k)) < 0.02
    assert provenance == "interpolated"


def test_backward_products_are_measured(kernels: KernelTables) -> None:
    for name in ("dgrad", "wgrad"):
        ratio, provenance = kernels.gemm_pass("bf16", name)
        assert ratio == pytest.approx(made.PASSES[name], rel=0.05) and provenance == "measured"
    assert tables("h200").gemm_pass("bf16", "dgrad") == (1.0, "assumed")


def test_attention_and_its_backward_are_found_again(kernels: KernelTables) -> None:
    for seq in (1024, 4096):
        time_s = kernels.attention_s(1, seq, 32, 4, 128, 128)
        assert time_s == pytest.approx(float(made.CORE.time_s(32, 4, seq)), rel=0.05)
        ratio, provenance = kernels.attention_backward_ratio(seq, False)
        assert ratio == pytest.approx(made.RATIO, rel=0.01) and provenance == "measured"
    assert kernels.attention_backward_ratio(65536, False)[1] == "assumed"


def test_grouped_gemm_is_found_again_with_its_gradients(device: DeviceSpec) -> None:
    form = grouped_forms(device.measured)["bf16"]
    even, uneven = (8192, 16, 2048, 1024, 512), (16384, 16, 2048, 1024, 2048)
    assert form.backward == "measured"
    for args in (even, uneven):
        for name in ("product_s", "dgrad_s", "wgrad_s"):
            assert getattr(form, name)(*args) == pytest.approx(float(getattr(made.GROUPED, name)(*args)), rel=0.05)


def test_memory_kernels_meet_their_points_and_keep_floor_and_rate(kernels: KernelTables) -> None:
    sizes = np.array([2.0**16, 2.0**20, 2.0**24, 2.0**28])
    assert made.off(kernels.memory_s("rmsnorm", "forward", sizes), [made.kernel_s(s) for s in sizes]) < 1e-3
    assert kernels.memory_s("rmsnorm", "forward", 1.0) == pytest.approx(made.FLOOR_S, rel=1e-3)
    top = kernels.memory_s("rmsnorm", "forward", 2.0**28)
    assert kernels.memory_s("rmsnorm", "forward", 2.0**30) == pytest.approx(4 * top)
    assert kernels.memory_s("rmsnorm", "forward", 0.0) == 0.0
    assert kernels.memory_s("rmsnorm", "update", 1e6) is None
    assert tables("h200").memory_s("rmsnorm", "forward", 1e6) is None
    grown = kernels.memory_s("rmsnorm", "backward", np.geomspace(1.0, 1e10, 200))
    assert np.all(np.diff(grown) > 0.0)


def test_factors_and_rates_are_those_of_the_rows(device: DeviceSpec) -> None:
    own = factors(device.measured)
    assert own.clock == pytest.approx(made.CLOCK) and own.clock_kind == "measured"
    assert own.kernel_floor_s == device.launch_s == pytest.approx(made.FLOOR_S)
    assert own.host_launch_s == pytest.approx(8e-6)
    assert device.mem_bytes_per_s == pytest.approx(made.RATE, rel=1e-6)
    assert own.mem_efficiency == pytest.approx(0.9, rel=1e-6)
    assert device.peak_flop_per_s["bf16"] == pytest.approx(made.PEAK, rel=1e-6)
    assert (device.source.kind, device.power_w, device.usd_per_s) == ("measured", 500.0, 0.001)


def test_collectives_and_links(profile: Profile, kernels: KernelTables) -> None:
    cluster = catalogue.cluster(str(profile.folder / "cluster.toml"))
    assert cluster.devices_per_node == 2
    for op, name in (("all_reduce", "all_reduce"), ("all_to_all", "alltoall")):
        time_s, _ = kernels.collective_s(name, 2, 2.0**20)
        assert time_s == pytest.approx(made.exchange_s(op, 2, 2.0**20), rel=1e-3)
    share = collective_forms().domain(catalogue.device_of(cluster).measured).p2p
    assert cluster.scale_up.bytes_per_s * share == pytest.approx(1e11, rel=0.01)
    found = next(f for f in profile.families if f.name == "collectives")
    uneven = next(e for e in found.left_out if e.kind == "uneven")
    assert uneven.cases == 1 and uneven.median < 0.25  # a straight line in logs over a factor of 16


def test_uneven_all_to_all_goes_by_the_most_loaded_rank() -> None:
    rows = made.collectives()
    points = collective_kernels.points_of_rows(rows)
    uneven = points.spread == "uneven"
    even = points[uneven].assign(bytes=points.bytes_off_max * 2, spread="even")
    points = pd.concat([points, even], ignore_index=True)  # the same load measured evenly: now it must be met exactly
    errors = {e.kind: e for e in collective_kernels.left_out(points, "x")}
    assert errors["uneven"].median < 1e-6


def test_left_out_errors_are_small_on_a_known_form(profile: Profile) -> None:
    by_name = {family.name: family for family in profile.families}
    pairs = {name: [e for e in by_name[name].left_out if e.kind == "pair"] for name in ("gemm", "grouped_gemm")}
    for found in pairs.values():
        assert found and all(e.median < 0.06 for e in found)
    summary = json.loads((profile.folder / "fit.json").read_text(encoding="utf-8"))
    assert summary["borrowed"] == [] and summary["known_as"] is None
    assert summary["families"]["gemm"]["in_sample"]["bf16"]["median"] < 0.02


def test_step_rests_on_measurements_of_this_device(profile: Profile) -> None:
    found = report(profile.folder, 2)
    text = " | ".join(found.provenance)
    assert "sustained clock 0.800: measured on Test GPU" in text
    assert "gemm bf16, weight gradient: measured" in text
    assert "borrowed" not in text and "fitted to whole runs" not in text


def test_one_device_needs_no_collectives(tmp_path: Path) -> None:
    found = build(made.write(tmp_path / "rows", made.everything()), tmp_path / "out")
    assert not (found.folder / "tables" / "collectives.csv").exists()
    assert report(found.folder, 1).step_s.value > 0.0
    with pytest.raises(UserError, match="--family collectives"):
        tables(catalogue.device(str(found.folder / "device.toml")).measured).collective_s("all_reduce", 2, 1e6)


def test_same_rows_same_bytes_wherever_they_lie(profile: Profile, tmp_path: Path) -> None:
    rows = [*made.everything(), *made.collectives()]
    again = build(made.write(tmp_path / "deep" / "rows", rows), tmp_path / "deep" / "out", usd_per_s=0.001)
    files = sorted(p.relative_to(profile.folder) for p in profile.folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(again.folder) for p in again.folder.rglob("*") if p.is_file())
    assert all((profile.folder / name).read_bytes() == (again.folder / name).read_bytes() for name in files)
    assert contents(str(profile.folder / "tables")) == contents(str(again.folder / "tables"))


def test_missing_families_are_named_with_their_command(tmp_path: Path) -> None:
    rows = [r for r in made.everything() if r["family"] not in ("attention", "sustained")]
    with pytest.raises(UserError) as caught:
        build(made.write(tmp_path / "rows", rows), tmp_path / "out")
    assert len(caught.value.problems) == 2
    for family in ("attention", "sustained"):
        assert any(f"--family {family}" in problem for problem in caught.value.problems)
    assert not (tmp_path / "out").exists()


def test_known_device_keeps_its_datasheet_and_lends_what_is_missing(tmp_path: Path) -> None:
    h200 = catalogue.device("H200")
    rows = [*made.launch(), *made.gemms()]
    cells = {"mem_bytes": int(h200.mem_bytes), "multiprocessors": 132}
    found = build(made.write(tmp_path / "rows", rows, device="NVIDIA H200", **cells), tmp_path / "out", name="mine")
    own = catalogue.device(str(found.folder / "device.toml"))
    assert (own.name, own.peak_flop_per_s["bf16"]) == ("mine", 989.5e12)
    assert own.usd_per_s == pytest.approx(h200.usd_per_s)
    assert set(found.borrowed) == {"attention", "grouped_gemm", "collectives"}
    borrowed, shipped = tables(own.measured), tables("h200")
    assert borrowed.attention_s(1, 4096, 32, 4, 128, 128) == pytest.approx(
        shipped.attention_s(1, 4096, 32, 4, 128, 128)
    )
    assert borrowed.collective_s("all_reduce", 8, 1e6)[1] == "assumed"
    assert factors(own.measured).clock_kind == "assumed"
    assert any("attention tables: assumed" in line for line in report(found.folder, 1, "megatron-lm").provenance)


@pytest.mark.parametrize(("driver", "gib", "name"), [
    ("NVIDIA A100-SXM4-40GB", 39.5, "A100-40GB"), ("NVIDIA A100-SXM4-80GB", 79.1, "A100"),
    ("NVIDIA GB200", 184.0, "GB200"), ("NVIDIA H100 80GB HBM3", 79.1, "H100"),
    ("NVIDIA H200", 139.8, "H200"), ("NVIDIA B200", 178.0, "B200"),
    ("NVIDIA H200", 60.0, None), ("NVIDIA L40S", 44.0, "L40S"),
    ("NVIDIA H100 PCIe", 79.1, None), ("NVIDIA A10", 22.0, None), ("NVIDIA RTX A6000", 47.5, None),
    ("cpu Some Processor, 1 thread", 139.8, None),
])  # fmt: skip
def test_devices_are_known_by_name_and_memory(driver: str, gib: float, name: str | None) -> None:
    found = known_device(driver, gib * 2**30)
    assert (found.name if found else None) == name


@pytest.mark.parametrize(("what", "said"), [
    ("nothing", "no rows.csv"), ("two", "2 measured devices"), ("memory", "mem_bytes"), ("columns", "other columns"),
    ("device", "one device a folder"), ("failed", "no measured row"),
])  # fmt: skip
def test_rows_that_cannot_be_used(what: str, said: str, tmp_path: Path) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    if what == "two":
        made.write(folder / "a", made.launch())
        made.write(folder / "b", made.launch())
    elif what == "memory":
        made.write(folder, made.everything(), mem_bytes=0)
    elif what == "failed":
        made.write(folder, [r | {"status": "failed: x"} for r in made.launch()])
    elif what != "nothing":
        made.write(folder, made.launch())
    if what == "columns":
        (folder / "rows.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    if what == "device":
        text = (folder / "rows.csv").read_text(encoding="utf-8")
        (folder / "rows.csv").write_text(text.replace("Test GPU", "Other GPU"), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        build(folder, tmp_path / "out")


def test_bad_folder_of_tables_is_a_user_error(profile: Profile, tmp_path: Path) -> None:
    text = (profile.folder / "device.toml").read_text(encoding="utf-8")
    (tmp_path / "device.toml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=r"tables has no source\.toml"):
        catalogue.device(str(tmp_path / "device.toml"))
    folder = tmp_path / "tables"
    folder.mkdir()
    (folder / "source.toml").write_text("", encoding="utf-8")
    device = catalogue.device(str(tmp_path / "device.toml"))
    assert device.measured == str(folder)
    for read in (tables, factors, grouped_forms):
        with pytest.raises(UserError, match="fit"):
            read(device.measured)


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="the harness needs torch")
def test_tiny_measurement_of_this_machine_predicts(tmp_path: Path) -> None:
    from calibration.measure import measure

    families = ("launch", "gemm", "attention", "memory", "grouped_gemm", "sustained")
    folder = measure("cpu", tmp_path / "rows", suite="tiny", families=families)
    assert {row["family"] for row in read_rows(folder / "rows.csv")} == set(families)
    found = build(tmp_path / "rows", tmp_path / "out")
    device = catalogue.device(str(found.folder / "device.toml"))
    assert factors(device.measured).host_launch_s == 0.0  # the launching thread is the device
    step = report(found.folder, 1)
    assert step.step_s.value > 0.0 and any("measured on cpu" in line for line in step.provenance)
