"""A placement of experts as figures: load of every GPU, traffic and fan-out before and after, replicas.

What is proved of it stands in `placement_rows`.
"""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures_base import axis, empty, layout, least_gap
from dashboards.figures_experts import shades
from dashboards.style import significant
from hwprofiles.forms.hits import expected_hits
from planner.placement.baselines import contiguous_placement
from planner.placement.clock import nodes_over_uniform, pair_flows
from planner.placement.records import Floats, Instance, Placement, gpu_time

TITLE_LOAD = "Load per GPU before and after placement"
TITLE_TRAFFIC = "Traffic between nodes before and after placement"
TITLE_FAN_OUT = "Distinct nodes of a token"
TITLE_REPLICAS = "Replicas of every expert"
NAMES = ("before", "after")
SMALL = 8  # a matrix of so many a side carries its numbers in the cells
TRAFFIC_SCALE = "Cividis"
# Light to dark, told apart on paper: one copy, two, ... (the last stands for all beyond).
COPIES = ("#F7F7F7", "#C6DBEF", "#6BAED6", "#2171B5", "#08306B")


def start_of(instance: Instance, previous: Placement | None) -> Placement:
    """What a placement is compared with: the one in use, or neighbouring experts together as trainers place them."""
    return previous if previous is not None else contiguous_placement(instance)


def over_mean(instance: Instance, placement: Placement) -> Floats:
    """Load over speed [L, G] as multiples of the layer's mean."""
    time = gpu_time(instance, placement)
    mean = instance.loads.sum(axis=1, keepdims=True) / instance.speeds.sum()
    out: Floats = time / np.where(mean > 0.0, mean, 1.0)
    return out


# ---------------------------------------------------------------- load


def load_before_after(instance: Instance, before: Placement, after: Placement) -> go.Figure:
    """Two heat maps layer x GPU of load over the mean, on one scale that is light at 1."""
    both = [over_mean(instance, placement) for placement in (before, after)]
    layers, gpus = both[0].shape
    if gpus < 2:
        return empty(TITLE_LOAD, "One GPU holds all experts: nothing to place.")
    low = min(1.0 - 1e-3, *(float(x.min()) for x in both))
    high = max(1.0 + 1e-3, *(float(x.max()) for x in both))
    height = min(640, max(96, (30 if layers <= SMALL else 11) * layers))
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[_peak(n, x) for n, x in zip(NAMES, both, strict=True)],
    )  # fmt: skip
    names = [str(i) for i in instance.layers]
    small = layers <= SMALL and gpus <= SMALL
    for col, values in enumerate(both, start=1):
        figure.add_heatmap(
            row=1, col=col, z=np.round(values, 4).tolist(), y=names, coloraxis="coloraxis",
            xgap=1 if gpus <= 48 else 0, ygap=1 if layers <= 64 else 0,
            text=[[f"{x:.2f}" for x in line] for line in values] if small else None,
            texttemplate="%{text}" if small else None,
            hovertemplate=f"{NAMES[col - 1]}: layer %{{y}}, GPU %{{x}}: %{{z:.3f}} × the mean<extra></extra>",
        )  # fmt: skip
        figure.update_xaxes(
            **axis("GPU", showgrid=False, zeroline=False, tick0=0, dtick=least_gap(gpus, 300, 34)), row=1, col=col
        )
        figure.update_yaxes(
            **axis("MoE layer" if col == 1 else "", autorange="reversed", showgrid=False, type="category",
                   tickvals=names[:: least_gap(layers, height)]),
            row=1, col=col,
        )  # fmt: skip
    figure.update_layout(
        **layout(TITLE_LOAD, height + 170),
        coloraxis={"colorscale": shades(low, high), "cmin": low, "cmax": high,
                   "colorbar": {"title": {"text": "× mean", "side": "top"}, "thickness": 14, "tickformat": ".2f",
                                "tickvals": [low, 1.0, high], "lenmode": "pixels", "len": max(150, min(height, 320))}},
    )  # fmt: skip
    figure.update_layout(margin_t=96)
    return figure


def _peak(name: str, values: Floats) -> str:
    return f"{name}: up to {float(values.max()):.2f} × the mean"


def load_words(instance: Instance, before: Placement, after: Placement) -> str:
    """The fullest GPU before and after, in the worst layer and on average over layers."""
    worst = [over_mean(instance, placement).max(axis=1) for placement in (before, after)]
    most, mean = ([float(pick(x)) for x in worst] for pick in (np.max, np.mean))
    return (
        f"Load of {instance.gpus} GPUs over the mean in {instance.num_layers} MoE layers. The fullest GPU has "
        f"{most[0]:.3f} times the mean in its worst layer before and {most[1]:.3f} after placement; {mean[0]:.3f} and "
        f"{mean[1]:.3f} on average over layers. A layer waits for its fullest GPU."
    )


# ---------------------------------------------------------------- traffic


