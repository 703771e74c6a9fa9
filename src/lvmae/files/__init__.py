"""Files of every kind, for every room: the cache, URLs, tables of rows. Knows nothing of videos, stores or models."""
