"""`moecast show`: what the catalogue holds, as a table, or one entry in full with its source."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from planner.cli import output
from planner.cli.taking import JSON_OPTION
from planner.question.read import one_of

KINDS = ("models", "devices", "clusters", "software")


def show(
    kind: Annotated[str, typer.Argument(metavar="models|devices|clusters|software", help="What to list.")],
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One entry, or a file, in full.")] = None,
    json: Annotated[str | None, JSON_OPTION] = None,
) -> None:
    """List models, devices, clusters or software profiles, or show one in full."""
    one_of(kind, KINDS, "show")
    output.check_targets(json=json)
    data: Any = entry(kind, name) if name else [summary(kind, each) for each in names(kind)]
    if json:
        output.write_text(json, output.json_text(data), "--json")
    if json == output.STDOUT:
        return
    from planner.cli import listings

    if name:
        listings.print_entry(output.console(), data)
    else:
        listings.print_list(output.console(), kind, data)


def names(kind: str) -> tuple[str, ...]:
    """Catalogue names of a kind, in order."""
    if kind == "models":
        from sim.families import model_names

        return tuple(model_names())
    from hwprofiles import catalogue

    return tuple(catalogue.names(kind))


def _read(kind: str, name: str) -> Any:
    if kind == "models":
        from sim.families import load_model

        return load_model(name)
    from hwprofiles import catalogue

    readers: dict[str, Callable[[str], Any]] = {
        "devices": catalogue.device, "clusters": catalogue.cluster, "software": catalogue.software,
    }  # fmt: skip
    return readers[kind](name)


def summary(kind: str, name: str) -> dict[str, Any]:
    """The few figures of a list line: numbers in SI units."""
    spec = _read(kind, name)
    out: dict[str, Any] = {"name": name}
    if kind == "models":
        from sim.model import active_params, total_params, train_flop_per_token

        moe = next((layer.moe for layer in spec.layers if layer.moe is not None), None)
        out |= {
            "family": spec.family,
            "layers": len(spec.layers),
            "hidden_dim": spec.hidden_dim,
            "experts": moe.num_experts if moe else 0,
            "top_k": moe.top_k if moe else 0,
            "total_params": total_params(spec),
            "active_params": active_params(spec),
            "flop_per_token_4k": train_flop_per_token(spec, 4096),
        }
    elif kind == "devices":
        out |= {
            "mem_bytes": spec.mem_bytes,
            "mem_bytes_per_s": spec.mem_bytes_per_s,
            "peak_flop_per_s": dict(spec.peak_flop_per_s),
            "kernels_measured_on": spec.measured,
            "kernels_scaled_from": spec.scaled_from,
        }
    elif kind == "clusters":
        out |= {
            "device": spec.device,
            "devices_per_node": spec.devices_per_node,
            "domain_devices": spec.domain_devices,
            "num_devices": spec.num_devices,
            "scale_up_bytes_per_s": spec.scale_up.bytes_per_s,
            "scale_out_bytes_per_s": spec.scale_out.bytes_per_s,
        }
    else:
        out |= {
            "trainer": spec.trainer,
            "version": spec.version,
            "dispatcher": spec.dispatcher,
            "cuda_graph": list(spec.cuda_graph),
            "unknown_switches": len(spec.unknown),
        }
    return out


def entry(kind: str, name: str) -> dict[str, Any]:
    """Everything known of one entry; repeated layers of a model are listed once with their count."""
    from dataclasses import asdict

    spec = _read(kind, name)
    if kind == "devices":
        from hwprofiles.coverage import coverage

        return asdict(spec) | {"coverage": dict(coverage(spec))}
    if kind != "models":
        return asdict(spec)
    data = asdict(spec)
    kinds, index = spec.layer_kinds()
    data["layers"] = [{"count": index.count(i)} | asdict(layer) for i, layer in enumerate(kinds)]
    return summary(kind, name) | data
