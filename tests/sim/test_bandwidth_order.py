"""More bandwidth on a level of the network never makes a step longer, whatever shares its links."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import pytest

from hwprofiles import catalogue
from hwprofiles.specs import ClusterSpec, FabricLevel, SoftwareProfile
from sim.families import load_model
from sim.model import ModelSpec
from sim.plan import Plan
from sim.routing import Routing
from sim.routing.spec import parse_routing, resolve
from sim.run import simulate
from sim.scenario import Scenario
from sim.workload import Workload

GPUS = 64


@cache
def model() -> ModelSpec:
    return load_model("Qwen3-30B-A3B")


@cache
def machines() -> tuple[ClusterSpec, SoftwareProfile]:
    return catalogue.cluster("dgx-h100", gpus=GPUS), catalogue.software("megatron-bridge-26.04")


@cache
def skewed(spec: str) -> Routing:
    return resolve(parse_routing(spec), model(), seed=0) if spec else Routing()


def steps(seed: int) -> list[float]:
    """Seconds of a random scenario before and after one of its levels gets faster."""
    rng = random.Random(seed)
    found, trainer = machines()
    port = rng.choice([100, 200, 400]) * 1e9 / 8
    names = rng.choice([("leaf",), ("leaf", "pod"), ("leaf", "site"), ("pod",), ("site",)])
    sizes = {"leaf": 16, "pod": 32, "site": 32}
    levels = [
        FabricLevel(
            name=name, devices=sizes[name], latency_s=rng.choice([0.0, 1e-6, 2e-5]),
            bytes_per_s=port * rng.choice([0.25, 0.5, 1.0]) * (1 if name != "site" else sizes[name] / 4),
            oversubscription=rng.choice([1, 2, 4]) if name != "site" else 1,
            rails=rng.choice([1, 8]) if name == "leaf" else 1, shared_by="group" if name == "site" else "device",
        )
        for name in names
    ]  # fmt: skip
    dispatcher = rng.choice(["alltoall", "deepep"])
    trainer = replace(
        trainer, dispatcher=dispatcher, a2a_overlap=rng.random() < 0.3,
        capacity_factor=None,
    )  # fmt: skip
    cp, ep = rng.choice([1, 1, 2]), rng.choice([8, 16, 32, 64])
    plan = Plan(dp=GPUS // cp, cp=cp, ep=ep, edp=GPUS // ep)
    routing = skewed(rng.choice(["", "lognormal:0.4", "lognormal:0.8"]))
    work = Workload(seq_tokens=4096, global_batch_seqs=GPUS // cp * rng.choice([1, 2, 4]))
    which, out = rng.randrange(len(levels)), []
    for more in (1.0, 1.0 + 3.0 * rng.random()):
        faster = list(levels)
        faster[which] = replace(levels[which], bytes_per_s=levels[which].bytes_per_s * more)
        made = replace(found, scale_out=replace(found.scale_out, bytes_per_s=port), fabric=tuple(faster))
        scenario = Scenario(model=model(), cluster=made, software=trainer, plan=plan, workload=work, routing=routing)
        out.append(simulate(scenario, trace=False).step_s.value)
    return out


@pytest.mark.parametrize("seed", range(60))
def test_a_faster_level_never_makes_a_step_longer(seed: int) -> None:
    slow, fast = steps(seed)
    assert fast <= slow * (1 + 1e-9)
