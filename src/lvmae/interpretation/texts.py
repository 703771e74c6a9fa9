"""The texts that embeddings are read back as: where they come from, and exact search among them.

Enters: captions of videos, or the encoder's vocabulary. Leaves: ranks, nearest texts, nearest moments. Price: a matrix product of
all queries with all texts, in blocks of 64 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lvmae.errors import InputError, WorkError
from lvmae.library.captions import Caption, align
from lvmae.progress import progress
from lvmae.store import EmbeddingStore, l2_normalize
from lvmae.trust import UntrustedCodeError

_SCORE_BLOCK = 16 << 20  # scores held at once
_SEARCHABLE = 4_000  # texts a page can be searched by, at most


class CaptionIndex:
    """Searches T texts exactly by cosine, in blocks of matrix products."""

    def __init__(self, embeddings: np.ndarray, device: torch.device | str = "cpu") -> None:
        """`embeddings`: (T, D), normalised here."""
        self._texts = torch.from_numpy(l2_normalize(embeddings)).to(device)  # (T, D)

    def _scores(self, queries: np.ndarray) -> Iterator[tuple[int, torch.Tensor]]:
        """Cosines (q, T) of blocks of queries, with the first one's place."""
        size = max(1, _SCORE_BLOCK // max(1, len(self._texts)))
        for first in range(0, len(queries), size):
            block = torch.from_numpy(l2_normalize(queries[first : first + size])).to(self._texts.device)
            yield first, block @ self._texts.T

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the k best texts (Q, k) int64 of queries (Q, D), best first, and their cosines (Q, k) float32."""
        k = min(k, len(self._texts))
        places, scores = np.empty((len(queries), k), np.int64), np.empty((len(queries), k), np.float32)
        for first, block in self._scores(queries):
            best = block.topk(k, dim=1)
            places[first : first + len(block)] = best.indices.cpu().numpy()
            scores[first : first + len(block)] = best.values.cpu().numpy()
        return places, scores

    def grade(self, queries: np.ndarray, own: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
        """Returns retrieval scores: how well queries (Q, D) find their own texts.

        Returns:
            Ranks (Q,) int64 from 1 of the best of each query's own texts, counting equal scores against it (so a model that
            gives one answer to everything gains nothing), and (Q,) float32 the cosine between the best text found and the
            nearest of the query's own.
        """
        ranks, agreement = np.empty(len(queries), np.int64), np.empty(len(queries), np.float32)
        width = max(map(len, own), default=1)
        # Short rows repeat their first text, which changes no maximum.
        padded = torch.tensor([[*row, *[row[0]] * (width - len(row))] for row in own], device=self._texts.device)
        for first, block in self._scores(queries):
            mine = padded[first : first + len(block)]  # (q, width)
            best = block.gather(1, mine).amax(dim=1, keepdim=True)
            ranks[first : first + len(block)] = (block > best - 1e-6).sum(dim=1).cpu().numpy()
            found = self._texts[block.argmax(dim=1)]  # (q, D)
            near = torch.einsum("qd,qwd->qw", found, self._texts[mine]).amax(dim=1)
            agreement[first : first + len(block)] = near.cpu().numpy()
        return ranks, agreement

    def cosine(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Returns the cosines (Q,) between the texts at the indices `left` and `right`."""
        first, second = self._texts[torch.from_numpy(left)], self._texts[torch.from_numpy(right)]
        return (first * second).sum(dim=1).cpu().numpy()


