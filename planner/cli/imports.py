"""`moecast import`: what users have, as files of this program."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planner.cli import import_files, output

app = typer.Typer(no_args_is_help=True, help="Take in what others wrote: machines, maps, routing, checkpoints.")
Text = str | None


@app.callback()
def _group() -> None:
    """Every kind of file is a verb of its own."""


@app.command("cluster")
def cluster(
    files: Annotated[list[str], typer.Argument(metavar="FILES...", help="nvidia-smi topo -m, NCCL or lstopo XML, "
                                               "Slurm's topology.conf or topology.yaml.")],
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The cluster TOML to write.")],
    device: Annotated[Text, typer.Option("--device", metavar="NAME", help="The accelerator, where no file names it.",
                                         show_default=False)] = None,
    name: Annotated[str, typer.Option("--name", metavar="TEXT", help="Name of the cluster.")] = "imported",
) -> None:  # fmt: skip
    """Make a cluster TOML of what machines and schedulers say; what they do not say is marked assumed.

    Example: [bold]moecast import cluster topo.txt topology.conf --device H100 --out cluster.toml[/bold]
    """
    output.check_targets(out=out)
    from planner.imports.cluster import import_cluster

    made = import_cluster(files, name=name, device=device)
    output.write_text(out, made.text, "--out")
    screen = output.console()
    screen.print(f"assumed: {', '.join(made.assumed)}", markup=False)
    for note in made.notes:
        screen.print(f"note: {note}", markup=False)
    print(f"wrote {out}", file=sys.stderr)


app.command("experts")(import_files.experts)
app.command("routing")(import_files.routing)
app.command("weights")(import_files.weights)
