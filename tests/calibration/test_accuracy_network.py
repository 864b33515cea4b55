"""The section on network, dispatch and uneven experts says what the fitted files say, and judges by the aims."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from calibration import accuracy_network
from calibration.accuracy_network import left_text, network_section, within
from calibration.accuracy_page import page
from calibration.accuracy_rows import percent
from calibration.kernels import dispatch, imbalance
from calibration.training_trace import training_trace
from tests.calibration.test_accuracy import made

KERNELS = Path(accuracy_network.__file__).resolve().parents[1] / "hwprofiles" / "fitted" / "kernels"


@pytest.fixture(scope="module")
def text() -> str:
    """The whole page around the section."""
    return page(replace(made(), kernels=network_section()))


def rows(text: str, heading: str) -> list[list[str]]:
    """Cells of all tables under a heading."""
    part = text[text.index(f"### {heading}\n") :].split("\n#")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ") and not line.startswith("| ---")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def read(*names: str) -> dict[str, object]:
    data: dict[str, object] = tomllib.loads(KERNELS.joinpath(*names).read_text(encoding="utf-8"))
    return data


def test_the_section_stands_in_the_page_before_the_groups(text: str) -> None:
    assert text.index("## Network, dispatch and uneven experts") < text.index("## By group")
    assert text.count("aim met") > 6


def test_collectives_are_those_of_the_file(text: str) -> None:
    listed = read("collectives.toml")["errors"]
    assert isinstance(listed, list)
    wanted = [e for e in listed if e["source"] == "" and e["op"] == "collectives"]
    head, *found = rows(text, "Collectives")
    assert len(found) == len(wanted) == len({e["left_out"] for e in listed})
    for cells, e in zip(found, wanted, strict=True):
        line = dict(zip(head, cells, strict=True))
        assert e["left_out"] in line["left out of the fit"] or e["left_out"] in ("", "each source")
        assert (line["points"], line["median"], line["p90"]) == (
            str(e["cases"]),
            percent(e["median"]),
            percent(e["p90"]),
        )
        assert line["port rate read off"] == ("across nodes" if e["rate_read_off"] else "none")
        aim = (0.15, 0.40) if e["left_out"] else (0.08, 1e9)
        assert line["aim met"] == ("yes" if e["median"] <= aim[0] and e["p90"] <= aim[1] else "no")
    known = {e["left_out"]: e for e in wanted}
    assert within(known["each source"], (0.15, 0.40)) and not within(known["vidur"], (0.15, 0.40))


def test_distrusted_rows_are_counted(text: str) -> None:
    found = accuracy_network.distrusted()
    assert set(source for source, _ in found) <= {"vidur", "xxrjun"} and sum(found.values()) > 0
    assert f"Distrusted: {sum(found.values())} of the shipped rows" in text
    flagged = dispatch.points("h100").flag
    assert f"{(flagged == 'congested').sum()} of h100 (`congested`)" in text


@pytest.mark.parametrize("device", dispatch.DEVICES)
def test_dispatch_is_that_of_the_files(text: str, device: str) -> None:
    found = {(r[1], r[2]): r[3:] for r in rows(text, "Expert dispatch") if r[0] == device}
    checked = 0
    for mode, phases in read(device, "dispatch.toml").items():
        for phase, form in phases.items() if isinstance(phases, dict) and mode != "source" else ():
            for left, e in form["errors"].items():
                line = found.get((f"{mode}.{phase}", left_text(left)[0]))
                if line is None:
                    assert left == "in_sample_nodes_1" and e == form["errors"]["in_sample"]
                    continue
                assert line[:3] == [str(e["cases"]), percent(e["median"]), percent(e["p90"])]
                aimed = left.startswith(("in_sample", "hidden", "tokens", "top_decade"))
                assert line[3] == ("–" if not aimed else "yes" if e["median"] <= 0.12 else "no")
                checked += 1
    assert checked == len(found) > 15


def test_uneven_experts_are_those_of_the_files_and_of_the_score(text: str) -> None:
    found = rows(text, "Uneven experts")
    counted = {r[0]: r for r in found if len(r) == 6}
    for device in ("a100", "h100"):
        section = read(device, "grouped.toml")["bf16"]
        assert isinstance(section, dict)
        e = section["errors"]["uneven_counted"]
        assert counted[device][2:] == [str(e["cases"]), percent(e["median"]), percent(e["p90"]), "yes"]
    s = imbalance.score("gb200")
    (line,) = [r for r in found if len(r) == 8 and r[0] == "gb200"]
    assert line[1:4] == [str(s.penalty.cases), percent(s.penalty.median), percent(s.penalty.p90)]
    assert line[4] == ("yes" if s.penalty.p90 <= 0.30 else "no")
    assert line[6] == f"{percent(s.clear_order)} of {s.clear_pairs}"
    assert line[7] == ("yes" if s.clear_order == 1.0 else "no")


def test_the_trace_is_told_with_what_was_measured(text: str) -> None:
    found = training_trace()
    _, span, exposed = rows(text, "DeepSeek-V3 training trace")
    assert span[1:4] == [f"{found.span_s * 1e3:.1f} ms", "129.0 ms", percent(found.span_error, sign=True)]
    assert exposed[1:3] == [f"{found.exposed_s * 1e3:.1f} ms", "4.2 ms"]
    assert (span[5], exposed[5]) == ("yes", "yes")


def test_what_was_left_out_is_said_in_words() -> None:
    assert left_text("tokens_nodes_4") == ("every second token count, 4 domains", True)
    assert left_text("congested_transmit") == ("flagged `congested_transmit`, NIC rate read off them", False)
    assert left_text("congested_as_clear") == ("flagged `congested`, NIC rate of fewer nodes", False)
    assert left_text("other_source_bf16")[1] is False
