"""Every rule of the page that stands in no table of the targets: one violation each, refused by its name."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.hostmap import host_map
from planner.export import export_plan
from planner.export.expert_map import MAPS, PlacedModel
from planner.placement.records import Placement
from planner.rules import check
from sim.families import load_model
from sim.mesh import RankMap
from sim.model import ModelSpec
from sim.plan import Plan
from tests.planner.handed import handover
from tests.planner.test_rules import BREAKS, GOOD, scenario


def beyond_the_tables() -> dict[str, Any]:
    """What breaks each rule that stands in no table: of explicit stages, maps of experts and files of an export."""
    qwen, deepseek = load_model("Qwen3-30B-A3B"), load_model("DeepSeek-V3")

    def placed(model: ModelSpec, layers: tuple[int, ...], order: list[int]) -> PlacedModel:
        hosts = np.array([order] * len(layers)).reshape(len(layers), 8, -1)
        return PlacedModel(model=model, placement=Placement.even(hosts, max(order) + 1), layers=layers)

    def odd() -> PlacedModel:
        hosts = np.arange(128).reshape(1, 8, 16)
        holes = Placement.even(np.concatenate([hosts, np.full((1, 8, 1), -1)], axis=2), 128)
        return PlacedModel(model=qwen, placement=holes, layers=(0,))

    named = replace(host_map([*range(8, 16), *range(8)]), nodes=("$(x)", "b"))
    return {
        "stage-sizes": lambda: check(replace(GOOD, stages=(1, 2)), **scenario({})),
        "expert-map-layers": lambda: placed(deepseek, (0,), list(range(256))),
        "expert-map-complete": lambda: placed(qwen, (0,), [*range(127), 0]),
        "expert-map-slots": odd,
        "permutation-no-replicas": lambda: MAPS["permutation"](placed(qwen, (0,), [*range(128), *range(8)])),
        "permutation-groups": lambda: MAPS["permutation"](placed(deepseek, (3,), [*range(1, 256), 0])),
        "slurm-node-names": lambda: export_plan(
            handover(Plan(dp=16, ep=8, edp=2), ranks=RankMap(hosts=named)), "slurm"
        ),
        "torchtitan-recipe": lambda: export_plan(
            handover(Plan(dp=16, ep=8, edp=2, zero_stage=3), model="Mixtral-8x7B", with_mtp=False), "torchtitan"
        ),
        "kubernetes-image": lambda: export_plan(handover(Plan(dp=16, ep=8, edp=2)), "kubernetes"),
    }


def test_every_rule_of_the_page_is_broken_somewhere() -> None:
    """Names of the page, of the source and of the violations above are the same."""
    root = Path(__file__).parents[2]
    page = (root / "docs/reference/rules.md").read_text(encoding="utf-8")
    named = set(re.findall(r"^(?:\| |- )`([a-z0-9-]+)`", page, flags=re.MULTILINE))
    source = "".join(path.read_text(encoding="utf-8") for path in (root / "planner" / "export").glob("*.py"))
    in_words = set(re.findall(r"\[rule ([a-z0-9-]+)[\]:]", source))
    beyond = beyond_the_tables()
    assert named == {*BREAKS, *beyond} and in_words <= set(beyond)
    for name, broken in beyond.items():
        try:
            said = " ".join(map(str, broken() if name == "stage-sizes" else [broken()]))
        except UserError as error:
            said = str(error)
        assert f"rule {name}" in said, name