@dataclass
class Texts:
    """All texts and where they belong. The first `indexed` are what segments are read back as; the rest can be searched by."""

    names: list[str]
    own: dict[int, list[list[int]]]  # video -> segment -> places in `names`
    indexed: int = 0
    captions: bool = False
    index: CaptionIndex | None = None
    embeddings: np.ndarray | None = None  # (T, D)

    @classmethod
    def read(
        cls, store: EmbeddingStore, by_video: dict[str, list[Caption]] | None, device: torch.device, notes: list[str]
    ) -> Texts:
        place: dict[str, int] = {}
        own: dict[int, list[list[int]]] = {}
        for video, captions in (by_video or {}).items():
            index = store.index(video)
            segments = align(captions, store[index])
            own[index] = [[place.setdefault(text, len(place)) for text in texts] for texts in segments]
        if by_video is not None and not place:
            raise InputError(
                "no caption lies within its video; check that start and end are seconds from its beginning"
            )
        captions_only = len(place)
        try:
            from lvmae.encoders import encoder_of

            encoder = encoder_of(store.manifest)
            if not encoder.has_text:
                raise InputError(f"the encoder {encoder.name} has no text side")
        except (ImportError, InputError, WorkError) as error:
            if by_video is not None and isinstance(error, UntrustedCodeError):
                raise
            if by_video is not None:
                raise InputError(
                    f"captions need the text side of the store's encoder: {str(error).rstrip('.')}"
                ) from error
            notes.append(f"Nothing is read back as text: {str(error).rstrip('.')}.")
            return cls([], {})
        for word in getattr(encoder, "vocabulary", None) or ():
            place.setdefault(str(word), len(place))
        if not place:
            notes.append(
                "Nothing is read back as text: the encoder has no vocabulary of its own, and no captions were given."
            )
            return cls([], {})
        names = list(place)
        blocks = range(0, len(names), 512)
        rows = [encoder.encode_text(names[i : i + 512]) for i in progress(blocks, desc="texts", unit="blocks")]
        embeddings = l2_normalize(np.concatenate(rows))
        first = first_alike(embeddings[:captions_only])
        kept = [*np.unique(first).tolist(), *range(captions_only, len(names))]
        if len(kept) < len(names):  # else each would count against the other, though neither can be told from it
            notes.append(
                f"{len(names) - len(kept)} captions have the same vector as another one, such as those that differ in case "
                "alone, and are read as one with it."
            )
            moved = {text: number for number, text in enumerate(kept)}
            own = {
                video: [list(dict.fromkeys(moved[int(first[text])] for text in texts)) for texts in segments]
                for video, segments in own.items()
            }
            names, embeddings = [names[text] for text in kept], embeddings[kept]
            captions_only = len(kept) - (len(place) - captions_only)
        indexed = captions_only or len(names)
        return cls(names, own, indexed, bool(captions_only), CaptionIndex(embeddings[:indexed], device), embeddings)

    def moments(
        self, store: EmbeddingStore, shown: Sequence[int], best: int = 8
    ) -> tuple[list[int], dict[int, list[tuple[int, int, float]]]]:
        """The places of the searchable texts, and for each its best (place in `shown`, segment, cosine)."""
        if self.embeddings is None:
            return [], {}
        where = [(place, segment) for place, video in enumerate(shown) for segment in range(int(store.lengths[video]))]
        index = CaptionIndex(np.concatenate([store.embeddings(video) for video in shown]))
        # Captions of the videos that are shown come first, then the others, in order.
        first = {text for video in shown for texts in self.own.get(video, ()) for text in texts}
        order = sorted(range(len(self.names)), key=lambda text: text not in first)[:_SEARCHABLE]
        places, scores = index.search(self.embeddings[order], best)
        return order, {
            text: [(*where[at], float(score)) for at, score in zip(places[row], scores[row], strict=True)]
            for row, text in enumerate(order)
        }


def first_alike(embeddings: np.ndarray) -> np.ndarray:
    """(T,): of each of some unit vectors (T, D), the place of the first that is the same up to rounding."""
    group = np.arange(len(embeddings))
    if len(embeddings) < 2:
        return group
    # What is the same lies at the same place of any line, so only near neighbours on one are compared.
    line = np.random.default_rng(0).normal(size=embeddings.shape[1])
    along = embeddings.astype(np.float64) @ (line / np.linalg.norm(line))
    order = np.argsort(along, kind="stable")
    for place, text in enumerate(order.tolist()):
        before = place - 1
        while before >= 0 and along[text] - along[order[before]] < 1e-6:
            other = int(order[before])
            if float(embeddings[text] @ embeddings[other]) > 1 - 1e-6:
                group[text] = group[other]
                break
            before -= 1
    first = np.full(len(group), len(group))
    np.minimum.at(first, group, np.arange(len(group)))
    return np.asarray(first[group])
