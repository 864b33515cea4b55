"""Lengths of the documents that are packed into sequences: read from a law or a file, and what attention makes of them.

Under packing a token sees only its own document, so the pairs of a sequence of documents l₁, l₂, ... are Σ l²/2, not
s²/2: all that attention needs of the lengths is the mean length that a token meets, Σ l² / Σ l.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist

from hwprofiles.bounded import read_bounded
from hwprofiles.errors import UserError
from sim.model import AttentionSpec, core_pairs
from sim.workload import Lengths, Workload

QUANTILES = 1000  # equal shares of the documents that a law is cut into
MAX_FILE_BYTES = 64 * 2**20
FORMS = "fixed:N, lognormal:MEAN:SIGMA, percentiles:p10=N,p50=N,p90=N or a file with one length a line"


def read_lengths(text: str, seq_tokens: int) -> Lengths:
    """Lengths of a law or a file, those beyond the sequence cut to it (`Lengths.cut` counts them). Raises UserError.

    lognormal: of that mean, before the cut, and that sigma of the logarithm. percentiles: straight lines in the
    logarithm between the given ones, flat beyond them. File: whole numbers, one a line; `#` opens a comment.
    """
    law, _, rest = text.strip().partition(":")
    if law == "fixed":
        tokens = [_number(rest, "fixed")]
    elif law == "lognormal":
        mean_text, _, sigma_text = rest.partition(":")
        mean, sigma = _number(mean_text, "the mean"), _number(sigma_text, "sigma")
        if sigma > 10.0:
            raise UserError(f"sigma {sigma:g} of the logarithm of lengths; give at most 10", where="--lengths")
        middle = math.log(mean) - sigma * sigma / 2.0
        tokens = [math.exp(middle + sigma * NormalDist().inv_cdf(q)) for q in _shares()]
    elif law == "percentiles":
        tokens = _between(_percentiles(rest))
    else:
        tokens = _from_file(text.strip())
    beyond = [t - seq_tokens for t in tokens if t > seq_tokens]
    return Lengths(
        tokens=tuple(min(max(1.0, t), float(seq_tokens)) for t in tokens), source=text.strip(), cut=len(beyond),
        lost_tokens=math.fsum(beyond),
    )  # fmt: skip


def mean_tokens(lengths: Lengths) -> float:
    """Tokens of the mean document."""
    return math.fsum(lengths.tokens) / len(lengths.tokens)


def met_tokens(lengths: Lengths) -> float:
    """Length of the document that the mean token stands in: Σ l² / Σ l.

    >>> met_tokens(Lengths(tokens=(1.0, 3.0), source=""))
    2.5
    """
    return math.fsum(t * t for t in lengths.tokens) / math.fsum(lengths.tokens)


def met_length(workload: Workload) -> float:
    """Length of the document that a token of a sequence stands in; the sequence where nothing is packed."""
    return float(workload.seq_tokens) if workload.lengths is None else met_tokens(workload.lengths)


def mean_pairs(workload: Workload, att: AttentionSpec) -> float:
    """Mean number of keys that a query sees; `core_pairs` of its own document."""
    if workload.lengths is None:
        return core_pairs(att, workload.seq_tokens)
    lengths = workload.lengths.tokens
    return math.fsum(t * core_pairs(att, t) for t in lengths) / math.fsum(lengths)


def _shares() -> list[float]:
    return [(i + 0.5) / QUANTILES for i in range(QUANTILES)]


def _number(text: str, what: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < math.inf:
        raise UserError(f"{what} {text[:40]!r} is not a number above 0; give {FORMS}", where="--lengths")
    return value


def _percentiles(text: str) -> list[tuple[float, float]]:
    points = []
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        share = _number(name.removeprefix("p"), "percentile") / 100.0
        if not name.startswith("p") or share >= 1.0:
            raise UserError(f"{name[:20]!r} is not a percentile between p0 and p100; give {FORMS}", where="--lengths")
        points.append((share, _number(value, name)))
    points.sort()
    if any(a[0] == b[0] or a[1] > b[1] for a, b in pairwise(points)):
        raise UserError("percentiles must differ and lengths must grow with them", where="--lengths")
    return points


def _between(points: list[tuple[float, float]]) -> list[float]:
    out = []
    for q in _shares():
        after = next((i for i, (share, _) in enumerate(points) if share >= q), len(points))
        if after in (0, len(points)):
            out.append(points[min(after, len(points) - 1)][1])
            continue
        (a, low), (b, high) = points[after - 1], points[after]
        out.append(low * (high / low) ** ((q - a) / (b - a)))
    return out


def _from_file(name: str) -> list[float]:
    path = Path(name)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{name}: more than {MAX_FILE_BYTES} bytes; draw a part of the lengths", where="--lengths")
        text = read_bounded(path, MAX_FILE_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise UserError(f"{name[:80]} cannot be read ({why}); give {FORMS}", where="--lengths") from None
    lines = [(i, line.partition("#")[0].strip()) for i, line in enumerate(text.splitlines(), start=1)]
    lines = [(i, line) for i, line in lines if line]
    wrong = [f"line {i}: {line[:40]!r} is not a length" for i, line in lines if not line.isdigit() or int(line) < 1]
    if wrong or not lines:
        raise UserError(wrong[:5] or [f"{name} holds no lengths; give one whole number a line"], where="--lengths")
    return [float(line) for _, line in lines]
