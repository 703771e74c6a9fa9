"""Search in a library: the moments that match a text, the videos most like another, the nearest of a million vectors.

Enters: a store (for texts: of an encoder with a text side). Leaves: moments with times and cosines, or videos with cosines. Price:
an exact search reads every vector once through the memory map, about a tenth of a second for 200,000 of width 384. From there on
an index is built, once a store, with faiss (the extra `search`): a byte a value in the cache and about a minute a million vectors;
a query then takes milliseconds.
"""

from lvmae.library.nearest import INDEX_FROM, Nearest, Vectors
from lvmae.library.search import Library, Moment, SimilarVideo, place_of, search, similar_videos

__all__ = [
    "INDEX_FROM",
    "Library",
    "Moment",
    "Nearest",
    "SimilarVideo",
    "Vectors",
    "place_of",
    "search",
    "similar_videos",
]
