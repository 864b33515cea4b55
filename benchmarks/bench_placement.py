"""Expert placement against its targets: gaps, flows and fan-out as ratios, seconds beside them.

    [PARTS="loads never_worse chains seconds fan_out drift"] python -m benchmarks.bench_placement

Seconds are CPU time of one core. Instances are those of `planner.placement.generate`; seeds are fixed.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import time
from typing import Any

from benchmarks import figures

RANDOM = 1000
SEEDS = (31, 32, 33, 34, 35)


OUT = figures.Figures()


def line(what: str, figure: str, target: str) -> None:
    OUT.add(what, figure, note=f"target {target}")


def h100_machine() -> Any:
    """8 nodes x 8 H100, 400 Gb/s."""
    from hwprofiles import catalogue
    from planner.placement.clock import Machine
    from sim.families import load_model

    cluster = catalogue.cluster("dgx-h100", gpus=64)
    software = catalogue.software(catalogue.default_software(cluster.device), device=cluster.device)
    return Machine(cluster=cluster, model=load_model("deepseek-v3"), software=software, tokens_per_gpu=4096)


def loads() -> None:
    import numpy as np

    from planner.placement.answer import place_experts
    from planner.placement.eplb import eplb_times
    from planner.placement.generate import load_instance
    from planner.placement.load import plan_layer

    for seed in SEEDS[:3]:
        instance = load_instance(layers=58, experts=256, gpus=64, slots_per_gpu=4, sigma=0.4, seed=seed)
        started = time.process_time()
        plans = [plan_layer(load, slots=4, speeds=instance.speeds) for load in instance.loads]
        took = time.process_time() - started
        over = np.array([plan.time / plan.bound - 1 for plan in plans])
        eplb = float((eplb_times(instance) / [plan.bound for plan in plans] - 1).mean())
        line(
            f"58 x 256 on 64 GPUs, seed {seed}: over the bound",
            f"mean {over.mean():.3%} worst {over.max():.3%} (EPLB {eplb:.1%}), {took:.2f} s",
            "0.1 %, 0.5 %, 2 s",
        )
    for slots, sigma in ((5, 0.4), (5, 1.0), (9, 1.0)):
        gpus = 64 if slots == 5 else 32
        instance = load_instance(layers=8, experts=256, gpus=gpus, slots_per_gpu=slots, sigma=sigma, seed=3)
        started = time.process_time()
        result = place_experts(instance)
        took = (time.process_time() - started) / 8
        line(
            f"256 on {gpus} GPUs, {gpus * slots - 256} extra slots, sigma {sigma}: over the bound",
            f"worst {result.certificate.worst_layer:.3%}, {took:.2f} s a layer",
            "0.05 %, 0.3 s",
        )


def never_worse() -> None:
    import numpy as np

    from planner.placement.answer import place_experts
    from planner.placement.eplb import eplb_times
    from planner.placement.records import Instance
    from planner.placement.verify import check_answer

    rng = np.random.default_rng(7)
    worse = wrong = 0
    gains = []
    for _ in range(RANDOM):
        gpus, slots = int(rng.choice([1, 2, 3, 4, 6, 8, 12, 16, 32])), int(rng.integers(1, 9))
        experts = int(rng.integers(slots, gpus * slots + 1))
        load = np.round(1e4 * np.exp(rng.choice([0.2, 0.4, 1.0, 2.0]) * rng.standard_normal(experts))) + 1
        instance = Instance(loads=load[None], gpus=gpus, gpus_per_node=gpus, slots_per_gpu=slots)
        checked = check_answer(instance, place_experts(instance).placement)
        theirs = float(eplb_times(instance)[0])
        wrong += bool(checked.problems)
        worse += checked.max_load[0] > theirs * (1 + 1e-9)
        gains.append(1 - checked.max_load[0] / theirs)
    line(
        f"{RANDOM} random layers: worse than EPLB, infeasible",
        f"{worse}, {wrong} (mean {np.mean(gains):.2%} less)",
        "0, 0",
    )


def chains() -> None:
    from planner.placement.answer import place_experts
    from planner.placement.generate import STRUCTURES, chain_instance

    sizes: dict[str, Any] = {"layers": 58, "experts": 256, "gpus": 64, "gpus_per_node": 8, "slots_per_gpu": 4}
    for name, least in (("medium", "13 %"), ("strong", "18 %")):
        for seed in SEEDS:
            instance = chain_instance(STRUCTURES[name], seed=seed, **sizes)
            started = time.process_time()
            said = place_experts(instance, traffic="chain").certificate
            took = time.process_time() - started
            assert said.cross_node is not None
            less = 1 - said.cross_node / said.baselines["contiguous"]["cross_node"]
            line(
                f"chain {name}, seed {seed}: less cross-node flow, gap",
                f"{less:.1%}, {said.gap:.1%}; GPU over bound {said.worst_layer:.2%}, {took:.1f} s",
                f"{least}, 9 %; 1.2 %, 10 s",
            )
    small = chain_instance(STRUCTURES["medium"], layers=32, experts=8, gpus=4, gpus_per_node=4, slots_per_gpu=2, seed=1)
    started = time.process_time()
    said = place_experts(small, traffic="chain").certificate
    line(
        "chain 32 x 8 on 4 GPUs",
        f"{said.bound_kind}, gap {said.gap:.0%}, {time.process_time() - started:.2f} s",
        "proved, 1 s",
    )


def seconds() -> None:
    """8 nodes x 8 H100, 400 Gb/s: layer time by the event run, against MoETuner's two stages; dispatch, before and
    after; a large group with replicas."""
    from dataclasses import replace

    import numpy as np

    from planner.placement.answer import place_experts
    from planner.placement.generate import STRUCTURES, chain_instance, coactivation_of, draw_tokens, topic_chances
    from planner.placement.records import Instance
    from planner.placement.verify import check_answer

    machine = h100_machine()
    sizes: dict[str, Any] = {"gpus": 64, "gpus_per_node": 8, "slots_per_gpu": 4}
    for name in ("weak", "medium", "strong"):
        for seed in SEEDS if name != "weak" else SEEDS[:1]:
            instance = chain_instance(STRUCTURES[name], layers=58, experts=256, seed=seed, **sizes)
            started = time.process_time()
            result = place_experts(instance, traffic="chain", machine=machine, objective="time")
            took = time.process_time() - started
            said = result.certificate.time
            assert said is not None and not check_answer(instance, result.placement).problems
            line(
                f"chain {name}, seed {seed}: layer time below MoETuner's",
                f"{1 - said.after_s / said.baselines_s['moetuner']:.1%} (contiguous {said.gain.value:.1%}, its step "
                f"{1 - said.step_after.value / said.step_before_s:.1%}), gap "
                f"{1 - said.lower_bound_s / said.after_s:.1%}, {took:.1f} s",
                "3 % (medium, strong), never worse",
            )
    rng = np.random.default_rng(31)
    prior, chance = topic_chances(STRUCTURES["medium"], 2, 256, rng)
    pairs = np.stack([coactivation_of(draw_tokens(c, prior, 8, 50_000, rng), 256) for c in chance])
    loads = np.stack([np.diag(c) for c in pairs])
    said = place_experts(Instance(loads=loads, coactivation=pairs, **sizes), machine=machine).certificate.time
    alone = place_experts(Instance(loads=loads, **sizes), machine=machine).certificate.time
    assert said is not None and alone is not None
    line(
        "dispatch medium: layer time below contiguous, load alone",
        f"{said.gain.value:.1%}, {1 - said.after_s / alone.after_s:.1%}; "
        f"{said.nodes_over_uniform:.3f} of the nodes of uniform routing",
        "stated",
    )
    large = replace(
        chain_instance(STRUCTURES["strong"], layers=58, experts=256, seed=31, **sizes), gpus=320, slots_per_gpu=1
    )
    started = time.process_time()
    c = place_experts(large, traffic="chain").certificate
    took = time.process_time() - started
    assert c.cross_node is not None
    less = 1 - c.cross_node / c.baselines["contiguous"]["cross_node"]
    line("320 GPUs, 64 replicas: less cross-node flow", f"{less:.1%}, {took:.1f} s", "20 s")


def fan_out() -> None:
    import numpy as np

    from planner.placement.answer import place_experts
    from planner.placement.baselines import ranks_of
    from planner.placement.clock import LayerClock
    from planner.placement.fanout import nodes_per_token
    from planner.placement.generate import STRUCTURES, coactivation_of, draw_tokens, topic_chances
    from planner.placement.records import Instance

    sizes: dict[str, Any] = {"gpus": 64, "gpus_per_node": 8, "slots_per_gpu": 4}
    on = h100_machine()
    for name in STRUCTURES:
        nodes: list[list[float]] = [[], []]
        layer_s: list[list[float]] = [[], []]
        fullest, took = [], 0.0
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            prior, chance = topic_chances(STRUCTURES[name], 1, 256, rng)
            train, unseen = (draw_tokens(chance[0], prior, 8, 50_000, rng) for _ in range(2))
            pairs = coactivation_of(train, 256)
            loads = np.diag(pairs)[None]
            started = time.process_time()
            placed = place_experts(Instance(loads=loads, coactivation=pairs[None], **sizes)).placement
            took += (time.process_time() - started) / len(SEEDS)
            packed = place_experts(Instance(loads=loads, **sizes)).placement
            pairs = coactivation_of(unseen, 256)
            clock = LayerClock(
                Instance(loads=np.diag(pairs)[None], coactivation=pairs[None], **sizes), on, traffic="dispatch"
            )
            for k, placement in enumerate((placed, packed)):
                layer_s[k].append(clock.run_s(placement))
                nodes[k].append(nodes_per_token(unseen, ranks_of(placement)[0] // 8, 8))
            seen = np.bincount(ranks_of(placed)[0] // 8, weights=np.bincount(unseen.ravel(), minlength=256))
            fullest.append(seen.max() / seen.mean())
        less, faster = (1 - np.array(each[0]) / np.array(each[1]) for each in (nodes, layer_s))
        line(
            f"dispatch {name}: fewer nodes per unseen token",
            f"{less.mean():.1%} (worst {less.min():.1%}); node load {max(fullest):.3f}; simulated layer "
            f"{np.mean(layer_s[0]) * 1e3:.2f} ms, {faster.mean():.1%} less (worst {faster.min():.1%}); "
            f"{took:.2f} s a layer",
            "16 % (medium), 1.05",
        )


def drift() -> None:
    import numpy as np

    from planner.placement.answer import place_experts
    from planner.placement.generate import load_instance
    from planner.placement.records import Instance, gpu_time
    from planner.placement.replan import replan
    from planner.placement.replan_bound import least_after
    from planner.placement.verify import check_answer

    for experts, gpus, draws in ((256, 64, 6), (256, 32, 1), (256, 16, 1), (128, 8, 1)):
        slots = experts // gpus
        for draw in range(draws):
            old = load_instance(
                layers=6, experts=experts, gpus=gpus, slots_per_gpu=slots, sigma=0.4, seed=1 + 10 * draw
            )
            rng = np.random.default_rng(2 + 10 * draw)
            loads = np.round(old.loads * np.exp(0.15 * rng.standard_normal(old.loads.shape)))
            new = Instance(loads=loads, gpus=gpus, gpus_per_node=gpus, slots_per_gpu=slots)
            before = place_experts(old).placement
            stale = gpu_time(new, before).max(axis=1).sum()
            fresh = sum(figure.max_load for figure in place_experts(new).layers)
            started = time.process_time()
            done = replan(new, before, max_moves=loads.size // 10)
            took = (time.process_time() - started) / 6
            assert not check_answer(new, done.placement).problems and done.moved <= loads.size // 10
            ceiling = (stale - least_after(new, before, loads.size // 10)[0]) / (stale - fresh)
            gained = (stale - done.after.sum()) / (stale - fresh)
            line(
                f"drift, {experts} on {gpus}, draw {draw}: gain with 10 % moved",
                f"{gained:.1%}, no answer above {min(1.0, ceiling):.1%}; {took:.1f} s a layer",
                "90 %",
            )


PARTS = {part.__name__: part for part in (loads, never_worse, chains, seconds, fan_out, drift)}


def measure(out: figures.Figures) -> None:
    """All figures, or those of the parts that $PARTS names."""
    for name in os.environ.get("PARTS", "").split() or PARTS:
        PARTS[name]()
    out.found += OUT.found


if __name__ == "__main__":
    figures.run(measure, __doc__)
