"""Records of a model: attention, experts, layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hwprofiles.specs import Source
from sim.model.image import ConditionSpec, HeadSpec, ImageSpec
from sim.model.mixer import MixerSpec


@dataclass(frozen=True, kw_only=True)
class AttentionSpec:
    """Attention of one layer. kind "gqa" covers MHA (kv_heads == heads) and MQA; "none": NO_ATTENTION; "shared_kv": all
    heads read one tensor as their keys and as their values (see `sim.model.compressed`).

    head_dim is the query/key width per head (MLA: qk_nope_dim + qk_rope_dim); v_head_dim the
    value width. window: tokens seen by a query (None = full causal); chunk: the sequence falls into pieces of so many
    tokens that do not see each other. output_gate: the core's result is multiplied by a gate projected beside the
    queries. qk_norm_joint: the norm on queries and keys runs over all heads at once. index_topk > 0: a light indexer
    of index_heads heads of index_dim picks that many keys per query (arXiv 2512.02556).
    causal False: a query sees all tokens of its sequence (encoders, diffusion).
    """

    kind: Literal["gqa", "mla", "shared_kv", "none"] = "gqa"
    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    q_lora_rank: int = 0
    kv_lora_rank: int = 0
    qk_nope_dim: int = 0
    qk_rope_dim: int = 0
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    rotary: bool = True
    chunk: int | None = None
    output_gate: bool = False
    qk_norm_joint: bool = False
    index_heads: int = 0
    index_dim: int = 0
    index_topk: int = 0
    causal: bool = True
    compress_rate: int = 0
    compress_overlap: bool = False
    out_groups: int = 1
    out_rank: int = 0


NO_ATTENTION = AttentionSpec(kind="none", heads=0, kv_heads=0, head_dim=0, v_head_dim=0)


@dataclass(frozen=True, kw_only=True)
class MoESpec:
    """Routed experts of one layer: E experts of width F, k chosen per token.

    shared_ffn_dim is the total width of the always-on shared experts (0 = none); residual_ffn_dim that of a dense FFN
    with a norm of its own beside the experts (arctic). zero_experts: experts the router may choose that do nothing
    (longcat). latent_dim > 0: experts work on rows of that width, projected down before and up behind the exchange.
    hash_routed: a table says which experts a token of the vocabulary goes to; the router only weighs them (arXiv
    2106.04426). expert_choice: experts choose tokens, top_k of them a token in the mean, all equally many (arXiv
    2202.09368).
    """

    num_experts: int
    top_k: int
    ffn_dim: int
    shared_ffn_dim: int = 0
    shared_gate: bool = False
    num_groups: int = 1
    top_k_groups: int = 1
    router_bias: bool = False
    expert_bias: bool = False
    clamped_activation: bool = False
    zero_experts: int = 0
    latent_dim: int = 0
    residual_ffn_dim: int = 0
    hash_routed: bool = False
    expert_choice: bool = False

    @property
    def rows_per_token(self) -> float:
        """Experts that compute for a token, in the mean: k, less those that fall on zero experts when all experts are
        chosen equally often."""
        if not self.zero_experts:
            return self.top_k
        return self.top_k * self.num_experts / (self.num_experts + self.zero_experts)

    def row_dim(self, hidden_dim: int) -> int:
        """Width of a routed row."""
        return self.latent_dim or hidden_dim


@dataclass(frozen=True, kw_only=True)
class LayerSpec:
    """One block: a token mixer (attention, or `mixer` instead), then a dense FFN (moe is None) or experts.

    Either half may be missing: NO_ATTENTION without a mixer, or ffn_dim 0 without moe (blocks of some hybrid models
    hold one half each). extra_norms: norms of width D beyond one in front of each half. parallel: both halves read the
    same input and are added to it at once. streams: residual streams of width D that hyper-connections mix around each
    half (`sim.model.streams`); 1 = the plain residual. modulation: vectors of width D per half that are made from the
    sequence's condition: 2 = shift and scale behind the norm, 3 = also a gate on the result (adaLN, arXiv 2212.09748);
    the norms then have no weights of their own.
    """

    attention: AttentionSpec = NO_ATTENTION
    mixer: MixerSpec | None = None
    ffn_dim: int = 0
    moe: MoESpec | None = None
    gated: bool = True
    ffn_bias: bool = False
    norm_bias: bool = False
    extra_norms: int = 0
    parallel: bool = False
    streams: int = 1
    modulation: int = 0

    @property
    def mixes(self) -> bool:
        """True when the block has a token mixer."""
        return self.attention.kind != "none" or self.mixer is not None

    @property
    def has_ffn(self) -> bool:
        """True when the block has a dense FFN or experts."""
        return self.moe is not None or self.ffn_dim > 0

    @property
    def halves(self) -> int:
        """Halves the block has: 1 or 2."""
        return int(self.mixes) + int(self.has_ffn)

    @property
    def norms(self) -> int:
        """Norms of width D."""
        return self.halves + self.extra_norms


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """A whole model. `layers` may differ; `mtp_layers` extra prediction blocks follow the last.

    max_positions > 0 adds a learned position table (GPT-2/GPT-3 style). image: the input is patches of an image
    instead of tokens of a vocabulary (vocab_size 0). head: what stands behind the last layer instead of a head over
    the vocabulary. condition: a timestep and a class that modulate the layers.
    """

    name: str
    hidden_dim: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    mtp_layers: int = 0
    tied_embeddings: bool = False
    max_positions: int = 0
    family: str = "custom"
    image: ImageSpec | None = None
    head: HeadSpec | None = None
    condition: ConditionSpec | None = None
    source: Source

    @property
    def is_moe(self) -> bool:
        """True when any layer has routed experts."""
        return any(layer.moe is not None for layer in self.layers)

    @property
    def streams(self) -> int:
        """Residual streams between the layers."""
        return self.layers[-1].streams if self.layers else 1

    def layer_kinds(self) -> tuple[tuple[LayerSpec, ...], tuple[int, ...]]:
        """Distinct layers and, for each layer in order, the index of its kind."""
        kinds: list[LayerSpec] = []
        index: list[int] = []
        for layer in self.layers:
            if layer not in kinds:
                kinds.append(layer)
            index.append(kinds.index(layer))
        return tuple(kinds), tuple(index)
