"""One training step whose pipeline stages run on several types of devices.

All stages have the same degrees, so that a stage is a slice of ranks on one type; layers, seconds, memory and links
of a stage are those of its own devices. Each type prices the whole plan as if all stages were its own (the simulator
of one type), and the step profile is put together of its stages. A lane's links keep their own rates: flows are
rescaled to common ones, so that each takes the seconds it takes. Between two types a send takes as long as the slower
of both sides needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.specs import LinkSpec
from sim.account import account, link_use
from sim.build.alike import simulate_once
from sim.build.context import ACT_BYTES
from sim.build.profile import ChunkProfile, SendProfile, StageTail, StepProfile
from sim.build.stages import in_model_order, layout_text
from sim.flop import step_flop_per_token
from sim.interval import interval, peak_interval
from sim.report import Estimate, OutOfMemory, Report
from sim.run import Simulation
from sim.scenario import Scenario

Flows = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Mixed:
    """A plan on several types of devices. types: the same plan, model, workload and ranks on each type, on as many
    devices as all stages together have; where: the type (position in `types`) of each stage. between: the link of a
    device from one type to another, where it is slower than both sides' own; its rate counts for one direction.
    """

    types: tuple[Scenario, ...]
    where: tuple[int, ...]
    between: LinkSpec | None = None

    @property
    def cluster(self) -> str:
        """All types in the order of the stages."""
        return " + ".join(self.types[i].cluster.name for i in dict.fromkeys(self.where))


def check_mixed(mixed: Mixed) -> None:
    """Raise UserError with everything that keeps a plan from running on several types."""
    first, problems = mixed.types[0], []
    if any((s.plan, s.model, s.workload, s.ranks) != (first.plan, first.model, first.workload, first.ranks)
           for s in mixed.types):  # fmt: skip
        problems.append("the types have different plans; give all of them the same plan, model, workload and ranks")
    if len(mixed.where) != first.plan.pp or not set(mixed.where) <= set(range(len(mixed.types))):
        problems.append(f"{len(mixed.where)} stages have a type, the plan has pp {first.plan.pp}; name one for each")
    if first.ranks.hosts is not None or not first.ranks.order.endswith("pp"):
        problems.append("stages on several types need an order of ranks that ends in pp, and no host map")
    offload = first.workload.offload
    if offload.layers or offload.modules or offload.optimizer or any(
        s.software.optimizer_offload or s.software.activation_offload_layers for s in mixed.types
    ):  # fmt: skip
        problems.append("offload to the host is not modelled on several types of devices; leave it out")
    if any(s.software.optimizer_post_validation for s in mixed.types):
        problems.append("post-validation of the optimizer step is not modelled on several types of devices")
    if problems:
        raise UserError(problems, where="stages on several types of devices")


class MixedSimulation:
    """The steps from a mixed plan to its report."""

    def __init__(self, mixed: Mixed) -> None:
        check_mixed(mixed)
        self.mixed = mixed
        used = sorted(set(mixed.where))
        self.parts = {i: Simulation(mixed.types[i]) for i in used}
        self.plan = mixed.types[0].plan

    def of_stage(self, stage: int) -> Simulation:
        """The simulation of the type a stage runs on."""
        return self.parts[self.mixed.where[stage]]

    @property
    def usable_bytes(self) -> tuple[float, ...]:
        """What a rank of each stage may allocate."""
        return tuple(self.of_stage(stage).cost.usable_bytes for stage in range(self.plan.pp))

    def profile(self) -> StepProfile:
        """The step profile of all stages, in the link rates of the first type that has the link."""
        own = {i: part.profile() for i, part in self.parts.items()}
        links: dict[str, float] = {}
        for profile in own.values():
            links = {**profile.links, **links}
        chunks, tails, static, sends = [], [], [], []
        for stage, at in enumerate(self.mixed.where):
            profile = own[at]
            factor = {name: links[name] / rate for name, rate in profile.links.items()}
            chunks.append(tuple(_chunk(chunk, factor) for chunk in profile.chunks[stage]))
            tails.append(_tail(profile.tails[stage], factor))
            static.append(profile.static_bytes[stage])
            there = self.mixed.where[(stage + 1) % self.plan.pp]
            if there == at:
                sends.append(replace(profile.p2p[stage], flows=_scaled(profile.p2p[stage].flows, factor)))
            else:
                sends.append(self._crossing(at, there, links))
        first = own[self.mixed.where[0]]
        return replace(
            first, chunks=tuple(chunks), tails=tuple(tails), static_bytes=tuple(static), p2p=tuple(sends), links=links,
            p2p_overlap=all(p.p2p_overlap for p in own.values()), mem_capacity_bytes=max(self.usable_bytes),
        )  # fmt: skip

    def _crossing(self, one: int, other: int, links: Mapping[str, float]) -> SendProfile:
        """A send from one type to another: over the network, as slow as the slower side or the link between."""
        latency, seconds = 0.0, dict[str, float]()
        for at in (one, other):
            part = self.parts[at]
            rates = part.cost.comm.link_rates()
            time = part.step.p2p(len(rates) - 1)
            latency = max(latency, float(time.latency_s))
            for name, busy in zip(rates, (0.0, *time.network_s), strict=True):
                seconds[name] = max(seconds.get(name, 0.0), float(busy))
        between = self.mixed.between
        if between is not None:
            ctx = self.parts[one].step.ctx
            nbytes = float(ctx.tokens) * ctx.model.hidden_dim * ACT_BYTES / ctx.plan.tp
            port = list(self.parts[one].cost.comm.link_rates())[1]
            seconds[port] = max(seconds.get(port, 0.0), nbytes / between.bytes_per_s)
            latency = max(latency, between.latency_s)
        flows = tuple((name, busy * links[name]) for name, busy in seconds.items() if busy > 0.0)
        return SendProfile(flows=flows, latency_s=latency)

    def report(self) -> Report:
        """Run the step and sum it up; what is of one device (memory there is) is of the fullest stage's."""
        mixed, plan = self.mixed, self.plan
        s = mixed.types[mixed.where[0]]
        profile = self.profile()
        run = simulate_once(profile)
        step_s = run.makespan_s
        breakdown, bubble, exposed = account(profile, run, step_s)
        usable = np.array(self.usable_bytes)
        peaks = np.array([sum(tags.values()) for tags in run.peak_bytes])
        worst = int(np.argmax(peaks / usable))
        home = self.of_stage(worst)
        per_stage = plan.num_devices // plan.pp
        tokens = s.workload.global_batch_seqs * s.workload.seq_tokens
        flop = step_flop_per_token(s) * tokens
        peak_flop = sum(
            per_stage * self.of_stage(stage).cost.device.peak_flop_per_s[s.workload.precision]
            for stage in range(plan.pp)
        )  # fmt: skip
        price = [self.of_stage(stage).cost.device.usd_per_s for stage in range(plan.pp)]
        estimate = _widest([
            interval(step_s, model=s.model.name, is_moe=s.model.is_moe, device=p.cost.device,
                     software=p.scenario.software)
            for p in self.parts.values()
        ])  # fmt: skip
        contents = tuple(self.of_stage(stage).contents[stage] for stage in range(plan.pp))
        tags = run.peak_bytes[worst]
        short = None if peaks[worst] <= usable[worst] else OutOfMemory(
            lane=worst, tag=max(tags, key=lambda t: (tags[t], t)), need_bytes=float(peaks[worst]),
            have_bytes=float(usable[worst]),
        )  # fmt: skip
        notes = [f"{p.scenario.cluster.device}, {note}" for p in self.parts.values() for note in p.cost.provenance()]
        if mixed.between is None and len(self.parts) > 1:
            notes.insert(0, "links between types of devices, as fast as the slower side's: assumed")
        return Report(
            model=s.model.name, cluster=mixed.cluster,
            software=" + ".join(dict.fromkeys(p.scenario.software.name for p in self.parts.values())),
            devices=plan.num_devices, plan=plan, ranks=s.ranks,
            num_micro_batches=self.of_stage(0).num_micro_batches, step_s=estimate,
            tokens_per_s_per_gpu=estimate.inverse(tokens / plan.num_devices), mfu=estimate.inverse(flop / peak_flop),
            tflops_per_gpu=flop / plan.num_devices / step_s / 1e12,
            usd_per_step=sum(price) * per_stage * step_s if all(price) else None, breakdown=breakdown,
            bubble_fraction=bubble, exposed_comm_s=exposed, peak_mem_bytes=float(peaks[worst]),
            mem_capacity_bytes=home.cost.device.mem_bytes, usable_mem_bytes=float(usable[worst]),
            memory=tuple(dict(tags) for tags in run.peak_bytes), link_use=self._use(profile, link_use(profile, run)),
            stages=tuple(content.num_layers for content in in_model_order(contents, plan.schedule)),
            pipeline_layout=layout_text(
                contents, mtp_layers=s.model.mtp_layers if s.workload.with_mtp else 0, schedule=plan.schedule
            ),
            out_of_memory=short, provenance=tuple(dict.fromkeys(notes)), peak_mem=peak_interval(float(peaks[worst])),
        )  # fmt: skip

    def _use(self, profile: StepProfile, use: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
        """Bytes of each link at the rate of the lane that uses it most."""
        out = {}
        for name, said in use.items():
            own = self.of_stage(int(said["lane"])).cost.comm.link_rates().get(name, profile.links[name])
            out[name] = dict(said) | {"bytes": said["bytes"] * own / profile.links[name]}
        return out


def simulate_mixed(mixed: Mixed) -> Report:
    """One step of a plan on several types of devices. Raises UserError where it cannot be laid out; what does not fit
    is reported."""
    return MixedSimulation(mixed).report()


def _scaled(flows: Flows, factor: Mapping[str, float]) -> Flows:
    return tuple((name, size * factor[name]) for name, size in flows)


def _chunk(chunk: ChunkProfile, factor: Mapping[str, float]) -> ChunkProfile:
    return replace(
        chunk, forward_flows=_scaled(chunk.forward_flows, factor), backward_flows=_scaled(chunk.backward_flows, factor),
        inner_bytes=_scaled(chunk.inner_bytes, factor),
    )  # fmt: skip


def _tail(tail: StageTail, factor: Mapping[str, float]) -> StageTail:
    return replace(
        tail, grad_flows=_scaled(tail.grad_flows, factor), param_flows=_scaled(tail.param_flows, factor)
    )  # fmt: skip


def _widest(found: Sequence[Estimate]) -> Estimate:
    """The same value with the furthest bounds of all."""
    return Estimate(value=found[0].value, low=min(e.low for e in found), high=max(e.high for e in found))
