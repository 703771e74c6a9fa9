"""Video files -> segments -> a frozen encoder -> an embedding store."""

from lvmae.embedding.engine import EmbedSummary, embed_videos
from lvmae.embedding.sources import find_videos

__all__ = ["EmbedSummary", "embed_videos", "find_videos"]
