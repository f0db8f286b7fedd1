"""The letters of every shape, and the array type of an image.

| letter | meaning |
|---|---|
| B | rows of a batch |
| S | slots of the unified sequence of one row: a slot holds a word or a whole window |
| M | window slots of one row |
| W | pixels of one window |
| T | what predicts them: what stands before the first, and they themselves, 1 + W |
| P | pixels of a halo around a window |
| U | outcomes of the unified head: V words, then a window (UPW: L³ folded colours) |
| H, K, D | query heads, key/value heads, width of a head |
| F, L | fold factor, levels per channel: L = 256 / F |
| V | size of the word vocabulary, special tokens included |
| E | width of a stream (encoder and trunk each have their own) |
| Y, X, C | rows, columns, channels of an image |

A name carries its shape where that helps: `h_BMWE` has axes (B, M, W, E).
"""

import numpy as np
from jaxtyping import UInt8

Image = UInt8[np.ndarray, "Y X 3"]
"""An 8-bit RGB image."""

BATCH = ("dcn_data", "data", "fsdp")
"""Mesh axes over which the rows of a batch are split."""
