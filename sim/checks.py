"""What a scenario must satisfy before anything is priced: degrees, batch, rank order, and how it is trained."""

from __future__ import annotations

from hwprofiles.errors import UserError
from sim.mesh import pipelines_agree
from sim.scenario import Scenario


def check_layout(scenario: Scenario) -> None:
    """Raise UserError listing every way in which the plan cannot be laid over the cluster."""
    plan, cluster = scenario.plan, scenario.cluster
    problems: list[str] = []
    for name in ("tp", "cp", "dp", "pp", "vpp", "ep", "etp", "edp", "micro_batch_seqs"):
        if getattr(plan, name) < 1:
            problems.append(f"{name} = {getattr(plan, name)}: give a whole number >= 1")
    if not problems:
        if plan.num_devices != cluster.num_devices:
            problems.append(
                f"tp {plan.tp} x cp {plan.cp} x dp {plan.dp} x pp {plan.pp} = {plan.num_devices} ranks, but the "
                f"cluster has {cluster.num_devices} devices; make the product equal"
            )
        if plan.etp * plan.ep * plan.edp * plan.pp != plan.num_devices:
            problems.append(
                f"etp {plan.etp} x ep {plan.ep} x edp {plan.edp} x pp {plan.pp} is not {plan.num_devices}: the expert "
                "mesh covers the same ranks"
            )
        batch = scenario.workload.global_batch_seqs
        if batch % (plan.micro_batch_seqs * plan.dp):
            problems.append(
                f"global batch {batch} is not a multiple of micro-batch {plan.micro_batch_seqs} x dp {plan.dp}; "
                "change one of them"
            )
        problems += _rank_problems(scenario)
        problems += _training_problems(scenario)
    if problems:
        raise UserError(problems, where="plan")


def _rank_problems(scenario: Scenario) -> list[str]:
    """Why the ranks of a plan cannot be laid out in this order or on these devices."""
    plan, ranks, problems = scenario.plan, scenario.ranks, []
    if not pipelines_agree(plan, ranks):
        problems.append(
            f"rank order {ranks.order} gives experts (etp {plan.etp} x ep {plan.ep}) other pipelines than attention "
            f"(tp {plan.tp} x cp {plan.cp}); make the axes inside pp multiply to the same number, or use an order that "
            "ends in pp"
        )
    if ranks.hosts is not None and len(ranks.hosts.devices) != plan.num_devices:
        problems.append(
            f"the host map holds {len(ranks.hosts.devices)} ranks, the plan has {plan.num_devices}: make them equal"
        )
    return problems


def _training_problems(scenario: Scenario) -> list[str]:
    """Why the step cannot be trained as it is asked to be."""
    plan, work, problems = scenario.plan, scenario.workload, []
    muon, away = work.optimizer.name == "muon", work.offload
    if muon and plan.zero_stage >= 2:
        problems.append(
            f"muon updates whole matrices, ZeRO {plan.zero_stage} cuts their gradients up; use zero stage 0 or 1"
        )
    if muon and (away.optimizer or scenario.software.optimizer_offload):
        problems.append("muon does not run on the host; leave the optimizer on the device or use adam")
    if muon and work.lora:
        problems.append("muon with adapters is not modelled; use adam for LoRA")
    layers = max(away.layers, scenario.software.activation_offload_layers)
    if layers and away.modules:
        problems.append(f"{layers} whole layers and modules {', '.join(away.modules)} on the host; give one of them")
    return problems
