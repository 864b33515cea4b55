"""Where the ranks of a parallel group sit: two meshes over the same ranks, and the devices under them.

Attention ranks form tp x cp x dp x pp, experts etp x ep x edp x pp. The rank order names the axes from the innermost
out (Megatron-LM's default, tp-cp-ep-dp-pp: expert parallel groups stay near, pipeline stages lie far apart); `tp`
stands for etp and `dp` for edp in the expert mesh. A host map says which device a rank runs on. Degrees are integers
or numpy columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hwprofiles.errors import UserError
from hwprofiles.hostmap import HostMap
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import members_within, tiers
from sim.plan import Degrees

AXES = ("tp", "cp", "dp", "pp", "etp", "ep", "edp", "tp_cp", "dp_cp")
DEFAULT_ORDER = "tp-cp-ep-dp-pp"
Pattern = Literal["spread", "ring"]  # who sends to whom: everyone to everyone, or each to the next
_JOINED = {"tp_cp": ("tp", "cp"), "dp_cp": ("cp", "dp")}  # inner, outer
_EXPERT = {"tp": "etp", "ep": "ep", "dp": "edp", "pp": "pp"}


@dataclass(frozen=True, kw_only=True)
class RankMap:
    """How ranks are laid over devices: the order of the axes, innermost first, and the device of each rank.

    Without `hosts` rank r runs on device r. Raises UserError unless `order` names tp, cp, ep, dp and pp once each.
    """

    order: str = DEFAULT_ORDER
    hosts: HostMap | None = None

    def __post_init__(self) -> None:
        if sorted(self.order.split("-")) != sorted(DEFAULT_ORDER.split("-")):
            raise UserError(
                f"rank order {self.order!r}: name tp, cp, ep, dp and pp once each, innermost first, joined by '-' "
                f"(default {DEFAULT_ORDER!r})"
            )

    def axes(self, *, expert: bool) -> tuple[str, ...]:
        """Axes of one mesh, innermost first."""
        names = self.order.split("-")
        return tuple(_EXPERT[n] for n in names if n != "cp") if expert else tuple(n for n in names if n != "ep")


DEFAULT_MAP = RankMap()


@dataclass(frozen=True, kw_only=True)
class Group:
    """size members, of which `intra` share a scale-up domain (NVLink); size/intra domains.

    within: for each fabric level of the cluster (leaf, pod, site), the members inside one of its groups.
    senders: for each of them, devices that leave one of its groups at the same time, over the devices of the group
    (at most 1); () = all of them, as in a collective of every rank.
    """

    size: Any
    intra: Any
    within: tuple[Any, ...] = ()
    senders: tuple[Any, ...] = ()

    @property
    def domains(self) -> Any:
        """Scale-up domains the group spans."""
        return np.ceil(np.asarray(self.size) / np.asarray(self.intra))


@dataclass(frozen=True, kw_only=True)
class GroupLevel:
    """One kind of link of the cluster as a group uses it.

    members: members that need no higher link than this one. bytes_per_s: one direction, of each device when all
    devices cross this link at once (oversubscription included). latency_s: of one small message whose highest link
    this is.
    """

    name: str
    members: Any
    bytes_per_s: float
    latency_s: float


def axis_dims(plan: Degrees, axis: str, ranks: RankMap = DEFAULT_MAP) -> tuple[tuple[Any, Any], ...]:
    """(size, stride in ranks) of a group axis; two pairs, inner first, where joined axes do not lie side by side."""
    names = ranks.axes(expert=axis in ("etp", "ep", "edp"))
    strides: dict[str, Any] = {}
    stride: Any = 1
    for name in names:
        strides[name] = stride
        stride = stride * getattr(plan, name)
    if axis not in _JOINED:
        return ((getattr(plan, axis), strides[axis]),)
    inner, outer = sorted(_JOINED[axis], key=names.index)
    if names.index(outer) == names.index(inner) + 1:
        return ((getattr(plan, inner) * getattr(plan, outer), strides[inner]),)
    return (getattr(plan, inner), strides[inner]), (getattr(plan, outer), strides[outer])


def pipelines_agree(plan: Degrees, ranks: RankMap = DEFAULT_MAP) -> Any:
    """Whether both meshes put the same ranks on a pipeline: the axes inside pp multiply to the same number.

    Always so where pp is outermost; tp-cp-pp-ep-dp, for one, needs tp x cp = etp.
    """
    inside = []
    for expert in (False, True):
        names = ranks.axes(expert=expert)
        inside.append(
            math.prod((np.asarray(getattr(plan, n)) for n in names[: names.index("pp")]), start=np.ones((), int))
        )
    return (np.asarray(plan.pp) == 1) | (inside[0] == inside[1])


def group(plan: Degrees, axis: str, cluster: ClusterSpec, ranks: RankMap = DEFAULT_MAP) -> Group:
    """The group of `axis`, how many of its members share one scale-up domain, and one group of each fabric level.

    Raises UserError where a host map does not hold as many ranks as the plan has.
    """
    dims = axis_dims(plan, axis, ranks)
    size = math.prod(n for n, _ in dims[1:]) * dims[0][0]
    blocks = (cluster.domain_devices, *(level.devices for level in cluster.fabric))
    found = [_members(plan, dims, block, cluster, ranks.hosts) for block in blocks]
    return Group(size=size, intra=found[0], within=tuple(found[1:]))


@dataclass(frozen=True, kw_only=True, eq=False)
class Boundaries:
    """What the pipeline sends of plans cross. Boundary s lies between stage s and the next; the last one is the wrap
    from the last stage to the first, which only virtual stages send over.

    which: the row of the tables of each plan (a number, or one per plan of a block). highest[row, boundary]: position
    in `levels` of the highest link between any two ranks that send to each other, -1 beyond a plan's last boundary.
    senders[level, row]: see `Group`.
    """

    which: Any
    highest: NDArray[np.int64]
    senders: NDArray[np.float64]

    def pair(self, plan: Degrees, highest: int) -> Group:
        """Two ranks whose highest link is this one."""
        size = np.where(np.asarray(plan.pp) > 1, 2, 1)
        near = [size if highest <= at else np.ones_like(size) for at in range(len(self.senders) + 1)]
        return Group(
            size=size, intra=near[0], within=tuple(near[1:]), senders=tuple(share[self.which] for share in self.senders)
        )


def boundaries(plan: Degrees, cluster: ClusterSpec, ranks: RankMap = DEFAULT_MAP) -> Boundaries:
    """The links between neighbouring pipeline stages of a plan, or of every plan of a block.

    Raises UserError where a host map does not hold as many ranks as a plan has.
    """
    ((size, stride),) = axis_dims(plan, "pp", ranks)
    world = np.asarray(plan.tp * plan.cp * plan.dp * plan.pp)
    if ranks.hosts is not None:
        _check_hosts(ranks.hosts, world)
    columns = np.broadcast_arrays(world, np.asarray(size), np.asarray(stride), np.asarray(plan.vpp))
    code = np.zeros(columns[0].size, np.int64)
    for column in columns:
        code = code * (int(column.max(initial=0)) + 1) + column.ravel()
    _, first, which = np.unique(code, return_index=True, return_inverse=True)
    blocks = tuple((tier.reach, tier.rails) for tier in tiers(cluster)[:-1])
    found = [
        _stage_pairs(*(int(c.ravel()[i]) for c in columns), blocks, cluster.devices_per_node, ranks.hosts)
        for i in first
    ]  # fmt: skip
    highest = np.full((len(found), max(len(tops) for tops, _ in found)), -1)
    for row, (tops, _) in zip(highest, found, strict=True):
        row[: len(tops)] = tops
    shares = np.array([shares for _, shares in found]).reshape(len(found), -1).T
    return Boundaries(which=which.reshape(columns[0].shape)[()], highest=highest, senders=shares)


@lru_cache(maxsize=1 << 12)
def _stage_pairs(
    world: int, pp: int, stride: int, vpp: int, blocks: tuple[tuple[int, int], ...], per_node: int,
    hosts: HostMap | None,
) -> tuple[tuple[int, ...], tuple[float, ...]]:  # fmt: skip
    """(highest link of each boundary, share of senders of each level), rank by rank: the slowest pair counts.

    Up and down a group's uplink are apart, so those that leave it count: to the next stage and, with gradients, to
    the one before. A rank sends over the wrap once less per micro-batch than over the other boundaries (vpp times).
    """
    device = np.arange(world) if hosts is None else np.asarray(hosts.devices)
    here = device.reshape(-1, pp, stride)
    there = np.roll(here, -1, axis=1)
    highest, shares = np.zeros(pp, np.int64), []
    for at, (block, rails) in enumerate(blocks):
        apart = here // block != there // block
        highest += apart.any(axis=(0, 2))
        if at == 0:
            continue  # nobody shares a device's own port
        often = np.ones(apart.shape)
        often[:, -1] = (vpp - 1) / vpp
        leaving = np.concatenate([here[apart], there[apart]])
        switch = leaving // block * rails + leaving % per_node * rails // per_node
        most = np.bincount(switch, np.tile(often[apart], 2)).max(initial=0.0)
        shares.append(min(1.0, float(most) * rails / block) if most else 1.0)
    return tuple(highest.tolist()), tuple(shares)


def levels(cluster: ClusterSpec, grp: Group) -> tuple[GroupLevel, ...]:
    """What a group crosses, from scale-up to the outermost link of the cluster; numbers or columns.

    Where the group was made without `within`, its members are taken to lie apart beyond their domain.
    """
    found = tiers(cluster)
    known = (grp.intra, *(grp.within or (grp.intra,) * len(cluster.fabric)))
    members = (*known[: len(found) - 1], grp.size)  # nothing lies above the last link
    return tuple(
        GroupLevel(name=tier.name, members=held, bytes_per_s=tier.bytes_per_s, latency_s=tier.latency_s)
        for tier, held in zip(found, members, strict=True)
    )


def fabric_seconds(cluster: ClusterSpec, grp: Group, pattern: Pattern) -> tuple[Any, ...]:
    """Seconds of each link above the network port (scale-out) over the port's own, innermost first; () without levels.

    Bytes of one device that leave its group of m members, of a group of n: `spread` (all-to-all, dispatch, a pipeline
    send to its neighbour) in proportion to n - m; `ring` (all-reduce, all-gather, reduce-scatter over consecutive
    members) 1/m, as each group passes the buffer on once. Seconds of a link = those bytes over its bytes/s; 0 where
    nothing crosses it. Where only some devices of a block send at a time, they have its uplinks to themselves.
    """
    found = levels(cluster, grp)
    size = np.asarray(grp.size, float)
    port_s = _crossing(size, found[0].members, pattern) / found[1].bytes_per_s
    ratios = []
    shares = grp.senders or (1.0,) * (len(found) - 2)
    for (below, level), share in zip(pairwise(found[1:]), shares, strict=True):
        seconds = share * _crossing(size, below.members, pattern) / level.bytes_per_s
        ratios.append(np.where(port_s > 0, seconds / np.where(port_s > 0, port_s, 1.0), 0.0))
    return tuple(ratios)


def fabric_slowdown(cluster: ClusterSpec, grp: Group, pattern: Pattern) -> Any:
    """How much longer than the network port the slowest link above it takes: 1 or more, 1 without levels."""
    return reduce(np.maximum, fabric_seconds(cluster, grp, pattern), np.ones(np.shape(grp.size)))


def _crossing(size: Any, inside: Any, pattern: str) -> Any:
    """Relative bytes per device that leave a block holding `inside` of `size` members."""
    inside = np.minimum(np.asarray(inside, float), size)
    return size - inside if pattern == "spread" else np.where(size > inside, 1.0 / inside, 0.0)


def _members(
    plan: Degrees, dims: tuple[tuple[Any, Any], ...], block: int, cluster: ClusterSpec, hosts: HostMap | None
) -> Any:
    """Members of a group inside one block of consecutive devices."""
    regular = math.prod(members_within(n, stride, block) for n, stride in dims)
    if hosts is None:
        return regular
    atom = min(cluster.domain_devices, cluster.devices_per_node)
    _check_hosts(hosts, np.asarray(plan.tp * plan.cp * plan.dp * plan.pp))
    if _only_inside(hosts, atom):
        return regular
    columns = np.broadcast_arrays(*(np.asarray(value) for dim in dims for value in dim))
    first, back = np.zeros(1, np.intp), np.zeros(columns[0].size, np.intp)
    for column in columns:  # numbered anew each time, so that the code stays small
        _, first, back = np.unique(
            back * (len(hosts.devices) + 1) + column.ravel(), return_index=True, return_inverse=True
        )
    counts = [_counted(hosts, tuple(int(c.ravel()[i]) for c in columns), block) for i in first]
    return np.array(counts)[back.ravel()].reshape(columns[0].shape)


def _check_hosts(hosts: HostMap, world: Any) -> None:
    if np.any(world != len(hosts.devices)):
        raise UserError(
            f"the host map holds {len(hosts.devices)} ranks, the plan has {int(np.max(world))}: make them equal",
            where="host map",
        )


@lru_cache(maxsize=64)
def _only_inside(hosts: HostMap, atom: int) -> bool:
    """Whether ranks only change places inside a node (or a domain, where that is smaller): the groups stay."""
    return np.array_equal(_units(hosts, atom), np.arange(len(hosts.devices)) // atom)


@lru_cache(maxsize=64)
def _units(hosts: HostMap, size: int) -> Any:
    """The block of `size` devices that each rank runs in."""
    return np.asarray(hosts.devices) // size


@lru_cache(maxsize=1 << 16)
def _counted(hosts: HostMap, dims: tuple[int, ...], block: int) -> int:
    """Members per block of the group that is spread over most blocks: the slowest one sets the pace."""
    pairs = list(zip(dims[::2], dims[1::2], strict=True))
    rank = np.arange(len(hosts.devices))
    first = rank - sum((rank // stride % size) * stride for size, stride in pairs)
    blocks = _units(hosts, block)
    held = np.unique(first * (int(blocks.max()) + 1) + blocks) // (int(blocks.max()) + 1)
    spread = int(np.unique(held, return_counts=True)[1].max())
    return -(-math.prod(size for size, _ in pairs) // spread)
