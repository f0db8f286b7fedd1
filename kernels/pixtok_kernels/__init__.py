"""Attention kernels of pixtok; they know nothing of the models that use them."""

from pixtok_kernels.api import KEPT, global_conditional_attention

__all__ = ["KEPT", "global_conditional_attention"]
