"""`moecast plan --placement auto`: the placement it writes, redundant experts where the target runs them, the map."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from planner.placement.placefile import load_placement
from planner.placement.records import Instance
from planner.placement.verify import check_answer
from tests.planner_cli.running import Done, moecast

SMALL = ("--model", "mixtral-8x7b", "--cluster", "dgx-h100", "--gpus", "32", "--global-batch", "64")
ASKED = (
    "--routing", "lognormal:0.6", "--placement", "auto", "--ep", "4", "--tp", "1", "--cp", "1", "--pp", "4", "--target",
    "layout",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("plan")
    done = moecast(
        "plan", *SMALL, *ASKED, "--redundant-experts", "5", "--json", "-", "--out", str(folder / "plan.json"),
        "--placement-out", str(folder / "placement.json"),
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder, done


def test_the_placement_is_written_with_its_certificate(made: tuple[Path, Done]) -> None:
    """The plan holds what the placement file does; slots, replicas and loads check out independently."""
    folder, done = made
    said, alone = json.loads(done.out)["placement"], json.loads((folder / "placement.json").read_text("utf-8"))
    assert {k: v for k, v in alone.items() if k != "timing"} == said
    assert said["inputs"]["slots_per_gpu"] == (8 + 5) // 4
    assert [layer["layer"] for layer in said["layers"]] == list(range(32))
    placement, _ = load_placement(folder / "placement.json")
    instance = Instance(loads=np.ones((32, 8)), gpus=4, gpus_per_node=4, slots_per_gpu=3)
    assert not check_answer(instance, placement).problems
    assert said["certificate"]["gap"] < 0.05
    assert load_placement(folder / "plan.json")[0].experts.tolist() == placement.experts.tolist()
    assert any("redundant experts a layer take" in text for text in json.loads(done.out)["warnings"])


def test_replicas_even_out_what_one_copy_cannot(made: tuple[Path, Done]) -> None:
    plain = moecast("plan", *SMALL, *ASKED, "--json", "-")
    assert plain.code == 0, plain.err
    first, more = json.loads(plain.out), json.loads(made[1].out)
    assert first["placement"]["inputs"]["slots_per_gpu"] == 2
    loads = [data["placement"]["certificate"]["max_over_mean"] for data in (first, more)]
    assert loads[1] < loads[0] - 0.02
    steps = [data["plans"][0]["step_s"]["value"] for data in (first, more)]
    assert steps[1] < steps[0]


def test_the_map_goes_out_with_the_plan(made: tuple[Path, Done]) -> None:
    folder, _ = made
    done = moecast("export", str(folder / "plan.json"), "--to", "sglang", "--out", str(folder / "sglang"))
    assert done.code == 0, done.err
    assert "--ep-num-redundant-experts 4" in " ".join((folder / "sglang/sglang_args.sh").read_text("utf-8").split())
    refused = moecast("export", str(folder / "plan.json"), "--to", "permutation", "--out", str(folder / "p"))
    assert refused.code == 2 and "place without replicas" in refused.err


def test_mistakes_have_remedies(tmp_path: Path) -> None:
    trainer = moecast("plan", *SMALL, *ASKED, "--redundant-experts", "16", "--target", "megatron-lm")
    assert trainer.code == 2 and "megatron-lm holds every expert once" in trainer.err and "sglang" in trainer.err
    alone = moecast("plan", *SMALL, "--redundant-experts", "4")
    assert alone.code == 2 and "needs --placement auto" in alone.err
    out = moecast("plan", *SMALL, "--placement-out", str(tmp_path / "p.json"))
    assert out.code == 2 and "under --placement auto only" in out.err
    nowhere = moecast("plan", *SMALL, "--placement-out", str(tmp_path / "no" / "p.json"))
    assert nowhere.code == 2 and "--placement-out" in nowhere.err
    layout = ("--ep", "1", "--tp", "4", "--cp", "1", "--pp", "4")
    one = moecast("plan", *SMALL, *ASKED[:4], *layout, "--placement-out", str(tmp_path / "p.json"))
    assert one.code == 2 and "give an --ep that divides" in one.err
