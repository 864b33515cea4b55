"""What is asked (`Instance`), what is answered (`Placement`) and what is proved about it (`Certificate`).

Legend: L layers, E experts of a layer, G GPUs, N nodes, S slots of a GPU. A slot holds one expert; G x S slots beyond
the E experts hold replicas, at most one of an expert on a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MOST_SHOWN = 20  # problems named one by one
MOST_LOAD = 1e15  # of an expert: sums of it stay exact enough
MOST_FASTER = 1e6  # than the slowest GPU
MOST_SLOTS = 2**18  # of a layer


@dataclass(frozen=True, kw_only=True, eq=False)
class Instance:
    """Experts to place.

    loads [L, E]: tokens (or seconds) of each expert. transitions [L - 1, E, E]: tokens on e whose next layer's expert
    is e'. coactivation [L, E, E]: tokens that hold both e and f, symmetric; the diagonal is not used. layers: numbers
    of the layers as the user counts them. speed [G]: relative speed of each GPU (empty: all alike). num_groups: groups
    of neighbouring experts that stay together on a node (1: free). slots [G]: where GPUs differ, the slots of each;
    slots_per_gpu is then the largest.
    """

    loads: Floats
    gpus: int
    gpus_per_node: int
    slots_per_gpu: int
    transitions: Floats | None = None
    coactivation: Floats | None = None
    layers: tuple[int, ...] = ()
    speed: tuple[float, ...] = ()
    num_groups: int = 1
    slots: tuple[int, ...] = ()
    source: str = "stated"

    def __post_init__(self) -> None:
        object.__setattr__(self, "loads", np.asarray(self.loads, dtype=np.float64))
        if self.slots and len(set(self.slots)) == 1:
            object.__setattr__(self, "slots", ())
        if not self.layers and self.loads.ndim == 2:
            object.__setattr__(self, "layers", tuple(range(self.loads.shape[0])))
        problems = [*self._shape_problems()] or [*self._slot_problems(), *self._table_problems()]
        if problems:
            raise UserError(problems, where=self.source)

    def _shape_problems(self) -> list[str]:
        problems = []
        if self.loads.ndim != 2 or 0 in self.loads.shape:
            problems.append(f"loads have shape {self.loads.shape}; give [layer, expert]")
        for name, value in (
            ("gpus", self.gpus), ("gpus_per_node", self.gpus_per_node), ("slots_per_gpu", self.slots_per_gpu),
            ("num_groups", self.num_groups),
        ):  # fmt: skip
            if value < 1:
                problems.append(f"{name} = {value}; give a whole number >= 1")
        return problems

    def _slot_problems(self) -> list[str]:
        problems = []
        experts, slots = self.num_experts, self.num_slots
        if self.gpus % self.gpus_per_node:
            problems.append(
                f"{self.gpus} GPUs are not whole nodes of {self.gpus_per_node}; give a multiple, or another node size"
            )
        if self.slots and (
            len(self.slots) != self.gpus or min(self.slots) < 1 or max(self.slots) != self.slots_per_gpu
        ):
            problems.append(
                f"slots of {len(self.slots)} GPUs from {min(self.slots)} to {max(self.slots)}; give {self.gpus} whole "
                f"numbers >= 1, of which the largest is slots_per_gpu = {self.slots_per_gpu}"
            )
        if self.slots and self.num_groups > 1:
            problems.append("groups of experts stay on nodes with as many slots; give the same slots for every GPU")
        if self.slots and slots < experts:
            problems.append(f"the GPUs have {slots} slots in all for {experts} experts; give more slots, or more GPUs")
        elif slots < experts:
            need = -(-experts // self.gpus)
            problems.append(
                f"{self.gpus} GPUs x {self.slots_per_gpu} slots = {slots} slots cannot hold {experts} experts; give at "
                f"least {need} slots per GPU, or more GPUs"
            )
        if slots > MOST_SLOTS:
            problems.append(f"{slots} slots of a layer are more than {MOST_SLOTS}; give fewer GPUs, or slots of each")
        if self.slots_per_gpu > experts:
            problems.append(
                f"{self.slots_per_gpu} slots per GPU are more than the {experts} experts, and a GPU holds an expert at "
                f"most once; give at most {experts}"
            )
        if self.num_groups > 1 and self.num_groups % max(1, self.num_nodes):
            problems.append(
                f"{self.num_groups} groups do not divide over {self.num_nodes} nodes; give a multiple, or 1"
            )
        if experts % self.num_groups:
            problems.append(f"{experts} experts do not divide into {self.num_groups} groups; give a divisor")
        if self.speed and (len(self.speed) != self.gpus or not all(0.0 < s < np.inf for s in self.speed)):
            problems.append(f"{len(self.speed)} speeds for {self.gpus} GPUs; give one finite number > 0 for each")
        elif self.speed and max(self.speed) > MOST_FASTER * min(self.speed):
            problems.append(
                f"speeds of {min(self.speed):g} to {max(self.speed):g}; give relative speeds, the fastest at most "
                f"{MOST_FASTER:g} times the slowest"
            )
        return problems

    def _table_problems(self) -> list[str]:
        problems = []
        layers, experts = self.loads.shape
        wanted = {"transitions": (layers - 1, experts, experts), "coactivation": (layers, experts, experts)}
        for name, shape in wanted.items():
            table = getattr(self, name)
            if table is None:
                continue
            table = np.asarray(table, dtype=np.float64)
            object.__setattr__(self, name, table)
            if table.shape != shape:
                problems.append(f"{name} have shape {table.shape}; give {shape}")
            elif not np.all(np.isfinite(table)) or table.min(initial=0.0) < 0.0:
                problems.append(f"{name} hold values that are negative or not numbers; give counts >= 0")
        bad = np.argwhere(~((self.loads >= 0.0) & (self.loads <= MOST_LOAD)))
        problems += [
            f"layer {self.layers[i]}, expert {e}: load {self.loads[i, e]:g}; give a count of 0 to {MOST_LOAD:g}"
            for i, e in bad[:MOST_SHOWN].tolist()
        ]
        if len(bad) > MOST_SHOWN:
            problems.append(f"and {len(bad) - MOST_SHOWN} more loads that are negative, too large or not numbers")
        if not len(bad):
            empty = np.flatnonzero(self.loads.sum(axis=1) <= 0.0)
            problems += [f"layer {self.layers[i]} has no load at all; leave the layer out" for i in empty[:MOST_SHOWN]]
        if len(self.layers) != layers:
            problems.append(f"{len(self.layers)} layer numbers for {layers} layers of loads; give one each")
        return problems

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.loads.shape[0])

    @property
    def num_experts(self) -> int:
        """E."""
        return int(self.loads.shape[1])

    @property
    def num_slots(self) -> int:
        """G x S, or the sum where GPUs differ."""
        return sum(self.slots) if self.slots else self.gpus * self.slots_per_gpu

    @property
    def gpu_slots(self) -> Ints:
        """Slots [G] of each GPU."""
        return np.array(self.slots or (self.slots_per_gpu,) * self.gpus, dtype=np.int64)

    @property
    def num_nodes(self) -> int:
        """N."""
        return self.gpus // self.gpus_per_node

    @property
    def extra_slots(self) -> int:
        """Slots for replicas, of a layer."""
        return self.num_slots - self.num_experts

    @property
    def speeds(self) -> Floats:
        """Relative speed [G]."""
        return np.asarray(self.speed, dtype=np.float64) if self.speed else np.ones(self.gpus)

    @property
    def digest(self) -> str:
        """SHA-256 of everything the answer depends on."""
        sums = hashlib.sha256()
        shape = (*self.loads.shape, self.gpus, self.gpus_per_node, self.slots_per_gpu, self.num_groups, *self.layers)
        sums.update(repr((shape, self.speed, *([self.slots] if self.slots else []))).encode())
        for table in (self.loads, self.transitions, self.coactivation):
            sums.update(b"-" if table is None else np.ascontiguousarray(table, dtype="<f8").tobytes())
        return sums.hexdigest()


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Who hosts what: experts [L, G, S] in each slot, and share [L, G, S] of the expert's load that the slot takes.

    Where GPUs have different numbers of slots, those that a GPU lacks hold -1 with share 0.
    """

    experts: Ints
    share: Floats

    @classmethod
    def even(cls, experts: Ints, num_experts: int) -> Placement:
        """Every replica of an expert takes the same share."""
        experts = np.asarray(experts, dtype=np.int64)
        flat = experts.reshape(experts.shape[0], -1)
        counts = np.stack([np.bincount(row[row >= 0], minlength=num_experts) for row in flat])
        share = np.where(flat >= 0, 1.0 / np.maximum(np.take_along_axis(counts, flat, axis=1), 1), 0.0)
        return cls(experts=experts, share=share.reshape(experts.shape))

    @classmethod
    def of_ranks(cls, rank: Ints, gpus: int) -> Placement:
        """From rank [L, E], the GPU of each expert, the same number on each; no replicas."""
        order = np.argsort(np.asarray(rank), axis=1, kind="stable")
        layers, experts = order.shape
        return cls.even(order.reshape(layers, gpus, experts // gpus), experts)

    @property
    def has_replicas(self) -> bool:
        """Whether any expert stands in several slots."""
        return bool(np.any(self.share[self.experts >= 0] < 1.0))

    def on_gpu(self, num_experts: int) -> Floats:
        """Share [L, E, G] of each expert's load that each GPU takes."""
        layers, gpus, _ = self.experts.shape
        out = np.zeros((layers, num_experts, gpus))
        place = np.arange(layers)[:, None, None], self.experts, np.arange(gpus)[None, :, None]
        np.add.at(out, tuple(np.broadcast_to(p, self.experts.shape) for p in place), self.share)
        return out

    def counts(self, num_experts: int) -> Ints:
        """Slots [L, E] of each expert."""
        flat = self.experts.reshape(self.experts.shape[0], -1)
        return np.stack([np.bincount(row[row >= 0], minlength=num_experts) for row in flat])


def gpu_time(instance: Instance, placement: Placement) -> Floats:
    """Load over relative speed [L, G]."""
    rows = np.arange(instance.num_layers)[:, None, None]
    load: Floats = (instance.loads[rows, placement.experts] * placement.share).sum(axis=2)
    return load / instance.speeds


@dataclass(frozen=True, kw_only=True)
class LayerFigures:
    """One layer of an answer: its objective (max over GPUs of load over speed), lower bound and their gap."""

    layer: int
    max_load: float
    bound: float
    bound_kind: str

    @property
    def gap(self) -> float:
        """(max_load - bound) / max_load; 0 is proved optimal."""
        return max(0.0, (self.max_load - self.bound) / self.max_load) if self.max_load > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Range:
    """A value and the interval about it (80 %)."""

    value: float
    low: float
    high: float

    @classmethod
    def about(cls, value: float, low: float, high: float) -> Range:
        """Widened to hold the value: a mean may lie beyond the quantiles of few draws."""
        return cls(value=value, low=min(low, value), high=max(high, value))

    @property
    def counts(self) -> bool:
        """Whether the interval lies above zero: a gain larger than its sampling error."""
        return self.low > 0.0


@dataclass(frozen=True, kw_only=True)
class TimeFigures:
    """Simulated seconds on a machine.

    before_range, after_range: experts and exchanges of all MoE layers, with the placement in use (or contiguous) and
    with the answer: mean and interval over counts drawn anew; gain: 1 - after / before of these means. before_s,
    after_s: by the event run on these very counts, which flatter the answer. lower_bound_s, baselines_s: no placement
    takes less on them; others. weights_s_per_row: what the terms weigh. step_before_s, step_after: a training step of
    one micro-batch. nodes_over_uniform: distinct nodes of a token over those of uniform routing. moved_bytes, move_s,
    pays_back_after_steps: weights that move, seconds, and steps that win them back (None: nothing moves, or is won).
    """

    before_s: float
    after_s: float
    before_range: Range
    after_range: Range
    gain: Range
    lower_bound_s: float
    bound_kind: str
    baselines_s: Mapping[str, float]
    weights_s_per_row: Mapping[str, float]
    step_before_s: float
    step_after: Range
    nodes_over_uniform: float
    moved_bytes: float | None = None
    move_s: float | None = None
    pays_back_after_steps: float | None = None


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """How far from optimal an answer can be.

    objective, lower_bound, gap = (objective - lower_bound) / objective, of what `objective_of` names. bound_kind:
    exact | dp | milp_dual | combinatorial | rlt_matching | eig_diag. worst_layer, mean_layer: max GPU load over the
    layer's bound, less 1. max_over_mean: mean over layers of the fullest GPU over the mean one. cross_node, cross_gpu:
    share of adjacent-layer flow that changes node, GPU (None without transitions). same_node_pairs: share of co-active
    pairs whose experts share a node (None without coactivation). worst_link: share of the flow on the busiest link
    between two nodes (GPUs, of one node) of every pair of layers (None without transitions). limits: what stopped
    early. baselines: figures of others. time: seconds on a machine. held_out: gain in the fullest GPU on unseen counts.
    """

    objective_of: str
    objective: float
    lower_bound: float
    bound_kind: str
    worst_layer: float
    mean_layer: float
    max_over_mean: float
    cross_node: float | None
    cross_gpu: float | None
    same_node_pairs: float | None
    solver: str
    seed: int
    limits: tuple[str, ...]
    baselines: Mapping[str, Mapping[str, float]]
    digest: str
    moved_experts: int = 0
    worst_link: float | None = None
    time: TimeFigures | None = None
    held_out: Range | None = None

    @property
    def gap(self) -> float:
        """(objective - lower_bound) / objective; 0 is proved optimal."""
        return max(0.0, (self.objective - self.lower_bound) / self.objective) if self.objective > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Homes:
    """share [class, node] of a class's tokens that start on each node; remote: mean remote nodes of a token in a layer
    then; remote_spread: the same where every class is spread evenly over the nodes."""

    share: Floats
    remote: float
    remote_spread: float


@dataclass(frozen=True, kw_only=True, eq=False)
class PlacementResult:
    """An answer: the placement, figures per layer, the certificate. stopped: "done" or "interrupted".

    replanned: whether a previous placement was given. homes: of classes of tokens, where they are known.
    """

    instance: Instance
    placement: Placement
    layers: tuple[LayerFigures, ...]
    certificate: Certificate
    stopped: str = "done"
    replanned: bool = False
    homes: Homes | None = None
    timing: Mapping[str, float] = field(default_factory=dict)
