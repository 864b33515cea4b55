"""The documentation: links lead somewhere, commands parse, and the reference names every key and option."""

from __future__ import annotations

import dataclasses
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer

from hwprofiles import specs

# Made by a command, or by another tool, after the text that links to them.
GENERATED = {"docs/accuracy.md", "docs/accuracy.html", "docs/images/report.png"}


def pages(root: Path) -> list[Path]:
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def fences(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    heads = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_links_lead_somewhere(root: Path) -> None:
    dead = []
    for page in pages(root):
        for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
            if "://" in link:
                continue
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            where = f"{page.relative_to(root)} -> {link}"
            if not target.exists() and str(target.relative_to(root)) not in GENERATED:
                dead.append(where)
            elif anchor and target.exists() and anchor not in anchors(target):
                dead.append(where + " (no such heading)")
    assert not dead, "\n".join(dead)


def test_every_page_is_in_the_index(root: Path) -> None:
    index = (root / "docs/README.md").read_text(encoding="utf-8")
    linked = {(root / "docs" / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)\)", index)}
    missing = [str(p.relative_to(root)) for p in (root / "docs").rglob("*.md") if p.name != "README.md"]
    assert not [name for name in missing if (root / name).resolve() not in linked]


def commands(root: Path) -> list[tuple[str, list[str]]]:
    """(page, words) of every `moecast` command of the pages and of the examples' own comments."""
    found = []
    for page in pages(root):
        for block in fences(page.read_text(encoding="utf-8"), "bash"):
            lines = block.replace("\\\n", " ").splitlines()
            said = [shlex.split(line.strip(), comments=True) for line in lines if "moecast " in line]
            found += [(str(page.relative_to(root)), words) for words in said]
    for file in sorted((root / "examples").glob("*.toml")):
        tried = re.findall(r"^# Try it: (moecast .*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        found += [(file.name, shlex.split(line)) for line in tried]
    return [(page, words) for page, words in found if words[0] == "moecast"]


def tree() -> Any:
    from planner.cli.app import app

    return typer.main.get_command(app)


def test_commands_of_the_documentation_parse(root: Path) -> None:
    """Every verb, option and value is accepted, and every name is in a catalogue or is a file."""
    from hwprofiles import catalogue
    from sim.families import load_model

    found = commands(root)
    assert len(found) > 15
    wrong = []
    for page, words in found:
        if words[1:] == ["--help"]:
            continue
        said = f"{page}: {' '.join(words)}"
        group, name, rest = tree(), words[1], words[2:]
        if name not in group.commands:
            wrong.append(f"{said}: no verb {name}")
            continue
        command = group.commands[name]
        while hasattr(command, "commands") and rest:
            command, rest = command.commands[rest[0]], rest[1:]
        try:
            given = command.make_context(name, list(rest)).params
        except Exception as error:
            wrong.append(f"{said}: {error}")
            continue
        if (model := given.get("model")) and "path/to" not in model:
            load_model(str(root / model) if model.endswith(".toml") else model)
        if cluster := given.get("cluster"):
            catalogue.cluster(str(root / cluster) if cluster.endswith(".toml") else cluster)
        if software := given.get("software"):
            catalogue.software(software)
    assert not wrong, "\n".join(wrong)


def test_reference_names_every_option(root: Path) -> None:
    text = (root / "docs/reference/cli.md").read_text(encoding="utf-8")
    options: set[str] = set()
    todo = [tree()]
    while todo:
        command = todo.pop()
        todo += list(getattr(command, "commands", {}).values())
        options |= {o for p in command.params for o in p.opts if o.startswith("--")}
    missing = sorted(o for o in options - {"--help"} if not re.search(rf"`[^`]*{o}\b", text))
    assert not missing, f"docs/reference/cli.md does not name {missing}"


def test_reference_states_the_defaults(root: Path) -> None:
    text = (root / "docs/reference/cli.md").read_text(encoding="utf-8")
    stated: dict[str, set[str]] = {}  # verbs may share a name and not the default
    for name, default in re.findall(r"^\| `(--[a-z-]+)[^`]*` \| (\S+) \|", text, re.MULTILINE):
        stated.setdefault(name, set()).add(default)
    checked = 0
    for verb in ("plan", "simulate"):
        for param in tree().commands[verb].params:
            if isinstance(param.default, str) and param.opts[0] in stated:
                assert param.default in stated[param.opts[0]], param.opts[0]
                checked += 1
    assert checked >= 10


@pytest.mark.parametrize(
    "record",
    [
        "ClusterSpec",
        "LinkSpec",
        "FabricLevel",
        "NodeParts",
        "StorageSpec",
        "Reliability",
        "DeviceSpec",
        "SoftwareProfile",
        "Source",
    ],
)
def test_reference_names_every_key_of_a_profile(record: str, root: Path) -> None:
    text = (root / "docs/reference/cluster-toml.md").read_text(encoding="utf-8")
    names = {field.name for field in dataclasses.fields(getattr(specs, record))} - {"source"}
    missing = sorted(name for name in names if f"`{name}`" not in text)
    assert not missing, f"docs/reference/cluster-toml.md does not name {missing}"


def test_reference_names_every_key_of_a_model(root: Path) -> None:
    from sim.families.hf import READERS
    from sim.model import AttentionSpec, MixerSpec, MoESpec

    text = (root / "docs/reference/model-toml.md").read_text(encoding="utf-8")
    records = (AttentionSpec, MoESpec, MixerSpec)
    names = {field.name for record in records for field in dataclasses.fields(record)}
    assert not sorted(name for name in names if f"`{name}`" not in text)
    families = (root / "docs/reference/models.md").read_text(encoding="utf-8")
    assert not sorted(name for name in READERS if f"`{name}`" not in families)


def test_reference_names_every_key_of_the_json(root: Path) -> None:
    from planner.planfile import plan_fields, plan_record
    from planner.search import SearchSummary
    from sim.plan import Plan
    from sim.report import Estimate, Report

    one = Estimate(value=1.0, low=1.0, high=1.0)
    report = Report(
        model="", cluster="", software="", devices=1, plan=Plan(), num_micro_batches=1, step_s=one,
        tokens_per_s_per_gpu=one, mfu=one, tflops_per_gpu=1.0, usd_per_step=None, breakdown={}, bubble_fraction=0.0,
        exposed_comm_s={}, peak_mem_bytes=0.0, mem_capacity_bytes=0.0, usable_mem_bytes=0.0, memory=(), link_use={},
        out_of_memory=None,
        provenance=(),
    )  # fmt: skip
    keys = {*plan_record(report), *plan_fields(Plan()), *(f.name for f in dataclasses.fields(SearchSummary))}
    words = set(re.findall(r"\w+", (root / "docs/reference/json.md").read_text(encoding="utf-8")))
    assert not sorted(keys - words)


def test_coverage_page_is_what_the_command_writes(root: Path) -> None:
    from calibration.coverage_page import PAGE, page

    assert (root / PAGE).read_text(encoding="utf-8") == page(), "run `make coverage`"
    assert "default of the device" not in page(), "a release of the published runs has no profile"


def test_examples_are_read(root: Path) -> None:
    from hwprofiles import catalogue
    from sim.families import load_model

    files = sorted((root / "examples").glob("*.toml"))
    assert files
    for file in files:
        if "num_nodes" in tomllib.loads(file.read_text(encoding="utf-8")):
            assert catalogue.cluster(str(file)).num_devices > 1
        else:
            assert load_model(str(file)).is_moe


def cells(text: str, start: str) -> list[str]:
    """Cells of the first table row that starts with `start`."""
    line = next(x for x in text.splitlines() if x.startswith(f"| {start}"))
    return [c.strip() for c in line.strip("|").split("|")]


def test_readme_headline_is_the_accuracy_page(root: Path) -> None:
    """The README rounds what docs/accuracy.md says; after `make accuracy` it must be brought up to date."""
    readme = (root / "README.md").read_text(encoding="utf-8")
    page = (root / "docs/accuracy.md").read_text(encoding="utf-8")
    part = page[page.index("### Against a constant MFU") :]
    left_out = cells(page, "one model at a time")
    wanted = (("MoE, ", "MoE", "MoE |", 1), ("dense of 1B", "dense, 1B and more", "dense, 1B", 3))
    for start, label, mape, column in wanted:
        said = cells(readme, start)
        scored, baseline = cells(page, mape), cells(part, label)
        got = [scored[2], scored[3], baseline[2], left_out[column]]
        assert [f"{float(x.split()[0]):.0f} %" for x in got] == said[1:5], (start, got)
        assert f"{scored[1]} cases" in said[0]
