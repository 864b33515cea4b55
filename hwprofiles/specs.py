"""Records of what the hardware and the trainer software are.

Plain frozen records, SI units, no behaviour beyond arithmetic on their own fields. They are
filled from TOML by `hwprofiles.catalogue`; every record carries the `Source` its figures came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

# Modules whose activations may be recomputed in the backward pass (Megatron-LM's names);
# "operators" stands alone: every second matrix product and all that is elementwise (torch's selective policy).
RECOMPUTE_MODULES = (
    "core_attn", "moe_act", "layernorm", "mla_up_proj", "mlp", "moe", "shared_experts", "operators",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where figures come from. `kind` is how they were obtained."""

    kind: Literal["measured", "datasheet", "published", "documentation", "user", "assumed", "fitted"]
    title: str
    where: str
    date: str
    licence: str = "not stated"
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class LinkSpec:
    """A bandwidth: one direction, per device (or per node where `shared_by` says so)."""

    name: str
    bytes_per_s: float
    latency_s: float
    shared_by: Literal["device", "node", "fabric"] = "device"


@dataclass(frozen=True, kw_only=True)
class FabricLevel:
    """One tier of groups in the scale-out network (leaf, rack, pod, site) and the links that leave a group.

    devices: devices of one group, which reach each other without leaving it.
    bytes_per_s: one direction, of the links out of a group, before oversubscription: per device of the group, or of
        the whole group where `shared_by` says so. 0 = no way out.
    latency_s: what a message that leaves the group takes more than one that does not.
    oversubscription: ports below over ports above; 1 = non-blocking.
    rails: switches of one group, each serving one device of a node (or an equal share of them); 1 = one for all.
    source: where the figures of this level come from; default: the source of the cluster.
    """

    name: str
    devices: int
    bytes_per_s: float
    latency_s: float
    shared_by: Literal["device", "group"] = "device"
    oversubscription: float = 1.0
    rails: int = 1
    source: Source | None = None


@dataclass(frozen=True, kw_only=True)
class NodeParts:
    """Counts of parts inside one node: network ports, PCIe switches, processors (NUMA domains); 0 = not stated.

    Without `nics` a node has one per device, or one in all where the scale-out link is shared by the node.
    """

    nics: int = 0
    pcie_switches: int = 0
    sockets: int = 0


@dataclass(frozen=True, kw_only=True)
class StorageSpec:
    """Shared storage as checkpoints of the whole cluster see it; 0 = not stated."""

    write_bytes_per_s: float = 0.0
    read_bytes_per_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """What goes wrong in a long run; 0 = not stated.

    node_mtbf_s: mean time between failures of one node. restart_s: from a failure until training goes on, reading the
    checkpoint apart. slow_share: share of its time that a node is slow; slow_factor: how much longer a step takes then,
    as all wait for the slowest.
    """

    node_mtbf_s: float = 0.0
    restart_s: float = 0.0
    slow_share: float = 0.0
    slow_factor: float = 1.0


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """One accelerator. `peak_flop_per_s` holds dense peaks per dtype (bf16, fp8, nvfp4, ...).

    `measured` names the folder of `hwprofiles/measured` whose kernel tables describe it; where it differs from
    `name` the tables are borrowed and every result says so. Or it is a path (with a slash, relative to the file) to
    the device's own tables, written by `moecast calibrate fit`. scaled_from: the measured device of the catalogue whose
    kernels, scaled by peaks and rates (`hwprofiles.scaling`), stand for this one's: for all where `measured` is empty,
    else for the families that its tables lack. vendor: who makes it; kernels of another vendor's device widen the
    intervals. usd_per_s: 0 = no price is stated.
    """

    name: str
    aliases: tuple[str, ...] = ()
    peak_flop_per_s: Mapping[str, float]
    mem_bytes: float
    mem_bytes_per_s: float
    power_w: float
    usd_per_s: float
    num_sms: int
    launch_s: float
    host_speed: float = 1.0
    measured: str = ""
    scaled_from: str = ""
    vendor: str = ""
    source: Source


