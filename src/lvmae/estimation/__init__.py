"""What a command would cost on this machine, measured in a few seconds before it runs."""

from lvmae.estimation.embedding import EmbeddingEstimate, estimate_embedding

__all__ = ["EmbeddingEstimate", "estimate_embedding"]
