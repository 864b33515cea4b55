"""The memory ledger of one lane: what was taken and given back when, and what the peak is made of."""

from __future__ import annotations

from collections.abc import Mapping

Move = tuple[float, tuple[tuple[str, float], ...], bool]  # time_s, (tag, bytes) amounts, taken (or given back)


class Ledger:
    """Starts with the static bytes. The run only notes down its moves, in order; sums are drawn after it."""

    def __init__(self, static_bytes: Mapping[str, float]) -> None:
        self._static = dict(static_bytes)
        self.moves: list[Move] = []

    def steps(self) -> tuple[tuple[float, float], ...]:
        """(time_s, bytes in use from then on), only where it changes."""
        total = sum(self._static.values())
        steps: list[tuple[float, float]] = [(0.0, total)]
        for at_s, amounts, taken in self.moves:
            for _, size in amounts:
                total += size if taken else -size
            if steps[-1][0] == at_s:
                steps.pop()
            if not steps or steps[-1][1] != total:
                steps.append((at_s, total))
        return tuple(steps)

    def peak(self) -> dict[str, float]:
        """Bytes by tag at the moment of the highest total."""
        total = most = sum(self._static.values())
        highest = 0
        for number, (_, amounts, taken) in enumerate(self.moves, start=1):
            if taken:
                for _, size in amounts:
                    total += size
                if total > most:
                    most, highest = total, number
            else:
                for _, size in amounts:
                    total -= size
        tags = dict(self._static)
        for _, amounts, taken in self.moves[:highest]:
            for tag, size in amounts:
                tags[tag] = tags.get(tag, 0.0) + (size if taken else -size)
        return tags
