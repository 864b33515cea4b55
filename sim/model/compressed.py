"""Attention over one shared tensor and over compressed entries of what lies behind its window (DeepSeek-V4).

Letters: H heads of width P (so 512 where others have 128), R rank of the compressed queries, G groups of heads that
are projected to K columns each before the output projection; m tokens a compressed entry.

Keys and values are one tensor of one head of width P. A query sees a window of it, and behind the window entries that
stand for m tokens each: a weighted mean of m projected tokens (of 2 m where entries overlap, from two projections),
the weights a softmax over gates that are projected beside them, plus a bias per place. With an indexer
(`index_topk`), which has compressed keys of its own made in the same way, a query sees only the best of them; without
one all. Source: the modules of transformers 5.23, models/deepseek_v4.
"""

from __future__ import annotations

from sim.model.specs import AttentionSpec


def compressor_dim(att: AttentionSpec) -> int:
    """Columns that the compressor projects a token to, values and gates each."""
    if not att.compress_rate:
        return 0
    return att.head_dim * (2 if att.compress_overlap else 1)


def indexer_dim(att: AttentionSpec) -> int:
    """The same of the indexer's own compressor; 0 without one."""
    if not (att.index_topk and att.compress_rate):
        return 0
    return att.index_dim * (2 if att.compress_overlap else 1)


def down_columns(att: AttentionSpec) -> int:
    """Columns of all projections of a token that are not divided by tp: queries' latent, the shared keys and values,
    compressors, weights of the indexer's heads."""
    weights = att.index_heads if att.index_topk else 0
    return att.q_lora_rank + att.head_dim + 2 * (compressor_dim(att) + indexer_dim(att)) + weights


def shared_kv_params(att: AttentionSpec, d: int) -> tuple[int, int]:
    """(divided by tp, on every rank of a tensor-parallel group) of attention of kind "shared_kv".

    Divided: queries' up-projection, both steps of the output projection, sinks. The norm of the queries behind their
    projection has no weights.
    """
    inner = att.heads * att.head_dim
    split = att.q_lora_rank * inner + inner * att.out_rank + att.out_groups * att.out_rank * d
    if att.sinks:
        split += att.heads
    whole = d * down_columns(att) + att.q_lora_rank + att.head_dim
    for columns, width in ((compressor_dim(att), att.head_dim), (indexer_dim(att), att.index_dim)):
        if columns:
            whole += att.compress_rate * columns + width  # bias per place; norm of the entries
    if att.index_topk:
        whole += att.q_lora_rank * att.index_heads * att.index_dim
    return split, whole


def shared_kv_gemm(att: AttentionSpec, d: int) -> int:
    """Multiply-adds per token of its projections, the indexer's queries included."""
    inner = att.heads * att.head_dim
    index = att.q_lora_rank * att.index_heads * att.index_dim if att.index_topk else 0
    up = att.q_lora_rank * inner + inner * att.out_rank + att.out_groups * att.out_rank * d
    return d * down_columns(att) + up + index


def entries_seen(att: AttentionSpec, seq_tokens: float) -> float:
    """Compressed entries the last query of a sequence sees: all whole ones, or the indexer's choice."""
    entries = seq_tokens // att.compress_rate if att.compress_rate else 0.0
    return min(entries, att.index_topk) if att.index_topk else entries
