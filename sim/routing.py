"""How tokens spread over experts, reduced to what a step needs: the load of the hottest rank."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Load over experts of one expert-parallel group.

    max_over_mean: tokens of the most loaded rank over the mean (1.0 = forced balance, as vendor
    benchmarks run). Time and memory follow the most loaded rank, never the mean.
    """

    max_over_mean: float = 1.0
    source: str = "forced balance"

    def __post_init__(self) -> None:
        if not self.max_over_mean >= 1.0:
            from hwprofiles.errors import UserError

            raise UserError(
                f"max_over_mean = {self.max_over_mean} is impossible: the most loaded rank holds at least the mean; "
                "give a number >= 1"
            )
