"""UPW's model (arXiv 2605.14028) in plain PyTorch, as its authors compute it: what pixtok is compared with.

It shares no code with `pixtok.model`, and its parameters have the names of UPW's checkpoints.  Blocks are Llama's
(arXiv 2407.21783): pre-norm, grouped-query attention, SwiGLU, and rotary positions that turn adjacent pairs of
features.  A table of angles is made once, in float64, since a running index over an image's pixels passes 50,000.
"""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from pixtok import fold
from pixtok.config import Model, Stream
from pixtok.document import NO_TARGET, Rows
from pixtok.errors import InputError
from pixtok.extras import extra

_EPS = 1e-5
_THETA = 500_000.0
_FACTOR, _LOW, _HIGH, _CONTEXT = 8.0, 1.0, 4.0, 8192.0


class Batch(NamedTuple):
    """A batch as the peer takes it: the N windows of all rows side by side, those that are absent left out.

    Arrays of numpy, or tensors made of them.
    """

    word_BS: Int64[Any, "B S"]
    target_BS: Int64[Any, "B S"]
    position_BS: Int64[Any, "B S"]
    sees_B1SS: Bool[Any, "B 1 S S"] | None
    """Which slots see which; None where causality alone says so, as no row holds two documents."""
    slot_N: Int64[Any, " N"]
    """Row · S + slot of each window."""
    colour_NW: Int64[Any, "N W"]
    """Folded ids, L³ for padding."""
    position_NW: Int64[Any, "N W"]
    """Number of a pixel in its image, window after window, padding left out."""
    last_N: Int64[Any, " N"]
    """Index of the last valid pixel."""


def batch(rows: Rows, config: Model) -> Batch:
    """Rows of numpy arrays → the same for the peer."""
    B, S = rows.word_BS.shape
    segment_BS, count_BM = rows.segment_BS, rows.shape_BM2.prod(-1)
    sees_B1SS = None
    if segment_BS.max(initial=0) > 1:
        causal_SS = np.tri(S, dtype=bool)
        sees_B1SS = ((segment_BS[:, :, None] == segment_BS[:, None, :]) & causal_SS)[:, None]
    before_BM = np.cumsum(count_BM, axis=1) - count_BM
    begins_BM = (rows.place_BM4[:, :, :2] == 0).all(-1)
    begins_BM[:, :1] = True
    # Counts only grow, so the latest beginning is the largest so far.
    first_BM = np.maximum.accumulate(np.where(begins_BM, before_BM, 0), axis=1)
    held_BM = count_BM > 0
    slot_BM = np.arange(B)[:, None] * S + rows.window_slot_BM
    count_N = count_BM[held_BM]
    index_1W = np.arange(config.window**2)[None]
    inside_NW = np.minimum(index_1W, count_N[:, None] - 1)
    return Batch(
        rows.word_BS.astype(np.int64),
        rows.target_BS.astype(np.int64),
        rows.position_BS.astype(np.int64),
        sees_B1SS,
        slot_BM[held_BM].astype(np.int64),
        fold.ids(rows.pixel_BMW[held_BM], config.fold_factor).astype(np.int64),
        ((before_BM - first_BM)[held_BM][:, None] + inside_NW).astype(np.int64),
        (count_N - 1).astype(np.int64),
    )


