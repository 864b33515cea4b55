"""`moecast validate`: predictions beside published measurements."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from planner.cli import anchoring, output
from planner.cli.taking import ANCHOR_OPTION, JSON_OPTION, STRICT_OPTION


def validate(
    runs: Annotated[list[str], typer.Argument(metavar="RUNS.csv...", help="Files of measured runs.")],
    anchor: Annotated[list[str] | None, ANCHOR_OPTION] = None,
    json: Annotated[str | None, JSON_OPTION] = None,
    strict: Annotated[bool, STRICT_OPTION] = False,
) -> None:
    """Score predictions against measured runs: step time, tokens/s, peak memory, fit or out of memory."""
    from pathlib import Path

    from hwprofiles.errors import UserError

    output.check_targets(json=json)
    with output.progress("reading") as bar:
        from calibration.validate import validate as score

        anchors = anchoring.read(anchor, bar)
        data: dict[str, Any] = score(
            [Path(path) for path in runs],
            progress=lambda done, total: bar.update("predicting runs", done, total),
            adjust=None if anchors is None else anchors.adjusted_row,
        )
        if anchors is not None:
            data["anchors"] = anchoring.summary(anchors)
    if strict:
        bad = [
            f"row {row['id']} is {row['status']}: {row['reason']}; mend or remove it, or leave out --strict"
            for row in data["rows"]
            if row["status"] != "ok"
        ]
        if bad:
            raise UserError(bad, where="--strict")
    if json:
        output.write_text(json, output.json_text(data), "--json")
    if json != output.STDOUT:
        from planner.cli import listings

        listings.print_validation(output.console(), data)
        anchoring.print_validated(output.console(), data)
