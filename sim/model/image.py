"""Models without a vocabulary: patches of an image in, a linear layer or nothing out, and what conditions a diffusion
model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """A square image of size x size cells (pixels, or cells of a latent) with some channels, cut into patches of
    patch x patch cells, each a token. extra_tokens: learned tokens beside them (a class token)."""

    size: int
    patch: int
    channels: int
    extra_tokens: int = 0

    @property
    def tokens(self) -> int:
        """Tokens of one image: the length of its sequence."""
        return (self.size // self.patch) ** 2 + self.extra_tokens

    @property
    def patch_dim(self) -> int:
        """Numbers in one patch: the depth of the patch embedding."""
        return self.patch * self.patch * self.channels

    def params(self, hidden_dim: int) -> int:
        """Patch embedding with bias, and the extra tokens."""
        return (self.patch_dim + 1 + self.extra_tokens) * hidden_dim


@dataclass(frozen=True, kw_only=True)
class HeadSpec:
    """A linear layer with bias of `dim` columns behind the last layer, on every token, or on one vector a sequence
    (pooled). dim 0: no head; the loss is of the last norm's output."""

    dim: int
    pooled: bool = False

    def params(self, hidden_dim: int) -> int:
        """Weights and bias."""
        return (hidden_dim + 1) * self.dim


@dataclass(frozen=True, kw_only=True)
class ConditionSpec:
    """The condition of a diffusion model, one vector of width D a sequence: the sum of a timestep, `frequencies`
    sinusoids through two linear layers, and a row of a table of `classes` (arXiv 2212.09748)."""

    frequencies: int
    classes: int = 0

    def params(self, hidden_dim: int) -> int:
        """Both linear layers with bias, and the table."""
        return (self.frequencies + 1 + hidden_dim + 1 + self.classes) * hidden_dim


FINAL_VECTORS = 2  # shift and scale behind the last norm of a conditioned model


def modulation_params(vectors: int, hidden_dim: int) -> int:
    """A linear layer with bias from the condition to vectors of width D."""
    return vectors * hidden_dim * (hidden_dim + 1)
