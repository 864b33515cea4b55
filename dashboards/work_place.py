"""The placement of experts as a job: what is asked, read as `moecast place` reads it, and the file it would write.

The counts are those of files that a visitor brought, or what the scenario's routing expects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dashboards.work import Progress
from planner.placement.answer import OBJECTIVES, SPLITS, TRAFFIC, place_experts
from planner.placement.clock import Machine
from planner.placement.placefile import load_placement, placement_json
from planner.placement.read import read_instance, read_loads
from planner.placement.records import Instance, Placement
from planner.placement.scoring import routing_instance, thinned
from planner.question.case import question_of
from planner.question.read import Problems, Question, one_of
from sim.model import ModelSpec

MOST = 100_000  # GPUs, slots, groups: as of the command line
FILES = ("loads", "transitions", "coactivation", "previous")
# What a visitor may set, and what is set where he does not; empty: worked out from the rest.
OPTIONS: Mapping[str, str] = {
    "gpus": "", "gpus_per_node": "", "slots_per_gpu": "", "num_groups": "1", "traffic": "dispatch", "split": "even",
    "objective": "load", "seconds": "", "tokens_per_gpu": "4096", "held_out": "", "max_moves": "", "seed": "0",
}  # fmt: skip
_LAYOUT = ("placement", "host_map", "nodes", "rank_order", "tp", "pp", "vpp", "cp", "ep", "etp", "micro_batch", "zero",
           "schedule", "micro_batch_group", "recompute")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class AskedPlacement:
    """A placement question that was read. previous: the placement in use; unseen: counts to score on; top_k: experts
    of a token (0: not known)."""

    instance: Instance
    previous: Placement | None
    unseen: Instance | None
    machine: Machine | None
    options: Mapping[str, str]
    max_moves: int | None
    seed: int
    top_k: int


def asked_placement(payload: Mapping[str, Any]) -> AskedPlacement:
    """Read the question: `case` (of the scenario), `files` (paths by name of `FILES`), `options` (text).

    Raises UserError with all problems, in the words of the command line.
    """
    files, said = payload.get("files", {}), {**OPTIONS, **payload.get("options", {})}
    given = {name: text or None for name, text in said.items()}
    problems = Problems()
    sizes = {
        name: problems.whole(given[name], f"--{name.replace('_', '-')}", highest=MOST)
        for name in ("gpus", "gpus_per_node", "num_groups", "slots_per_gpu")
    }
    seed = problems.whole(given["seed"], "--seed", lowest=0, highest=2**32 - 1)
    tokens = problems.whole(given["tokens_per_gpu"], "--tokens-per-gpu", highest=2**30)
    moves = problems.whole(given["max_moves"], "--max-moves", lowest=0)
    for name, known in (("traffic", TRAFFIC), ("split", SPLITS), ("objective", OBJECTIVES)):
        problems.attempt(partial(one_of, said[name], known, f"--{name}"))
    if moves is not None and "previous" not in files:
        problems.found.append("--max-moves needs --previous; give the placement in use")
    if said["traffic"] == "chain" and "loads" in files and "transitions" not in files:
        problems.found.append("--traffic chain needs --transitions; give the file, or leave --traffic out")
    problems.stop()
    case = {k: v for k, v in payload["case"].items() if k not in _LAYOUT and not k.startswith("plan.")}
    gpus = sizes["gpus"] or default_gpus(payload["case"])
    question = question_of({**case, "gpus": str(gpus)} if "loads" not in files else {**case, "routing": "balanced"})
    instance = _instance(question, files, gpus, sizes)
    unseen = None
    if said["held_out"]:
        instance, unseen = thinned(instance, seed=seed or 0)
    return AskedPlacement(
        instance=instance, unseen=unseen,
        previous=load_placement(files["previous"])[0] if "previous" in files else None,
        machine=_machine(case, gpus, tokens or 1) if said["seconds"] or said["objective"] == "time" else None,
        options=said, max_moves=moves, seed=seed or 0, top_k=_top_k(question.model, instance),
    )  # fmt: skip


def default_gpus(case: Mapping[str, Any]) -> int:
    """GPUs of the expert-parallel group of a scenario."""
    text = str(case.get("ep", ""))
    return int(text) if text.isdecimal() and int(text) > 1 else 8


def _instance(
    question: Question, files: Mapping[str, str], gpus: int, sizes: Mapping[str, int | None]
) -> Instance:  # fmt: skip
    cluster = question.cluster
    per_node = sizes["gpus_per_node"] or min(gpus, max(cluster.devices_per_node, cluster.domain_devices))
    slots = sizes["slots_per_gpu"]
    if "loads" not in files:
        made = routing_instance(question.routing, gpus=gpus, gpus_per_node=per_node, slots_per_gpu=slots)
        groups = sizes["num_groups"] or 1
        if groups == 1:
            return made
        from dataclasses import replace

        return replace(made, num_groups=groups)
    if slots is None:
        slots = -(-read_loads(files["loads"])[0].shape[1] // gpus)
    return read_instance(
        files["loads"], transitions=files.get("transitions"), coactivation=files.get("coactivation"), gpus=gpus,
        gpus_per_node=per_node, slots_per_gpu=slots, num_groups=sizes["num_groups"] or 1,
    )  # fmt: skip


def _machine(case: Mapping[str, Any], gpus: int, tokens: int) -> Machine:
    """The expert-parallel group of the scenario's cluster, for seconds."""
    question = question_of({**case, "gpus": str(gpus), "routing": "balanced"})
    return Machine(
        cluster=question.cluster, model=question.model, software=question.software, tokens_per_gpu=tokens,
        precision=question.workload.precision,
    )  # fmt: skip


def _top_k(model: ModelSpec, instance: Instance) -> int:
    """Experts of a token: of the model's layers with as many experts, else what pairs over loads say."""
    for layer in model.layers:
        if layer.moe is not None and layer.moe.num_experts == instance.num_experts:
            return layer.moe.top_k
    pairs = instance.coactivation
    if pairs is None:
        return 0
    free = float(pairs.sum() - sum(p.trace() for p in pairs))
    return round(1.0 + free / float(instance.loads.sum()))


def place(payload: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The placement as `moecast place --json` gives it. Raises UserError as the command line does."""
    progress("reading", 0, None)
    asked = asked_placement(payload)
    result = place_experts(
        asked.instance, traffic=asked.options["traffic"], split=asked.options["split"], previous=asked.previous,
        max_moves=asked.max_moves, seed=asked.seed, machine=asked.machine, objective=asked.options["objective"],
        held_out=asked.unseen,
        progress=lambda what, done, total: progress(what, int(done), None if total is None else int(total)),
    )  # fmt: skip
    return placement_json(result)
