"""The cluster as a drawing whose links carry the colour of their use, a table of links, and what faster ones buy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import plotly.graph_objects as go
from plotly.colors import sample_colorscale

from dashboards.figures_base import axis, empty, layout
from dashboards.style import bytes_text, seconds_text, significant
from hwprofiles.cluster_graph import graph, with_use
from hwprofiles.specs import ClusterSpec
from hwprofiles.topology import link_rates, tiers
from planner.elastic import Gain

TITLE, TITLE_GAINS = "Network", "What faster links buy"
MOST_PARTS = 72  # vertices up to which every part is drawn; beyond, one for all that are alike
# From idle to full, readable on white and on black: grey, then Okabe-Ito.
USE_SCALE = [[0.0, "#9CA3AF"], [0.15, "#56B4E9"], [0.5, "#E69F00"], [1.0, "#D55E00"]]
# kind of part: (name, mark, colour)
KINDS: Mapping[str, tuple[str, str, str]] = {
    "device": ("device", "square", "#0072B2"),
    "domain": ("scale-up domain", "hexagon", "#009E73"),
    "pcie": ("PCIe switch", "triangle-up", "#56B4E9"),
    "host": ("host", "diamond", "#8C8C8C"),
    "nic": ("network port", "circle", "#CC79A7"),
    "switch": ("switch", "hexagon2", "#E69F00"),
    "fabric": ("fabric", "star", "#D55E00"),
}
# Rows from below: scale-up stands under the devices, scale-out over them; levels of the fabric and their top follow.
ROWS = (("domain", "host"), ("device",), ("nic",))
ROWS_PCIE = (("domain",), ("device",), ("pcie",), ("nic", "host"))
_SIZE = {"device": 15, "nic": 11, "host": 14, "pcie": 13}
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A graph to draw: vertices with `kind` and `count`, edges with `link` and `use`, and a place for each vertex."""

    net: nx.Graph[str]
    at: Mapping[str, Point]
    groups: bool


def drawing(cluster: ClusterSpec, use: Mapping[str, float]) -> Drawing:
    """The cluster laid out; every part of a small one, groups of like parts with their counts of a large one.

    use: busy share of a step by link name; names that the cluster lacks are left out, shares above 1 count as 1.
    """
    plain = graph(cluster)
    named = {data["link"] for _, _, data in plain.edges(data=True)}
    net = with_use(plain, {n: min(1.0, max(0.0, share)) for n, share in use.items() if n in named})
    rails = any(level.rails > 1 for level in cluster.fabric)
    groups = rails or sum(data["count"] for _, data in net.nodes(data=True)) > MOST_PARTS
    shown = net if groups else single_parts(net)
    if not groups and cluster.node.pcie_switches:  # trees of switches cross in rows
        places = nx.kamada_kawai_layout(shown, pos=nx.circular_layout(shown))
        return Drawing(net=shown, at={v: (float(x), float(y)) for v, (x, y) in places.items()}, groups=False)
    rows = _rows(cluster, shown)
    places = nx.multipartite_layout(shown, subset_key=dict(enumerate(rows)), align="horizontal")
    row_of = {v: i for i, row in enumerate(rows) for v in row}
    at = {v: (_spread(rows[i], v) if not groups else float(places[v][0]), float(i)) for v, i in row_of.items()}
    return Drawing(net=shown, at=at, groups=groups)


def _rows(cluster: ClusterSpec, net: nx.Graph[str]) -> list[list[str]]:
    """Vertices row by row from below: single parts in order of their place in the cluster, of groups the partly filled
    ones to the right, mirrored."""
    kinds = [*(ROWS_PCIE if cluster.node.pcie_switches else ROWS)]
    kinds += [*((level.name,) for level in cluster.fabric), ("fabric",)]
    rows = []
    for row in kinds:
        place: dict[str, tuple[float, ...]] = {}
        for vertex, data in net.nodes(data=True):
            kind = str(data.get("level", data["kind"]))
            if kind in row:
                rest, at = ":rest" in vertex, row.index(kind)
                place[vertex] = (rest, data.get("place", 0.0), at if rest else -at)
        rows.append(sorted(place, key=place.__getitem__))
    return [row for row in rows if row]


