"""`simulate`: one training step of one plan, from ops to a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from hwprofiles.errors import UserError
from sim.account import account, carried_s, link_rates, link_use
from sim.build.alike import simulate_once
from sim.build.order import chunks_on
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.stages import StageContent, in_model_order, layout_text, stage_contents
from sim.build.tasks import simulate_step
from sim.checks import check_layout
from sim.cost.comm import CommTime
from sim.cost.model import CostModel
from sim.cost.offload import DOWN, UP
from sim.cost.step import StageSums, StepCost
from sim.cost.timing import BACKWARD, FORWARD
from sim.cost.update import host_link_bytes_per_s
from sim.flop import step_flop_per_token
from sim.host import HostNeed, host_need
from sim.interval import interval, peak_interval
from sim.noise import balanced_twin, drawn_stretch, has_noise, slowest_group, stage_loads
from sim.report import HOST, Estimate, OutOfMemory, Report, Trace
from sim.scenario import Scenario


def simulate(scenario: Scenario, *, trace: bool = True, steady: bool = True, noise: bool = False) -> Report:
    """Simulate one training step. Deterministic: same scenario, same report.

    noise: every micro-batch of every stage has a routing load of its own, drawn by the routing's seed (`sim.noise`);
    else all have the expected one. Nothing changes where routing has no noise (forced balance, one stated number).

    Raises UserError when the plan cannot be laid out (degrees, batch); a plan that does not fit in
    memory is reported (`Report.out_of_memory`), not raised.
    """
    return Simulation(scenario).report(trace=trace, steady=steady, noise=noise)


class Simulation:
    """The steps from scenario to report, kept apart so that tests and tools can stop in between."""

    def __init__(self, scenario: Scenario, *, cost: CostModel | None = None) -> None:
        check_layout(scenario)
        self.scenario = scenario
        self.cost = cost or CostModel(scenario.cluster, scenario.software, ranks=scenario.ranks)
        assert self.cost.ranks == scenario.ranks, "a cost model is made for one rank map"
        self.step = StepCost(self.cost, scenario.context())
        self._profile: StepProfile | None = None
        self._chunks: dict[StageContent, ChunkProfile] = {}
        plan = scenario.plan
        self.contents = stage_contents(
            scenario.model, plan.pp, plan.vpp, stages=plan.stages, account_ends=plan.account_ends,
            mtp=scenario.workload.with_mtp and scenario.model.mtp_layers > 0, own=self.step.levels.own,
            schedule=plan.schedule,
        )  # fmt: skip

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of one data-parallel rank per step."""
        return self.scenario.plan.num_micro_batches(self.scenario.workload.global_batch_seqs)

    def profile(self) -> StepProfile:
        """The step profile the pipeline-level event run works on."""
        if self._profile is None:
            self._profile = self._build_profile()
        return self._profile

    def _build_profile(self) -> StepProfile:
        plan = self.scenario.plan
        rates = self.cost.comm.link_rates()
        ends = self.step.of_state()
        # stages of equal content are worked out once
        known = {row: self._stage(row, ends, rates) for row in dict.fromkeys(map(tuple, self.contents))}
        stages = [known[tuple(row)] for row in self.contents]
        return StepProfile(
            pp=plan.pp, vpp=chunks_on(plan.schedule, plan.vpp), schedule=plan.schedule,
            num_micro_batches=self.num_micro_batches, group=plan.micro_batch_group,
            chunks=tuple(chunks for chunks, _, _ in stages), tails=tuple(tail for _, tail, _ in stages),
            links=self._links(rates),
            p2p=self._sends(rates), p2p_overlap=self.scenario.software.p2p_overlap,
            static_bytes=tuple(static for _, _, static in stages), mem_capacity_bytes=self.cost.usable_bytes,
            lane_weight=plan.num_devices // plan.pp,
            post_validation=self.scenario.software.optimizer_post_validation,
        )  # fmt: skip

    def _stage(
        self, row: tuple[StageContent, ...], ends: StepCost, rates: Mapping[str, float]
    ) -> tuple[tuple[ChunkProfile, ...], StageTail, Mapping[str, float]]:
        """(chunks, what it does once per step, memory by tag held through the step) of a stage. ends: cost of state."""
        sums = [self.step.stage_sums(c) for c in row]
        params = sums[0].params
        for s in sums[1:]:
            params = params + s.params
        grad, gather = ends.data_parallel(params)
        software = self.scenario.software
        tail = StageTail(
            grad_flows=_flows(grad, rates), grad_latency_s=float(grad.latency_s), grad_wire_s=_wire_s(grad),
            param_flows=_flows(gather, rates), param_latency_s=float(gather.latency_s), param_wire_s=_wire_s(gather),
            overlap_grad=software.dp_overlap_grad, overlap_param=software.dp_overlap_param,
            optimizer_s=float(ends.optimizer_s(params)),
            fixed_s=float(self.step.overhead_s(row) + ends.check_s(params)),
            buckets=max(1, max(c.num_layers for c in row)), taken_s=self._taken_s(grad, gather, sums),
        )  # fmt: skip
        return self.chunks_of(row, rates), tail, {k: float(v) for k, v in ends.static(params).items()}

    def _links(self, rates: Mapping[str, float]) -> Mapping[str, float]:
        """The links of a lane; with those to the host where activations travel there."""
        if not self.step.offload.on:
            return rates
        host = host_link_bytes_per_s(self.cost)
        return {**rates, DOWN: host, UP: host}

    def _sends(self, rates: Mapping[str, float]) -> tuple[SendProfile, ...]:
        """A send over each boundary between stages."""
        tops = [int(top) for top in self.step.boundaries.highest[0]]
        found = {top: self.step.p2p(top) for top in dict.fromkeys(tops)}
        made = {
            top: SendProfile(flows=_flows(t, rates), latency_s=float(t.latency_s), wire_s=_wire_s(t))
            for top, t in found.items()
        }
        return tuple(made[top] for top in tops)

    def _taken_s(self, grad: CommTime, gather: CommTime, sums: Sequence[StageSums]) -> float:
        """What gradients and parameters under way take from the last backward and the first forward beside them."""
        software, share = self.scenario.software, self.cost.sm_share("allgather")
        beside = (
            min(float(grad.alone_s), float(sum(s.backward_s for s in sums))) * software.dp_overlap_grad,
            min(float(gather.alone_s), float(sum(s.forward_s for s in sums))) * software.dp_overlap_param,
        )
        return share * sum(beside)

    def _chunk(self, content: StageContent, sums: StageSums, rates: Mapping[str, float]) -> ChunkProfile:
        breakdown: dict[str, float] = {}
        for n, part in self.step.parts_of(content):
            for way in (FORWARD, BACKWARD):
                for name, seconds in (*part.classes[way].items(), *part.exposed[way].items()):
                    breakdown[name] = breakdown.get(name, 0.0) + float(n * seconds)
                excess = float(part.duration_s(way)) - float(part.device_s(way))
                breakdown["host"] = breakdown.get("host", 0.0) + float(n * excess)
        edge_s = sum(float(self.step.edge_s(content, way)) for way in (FORWARD, BACKWARD))
        if edge_s:
            breakdown["ep"] = breakdown.get("ep", 0.0) + edge_s
        late = self.step.stragglers - 1.0
        if late > 0.0:
            breakdown["stragglers"] = late * sum(breakdown.values())
        waiting = sum(float(seconds) for seconds in self.step.stall_s(content))
        if waiting:
            breakdown["offload"] = waiting
        inner = sum(float(n * part.up_s) for n, part in self.step.parts_of(content))
        paired = float(sums.paired_s) if self.scenario.software.a2a_overlap else None
        forward, backward = (
            tuple((link, float(s) * rates[link]) for link, s in zip(self.cost.comm.network, seconds, strict=True) if s)
            for seconds in (sums.network_forward_s, sums.network_backward_s)
        )
        moved = float(self.step.moved_bytes(content))
        if moved:
            forward, backward = (*forward, (DOWN, moved)), (*backward, (UP, moved))
        return ChunkProfile(
            forward_s=float(sums.forward_s), backward_s=float(sums.backward_s), paired_s=paired,
            wgrad_s=float(sums.wgrad_s), forward_flows=forward, backward_flows=backward,
            inner_bytes=(("scale_up", inner * rates["scale_up"]),), saved_bytes=float(sums.saved_bytes),
            deferred_bytes=float(sums.deferred_bytes), working_bytes=float(sums.working_bytes), breakdown=breakdown,
        )  # fmt: skip

    def balanced_profile(self) -> StepProfile:
        """The profile of the same plan under forced balance; only its chunks differ."""
        twin = Simulation(balanced_twin(self.scenario), cost=self.cost)
        rates = self.cost.comm.link_rates()
        return replace(self.profile(), chunks=tuple(twin.chunks_of(row, rates) for row in twin.contents))

    def chunks_of(self, row: Sequence[StageContent], rates: Mapping[str, float]) -> tuple[ChunkProfile, ...]:
        """The virtual stages of one stage; equal ones are worked out once."""
        for content in row:
            if content not in self._chunks:
                self._chunks[content] = self._chunk(content, self.step.stage_sums(content), rates)
        return tuple(self._chunks[content] for content in row)

    def drawn_profile(self) -> StepProfile:
        """The profile of one drawn step: of the expert-parallel group that ends last."""
        profile, s = self.profile(), self.scenario
        if not has_noise(s):
            return profile
        even = self.balanced_profile()
        loads = stage_loads(s, self.contents, most_steps=1)
        stretch = drawn_stretch(profile, even, loads, draws=1, groups=s.plan.edp, seed=s.routing.seed)
        return slowest_group(profile, stretch[0])

    def report(self, *, trace: bool = True, steady: bool = True, noise: bool = False) -> Report:
        """Run the step and sum it up. noise: see `simulate`."""
        s = self.scenario
        profile = self.drawn_profile() if noise else self.profile()
        one_of_many = steady and not trace  # as in a search
        run = simulate_once(profile) if one_of_many else simulate_step(profile, steady=steady, link_series=trace)
        step_s = run.makespan_s - carried_s(profile, run)
        tokens = s.workload.global_batch_seqs * s.workload.seq_tokens
        flop = step_flop_per_token(s) * tokens
        peak = self.cost.device.peak_flop_per_s.get(s.workload.precision)
        if peak is None:
            raise UserError(
                f"{self.cost.device.name} has no peak for {s.workload.precision}: use one of "
                f"{', '.join(self.cost.device.peak_flop_per_s)}",
                where="--precision",
            )
        devices = s.plan.num_devices
        provenance = self.cost.provenance()
        estimate = interval(
            step_s, model=s.model.name, is_moe=s.model.is_moe, device=self.cost.device, software=s.software
        )
        breakdown, bubble, exposed = account(profile, run, step_s)
        lane_peaks = [sum(tags.values()) for tags in run.peak_bytes]
        worst = int(np.argmax(lane_peaks))
        host = host_need(self.step, self.contents, profile, run)
        return Report(
            model=s.model.name, cluster=s.cluster.name, software=s.software.name, devices=devices, plan=s.plan,
            ranks=s.ranks, num_micro_batches=self.num_micro_batches, step_s=estimate,
            tokens_per_s_per_gpu=estimate.inverse(tokens / devices),
            mfu=estimate.inverse(flop / devices / peak), tflops_per_gpu=flop / devices / step_s / 1e12,
            usd_per_step=self.cost.device.usd_per_s * devices * step_s or None, breakdown=breakdown,
            bubble_fraction=bubble, exposed_comm_s=exposed, peak_mem_bytes=lane_peaks[worst],
            mem_capacity_bytes=self.cost.device.mem_bytes, usable_mem_bytes=self.cost.usable_bytes,
            memory=tuple(dict(tags) for tags in run.peak_bytes), link_use=link_use(profile, run),
            stages=tuple(content.num_layers for content in in_model_order(self.contents, s.plan.schedule)),
            pipeline_layout=layout_text(
                self.contents, mtp_layers=s.model.mtp_layers if s.workload.with_mtp else 0, schedule=s.plan.schedule
            ),
            out_of_memory=self._overflow(run, worst, host), provenance=provenance,
            host_mem_bytes=host.node_bytes, host_mem_capacity_bytes=s.cluster.host_mem_bytes,
            trace=replace(run, link_rates=link_rates(profile, run)) if trace else None,
            peak_mem=peak_interval(lane_peaks[worst]),
            warnings=_tight(peak_interval(lane_peaks[worst]), self.cost.usable_bytes),
        )  # fmt: skip

    def _overflow(self, run: Trace, worst: int, host: HostNeed) -> OutOfMemory | None:
        tags = run.peak_bytes[worst]
        need = sum(tags.values())
        if need <= self.cost.usable_bytes:
            have = self.cost.cluster.host_mem_bytes
            if host.node_bytes <= have:
                return None
            return OutOfMemory(lane=host.lane, tag=HOST, need_bytes=host.node_bytes, have_bytes=have)
        return OutOfMemory(
            lane=worst, tag=max(tags, key=lambda t: (tags[t], t)), need_bytes=need, have_bytes=self.cost.usable_bytes
        )


def _tight(peak: Estimate, usable_bytes: float) -> tuple[str, ...]:
    """A warning where the peak fits and the upper end of its interval does not."""
    if not peak.value <= usable_bytes < peak.high:
        return ()
    gib = 2.0**30
    return (
        f"memory is tight: peak predicted at {peak.value / gib:.1f} GiB, 80 % interval to {peak.high / gib:.1f}, "
        f"usable {usable_bytes / gib:.1f}; recompute or shard more, or try it on one node first",
    )


def _flows(t: CommTime, rates: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """Bytes on each link; `rates` in order of the links of a `CommTime`."""
    pairs = zip(rates.items(), (t.up_s, *t.network_s), strict=True)
    return tuple((name, float(seconds) * rate) for (name, rate), seconds in pairs if seconds > 0.0)


def _wire_s(t: CommTime) -> float:
    """See `SendProfile.wire_s`: the port alone needs no other link to wait for."""
    return float(t.wire_s) if any(t.fabric_s) else 0.0