def angles(length: int, head_width: int) -> np.ndarray:
    """Rotary angles (T, D/2), float64, of the first T = `length` positions, with Llama 3.1's scaling."""
    frequencies = []
    for pair in range(head_width // 2):
        frequency = _THETA ** (-2 * pair / head_width)
        wavelength = 2 * math.pi / frequency
        if wavelength > _CONTEXT / _LOW:
            frequency /= _FACTOR
        elif wavelength > _CONTEXT / _HIGH:
            smooth = (_CONTEXT / wavelength - _LOW) / (_HIGH - _LOW)
            frequency *= (1 - smooth) / _FACTOR + smooth
        frequencies.append(frequency)
    return np.outer(np.arange(length), frequencies)


def peer(config: Model, slots: int, windows: int) -> Any:
    """→ a `torch.nn.Module` with random weights, for rows of at most so many slots and windows.

    It has `logits(batch)` (B, S, V + L³), and called it is the mean cross entropy of all targets.  `batch(rows)` moves
    rows to its device.  Whoever times it should `torch.compile` it, which makes one kernel of what stands between
    matrix products.  Raises InputError for a model that is not UPW's, and where torch is not installed.
    """
    if config.variant != "upw" or config.objective != "reference" or config.encoder.width != config.trunk.width:
        raise InputError("the peer is UPW's model: model.variant = upw, model.objective = reference, one width")
    torch = extra("torch", "torch")
    nn, F = torch.nn, torch.nn.functional

    def linear(inputs: int, outputs: int) -> Any:
        return nn.Linear(inputs, outputs, bias=False)

    def turned(x_BSHD: Any, cos_BS1R: Any, sin_BS1R: Any) -> Any:
        a, b = x_BSHD.float().unflatten(-1, (-1, 2)).unbind(-1)
        pairs = torch.stack((a * cos_BS1R - b * sin_BS1R, a * sin_BS1R + b * cos_BS1R), dim=-1)
        return pairs.flatten(-2).type_as(x_BSHD)

    class Attention(nn.Module):
        def __init__(self, stream: Stream) -> None:
            super().__init__()
            E, D, K = stream.width, stream.head_width, stream.kv_heads
            self.head_width = D
            self.wq, self.wk, self.wv, self.wo = linear(E, E), linear(E, K * D), linear(E, K * D), linear(E, E)

        def forward(self, x_BSE: Any, turn: tuple[Any, Any], sees: Any) -> Any:
            q, k, v = (w(x_BSE).unflatten(-1, (-1, self.head_width)) for w in (self.wq, self.wk, self.wv))
            q, k, v = (x.transpose(1, 2) for x in (turned(q, *turn), turned(k, *turn), v))
            o = F.scaled_dot_product_attention(q, k, v, attn_mask=sees, is_causal=sees is None, enable_gqa=True)
            return self.wo(o.transpose(1, 2).flatten(-2))

    class FeedForward(nn.Module):
        def __init__(self, stream: Stream) -> None:
            super().__init__()
            E, hidden = stream.width, stream.hidden
            self.w1, self.w2, self.w3 = linear(E, hidden), linear(hidden, E), linear(E, hidden)

        def forward(self, x_BSE: Any) -> Any:
            return self.w2(F.silu(self.w1(x_BSE)) * self.w3(x_BSE))

    class Block(nn.Module):
        def __init__(self, stream: Stream) -> None:
            super().__init__()
            self.attention, self.feed_forward = Attention(stream), FeedForward(stream)
            self.attention_norm, self.ffn_norm = (nn.RMSNorm(stream.width, eps=_EPS) for _ in range(2))

        def forward(self, x_BSE: Any, turn: tuple[Any, Any], sees: Any = None) -> Any:
            x_BSE = x_BSE + self.attention(self.attention_norm(x_BSE), turn, sees)
            return x_BSE + self.feed_forward(self.ffn_norm(x_BSE))

    class Stack(nn.Module):
        """Blocks, a norm that whoever holds them may apply, and the rotary tables."""

        def __init__(self, stream: Stream, length: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Block(stream) for _ in range(stream.layers))
            self.norm = nn.RMSNorm(stream.width, eps=_EPS)
            angle = torch.from_numpy(angles(length, stream.head_width))
            self.register_buffer("cos", angle.cos().float(), persistent=False)
            self.register_buffer("sin", angle.sin().float(), persistent=False)

        def blocks(self, x_BSE: Any, position_BS: Any, sees: Any = None) -> Any:
            turn = self.cos[position_BS][:, :, None], self.sin[position_BS][:, :, None]
            for layer in self.layers:
                x_BSE = layer(x_BSE, turn, sees)
            return x_BSE

    class Images(Stack):
        """Windows → their summaries; the norm is stored and never applied."""

        def __init__(self) -> None:
            super().__init__(config.encoder, windows * config.window**2)
            self.pix_emb = nn.Embedding(fold.colours(config.fold_factor) + 1, config.encoder.width)

        def forward(self, of: Batch) -> Any:
            h_NWE = self.blocks(self.pix_emb(of.colour_NW), of.position_NW)
            return h_NWE[torch.arange(len(h_NWE), device=h_NWE.device), of.last_N]

    class Peer(Stack):
        def __init__(self) -> None:
            super().__init__(config.trunk, slots)
            V, E = config.vocab_size, config.trunk.width
            self.tok_embeddings = nn.Embedding(V, E)
            self.imgblk = Images()
            self.output = linear(E, V + fold.colours(config.fold_factor))

        def batch(self, rows: Rows) -> Batch:
            device = self.output.weight.device
            return Batch(*(None if x is None else torch.from_numpy(x).to(device) for x in batch(rows, config)))

        def logits(self, of: Batch) -> Any:
            x_BSE = self.tok_embeddings(of.word_BS)
            summary_NE = self.imgblk(of).to(x_BSE.dtype)
            x_BSE = x_BSE.flatten(0, 1).index_copy(0, of.slot_N, summary_NE).view_as(x_BSE)
            return self.output(self.norm(self.blocks(x_BSE, of.position_BS, of.sees_B1SS)))

        def forward(self, of: Batch) -> Any:
            logits = self.logits(of).flatten(0, 1).float()
            return F.cross_entropy(logits, of.target_BS.flatten(), ignore_index=NO_TARGET)

    return Peer()