def traffic_between(instance: Instance, placement: Placement) -> Floats:
    """Share [N, N] of token-choices from source (row) to destination node; of GPUs where there is one node.

    With transitions: from the expert of one layer to that of the next. Without: from tokens that start evenly
    everywhere to their experts. Sums to 1.
    """
    parts, per = (instance.num_nodes, instance.gpus_per_node) if instance.num_nodes > 1 else (instance.gpus, 1)
    flows = pair_flows(instance, placement) if instance.transitions is not None and instance.num_layers > 1 else None
    if flows is None or float(flows.sum()) <= 0.0:
        load = (instance.loads[:, :, None] * placement.on_gpu(instance.num_experts)).sum(axis=(0, 1))
        to = load.reshape(parts, per).sum(axis=1)
        out: Floats = np.broadcast_to(to / parts, (parts, parts)) / max(float(load.sum()), 1e-300)
        return out
    whole = flows.sum(axis=0).reshape(parts, per, parts, per).sum(axis=(1, 3))
    return np.asarray(whole / whole.sum(), dtype=np.float64)


def _part_name(instance: Instance) -> str:
    return "node" if instance.num_nodes > 1 else "GPU"


def traffic_before_after(instance: Instance, before: Placement, after: Placement) -> go.Figure:
    """Two matrices of traffic by source and destination node in percent of all; the diagonal stays where it is."""
    if instance.gpus < 2:
        return empty(TITLE_TRAFFIC, "One GPU holds all experts: nothing moves.")
    both = [100.0 * traffic_between(instance, placement) for placement in (before, after)]
    count, of = len(both[0]), _part_name(instance)
    side = min(420, max(230, 26 * count))
    figure = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.06,
        subplot_titles=[
            f"{n}: {100.0 - float(np.trace(x)):.1f} % changes {of}" for n, x in zip(NAMES, both, strict=True)
        ],
    )  # fmt: skip
    top = max(float(x.max()) for x in both)
    for col, values in enumerate(both, start=1):
        figure.add_heatmap(
            row=1, col=col, z=np.round(values, 5).tolist(), coloraxis="coloraxis", xgap=1, ygap=1,
            text=[[significant(x, 2) for x in line] for line in values.tolist()] if count <= SMALL else None,
            texttemplate="%{text}" if count <= SMALL else None,
            hovertemplate=f"{NAMES[col - 1]}: {of} %{{y}} → {of} %{{x}}: %{{z:.3g}} %<extra></extra>",
        )  # fmt: skip
        plain = {"showgrid": False, "zeroline": False, "tick0": 0, "dtick": least_gap(count, 300, 30)}
        figure.update_xaxes(**axis(f"destination {of}", **plain, range=[-0.5, count - 0.5]), row=1, col=col)
        figure.update_yaxes(
            **axis(f"source {of}" if col == 1 else "", **plain, range=[count - 0.5, -0.5]), row=1, col=col
        )
    figure.update_layout(
        **layout(TITLE_TRAFFIC if of == "node" else "Traffic between GPUs before and after placement", side + 170),
        coloraxis={"colorscale": TRAFFIC_SCALE, "cmin": 0.0, "cmax": top,
                   "colorbar": {"title": {"text": "% of all", "side": "top"}, "thickness": 14,
                                "lenmode": "pixels", "len": max(150, min(side, 300))}},
    )  # fmt: skip
    figure.update_layout(margin_t=96)
    return figure


def traffic_words(instance: Instance, before: Placement, after: Placement) -> str:
    """What changes node before and after, and what the figures stand for."""
    of = _part_name(instance)
    moved = [1.0 - float(np.trace(traffic_between(instance, p))) for p in (before, after)]
    where = (
        "from the expert of one layer to that of the next"
        if instance.transitions is not None and instance.num_layers > 1
        else "from tokens that start evenly everywhere to their experts"
    )
    return (
        f"Share of all token-choices between {instance.num_nodes if of == 'node' else instance.gpus} {of}s, {where}, "
        f"all layers: {moved[0]:.1%} changes {of} before and {moved[1]:.1%} after placement."
    )


# ---------------------------------------------------------------- fan-out


def fan_out(instance: Instance, placement: Placement, top_k: int) -> Floats | None:
    """Distinct nodes [L] that the experts of a token lie on; None where pairs are unknown, or there is one node."""
    if instance.coactivation is None or instance.num_nodes == 1 or top_k < 2 or placement.has_replicas:
        return None
    uniform = float(expected_hits(top_k, instance.num_nodes, instance.num_experts))
    return nodes_over_uniform(instance, placement, top_k) * uniform


