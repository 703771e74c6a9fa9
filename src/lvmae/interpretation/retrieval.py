"""Masked windows through the model, and what is read of each hidden segment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from lvmae.devices import computing_in
from lvmae.errors import InputError, WorkError
from lvmae.interpretation.texts import Texts
from lvmae.model import LVMAEForPreTraining
from lvmae.progress import progress
from lvmae.report import VideoData
from lvmae.sequences import (
    Window,
    collate_packed,
    interpolate_visible,
    mask_segments,
    mean_of_visible,
    shortest_maskable,
    token_batches,
)
from lvmae.store import EmbeddingStore, l2_normalize

ORIGINAL, RECONSTRUCTION, INTERPOLATION, MEAN = "original", "reconstruction", "interpolation", "mean of the visible"
KINDS = (ORIGINAL, RECONSTRUCTION, INTERPOLATION, MEAN)


def complementary_masks(scored: np.ndarray, generator: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the scored mask, then more masks of the same size until each segment was masked.

    Args:
        scored: (L,) bool with at least one True and one False.
        generator: draws the further masks.

    Yields:
        `masked` (L,) bool and `fresh` (L,) bool, those of them that no earlier mask hid.
    """
    yield scored, scored
    size = int(scored.sum())
    todo = generator.permutation(np.flatnonzero(~scored))
    while len(todo):
        fresh = np.zeros_like(scored)
        fresh[todo[:size]] = True
        todo = todo[size:]
        masked = fresh.copy()
        masked[generator.permutation(np.flatnonzero(~fresh))[: size - int(fresh.sum())]] = True
        yield masked, fresh


class Job(NamedTuple):
    """One masked window: `fresh` of its segments are read from this mask; `scored` says whether they count."""

    window: Window
    fresh: np.ndarray
    scored: bool


def masked_windows(
    store: EmbeddingStore, shown: set[int], *, max_segments: int, ratio: float, strategy: str, seed: int
) -> Iterator[Job | None]:
    """Every window of every video, masked; a video longer than `max_segments` is cut into windows of equal length.

    None stands for one too short to be masked. Videos that are `shown` come with their complementary masks.
    """
    shortest = shortest_maskable(ratio)
    for video, length in enumerate(store.lengths.tolist()):
        count = math.ceil(length / max_segments)
        edges = np.linspace(0, length, count + 1).round().astype(int).tolist()
        for start, stop in itertools.pairwise(edges):
            if stop - start < shortest:
                yield None
                continue
            embeddings = l2_normalize(store.embeddings(video, start, stop))
            generator = np.random.default_rng([seed, video, start])
            scored = mask_segments(strategy, embeddings, ratio, generator)
            for i, (masked, fresh) in enumerate(complementary_masks(scored, generator)):
                if i and video not in shown:
                    break
                yield Job(Window(embeddings, masked, video, start), fresh, scored=i == 0)


