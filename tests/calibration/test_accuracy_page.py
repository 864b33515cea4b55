"""What the accuracy page says beside the scores: first tests, mechanisms, bootstrap, wrong orders, the HTML twin."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from calibration import accuracy, bootstrap, mechanisms
from calibration.accuracy import ROOT
from calibration.accuracy_groups import rank_section, setup_section, sure_section
from calibration.accuracy_html import html_page, slug
from calibration.accuracy_page import CLASSES, page
from calibration.first_tests import AIM, first_section, first_tests, outcomes
from calibration.published_files import published
from calibration.score import rank_groups
from calibration.validate import Row
from tests.calibration.test_accuracy import made


def row(ident: str, measured: float, predicted: float, **group: str) -> Row:
    groups = {"model": "M", "gpu": "H100", "n_gpus": "8", "seq_len": "4096", "release": "r", "precision": "bf16",
              "source": "s", "arch": "moe", "class": "moe"} | group  # fmt: skip
    return Row(
        id=ident, status="ok", measure="tokens_per_s_gpu", measured=measured, predicted=predicted, key=ident,
        low=0.9 * predicted, high=1.1 * predicted, error=predicted / measured - 1.0, scored=True, ranked=True,
        group=groups,
    )  # fmt: skip


def known_ids() -> set[str]:
    found = set()
    for name in (accuracy.RUNS, accuracy.FOLDING):
        with published(name).open(encoding="utf-8", newline="") as file:
            found |= {line["id"] for line in csv.DictReader(file)}
    return found


@pytest.fixture(scope="module")
def shown_errors() -> dict[str, float]:
    """Errors by row as docs/accuracy-rows.md prints them."""
    text = (ROOT / "docs/accuracy-rows.md").read_text(encoding="utf-8")
    lines = [line.split(" | ") for line in text.splitlines() if line.startswith("| gt")]
    found = {cells[0].removeprefix("| "): cells[9] for cells in lines}
    return {name: float(cell.split()[0]) / 100.0 for name, cell in found.items() if cell.endswith(" %")}


def test_bootstrap_holds_the_score_and_repeats() -> None:
    random = np.random.default_rng(3)
    cases = [row(f"r{i}", 100.0, 100.0 * (1.0 + e), model=f"m{i % 9}") for i, e in enumerate(random.normal(0, 0.1, 90))]
    got = bootstrap.intervals(cases, draws=300)
    assert got == bootstrap.intervals(cases, draws=300)
    assert set(got) == set(bootstrap.STATISTICS)
    for value, low, high in got.values():
        assert low <= value <= high and low < high
    errors = np.array([c.error for c in cases], float)
    assert got["close"][0] == np.mean(np.abs(errors) <= 0.1)
    assert got["bias"][0] == pytest.approx(np.mean(errors))
    assert bootstrap.intervals([]) == {}


def test_bootstrap_draws_whole_groups() -> None:
    """Sixty runs of two groups say no more than two: every draw has the score of one of them, or of both."""
    cases = [row(f"a{i}", 100.0, 100.0, model="a") for i in range(30)]
    cases += [row(f"b{i}", 100.0, 140.0, model="b") for i in range(30)]
    assert bootstrap.intervals(cases)["mape"] == (pytest.approx(0.2), pytest.approx(0.0), pytest.approx(0.4))
    one = bootstrap.intervals(cases[:30])
    assert one["mape"][0] == one["mape"][1] == one["mape"][2]


def test_first_tests_are_five_of_shipped_rows() -> None:
    tests = first_tests()
    assert len(tests) == 5
    named = {name for test in tests for pair in test.pairs for name in (pair.first, pair.second)}
    assert named <= known_ids()
    assert all(pair.first != pair.second and pair.beside for test in tests for pair in test.pairs)


def test_a_first_test_looks_at_the_ratio_alone() -> None:
    """Both rows 30 % too fast: the ratio is right, and passes."""
    test = first_tests()[0]
    pair = test.pairs[0]
    rows = [row(pair.first, 100.0, 130.0), row(pair.second, 300.0, 390.0)]
    (found,) = outcomes(replace(test, pairs=(pair,)), rows)
    assert (found.measured, found.predicted) == (3.0, pytest.approx(3.0)) and found.passes
    rows[1] = row(pair.second, 300.0, 390.0 * (1.0 + 1.1 * AIM))
    (found,) = outcomes(replace(test, pairs=(pair,)), rows)
    assert found.error == pytest.approx(1.1 * AIM) and not found.passes
    text = "\n\n".join(first_section(rows))
    assert f"| {pair.first} → {pair.second} |" in text and "| +8.8 % | +30.0 % |" in text
    assert first_section([]) == []


def test_mechanisms_name_shipped_rows_once_and_say_all_three_things() -> None:
    entries = mechanisms.mechanisms()
    assert {name for entry in entries for name in entry.rows} <= known_ids()
    assert all(entry.title and entry.missing and entry.built and entry.did for entry in entries)
    assert len({entry.title for entry in entries}) == len(entries)


def test_every_worst_case_of_the_page_has_its_mechanism() -> None:
    """After `make accuracy`: a new name in the list needs an entry in calibration/published/mechanisms.toml."""
    text = (ROOT / "docs/accuracy.md").read_text(encoding="utf-8")
    part = text[text.index("\n## The worst cases") : text.index("\n## Rows without a prediction")]
    worst = re.findall(r"^\| (gt\d+) \|", part, re.MULTILINE)
    assert len(worst) == mechanisms.WORST
    named = {name for entry in mechanisms.mechanisms() for name in entry.rows}
    assert not [name for name in worst if name not in named]


def test_no_mechanism_is_stale(shown_errors: dict[str, float]) -> None:
    """An entry whose rows are all predicted well has done its service: take it out."""
    assert mechanisms.stale(mechanisms.mechanisms(), shown_errors) == []


def test_stale_is_an_entry_without_an_error_left() -> None:
    entry = mechanisms.Mechanism(title="t", rows=("a", "b"), missing="m", built="b", did="d")
    assert mechanisms.stale([entry], {"a": 0.01, "b": -0.3}) == []
    assert mechanisms.stale([entry], {"a": 0.01, "b": -0.03}) == ["t"]


def test_worst_cases_carry_their_entry_or_say_so() -> None:
    named = mechanisms.mechanisms()[0]
    cases = [row(named.rows[0], 100.0, 190.0), row("gt9999", 100.0, 150.0), row("fine", 100.0, 101.0)]
    text = "\n\n".join(mechanisms.worst_section(cases, cases))
    first, second = (line for line in text.splitlines() if line.startswith(("| gt9999", f"| {named.rows[0]} ")))
    assert first.endswith(f"| {named.title} |") and second.endswith("| not looked at |")
    assert f"### {named.title}" in text and f"{named.rows[0]} +90.0 %" in text


def test_wrong_orders_are_named() -> None:
    cases = [row("a", 1.0, 3.0), row("b", 2.0, 2.0), row("c", 4.0, 9.0), row("d", 1.0, 1.0, n_gpus="16")]
    (group,) = rank_groups(cases)
    assert [(x.id, y.id) for x, y in group.wrong] == [("a", "b")]
    assert group.tau == pytest.approx(1.0 / 3.0)
    text = "\n\n".join(rank_section(cases))
    assert "1 of 1" in text and "| 0.33 | 0 | 1 | a < b (1 < 2; 3 > 2) |" in text
    assert rank_section(cases[1:]) == ["No group has a tau below 0.7."]


def test_a_level_pair_is_not_called_turned() -> None:
    cases = [row("a", 1.0, 3.0), row("b", 2.0, 3.0), row("c", 4.0, 2.0)]
    (line,) = (x for x in "\n\n".join(rank_section(cases)).splitlines() if x.startswith("| M |"))
    assert "| 1 | 2 | a < c (1 < 4; 3 > 2); b < c (2 < 4; 3 > 2) |" in line


def test_setups_and_certainty_by_hand() -> None:
    cases = [row("a", 100.0, 110.0), row("b", 200.0, 180.0), row("c", 50.0, 50.0, gpu="B200")]
    text = "\n\n".join(setup_section(cases))
    assert "| M | H100 | r | 2 | 100 to 200 | 110 to 180 | 0.90 to 1.10 | 10.0 % | +0.0 % |" in text
    assert "| M | B200 | r | 1 | 50 | 50 | 1.00 | 0.0 % |" in text
    sure = sure_section(cases, CLASSES)[-1].splitlines()[2]  # one group alone: no spread
    assert sure.startswith("| MoE | 6.7 % (6.7 to 6.7 %) | +0.0 % (+0.0 to +0.0 %) |")


class Reader(HTMLParser):
    """Checks nesting, and keeps what the page loads, its anchors, its tables' cells and its dots."""

    VOID = frozenset({"meta", "rect", "line", "input", "polygon"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.titles = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        said = dict(attrs)
        self.loads += [v for k in ("src", "data") if (v := said.get(k))] + [tag] * (tag in ("link", "img", "iframe"))
        self.ids += [v for v in (said.get("id"),) if v]
        self.links += [v for v in (said.get("href"),) if v]
        self.titles += tag == "title" and "circle" in self.open
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def finish(self) -> None:
        assert self.open == []


def test_html_twin_stands_alone_and_says_the_same() -> None:
    scored = made()
    text = html_page(scored)
    assert text == html_page(scored)
    reader = Reader()
    reader.feed(text)
    reader.finish()
    assert reader.loads == [] and "@import" not in text and re.findall(r"url\((?!#)", text) == []
    assert len(set(reader.ids)) == len(reader.ids)
    inside = [link[1:] for link in reader.links if link.startswith("#")]
    assert inside and set(inside) <= set(reader.ids)
    assert reader.titles == 2  # one per case of the plot
    markdown = page(scored)
    cells = [c.strip() for line in re.findall(r"^\| (.*) \|$", markdown, re.MULTILINE) for c in line.split(" | ")]
    for cell in {c for c in cells if re.fullmatch(r"[+-]?[\d.,]+ %", c)}:
        assert f">{cell}</td>" in text
    assert text.count("<table>") == len(re.findall(r"^\| ---", markdown, re.MULTILINE)) + 1


def test_html_escapes_what_it_shows() -> None:
    scored = made()
    odd = [replace(r, group={**r.group, "model": "<b>&M"}) for r in scored.rows[accuracy.RUNS] if r.status == "ok"]
    text = html_page(replace(scored, rows={**scored.rows, accuracy.RUNS: odd}))
    assert "<b>&M" not in text and "&lt;b&gt;&amp;M" in text


def test_anchors_are_those_of_markdown() -> None:
    assert slug("By model, GPU and release") == "by-model-gpu-and-release"
    assert slug("Host: micro-batch 1 against 4") == "host-micro-batch-1-against-4"


def test_shipped_html_is_small_and_has_the_numbers_of_the_page() -> None:
    shipped = ROOT / "docs/accuracy.html"
    assert shipped.stat().st_size < 2_000_000
    text, markdown = shipped.read_text(encoding="utf-8"), (ROOT / "docs/accuracy.md").read_text(encoding="utf-8")
    headline = next(line for line in markdown.splitlines() if line.startswith("| MoE |"))
    for cell in headline.strip("| ").split(" | "):
        assert f">{cell}</td>" in text