@dataclass(frozen=True, kw_only=True)
class ClusterSpec:
    """Identical nodes of one device, a scale-up domain (NVLink) and a scale-out fabric (NICs).

    `host_mem_bytes_per_s`: of a node's host memory, all sockets; 0 = not stated. `fabric`: levels of the scale-out
    network, innermost first; above the last, and where there are none, it does not block. `node`: counts of the parts
    in a node. `storage`, `reliability`: what long runs rest on. `device_spec` is set only where a cluster file brings a
    device of its own; use `hwprofiles.catalogue.device_of(cluster)` to get the device either way.
    """

    name: str
    device: str
    device_spec: DeviceSpec | None = None
    num_nodes: int
    devices_per_node: int
    domain_devices: int
    scale_up: LinkSpec
    scale_out: LinkSpec
    host_mem_bytes: float
    host_link: LinkSpec
    host_mem_bytes_per_s: float = 0.0
    fabric: tuple[FabricLevel, ...] = ()
    node: NodeParts = NodeParts()
    storage: StorageSpec = StorageSpec()
    reliability: Reliability = Reliability()
    source: Source

    @property
    def num_devices(self) -> int:
        """Devices in the whole cluster."""
        return self.num_nodes * self.devices_per_node


@dataclass(frozen=True, kw_only=True)
class SoftwareProfile:
    """What a trainer release does, as a set of switches (no efficiency factor per release).

    cuda_graph: modules whose launches are replayed from a captured graph: a subset of
        {"attn", "moe_router", "moe_preprocess", "moe", "mlp"} or {"full_iteration"}; empty = eager.
    fp8_amax: of per-tensor scaling (precision "fp8"): the maximum comes out of the producing kernel, out of norms alone
        and elsewhere from a pass of its own over the tensor (Transformer Engine's current scaling), from such a pass
        everywhere, or is that of earlier steps (delayed scaling).
    fp8_transpose: per-tensor scaling writes operands by rows and by columns; False: products take either layout of the
        one copy (Blackwell's tensor cores).
    fused_experts: grouped GEMM, activation and quantisation run as fused kernels over all local
        experts (otherwise one small kernel set per local expert).
    dispatcher: how tokens reach their experts.
    dispatch_kernel: of DeepEP: the throughput kernels, or the low-latency ones, which send a message per token and
        expert and hold no multiprocessor while the data are on their way.
    fp8_dispatch: tokens go to their experts in 8 bits with a scale per 128 elements; results and gradients in 16 bits.
    all_to_all: of the plain dispatcher: direct as the library does it, or hierarchical (2-D): inside the scale-up
        domain first, then between equal ranks of the domains.
    tp_aware_dispatch: where the ranks of a tensor-parallel group hold the same rows (no sequence parallelism, etp = 1),
        each exchanges its share of them and the group gathers afterwards.
    two_batch_overlap: a micro-batch runs as two halves, the all-to-all of each beside the computation of the other.
    dropless: token counts are data dependent; `capacity_factor` is set only when tokens drop.
    elementwise: norms, rotary and activations as hand-fused kernels, compiler-fused, one eager
        kernel per arithmetic step, or "torch": the calls of plain torch, which `moecast calibrate measure` times class
        by class; where a device has those times they are used.
    fused_norm: a norm is one kernel; False: single steps in fp32, which keep two fp32 copies of their input for the
        backward pass (torch on a CPU).
    fused_bias_grad: the gradient of a bias is made where its operand is read anyway (cast, GEMM epilogue); False: a
        column sum of its own (torch autograd).
    selective_by_operator: "selective" recompute goes by operator (every second matrix product and all that is
        elementwise), not by module.
    recompute_modules: modules that the release can recompute by name (those of `Plan.recompute`); None: every one.
        Whole layers ("full") always can.
    recompute_stops_early: full recompute ends with the last tensor that the backward needs, so the last product of a
        dense layer is not run again, nor the combine kernel of a routed one (torch checkpointing without re-entrance).
    master_weights: the optimizer keeps an fp32 copy of the weights; False: it updates the 16-bit ones themselves.
    fused_grad_accumulation: the weight-gradient GEMM adds to the main gradient; False: a kernel of its own does.
    buckets: what gradients and parameters travel in, a collective each: so many parameters, or layer by layer (FSDP).
    bucket_params: parameters of a bucket, whole tensors at least (1: every tensor alone); 0: Megatron-core's own rule.
    grad_check: the host asks of every bucket whether its gradients are finite before it sends them, and waits for it.
    plain_dispatch: rows are not exchanged or sorted again where ep = 1, else an all-to-all of row counts goes ahead.
    flat_optimizer: parameters, gradients and states lie in one buffer for dense weights and one for experts; a step
        runs over each buffer with one kernel for the norm, Adam, the 16-bit copy and the clearing.
    unstated_precision: what a run that does not state its precision trained in: the trainer's default, or (tuned
        submissions) the lowest the device has.
    attention_kernel: the measured generation of the device, FlashAttention 2 on newer devices, or the Triton kernel of
        the first FlashAttention.
    context_ring: ring attention of context parallelism with merges in one kernel each, or as plain torch has it:
        merges and gradients in fp32, one eager kernel per step.
    repeated_kv: grouped keys and values are copied to all query heads in front of attention (and of its ring).
    complex_rotary: rotary as a product of complex numbers, which compilers leave to eager kernels.
    grad_placeholders: weight gradients accumulate in the main-gradient buffer and a placeholder tensor per
        weight shape stands in for them (Transformer Engine); False where no such tensors exist.
    router_padding: the routing is padded so that every expert's rows are a multiple that low-precision products take
        (--moe-router-padding-for-quantization); else rows are copied out to one, but by HybridEP.
    host_sync: the dropless path reads token counts back to the host in every MoE layer.
    padded_vocab: the trainer pads the vocabulary, so that a rank's part of it is a multiple of 16 bytes wide; False: it
        is as wide as the model says, and the products of the head run slower where that is no such multiple.
    traced: a tracing profiler records every call and every kernel meanwhile: launches take longer.
    optimizer_post_validation: stages do not wait for each other at the end of a step: each updates its parameters and
        goes on, and what the gradient norm says is checked (and, rarely, undone) later.
    """

    name: str
    trainer: str
    version: str
    dispatcher: Literal["alltoall", "deepep", "hybridep", "allgather"] = "alltoall"
    dispatch_kernel: Literal["normal", "low_latency"] = "normal"
    fp8_dispatch: bool = False
    all_to_all: Literal["library", "hierarchical"] = "library"
    tp_aware_dispatch: bool = False
    cuda_graph: tuple[str, ...] = ()
    fused_experts: bool = False
    permute_fusion: bool = True
    router_padding: bool = False
    capacity_factor: float | None = None
    host_sync: bool = True
    a2a_overlap: bool = False
    two_batch_overlap: bool = False
    delay_wgrad: bool = False
    optimizer_post_validation: bool = False
    tuned_overlap: bool = False
    shared_expert_overlap: bool = False
    tp_overlap: bool = False
    dp_overlap_grad: bool = True
    dp_overlap_param: bool = True
    grad_dtype: Literal["fp32", "bf16"] = "fp32"
    fp8_amax: Literal["producer", "norm", "pass", "history"] = "producer"
    fp8_transpose: bool = True
    fp8_param_gather: bool = False
    fp8_attention: bool = False
    fp8_output_proj: bool = False
    flash_attention: bool = True
    attention_kernel: Literal["latest", "fa2", "triton"] = "latest"
    context_ring: Literal["fused", "torch"] = "fused"
    repeated_kv: bool = False
    complex_rotary: bool = False
    sequence_parallel: bool = True
    elementwise: Literal["fused", "compiled", "eager", "torch"] = "fused"
    fused_norm: bool = True
    fused_bias_grad: bool = True
    selective_by_operator: bool = False
    recompute_modules: tuple[str, ...] | None = None
    recompute_stops_early: bool = False
    fused_grad_accumulation: bool = True
    buckets: Literal["params", "layer"] = "params"
    bucket_params: int = 0
    grad_check: bool = False
    plain_dispatch: bool = False
    flat_optimizer: bool = False
    fused_loss: bool = True
    loss_fp32_logits: bool = True
    grad_placeholders: bool = True
    padded_vocab: bool = True
    traced: bool = False
    p2p_overlap: bool = True
    master_weights: bool = True
    precision_aware_optimizer: bool = False
    optimizer_offload: bool = False
    activation_offload_layers: int = 0
    reserved_bytes: float = 0.0
    unstated_precision: Literal["bf16", "lowest"] = "bf16"
    unknown: tuple[str, ...] = field(default=())
    source: Source