def fan_out_before_after(instance: Instance, before: Placement, after: Placement, top_k: int) -> go.Figure:
    """Distinct nodes of a token in every layer, before and after, beside uniform routing."""
    found = [fan_out(instance, placement, top_k) for placement in (before, after)]
    if all(x is None for x in found):
        return empty(TITLE_FAN_OUT, _no_fan_out(instance, top_k, before, after))
    figure = go.Figure()
    looks = (("#D55E00", "circle", "dot"), ("#0072B2", "diamond", "solid"))
    for name, values, (colour, symbol, dash) in zip(NAMES, found, looks, strict=True):
        if values is not None:
            figure.add_scatter(
                name=f"{name} ({float(values.mean()):.2f} on average)", mode="lines+markers", x=list(instance.layers),
                y=[round(float(x), 4) for x in values], line={"color": colour, "dash": dash, "width": 2},
                marker={"symbol": symbol, "size": 7},
                hovertemplate=f"{name}: layer %{{x}}, %{{y:.3f}} nodes<extra></extra>",
            )  # fmt: skip
    uniform = float(expected_hits(top_k, instance.num_nodes, instance.num_experts))
    figure.add_scatter(
        name=f"uniform routing ({uniform:.2f})", mode="lines", x=[min(instance.layers), max(instance.layers)],
        y=[uniform, uniform], line={"color": "#808080", "dash": "dash", "width": 1.5}, hoverinfo="skip",
    )  # fmt: skip
    figure.update_layout(
        **layout(
            f"{TITLE_FAN_OUT} (top-{top_k} on {instance.num_nodes} nodes)", 360,
            legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
            title_y=1.0, title_yanchor="top", title_pad={"t": 12},
        )
    )  # fmt: skip
    figure.update_layout(margin_t=92)
    figure.update_xaxes(**axis("MoE layer", dtick=least_gap(instance.num_layers, 600, 30)))
    figure.update_yaxes(**axis("nodes", rangemode="tozero"))
    return figure


def _no_fan_out(instance: Instance, top_k: int, *placements: Placement) -> str:
    if instance.num_nodes == 1:
        return "One node holds all GPUs: a token reaches one node."
    if top_k < 2:
        return "A token holds one expert, so it reaches one node."
    if instance.coactivation is None:
        return "Not known without pairs of experts; give coactivation counts."
    return "Not known with replicas: which copy a token takes decides."


def fan_out_words(instance: Instance, before: Placement, after: Placement, top_k: int) -> str:
    """Mean distinct nodes of a token before and after."""
    found = [fan_out(instance, placement, top_k) for placement in (before, after)]
    if all(x is None for x in found):
        return _no_fan_out(instance, top_k, before, after)
    uniform = float(expected_hits(top_k, instance.num_nodes, instance.num_experts))
    said = " and ".join(
        f"{float(x.mean()):.2f} {name}" if x is not None else f"not known {name}"
        for name, x in zip(NAMES, found, strict=True)
    )
    return (
        f"Distinct nodes that the {top_k} experts of a token lie on, mean over layers: {said} placement; uniform "
        f"routing reaches {uniform:.2f} of {instance.num_nodes}."
    )


# ---------------------------------------------------------------- replicas


def replicas(instance: Instance, placement: Placement) -> go.Figure:
    """Copies of every expert, layer x expert."""
    counts = placement.counts(instance.num_experts)
    top = int(counts.max())
    if top == 1:
        return empty(TITLE_REPLICAS, "Every expert stands once: no slot is left for replicas.")
    steps = min(top, len(COPIES))
    shades = [(at / steps, COPIES[i]) for i in range(steps) for at in (i, i + 1)]
    layers = instance.num_layers
    height = min(560, max(90, (28 if layers <= SMALL else 11) * layers))
    names = [str(i) for i in instance.layers]
    labels = [str(i + 1) + ("+" if i + 1 == steps and top > steps else "") for i in range(steps)]
    figure = go.Figure(
        go.Heatmap(
            z=np.minimum(counts, steps).tolist(), y=names, zmin=0.5, zmax=steps + 0.5, colorscale=shades,
            customdata=counts.tolist(), xgap=1 if instance.num_experts <= 128 else 0, ygap=1 if layers <= 64 else 0,
            colorbar={"title": {"text": "copies", "side": "top"}, "thickness": 14,
                      "tickvals": list(range(1, steps + 1)),
                      "ticktext": labels, "lenmode": "pixels", "len": max(150, min(height, 300))},
            hovertemplate="layer %{y}, expert %{x}: copies %{customdata}<extra></extra>",
        )
    )  # fmt: skip
    figure.update_layout(**layout(f"{TITLE_REPLICAS} (up to {top})", height + 140))
    figure.update_xaxes(
        **axis("expert", showgrid=False, zeroline=False, tick0=0, dtick=least_gap(instance.num_experts, 600, 34))
    )
    figure.update_yaxes(
        **axis("MoE layer", autorange="reversed", showgrid=False, type="category",
               tickvals=names[:: least_gap(layers, height)])
    )  # fmt: skip
    return figure


def replicas_words(instance: Instance, placement: Placement) -> str:
    """How many experts have replicas, and the most of one."""
    counts = placement.counts(instance.num_experts)
    several = int((counts > 1).sum(axis=1).mean().round())
    if int(counts.max()) == 1:
        return "Every expert stands once: no slot is left for replicas."
    layer, expert = np.unravel_index(int(np.argmax(counts)), counts.shape)
    return (
        f"{instance.extra_slots} slots of a layer hold replicas; about {several} of {instance.num_experts} experts of "
        f"a layer stand more than once, most often expert {expert} of layer {instance.layers[int(layer)]} with "
        f"{int(counts.max())} copies."
    )