class Reader:
    """Runs jobs through the model and keeps, a video, what was read."""

    def __init__(
        self,
        model: LVMAEForPreTraining,
        store: EmbeddingStore,
        texts: Texts,
        shown: set[int],
        *,
        top_k: int,
        device: torch.device,
        precision: str = "auto",
    ) -> None:
        self.model, self.store, self.texts, self.device, self.top_k = model, store, texts, device, top_k
        self.precision = precision
        self.unhidden = 0
        self._neighbours: dict[int, list[tuple[str, float]]] = {}
        self._cosines: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._videos: list[np.ndarray] = []  # the video of each cosine
        self._ranked: list[np.ndarray] = []  # the video of each rank
        self._ranks: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._agreement: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        self._curves = {
            i: np.full((3, int(store.lengths[i])), np.nan, np.float32) for i in shown
        }  # scored, cosine, floor
        self._found: dict[int, list[list[tuple[int, float]]]] = {
            i: [[] for _ in range(store.lengths[i])] for i in shown
        }

    @torch.inference_mode()
    def read(self, jobs: Iterator[Job | None], batch_tokens: int) -> None:
        """Reads all jobs; None among them stands for a stretch that is too short to be masked."""
        batch: list[Job] = []
        tokens = 0
        with progress(desc="interpret", unit="windows") as bar:
            for job in jobs:
                bar.update(1)
                if job is None:
                    self.unhidden += 1
                    continue
                if batch and tokens + len(job.window.masked) > batch_tokens:
                    self._read(batch)
                    batch, tokens = [], 0
                batch.append(job)
                tokens += len(job.window.masked)
            if batch:
                self._read(batch)
        if not self._cosines[ORIGINAL]:
            raise InputError(
                f"no video of {self.store.path} has enough segments to hide some and see others; lower the ratio"
            )

    def _read(self, jobs: list[Job]) -> None:
        batch = collate_packed([job.window for job in jobs])
        batch = {name: value.to(self.device) if torch.is_tensor(value) else value for name, value in batch.items()}
        with computing_in(self.precision, self.device):
            rows = self.model(**batch).reconstruction[0].float().cpu().numpy()  # (N, D)
        if not np.isfinite(rows).all():
            raise WorkError("the model's reconstructions are not finite; its training has diverged")
        queries: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
        own: list[list[int]] = []
        asked: list[np.ndarray] = []
        start = 0
        for job in jobs:
            window, fresh = job.window, job.fresh
            read = {
                ORIGINAL: window.embeddings[fresh],
                RECONSTRUCTION: l2_normalize(rows[start : start + len(fresh)][fresh]),
                INTERPOLATION: l2_normalize(interpolate_visible(window.embeddings, window.masked)[fresh]),
                MEAN: l2_normalize(mean_of_visible(window.embeddings, window.masked)[fresh]),
            }
            start += len(fresh)
            cosines = {kind: np.einsum("nd,nd->n", value, read[ORIGINAL]) for kind, value in read.items()}
            places = window.start + np.flatnonzero(fresh)
            if window.video in self._curves:
                curves = self._curves[window.video]
                curves[0, places] = job.scored
                curves[1, places], curves[2, places] = cosines[RECONSTRUCTION], cosines[INTERPOLATION]
                self._keep_found(window.video, places, read[RECONSTRUCTION])
            if not job.scored:
                continue
            for kind in KINDS:
                self._cosines[kind].append(cosines[kind])
            videos = np.full(len(places), window.video)
            self._videos.append(videos)
            if self.texts.captions and window.video in self.texts.own:
                mine = [self.texts.own[window.video][place] for place in places]
                has = np.array([bool(texts) for texts in mine])
                own += [texts for texts in mine if texts]
                asked.append(videos[has])
                for kind in KINDS:
                    queries[kind].append(read[kind][has])
            elif not self.texts.captions:
                asked.append(videos)
                for kind in KINDS:
                    queries[kind].append(read[kind])
        self._grade({kind: np.concatenate(parts) for kind, parts in queries.items() if parts}, own, asked)

    def _keep_found(self, video: int, places: np.ndarray, embeddings: np.ndarray) -> None:
        if self.texts.index is None:
            return
        for place, names, scores in zip(places, *self.texts.index.search(embeddings, self.top_k), strict=True):
            self._found[video][place] = [(int(n), float(s)) for n, s in zip(names, scores, strict=True)]

    def _grade(self, queries: dict[str, np.ndarray], own: list[list[int]], videos: list[np.ndarray]) -> None:
        index = self.texts.index
        if index is None or not queries or not len(queries[ORIGINAL]):
            return
        self._ranked += videos
        if self.texts.captions:
            for kind in KINDS:
                ranks, agreement = index.grade(queries[kind], own)
                self._ranks[kind].append(ranks)
                self._agreement[kind].append(agreement)
            return
        words = {kind: index.search(queries[kind], 1)[0][:, 0] for kind in KINDS}
        for kind in KINDS:
            self._ranks[kind].append(words[kind] == words[ORIGINAL])
            self._agreement[kind].append(index.cosine(words[kind], words[ORIGINAL]))

    def metrics(self, videos: Collection[int] | None = None) -> dict[str, Any] | None:
        """Numbers over all scored segments, or those of some videos; None if these have none."""
        scored, asked = (
            np.isin(np.concatenate(of), list(videos)) if videos is not None and of else slice(None)
            for of in (self._videos, self._ranked)
        )
        cosines = {kind: np.concatenate(self._cosines[kind])[scored] for kind in KINDS}
        masked = len(cosines[ORIGINAL])
        if not masked:
            return None
        cosine = {kind: float(values.mean()) for kind, values in cosines.items()}
        retrieval: dict[str, Any] | None = None
        words: dict[str, Any] | None = None
        ranks = {kind: np.concatenate(self._ranks[kind] or [np.zeros(0)])[asked] for kind in KINDS}
        if len(ranks[ORIGINAL]):
            agreement = {kind: float(np.concatenate(self._agreement[kind])[asked].mean()) for kind in KINDS}
            if self.texts.captions:
                retrieval = {"captions": self.texts.indexed, "queries": len(ranks[ORIGINAL])}
                for kind in KINDS:
                    recall = {f"R@{k}": float((ranks[kind] <= k).mean()) for k in (1, 5, 10)}
                    retrieval[kind] = {
                        **recall,
                        "median_rank": float(np.median(ranks[kind])),
                        "agreement": agreement[kind],
                    }
            else:
                words = {"vocabulary": self.texts.indexed}
                words |= {kind: {"same": float(ranks[kind].mean()), "agreement": agreement[kind]} for kind in KINDS}
        return {"masked": masked, "unhidden": self.unhidden, "cosine": cosine, "retrieval": retrieval, "words": words}

    @torch.inference_mode()
    def find_neighbours(self, batch_tokens: int, count: int = 5) -> None:
        """The videos nearest to each that is shown, by the mean of the encoder's tokens around the library's own mean."""
        if len(self.store) < 3:
            return
        features = np.empty((len(self.store), self.store.dim), np.float32)
        for videos in token_batches(self.store.lengths, batch_tokens):
            lengths = [int(self.store.lengths[i]) for i in videos]
            packed = np.concatenate([l2_normalize(self.store.embeddings(i)) for i in videos])
            inputs = torch.from_numpy(packed)[None].to(self.device)
            tokens = self.model.lvmae(inputs_embeds=inputs, lengths=lengths).last_hidden_state[0].float()
            parts = tokens.split([length + 1 for length in lengths])  # each with its [CLS] in front
            for video, part in zip(videos, parts, strict=True):
                features[video] = part[1:].mean(dim=0).cpu().numpy()
        features = l2_normalize(features - features.mean(axis=0))
        for video in self._curves:
            scores = features @ features[video]
            scores[video] = -np.inf
            best = np.argsort(-scores, kind="stable")[: min(count, len(scores) - 1)]
            self._neighbours[video] = [(self.store.ids[i], float(scores[i])) for i in best]

    def video(self, index: int) -> VideoData:
        """What was read of a video that is shown; texts by their places in `Texts.names`."""
        record = self.store[index]
        embeddings = l2_normalize(record.embeddings)
        scored, cosine, floor = self._curves[index]
        steps = 1.0 - np.einsum("nd,nd->n", embeddings[1:], embeddings[:-1])
        original: list[list[tuple[int, float]]] = [[] for _ in embeddings]
        if self.texts.index is not None:
            found = self.texts.index.search(embeddings, self.top_k)
            original = [
                [(int(n), float(s)) for n, s in zip(names, scores, strict=True)]
                for names, scores in zip(*found, strict=True)
            ]
        return VideoData(
            id=record.id,
            duration=float(record.duration),
            starts=record.starts.tolist(),
            ends=record.ends.tolist(),
            masked=(scored == 1).tolist(),
            reconstruction=_or_none(cosine),
            floor=_or_none(floor),
            novelty=[None, *steps.tolist()],
            captions=self.texts.own.get(index) or [[] for _ in embeddings],
            from_original=original,
            from_reconstruction=self._found[index],
            neighbours=self._neighbours.get(index, []),
        )


def _or_none(values: np.ndarray) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values.tolist()]
