"""The weight update: bytes of its state, seconds on the device, and what of it lives and runs on the host.

Adam and SGD are elementwise: their time is bytes over the memory's rate. Muon adds `ns_steps` Newton-Schulz iterations
per matrix, three products each at the measured rate of their shape, matrix after matrix. With an optimizer sharded over
data-parallel ranks (ZeRO 1) each rank updates whole matrices and the ranks then gather the weights. On the host:
gradients go down over the host link, the host's memory moves the update's bytes, 16-bit weights come back.
Sources: arXiv 2101.06840 (host), arXiv 2502.16982 (Muon), Megatron-LM's precision-aware optimizer (dtypes).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from hwprofiles.errors import UserError
from hwprofiles.topology import device_bytes_per_s
from sim.build.context import ACT_BYTES, Context
from sim.build.matrices import Matrix, layer_matrices
from sim.cost.footprint import dense_tensors, expert_tensors
from sim.cost.model import CostModel
from sim.cost.state import LocalParams, host_share, shards, trained, widths
from sim.mesh import group
from sim.model import LayerSpec
from sim.ops import Op
from sim.workload import Optimizer

# Host launches per parameter tensor and step: gradient view into the main gradient, norm, copy back; Adam itself
# runs over many tensors per launch.
LAUNCHES_PER_TENSOR = 3
# Launches of one matrix beside its products: momentum, cast, norm, division, update.
MATRIX_LAUNCHES = 6
PRODUCTS = 3  # of an iteration


class Update:
    """Seconds of the weight update under one plan or a block of plans."""

    def __init__(self, cost: CostModel, ctx: Context, kinds: tuple[LayerSpec, ...]) -> None:
        self.cost, self.ctx = cost, ctx
        self._largest: dict[bool, Any] = {False: np.zeros(()), True: np.zeros(())}
        self._kinds = tuple(self._matrices(layer) for layer in kinds) if ctx.workload.optimizer.name == "muon" else ()

    @property
    def optimizer(self) -> Optimizer:
        """The workload's."""
        return self.ctx.workload.optimizer

    def matrices(self, kind: int) -> tuple[Any, ...]:
        """Of one layer of a kind: `sim.cost.state.MATRIX_FIELDS`."""
        return self._kinds[kind]

    def _matrices(self, layer: LayerSpec) -> tuple[Any, ...]:
        held, seconds = {False: 0.0, True: 0.0}, {False: np.zeros(()), True: np.zeros(())}
        for matrix in layer_matrices(self.ctx, layer):
            one_s = self.matrix_s(matrix)
            held[matrix.routed] = held[matrix.routed] + matrix.held
            seconds[matrix.routed] = seconds[matrix.routed] + matrix.count * one_s
            self._largest[matrix.routed] = np.maximum(self._largest[matrix.routed], one_s)
        return held[False], held[True], seconds[False], seconds[True]

    def matrix_s(self, matrix: Matrix) -> Any:
        """Seconds of one matrix: products at their shape, sums read beside them; not shorter than its launches."""
        rows, columns, gather_s = matrix.rows, matrix.columns, np.zeros(())
        if self.optimizer.tp_mode == "duplicated":
            axis = "etp" if matrix.routed else "tp"
            rows, columns = matrix.whole
            ranks = group(self.ctx.plan, axis, self.cost.cluster, self.cost.ranks)
            gathered = self.cost.comm.collective("all_gather", ACT_BYTES * rows * columns, ranks)
            gather_s = np.where(np.asarray(matrix.split) > 1, gathered.alone_s, 0.0)
        n, m = np.minimum(rows, columns), np.maximum(rows, columns)
        shapes = ((n, n, m, 0.0), (n, n, n, n * n), (n, m, n, n * m))
        products = [
            Op(name="newton_schulz", kind="gemm", m=a, n=b, k=c, flop=2.0 * a * b * c, bytes=ACT_BYTES * added)
            for a, b, c, added in shapes
        ]
        device_s = self.optimizer.ns_steps * sum((self.cost.device_s(op) for op in products), np.zeros(()))
        # norm: read; division: read and write
        device_s = device_s + self.cost.compute.memory_s(3.0 * ACT_BYTES * n * m, 2)
        launches = PRODUCTS * self.optimizer.ns_steps + MATRIX_LAUNCHES
        # a bare loop of library calls, as the loop over experts is
        host_s = launches * self.cost.expert_launch_s
        return np.maximum(device_s, host_s) + gather_s

    def elementwise_s(self, params: LocalParams) -> Any:
        """Seconds of the passes over gradients, state and weights of a rank's share."""
        mine, (dense, routed) = trained(self.ctx, params), shards(self.ctx)
        count = mine.dense / dense + mine.routed / routed
        o, factors = self.optimizer, self.cost.factors
        if not o.stated:
            nbytes = count * factors.optimizer_bytes_per_param
        else:
            nbytes = count * widths(self.ctx, second=o.name != "sgd").moved
        if o.name == "muon":
            # no second moment; what is orthogonalised is written, and read again, in 16 bits
            matrices = params.more[0] / dense + params.more[1] / routed
            nbytes = nbytes + matrices * (2.0 * ACT_BYTES - 2.0 * widths(self.ctx).second)
        away = host_share(self.ctx)
        return self.cost.compute.memory_s(nbytes * (1.0 - away) if away else nbytes, 1)

    def orthogonal_s(self, params: LocalParams) -> Any:
        """Seconds of Newton-Schulz on the rank that has most of it: matrices are shared out whole."""
        if self.optimizer.name != "muon":
            return 0.0
        total = 0.0
        for seconds, ranks, routed in zip(params.more[2:], shards(self.ctx), (False, True), strict=True):
            total = total + np.maximum(seconds / ranks, np.minimum(seconds, self._largest[routed]))
        return total

    def launch_s(self, layers: Iterable[tuple[Any, LayerSpec]], ends: int) -> Any:
        """Host time of the loop over the parameter tensors of (count, layer) and of `ends` ends of the model.

        Launches per tensor as in Megatron-LM's distributed optimizer.
        """
        tensors = 2.0 * ends
        for n, layer in layers:
            tensors = tensors + n * (dense_tensors(layer) + expert_tensors(layer, self.ctx.plan.ep))
        return tensors * LAUNCHES_PER_TENSOR * self.cost.launch_s

    def seconds(self, params: LocalParams) -> Any:
        """The whole update; what the host does runs beside the device's part."""
        device_s = self.elementwise_s(params) + self.orthogonal_s(params)
        share = host_share(self.ctx)
        if not share:
            return device_s
        mine, (dense, routed) = trained(self.ctx, params), shards(self.ctx)
        count = share * (mine.dense / dense + mine.routed / routed)
        width = widths(self.ctx, second=self.optimizer.name != "sgd")
        link = host_link_bytes_per_s(self.cost)
        down_s, up_s = count * width.grad / link, count * ACT_BYTES / link
        host_s = count * width.moved / host_bytes_per_s(self.cost)
        if self.ctx.workload.offload.overlap:
            # tensor after tensor: the slowest of the three paces the others
            return np.maximum(np.maximum(down_s, up_s), np.maximum(host_s, device_s))
        return down_s + np.maximum(host_s, device_s) + up_s


def host_link_bytes_per_s(cost: CostModel) -> float:
    """Rate of a device's link to its host that copies reach, one direction."""
    cost.compute.provenance.add("copies to and from the host (share of the link's rate): assumed")
    return float(device_bytes_per_s(cost.cluster, cost.cluster.host_link) * cost.factors.host_link_share)


def host_bytes_per_s(cost: CostModel) -> float:
    """Rate at which a device's share of the host moves an update's bytes. Raises UserError where none is stated."""
    cluster = cost.cluster
    if not cluster.host_mem_bytes_per_s:
        raise UserError(
            f"cluster {cluster.name} does not state the rate of its host memory, which an optimizer on the host needs; "
            "add host_mem_bytes_per_s (of a node, all sockets)",
            where="cluster",
        )
    cost.compute.provenance.add("optimizer on the host (share of the memory's rate): assumed")
    return float(cluster.host_mem_bytes_per_s / cluster.devices_per_node * cost.factors.host_update_share)