def _spread(row: Sequence[str], vertex: str) -> float:
    """Place of a part in its row over the whole width: those of few stand over the middle of what they serve."""
    return (row.index(vertex) + 0.5) / len(row)


def single_parts(net: nx.Graph[str]) -> nx.Graph[str]:
    """Every part as a vertex of its own; links are dealt to the parts of both ends in order."""
    out: nx.Graph[str] = nx.Graph()
    parts: dict[str, list[str]] = {}
    for name, data in net.nodes(data=True):
        parts[name] = [f"{name} {i}" for i in range(data["count"])]
        for i, part in enumerate(parts[name]):
            out.add_node(part, **{**data, "count": 1, "place": (i + 0.5) / data["count"]})
    for one, other, data in net.edges(data=True):
        links = max(len(parts[one]), len(parts[other]), data["count"])
        for k in range(links):
            ends = (parts[end][k * len(parts[end]) // links] for end in (one, other))
            out.add_edge(*ends, **{**data, "count": 1})
    return out


def network(cluster: ClusterSpec, use: Mapping[str, float]) -> go.Figure:
    """Parts of the cluster and the links between them, coloured by busy share of the step; hover tells the rates."""
    drawn = drawing(cluster, use)
    figure = go.Figure()
    links = sorted({data["link"] for _, _, data in drawn.net.edges(data=True)})
    for link in links:
        _add_link(figure, drawn, link)
    for kind, (name, symbol, colour) in KINDS.items():
        mine = [v for v, data in drawn.net.nodes(data=True) if data["kind"] == kind]
        if not mine:
            continue
        figure.add_scatter(
            name=name, mode="markers+text" if drawn.groups else "markers",
            x=[drawn.at[v][0] for v in mine], y=[drawn.at[v][1] for v in mine],
            text=[_label(cluster, drawn.net, v) for v in mine] if drawn.groups else None,
            textposition=[_side(kind, drawn.at[v][0]) for v in mine],
            cliponaxis=False, marker={"symbol": symbol, "size": 22 if drawn.groups else _SIZE.get(kind, 20),
                                      "color": colour, "line": {"width": 1, "color": "#808080"}},
            customdata=[_part(cluster, drawn.net, v) for v in mine], hovertemplate="%{customdata}<extra></extra>",
            showlegend=not drawn.groups,
        )  # fmt: skip
    figure.add_scatter(
        x=[None], y=[None], mode="markers", showlegend=False, hoverinfo="skip",
        marker={"color": [0.0], "coloraxis": "coloraxis"},
    )  # fmt: skip
    rows = len({y for _, y in drawn.at.values()})
    height = 200 + (100 if drawn.groups else 120) * (rows - 1) if rows < 12 else 640
    what = "groups of like parts" if drawn.groups else "every part"
    figure.update_layout(
        **layout(
            f"{TITLE} of {cluster.name}: {cluster.num_devices:,} devices, {what}", height, hovermode="closest",
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0, title_yanchor="top", title_pad={"t": 12},
            coloraxis={"colorscale": USE_SCALE, "cmin": 0.0, "cmax": 1.0,
                       "colorbar": {"title": {"text": "busy share of the step", "side": "top"}, "tickformat": ".0%",
                                    "orientation": "h", "thickness": 12, "lenmode": "pixels", "len": 260, "x": 1.0,
                                    "xanchor": "right", "y": -28 / (height - 192), "yanchor": "top"}},
        )
    )  # fmt: skip
    xs, ys = zip(*drawn.at.values(), strict=True)
    wide, tall = max(max(xs) - min(xs), 1e-9), max(max(ys) - min(ys), 1e-9)
    side = 0.4 * max(wide, 1.0) if drawn.groups else 0.05 * wide  # names of groups stand beside them
    figure.update_xaxes(visible=False, range=[min(xs) - side, max(xs) + side])
    figure.update_yaxes(visible=False, range=[min(ys) - 0.1 * tall, max(ys) + 0.1 * tall])
    figure.update_layout(margin={"t": 64 if drawn.groups else 92, "b": 106})
    return figure


def _add_link(figure: go.Figure, drawn: Drawing, link: str) -> None:
    """All links of one name: a line each, and in its middle what hover (and of groups the drawing) says."""
    edges = [(a, b, data) for a, b, data in drawn.net.edges(data=True) if data["link"] == link]
    use = float(edges[0][2]["use"])
    (colour,) = sample_colorscale(USE_SCALE, [use])
    lines: tuple[list[float | None], list[float | None]] = ([], [])
    for a, b, _ in edges:
        for values, i in zip(lines, (0, 1), strict=True):
            values += [drawn.at[a][i], drawn.at[b][i], None]
    figure.add_scatter(
        name=link, mode="lines", x=lines[0], y=lines[1], hoverinfo="skip", showlegend=False,
        line={"color": colour, "width": 5 if drawn.groups else 2.5},
    )  # fmt: skip
    figure.add_scatter(
        name=link, mode="markers+text" if drawn.groups else "markers", showlegend=False,
        x=[(drawn.at[a][0] + drawn.at[b][0]) / 2 for a, b, _ in edges],
        y=[(drawn.at[a][1] + drawn.at[b][1]) / 2 for a, b, _ in edges],
        marker={"color": colour, "size": 9 if drawn.groups else 5}, cliponaxis=False,
        text=[_edge_label(a, b, data) for a, b, data in edges] if drawn.groups else None,
        textposition=[_beside(drawn.at[a], drawn.at[b]) for a, b, _ in edges], textfont={"size": 11},
        customdata=[_link_text(data) for _, _, data in edges], hovertemplate="%{customdata}<extra></extra>",
    )  # fmt: skip


def _side(kind: str, x: float) -> str:
    """Where the name of a group stands: off the lines that meet in it, outwards."""
    way = "" if abs(x) < 1e-6 else "left" if x < 0.0 else "right"
    if kind == "domain":
        return f"bottom {way or 'center'}"
    return "top center" if kind == "fabric" else f"middle {way or 'right'}"


def _beside(one: Point, other: Point) -> str:
    """Where the text of a line stands free of it: outwards, on the side that the line leaves open."""
    low, high = sorted((one, other), key=lambda p: p[1])
    lean, middle = high[0] - low[0], (high[0] + low[0]) / 2
    if abs(lean) < 1e-6:
        return "middle right"
    if middle < -1e-6:
        return "top left" if lean > 0.0 else "bottom left"
    return "bottom right" if lean > 0.0 else "top right"


def _edge_label(one: str, other: str, data: Mapping[str, object]) -> str:
    """Name and rate; nothing for partly filled groups, whose lines lie close."""
    rest = ":rest" in one or ":rest" in other
    return "" if rest else f"{data['link']} {_rate(float(str(data['bytes_per_s'])))}"


def _rate(bytes_per_s: float) -> str:
    return f"{significant(bytes_per_s / 1e9)} GB/s"


def _link_text(data: Mapping[str, object]) -> str:
    latency_s, rate = float(str(data["latency_s"])), float(str(data["bytes_per_s"]))
    count = int(str(data["count"]))
    many = f"<br>{count:,} such links" if count > 1 else ""
    wait = f"<br>latency {seconds_text(latency_s)}" if latency_s > 0.0 else ""
    return (
        f"<b>{data['link']}</b>, one of {data['shared_by']}<br>{_rate(rate)} one way{wait}{many}"
        f"<br>busy {float(str(data['use'])):.1%} of the step<br>{data['source']}"
    )


def _label(cluster: ClusterSpec, net: nx.Graph[str], vertex: str) -> str:
    data = net.nodes[vertex]
    rest = ", partly filled" if vertex.endswith(":rest") else ""
    name = _kind(cluster, data) if data["kind"] == "fabric" else f"{data['count']:,} × {_kind(cluster, data)}{rest}"
    return f"\u2002{name}\u2002"  # room between mark and name


def _part(cluster: ClusterSpec, net: nx.Graph[str], vertex: str) -> str:
    data = net.nodes[vertex]
    said = f"<b>{vertex.replace(':full', '').replace(':rest', ' (partly filled)')}</b><br>{_kind(cluster, data)}"
    return said if data["count"] == 1 else f"{said}<br>{data['count']:,} of them"


def _kind(cluster: ClusterSpec, data: Mapping[str, object]) -> str:
    if data["kind"] == "device":
        return cluster.device
    return f"{data['level']} switch" if data["kind"] == "switch" else KINDS[str(data["kind"])][0]


def network_words(cluster: ClusterSpec, use: Mapping[str, float]) -> str:
    """Size, levels and the busiest link."""
    levels = ", ".join(f"{t.name} {_rate(t.bytes_per_s)}" for t in tiers(cluster))
    words = (
        f"Network of {cluster.name}: {cluster.num_devices:,} {cluster.device} in {cluster.num_nodes:,} nodes. Each "
        f"device gets, all at once and one way: {levels}."
    )
    known = {name: share for name, share in use.items() if name in link_rates(cluster)}
    if not known:
        return words
    busiest = max(known, key=lambda name: (known[name], name))
    return f"{words} Busiest in the step is {busiest}, {known[busiest]:.1%} of the time."


def link_table(cluster: ClusterSpec, use: Mapping[str, Mapping[str, float]]) -> list[dict[str, str | float | int]]:
    """Every kind of link as a row: rates, reach, and with `use` (`Report.link_use`) what the step moved."""
    counts: dict[str, int] = {}
    sources: dict[str, str] = {}
    for _, _, data in graph(cluster).edges(data=True):
        counts[data["link"]] = max(counts.get(data["link"], 0), data["count"])
        sources[data["link"]] = data["source"]
    rows: list[dict[str, str | float | int]] = []
    for tier in tiers(cluster):
        mine = use.get(tier.name, {})
        rows.append({
            "link": tier.name, "reaches (devices)": tier.reach, "GB/s per device": round(tier.bytes_per_s / 1e9, 2),
            "latency": seconds_text(tier.latency_s), "links": counts.get(tier.name, 0),
            "moved per device and step": bytes_text(mine.get("bytes", 0.0)),
            "busy %": round(100 * mine.get("utilisation", 0.0), 1), "figures": sources.get(tier.name, ""),
        })  # fmt: skip
    return rows


# ---------------------------------------------------------------- what faster links buy


def gains_bar(gains: Sequence[Gain]) -> go.Figure:
    """Tokens per second more of the same plan when one rate is raised, most telling on top."""
    known = [g for g in gains if g.gain is not None]
    if not known:
        return empty(TITLE_GAINS, "No rate was raised.")
    shown = sorted(known, key=lambda g: (g.gain or 0.0, g.what))
    more = shown[0].factor - 1.0
    figure = go.Figure(
        go.Bar(
            orientation="h", y=[g.what for g in shown], x=[100 * (g.gain or 0.0) for g in shown],
            marker={"color": ["#D55E00" if (g.gain or 0.0) < 0 else "#0072B2" for g in shown]},
            text=[f"{100 * (g.gain or 0.0):+.2f} %" for g in shown], textposition="outside", cliponaxis=False,
            customdata=[_gain_hover(g) for g in shown], hovertemplate="%{customdata}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(**layout(f"{TITLE_GAINS} ({more:+.0%} of one)", 130 + 34 * len(shown)))
    values = [100 * (g.gain or 0.0) for g in shown]
    far = max(0.1, max(values), -min(values))
    figure.update_xaxes(
        **axis(
            "tokens/s of the same plan (%)",
            range=[min(0.0, min(values)) - 0.25 * far * (min(values) < 0), max(values) + 0.3 * far],
        )
    )
    figure.update_yaxes(**axis(categoryorder="array", categoryarray=[g.what for g in shown]))
    return figure


def _gain_hover(gain: Gain) -> str:
    step = "" if gain.step_s is None else f"<br>step {seconds_text(gain.step_s)}"
    slope = "" if gain.elasticity is None else f"<br>elasticity {gain.elasticity:.3f}"
    return f"<b>{gain.what}</b> × {gain.factor:g}: {gain.gain or 0.0:+.2%}{step}{slope}"


def gains_words(gains: Sequence[Gain]) -> str:
    """What helps most, and what nothing waits for."""
    known = [g for g in gains if g.gain is not None]
    if not known:
        return "No rate was raised."
    best = max(known, key=lambda g: (g.gain or 0.0, g.what))
    idle = [g.what for g in known if abs(g.gain or 0.0) < 5e-4]
    words = f"The same plan with one rate raised by {best.factor - 1.0:.0%}: most by {best.what}, {best.gain:+.2%}"
    return words + (f"; next to nothing by {', '.join(idle)}." if idle else ".")
