"""`moecast place`: which GPU hosts which expert, which experts get replicas, and how far from optimal that can be."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION

if TYPE_CHECKING:
    from rich.console import Console

    from planner.placement.clock import Machine
    from planner.placement.records import Instance, Placement, PlacementResult, Range
    from planner.question.read import Problems

Text = str | None
SHOWN_LAYERS = 12


def _file(name: str, text: str) -> Any:
    return typer.Option(name, metavar="FILE", help=text, show_default=False)


def _number(name: str, text: str) -> Any:
    return typer.Option(name, metavar="N", help=text)


def place(
    loads: Annotated[Text, _file("--loads", "CSV: layer,expert,count (required).")] = None,
    transitions: Annotated[Text, _file("--transitions", "CSV: layer,expert,next_expert,count.")] = None,
    coactivation: Annotated[Text, _file("--coactivation", "CSV: layer,expert_a,expert_b,count.")] = None,
    gpus: Annotated[Text, _number("--gpus", "GPUs of the expert-parallel group (required).")] = None,
    gpus_per_node: Annotated[Text, _number("--gpus-per-node", "GPUs of a node (default: 8, or all of fewer).")] = None,
    slots_per_gpu: Annotated[
        Text,
        typer.Option(
            "--slots-per-gpu",
            metavar="N|N,N,..",
            help="Experts a GPU holds, or of each; what is left over holds replicas (default: the fewest).",
        ),
    ] = None,
    gpus_file: Annotated[
        Text, _file("--gpus-file", "CSV: gpu,slots,speed,mem_bytes (any of them); memory limits slots, with --model.")
    ] = None,
    num_groups: Annotated[str, _number("--num-groups", "Groups of experts that stay on a node.")] = "1",
    traffic: Annotated[
        str, typer.Option("--traffic", metavar="dispatch|chain", help="How tokens travel between layers.")
    ] = "dispatch",
    split: Annotated[
        str, typer.Option("--split", metavar="even|free", help="Shares of the replicas of an expert.")
    ] = "even",
    objective: Annotated[
        str, typer.Option("--objective", metavar="load|time", help="Fullest GPU, or seconds (with --cluster, --model).")
    ] = "load",
    chain_objective: Annotated[
        str,
        typer.Option(
            "--chain-objective",
            metavar="total|worst-link",
            help="What a chain keeps low: all flow that changes node, or its busiest link.",
        ),
    ] = "total",
    cluster: Annotated[
        Text, typer.Option("--cluster", metavar="NAME|FILE", help="Cluster, for seconds; its first --gpus GPUs.")
    ] = None,
    model: Annotated[Text, typer.Option("--model", metavar="NAME|FILE", help="Model, for seconds.")] = None,
    software: Annotated[
        Text, typer.Option("--software", metavar="NAME|FILE", help="Trainer release (default: the device's).")
    ] = None,
    tokens_per_gpu: Annotated[str, _number("--tokens-per-gpu", "Tokens a GPU has at once, for seconds.")] = "4096",
    held_out: Annotated[
        Text, typer.Option("--held-out", metavar="FILE|half", help="Loads to score on; half: of --loads, the rest.")
    ] = None,
    classes: Annotated[
        Text, _file("--classes", "CSV: class,layer,expert,count; chooses the home node of each class (with --model).")
    ] = None,
    speeds: Annotated[Text, _file("--speeds", "CSV: gpu,speed; relative speed of every GPU.")] = None,
    previous: Annotated[Text, _file("--previous", "Placement in use, written by --out.")] = None,
    max_moves: Annotated[Text, _number("--max-moves", "Experts that may move from it (default: any).")] = None,
    seed: Annotated[str, _number("--seed", "Seed of everything random.")] = "0",
    json: Annotated[Text, JSON_OPTION] = None,
    out: Annotated[Text, _file("--out", "Save the placement.")] = None,
) -> None:
    """Place experts on GPUs, with a bound on what any placement could gain.

    Example: [bold]moecast place --loads loads.csv --gpus 64 --slots-per-gpu 5 --out placement.json[/bold]
    """
    output.check_targets(json=json, out=out)
    with output.progress("reading") as bar:
        from planner.placement.answer import CHAIN_OBJECTIVES, OBJECTIVES, SPLITS, TRAFFIC, place_experts
        from planner.placement.gpus import GpuTable, read_gpus, slots_of
        from planner.placement.home import home_nodes
        from planner.placement.placefile import placement_json, save_placement
        from planner.placement.read import read_classes, read_instance, read_loads, read_speeds
        from planner.placement.scoring import read_held_out, thinned
        from planner.question.read import Problems, one_of

        problems = Problems()
        sizes = {
            "gpus": problems.whole(gpus, "--gpus", highest=100_000),
            "gpus_per_node": problems.whole(gpus_per_node or "8", "--gpus-per-node", highest=100_000),
            "num_groups": problems.whole(num_groups, "--num-groups", highest=100_000),
        }
        if gpus_per_node is None:
            sizes["gpus_per_node"] = min(8, sizes["gpus"] or 8)
        slots = _slots(problems, slots_per_gpu, sizes["gpus"])
        start = problems.whole(seed, "--seed", lowest=0, highest=2**32 - 1)
        problems.attempt(lambda: one_of(traffic, TRAFFIC, "--traffic"))
        problems.attempt(lambda: one_of(split, SPLITS, "--split"))
        problems.attempt(lambda: one_of(objective, OBJECTIVES, "--objective"))
        problems.attempt(lambda: one_of(chain_objective, CHAIN_OBJECTIVES, "--chain-objective"))
        if chain_objective == "worst-link" and traffic != "chain":
            problems.found.append(
                "--chain-objective worst-link needs --traffic chain; give it, or leave the option out"
            )
        if chain_objective == "worst-link" and objective == "time":
            problems.found.append("--chain-objective worst-link and --objective time both decide; give one of them")
        tokens = problems.whole(tokens_per_gpu, "--tokens-per-gpu", highest=2**30)
        if (cluster is None) != (model is None) and (cluster is not None or gpus_file is None):
            problems.found.append("--cluster and --model go together; give both, or neither")
        elif objective == "time" and cluster is None:
            problems.found.append("--objective time needs --cluster and --model; give both")
        if classes is not None and model is None:
            problems.found.append("--classes needs --model, for the experts of a token; give --cluster and --model")
        moves = problems.whole(max_moves, "--max-moves", lowest=0)
        if max_moves is not None and previous is None:
            problems.found.append("--max-moves needs --previous; give the placement in use")
        if loads is None:
            problems.found.append("no --loads; give a CSV with columns layer,expert,count")
        if gpus is None:
            problems.found.append("no --gpus; give the GPUs of the expert-parallel group, such as --gpus 64")
        if traffic == "chain" and transitions is None:
            problems.found.append("--traffic chain needs --transitions; give the file, or leave --traffic out")
        problems.stop()
        assert loads is not None and start is not None and tokens is not None
        machine = problems.attempt(lambda: _machine(cluster, model, software, sizes["gpus"] or 1, tokens))
        fast = problems.attempt(lambda: () if speeds is None else read_speeds(speeds, sizes["gpus"] or 1)) or ()
        table = GpuTable()
        if gpus_file is not None:
            table = problems.attempt(lambda: read_gpus(gpus_file or "", sizes["gpus"] or 1)) or table
            if table.speed and fast:
                problems.found.append("--speeds and --gpus-file both give speeds; give one of them")
            if table.slots and slots:
                problems.found.append("--slots-per-gpu and --gpus-file both give slots; give one of them")
            if table.mem_bytes and model is None:
                problems.found.append("mem_bytes of --gpus-file needs --model, for the bytes of an expert; give it")
        problems.stop()
        fast = table.speed or fast
        counted, _ = read_loads(loads)
        expert_bytes = _expert_bytes(model, counted.shape[1]) if table.mem_bytes else None
        each, limits = slots_of(
            counted, sizes["gpus"] or 1, asked=table.slots or slots, mem_bytes=table.mem_bytes,
            expert_bytes=expert_bytes, where=gpus_file or "--gpus",
        )  # fmt: skip
        instance = read_instance(
            loads,
            transitions=transitions,
            coactivation=coactivation,
            gpus=sizes["gpus"] or 1,
            gpus_per_node=sizes["gpus_per_node"] or 1,
            slots_per_gpu=max(each),
            num_groups=sizes["num_groups"] or 1,
            speed=fast,
            slots=each,
        )
        unseen = None
        if held_out == "half":
            instance, unseen = thinned(instance, seed=start)
        elif held_out is not None:
            unseen = read_held_out(held_out, instance)
        in_use = None if previous is None else _in_use(previous, instance)
        result = place_experts(
            instance, traffic=traffic, split=split, previous=in_use, max_moves=moves, seed=start, machine=machine,
            objective=objective, held_out=unseen, progress=bar.update, chain_objective=chain_objective,
        )  # fmt: skip
        if limits:
            said = result.certificate
            result = replace(result, certificate=replace(said, limits=(*limits, *said.limits)))
        if classes is not None and machine is not None:
            counts = read_classes(classes, instance.layers, instance.num_experts)
            top_k = machine.moe_of(instance.num_experts)[0].top_k
            result = replace(result, homes=home_nodes(instance, counts, result.placement, top_k=top_k))
    if out:  # before anything is printed: whoever reads that may go
        save_placement(result, out)
    if json:
        output.write_text(json, output.json_text(placement_json(result)), "--json")
    if json != output.STDOUT:
        print_placement(output.console(), result)
        output.say_written(json=json, out=out)
    if result.stopped == "interrupted":
        print("stopped; layers that were not reached are balanced greedily", file=sys.stderr)
        raise typer.Exit(output.INTERRUPTED)


def _slots(problems: Problems, text: str | None, gpus: int | None) -> tuple[int, ...]:
    """Slots of each GPU of --slots-per-gpu; empty where nothing was given or it is wrong."""
    if text is None:
        return ()
    found = [problems.whole(part, "--slots-per-gpu", highest=100_000) for part in text.split(",")]
    if gpus is None or None in found:
        return ()
    if len(found) not in (1, gpus):
        problems.found.append(
            f"--slots-per-gpu lists {len(found)} GPUs of {gpus}; give one number, or one for each GPU"
        )
        return ()
    listed = tuple(int(n or 1) for n in found)
    return listed if len(listed) == gpus else listed * gpus


def _in_use(previous: str, instance: Instance) -> Placement:
    """The placement of --previous, of the layers of the loads."""
    from hwprofiles.errors import UserError
    from planner.placement.placefile import load_placement

    placement, layers = load_placement(previous)
    if layers != instance.layers and len(layers) == instance.num_layers:
        theirs, ours = (f"{numbers[0]} to {numbers[-1]}" for numbers in (layers, instance.layers))
        raise UserError(
            f"places layers {theirs} and the loads are of layers {ours}; give the placement of the same layers",
            where="--previous",
        )
    return placement


def _expert_bytes(model: str | None, num_experts: int) -> float:
    from planner.placement.gpus import expert_weight_bytes
    from sim.families import load_model

    return expert_weight_bytes(load_model(model or ""), num_experts)


def _machine(cluster: str | None, model: str | None, software: str | None, gpus: int, tokens: int) -> Machine | None:
    """What seconds are worked out for; None where no cluster was given."""
    if cluster is None or model is None:
        return None
    from hwprofiles import catalogue
    from planner.placement.clock import Machine
    from sim.families import load_model

    machines, of = catalogue.cluster(cluster, gpus=gpus), load_model(model)
    release = catalogue.software(
        software or catalogue.default_software(machines.device), device=machines.device, model=of.name,
        arch="moe" if of.is_moe else "dense", precision="bf16",
    )  # fmt: skip
    return Machine(cluster=machines, model=of, software=release, tokens_per_gpu=tokens)


def print_placement(console: Console, result: PlacementResult) -> None:
    """The certificate, the worst layers, and what others would have placed."""
    from planner.cli.tables import grid

    c = result.certificate
    console.print(
        f"{c.objective_of}: {_number_text(c.objective)}, at least {_number_text(c.lower_bound)} ({c.bound_kind}); "
        f"gap {c.gap:.3%}; "
        f"fullest GPU over the mean {c.max_over_mean:.4f}; worst layer {c.worst_layer:.3%} above its bound",
        markup=False, soft_wrap=True,
    )  # fmt: skip
    worst = sorted(result.layers, key=lambda figure: (-figure.gap, figure.layer))[:SHOWN_LAYERS]
    lines = [(str(f.layer), f"{f.max_load:,.1f}", f"{f.bound:,.1f}", f"{f.gap:.3%}", f.bound_kind) for f in worst]
    console.print(grid("Layers with the largest gap", ("layer", "max load", "bound", "gap", "kind"), lines, ("kind",)))
    ours = {"max_load": sum(f.max_load for f in result.layers) / len(result.layers)}
    ours |= {
        n: v for n in ("cross_node", "cross_gpu", "worst_link", "same_node_pairs") if (v := getattr(c, n)) is not None
    }
    names = list(ours)
    rows = [
        (who, *("" if name not in figures else _figure(name, figures[name]) for name in names))
        for who, figures in [("this answer", ours), *c.baselines.items()]
    ]
    console.print(grid("Against", ("placement", *(n.replace("_", " ") for n in names)), rows, ("placement",)))
    if result.replanned:
        console.print(f"{c.moved_experts:,} experts move from the previous placement", markup=False, soft_wrap=True)
    _print_time(console, result)
    if result.homes is not None:
        h = result.homes
        console.print(
            f"homes of {len(h.share)} classes: {h.remote:.3f} remote nodes of a token in a layer, "
            f"{h.remote_spread:.3f} where all start everywhere", markup=False, soft_wrap=True,
        )  # fmt: skip
    if c.held_out is not None:
        console.print(f"gain in the fullest GPU on held-out counts: {_gain(c.held_out)}", markup=False, soft_wrap=True)
    for text in c.limits:
        console.print(f"limit: {text}", markup=False, soft_wrap=True)


def _figure(name: str, value: float) -> str:
    return f"{value:,.1f}" if name == "max_load" else f"{value:.2%}"


def _number_text(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000.0 else f"{value:.4g}"


def _gain(gain: Range) -> str:
    """A gain with its interval, or that there is none beyond its sampling error."""
    between = f"80 % interval {gain.low:.2%} to {gain.high:.2%}"
    return f"{gain.value:.2%} ({between})" if gain.counts else f"none beyond its sampling error ({between})"


def _print_time(console: Console, result: PlacementResult) -> None:
    """Simulated seconds before and after, beside those of others, and what moving costs."""
    t = result.certificate.time
    if t is None:
        return
    start = "the placement in use" if result.replanned else "contiguous"
    before, after = t.before_range, t.after_range
    lines = [
        f"experts and exchanges of all layers, simulated on counts drawn anew: {before.value * 1e3:.2f} ms with "
        f"{start}, {after.value * 1e3:.2f} ms placed (80 % interval {after.low * 1e3:.2f} to {after.high * 1e3:.2f}); "
        f"gain {_gain(t.gain)}",
        f"on these very counts, which flatter the placement made from them: {t.before_s * 1e3:.2f} ms with {start}, "
        f"{t.after_s * 1e3:.2f} ms placed, at least {t.lower_bound_s * 1e3:.2f}",
        f"training step of one micro-batch, simulated on these counts: {t.step_before_s:.4g} s, "
        f"{t.step_after.value:.4g} s placed ({t.step_after.low:.4g} to {t.step_after.high:.4g})",
        "others on these counts: " + ", ".join(f"{who} {s * 1e3:.2f} ms" for who, s in t.baselines_s.items()),
    ]
    if t.moved_bytes is not None and t.move_s is not None:
        back = (
            "never pays back" if t.pays_back_after_steps is None else f"pays back after {t.pays_back_after_steps:.1f}"
        )
        steps = "" if t.pays_back_after_steps is None else " steps"
        lines.append(f"{t.moved_bytes / 1e9:,.2f} GB move in {t.move_s:.3g} s; {back}{steps}")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)
