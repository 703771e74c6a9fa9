"""What a command would cost on this machine, measured in a few seconds before it runs."""

from lvmae.estimation.embedding import EmbeddingEstimate, estimate_embedding
from lvmae.estimation.learning import LearningEstimate, estimate_pretraining, estimate_representing

__all__ = [
    "EmbeddingEstimate",
    "LearningEstimate",
    "estimate_embedding",
    "estimate_pretraining",
    "estimate_representing",
]
