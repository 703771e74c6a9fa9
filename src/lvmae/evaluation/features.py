"""A store's videos as a probe sees them: a pooled vector each, and batches of all their tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from lvmae.errors import InputError
from lvmae.store import REPRESENTATIONS, EmbeddingStore, VideoRecord, l2_normalize

RAW = "raw embeddings"
LEARNT = "LV-MAE"
BESIDE = "LV-MAE + raw"
# both: the mean and [CLS]; layers: the mean of the tokens of one layer, which val chooses; center: the mean of the embeddings,
# which a run with center=video took off them.
READOUTS = ("mean", "cls", "both", "mean+std", "mean+center", "mean+std+center", "layers")


@dataclass(frozen=True)
class Features:
    """V videos of one store.

    Attributes:
        name: `RAW`, which are L2-normalised as the method has it, or `LEARNT`.
        dim: D.
        tokens: V arrays (L, D) of any float type, without [CLS]: views on the store's memory map.
        cls: (V, D) float32; None for raw embeddings, which have no [CLS].
        mean: (V, D) float32, the mean of a video's tokens without [CLS].
        center: (V, D) float32, what was taken off a video's embeddings; None if nothing was.
        layers: block of the encoder, from 1 -> (V, D) float32, the mean of its tokens; those that were kept.
    """

    name: str
    dim: int
    tokens: list[NDArray[Any]]
    cls: Tensor | None
    mean: Tensor
    center: Tensor | None = None
    layers: dict[int, NDArray[np.float32]] = field(default_factory=dict)

    def readouts(self) -> tuple[str, ...]:
        """Those of `READOUTS` that these features have."""
        needs_cls, needs_center = ("cls", "both"), ("mean+center", "mean+std+center")
        lacking = (*(needs_cls if self.cls is None else ()), *(needs_center if self.center is None else ()))
        lacking = (*lacking, *(() if self.layers else ("layers",)))
        return tuple(readout for readout in READOUTS if readout not in lacking)

    def by_layer(self) -> dict[int, NDArray[np.float64]]:
        """Block of the encoder -> (V, D), what the readout "layers" chooses among."""
        return {layer: means.astype(np.float64) for layer, means in self.layers.items()}

    def pooled(self, readout: str) -> NDArray[np.float64]:
        """A vector a video (V, D) or (V, 2 D), by one of `READOUTS`.

        Raises:
            InputError: for a readout of [CLS] if there is none.
        """
        mean = self.mean.double().numpy()
        if readout == "mean":
            return mean
        parts = readout.split("+")
        if parts[0] == "mean" and len(parts) > 1:
            blocks = {"mean": lambda: mean, "std": self.deviation, "center": self._center}
            return np.concatenate([blocks[part]() for part in parts], axis=1)
        if readout == "layers":
            raise InputError("the readout 'layers' is one of several vectors; val chooses which")
        if self.cls is None:
            raise InputError(f"{self.name} have no [CLS], which the readout '{readout}' needs")
        cls = self.cls.double().numpy()
        return cls if readout == "cls" else np.concatenate([mean, cls], axis=1)

    def _center(self) -> NDArray[np.float64]:
        if self.center is None:
            raise InputError(
                f"nothing was subtracted from the embeddings of {self.name}, so there is no center to read"
            )
        found: NDArray[np.float64] = self.center.double().numpy()
        return found

    def deviation(self) -> NDArray[np.float64]:
        """(V, D): the standard deviation of each dimension over a video's tokens."""
        found = np.empty(self.mean.shape)
        for row, tokens in enumerate(self.tokens):
            values = tokens.astype(np.float64) if self.name != RAW else l2_normalize(tokens).astype(np.float64)
            found[row] = values.std(axis=0)
        return found

    def take(self, rows: NDArray[np.intp]) -> Features:
        """The features of some of the videos."""
        index = torch.from_numpy(rows)
        cls = None if self.cls is None else self.cls[index]
        center = None if self.center is None else self.center[index]
        layers = {layer: means[rows] for layer, means in self.layers.items()}
        tokens = [self.tokens[row] for row in rows.tolist()]
        return Features(self.name, self.dim, tokens, cls, self.mean[index], center, layers)

    def finite(self) -> NDArray[np.bool_]:
        """(V): whether all of a video's values are finite."""
        known = np.array([bool(np.isfinite(tokens).all()) for tokens in self.tokens], dtype=bool)
        if self.cls is not None:
            known &= torch.isfinite(self.cls).all(dim=1).numpy()
        for means in self.layers.values():
            known &= np.isfinite(means).all(axis=1)
        return np.asarray(known & torch.isfinite(self.mean).all(dim=1).numpy())

    def digest(self) -> str:
        """Changes with the content."""
        found = hashlib.sha256(f"{self.name} {self.dim} {[len(t) for t in self.tokens]}".encode())
        found.update(self.mean.numpy().tobytes())
        for tokens in self.tokens:
            found.update(np.ascontiguousarray(tokens).tobytes())
        for pooled in (self.cls, self.center):
            if pooled is not None:
                found.update(pooled.numpy().tobytes())
        for layer, means in self.layers.items():
            found.update(f"layer {layer}".encode() + np.ascontiguousarray(means).tobytes())
        return found.hexdigest()

    def batch(
        self, rows: Sequence[int] | NDArray[np.intp], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens (B, S, D) float32, S the longest; mask (B, S), True where a token is real; [CLS] (B, D) or None."""
        chosen = [self.tokens[row] for row in rows]
        lengths = torch.tensor([len(values) for values in chosen])
        padded = np.zeros((len(chosen), int(lengths.max()), self.dim), dtype=np.float32)
        for place, values in zip(padded, chosen, strict=True):
            place[: len(values)] = values
        tokens = torch.from_numpy(padded).to(device)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).to(device)
        if self.name == RAW:
            tokens = F.normalize(tokens, dim=-1)
        return tokens, mask, None if self.cls is None else self.cls[torch.as_tensor(rows)].to(device)


def load_features(
    store: EmbeddingStore, places: NDArray[np.intp], spans: Sequence[tuple[float, float]] | None = None
) -> Features:
    """The videos at `places` of a store of either kind.

    With `spans`, a video is the segments whose middle lies within [start, end] seconds, or else the one that shares the most
    of them (of representations: its tokens and their mean, while [CLS] is that of the whole video).

    Raises:
        InputError: where a video has nothing of its span.
    """
    learnt = store.kind == REPRESENTATIONS
    tokens: list[NDArray[Any]] = []
    means = np.empty((len(places), store.dim), np.float32)
    for row, place in enumerate(places.tolist()):
        if spans is None:
            tokens.append(store.embeddings(place))
        else:
            record = store[place]
            tokens.append(record.embeddings[_within(record, *spans[row])])
        if not learnt or spans is not None:
            values = tokens[-1].astype(np.float32) if learnt else l2_normalize(tokens[-1])
            means[row] = values.mean(axis=0)
    if not learnt:
        return Features(RAW, store.dim, tokens, None, torch.from_numpy(means))
    if spans is None:
        means = np.asarray(store.mean_features[places], dtype=np.float32)
    cls = torch.from_numpy(np.asarray(store.cls_features[places], dtype=np.float32))
    taken = store.center_features
    center = None if taken is None else torch.from_numpy(np.asarray(taken[places], dtype=np.float32))
    layers = {layer: values[places] for layer, values in store.layer_features.items()} if spans is None else {}
    return Features(LEARNT, store.dim, tokens, cls, torch.from_numpy(means), center, layers)


def has_span(record: VideoRecord, start: float, end: float) -> bool:
    """Whether any of a video's segments reaches into [start, end] seconds."""
    return bool(_shared(record, start, end).max() > 0)


def _within(record: VideoRecord, start: float, end: float) -> slice:
    middle = (record.starts + record.ends) / 2
    inside = np.flatnonzero((middle >= start) & (middle <= end))
    if not len(inside):  # a span shorter than a segment may lie between two middles
        if not has_span(record, start, end):
            raise InputError(f"no segment of video '{record.id}' lies within {start:g} to {end:g} s")
        inside = np.array([np.argmax(_shared(record, start, end))])
    return slice(inside[0], inside[-1] + 1)


def _shared(record: VideoRecord, start: float, end: float) -> NDArray[np.float64]:
    """Seconds of [start, end] in each segment (L); not above 0 if there are none."""
    return np.asarray(np.minimum(record.ends, end) - np.maximum(record.starts, start))
