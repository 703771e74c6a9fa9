"""Video files -> segments -> a frozen encoder -> an embedding store. The only room that knows video and encoder libraries."""

from lvmae.embedding.encoders import SegmentEncoder, encoder_of, load_encoder
from lvmae.embedding.engine import EmbedSummary, embed_videos
from lvmae.embedding.sources import find_videos

__all__ = ["EmbedSummary", "SegmentEncoder", "embed_videos", "encoder_of", "find_videos", "load_encoder"]
