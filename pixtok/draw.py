"""How outcomes are drawn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Draw:
    """How outcomes are drawn from their probabilities."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest outcome always."""
    top_k: int = 0
    """Of the likeliest so many outcomes alone; 0: of all."""
    top_p: float = 1.0
    """Of the likeliest outcomes that have this probability together."""
    seed: int = 0
    """Of the random numbers."""
