"""Hyper-connections: n residual streams of width D in the place of one (arXiv 2409.19606; 2512.24880).

In front of each half the n streams are normed and projected, all n D numbers of a token at once, to n (n + 2)
coefficients: n weigh the streams into the half's input, n spread its result over the streams, n x n mix the streams
(made doubly stochastic in a few steps on n x n numbers). Behind the last layer n weights collapse them for good.
"""

from __future__ import annotations


def connection_params(streams: int, hidden_dim: int) -> int:
    """Parameters of the hyper-connection of one half: projection, bias, three scales; 0 with the plain residual."""
    if streams == 1:
        return 0
    coefficients = streams * (streams + 2)
    return coefficients * (streams * hidden_dim + 1) + 3


def collapse_params(streams: int, hidden_dim: int) -> int:
    """Parameters of the last collapse: projection, bias, scale; 0 with the plain residual."""
    return 0 if streams == 1 else streams * (streams * hidden_dim + 1) + 1


def connection_flop_per_token(streams: int, hidden_dim: int) -> float:
    """FLOP per token of one half: the projection, and the three weighted sums.

    >>> connection_flop_per_token(1, 4096)
    0.0
    """
    if streams == 1:
        return 0.0
    coefficients = streams * (streams + 2)
    return 2.0 * coefficients * (streams + 1) * hidden_dim


def collapse_flop_per_token(streams: int, hidden_dim: int) -> float:
    """FLOP per token of the last collapse: the projection and the weighted sum."""
    return 0.0 if streams == 1 else 2.0 * streams * (streams + 1) * hidden_dim
