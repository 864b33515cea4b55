"""How many devices, and of which nodes: counts as a list or range, and other clusters tried beside the first."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from hwprofiles.errors import UserError
from planner.question.asked import Asked
from planner.question.read import Problems, Question, read_question

if TYPE_CHECKING:
    from hwprofiles.specs import ClusterSpec
    from planner.search import PlanResult

MOST_COUNTS = 100


def read_counts(text: str | None) -> tuple[int, ...]:
    """Counts of devices, rising: `64`, `64,96,128` or `64..512:64` (first, last, step); () for None. Raises UserError.

    >>> read_counts("8..32:8,64")
    (8, 16, 24, 32, 64)
    """
    if text is None:
        return ()
    problems, found = Problems(), set[int]()
    for part in text.split(","):
        ends = re.fullmatch(r"\s*(\d[\d_]*)\s*\.\.\s*(\d[\d_]*)\s*:\s*(\d[\d_]*)\s*", part)
        if ends is None:
            value = problems.whole(part, "--gpus")
            found |= set() if value is None else {value}
            continue
        first, last, step = (int(each.replace("_", "")) for each in ends.groups())
        if step < 1 or not 1 <= first <= last or (last - first) // step >= MOST_COUNTS:
            problems.found.append(
                f"--gpus {part.strip()!r}: write FIRST..LAST:STEP with a step of 1 or more, up to {MOST_COUNTS} counts"
            )
            continue
        found |= set(range(first, last + 1, step))
    problems.stop()
    return tuple(sorted(found))


def first_of(asked: Asked) -> Asked:
    """What the user typed, with the fewest devices of a list."""
    counts = read_counts(asked.gpus) if asked.gpus is not None and re.search(r",|\.\.", asked.gpus) else ()
    return replace(asked, gpus=str(counts[0])) if counts else asked


def several(asked: Asked) -> bool:
    """Whether more than one count of devices was written."""
    return asked.gpus is not None and re.search(r",|\.\.", asked.gpus) is not None


def questions_of(asked: Asked, first: Question, others: str | None) -> dict[str, Question]:
    """The question on every cluster that is tried, by the cluster's name: the first, and those of --node-types.

    Raises UserError with all problems.
    """
    found, problems = {first.cluster.name: first}, Problems()
    for name in [] if others is None else [part.strip() for part in others.split(",")]:
        elsewhere = replace(first_of(asked), cluster=name, gpus=str(first.cluster.num_devices))
        made = problems.attempt(partial(read_question, elsewhere))
        if made is None:
            continue
        if made.cluster.name in found:
            problems.found.append(f"--node-types {name!r}: {made.cluster.name} is tried already; leave it out")
        found[made.cluster.name] = made
    problems.found = [p if p.startswith("--") else f"--node-types: {p}" for p in dict.fromkeys(problems.found)]
    problems.stop()
    return found


def grown(first: ClusterSpec, where: str, counts: tuple[int, ...]) -> list[ClusterSpec]:
    """A cluster, read from `where`, in every size, with what was changed in it.

    Raises UserError naming every size that is none of whole nodes, and for a part of a node that was changed.
    """
    from hwprofiles import catalogue

    if first == catalogue.cluster(where, gpus=first.num_devices):
        return _sizes(lambda count: catalogue.cluster(where, gpus=count), counts)
    if len(counts) > 1 and first.devices_per_node != catalogue.cluster(where).devices_per_node:
        raise UserError("a part of a node whose rates were changed does not grow; give --gpus in whole nodes",
                        where="--gpus, --max-gpus")  # fmt: skip
    return _sizes(lambda count: catalogue.sized(first, count), counts)


def _sizes(made: Callable[[int], ClusterSpec], counts: tuple[int, ...]) -> list[ClusterSpec]:
    problems = Problems()
    found = [problems.attempt(partial(made, count)) for count in counts]
    problems.stop()
    return [cluster for cluster in found if cluster is not None]


def question_on(questions: dict[str, Question], cluster: ClusterSpec) -> Question:
    """The question of a cluster's type, in its size."""
    return replace(questions[cluster.name], cluster=cluster)


def question_of(questions: dict[str, Question], result: PlanResult) -> Question:
    """The question with the cluster of the result."""
    return question_on(questions, result.cluster)


def refuse_allocation(asked: Asked, several_counts: bool) -> None:
    """Raise UserError where options name one allocation and others try several."""
    if several_counts and (asked.nodes or asked.host_map):
        raise UserError(
            "--max-gpus, --node-types and a list of --gpus try other devices than --nodes or --host-map name; leave "
            "one of them out",
            where="--nodes, --host-map",
        )
