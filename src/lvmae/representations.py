"""A trained encoder over a store -> a store of representations, computed once and kept.

Enters: a run and a store of the embedding space it was trained on. Leaves: a store of kind "representations": of every
video the encoder's token features (L, D) float16, [CLS] and the tokens' mean (D) float32, and the segments' times;
nothing masked, the decoder discarded (method: section 6). Price: one forward pass a video, packed, so nothing is
computed on padding; 2 bytes a value on disk. Videos are taken in the store's order and keep it. Rerun the same command
to resume.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lvmae.devices import computing_in, pick_device
from lvmae.errors import InputError, WorkError
from lvmae.files.urls import without_secrets
from lvmae.model import LVMAEModel
from lvmae.model.centering import means_by_sequence
from lvmae.model.plan import make_plan
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.runs import check_space, load_run_encoder, run_fingerprint
from lvmae.store import (
    EMBEDDINGS,
    REPRESENTATIONS,
    EmbeddingStore,
    Manifest,
    StoreWriter,
    VideoRecord,
    ids_of_other_ranks,
    in_share,
    l2_normalize,
    rank_store,
    remove_videos,
)

log = logging.getLogger(__name__)


@own_state()
def represent(
    run: str | Path,
    store: str | Path | EmbeddingStore,
    out: str | Path,
    *,
    device: str | None = None,
    precision: str = "auto",
    batch_tokens: int = 8192,
    overwrite: bool = False,
    layers: str | Sequence[int] = "last",
    rank: int | None = None,
    world_size: int | None = None,
) -> EmbeddingStore:
    """Computes the representations of a store's videos that `out` does not hold yet.

    Args:
        run: folder of a trained model.
        store: embeddings, of the space the run was trained on.
        out: the store of representations, new, or one to resume.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None is "auto".
        precision: "fp32", "bf16" or "auto", which is bf16 on CUDA; what flows between blocks is float32 in both.
        batch_tokens: segments in a batch, at most; a longer video is a batch of its own.
        overwrite: start over if `out` holds representations by another run or of another store.
        layers: blocks of the encoder, from 1, whose tokens' means are kept too, for probes to choose from: "last" (none beside
            the tokens themselves), "all", or numbers, as a list or "1,2".
        rank, world_size: this is one of several processes, anywhere: it takes its share, by a hash of the ids, leaves out what
            any rank did before, and writes a store of its own below `out`; `lvmae.store.merge_stores` makes one of them all.

    Returns:
        The store of representations, a rank's own where there are ranks.

    Raises:
        InputError: where the run or the store is none, they are of different spaces, or `out` is of another run or
            store.
        WorkError: where the encoder gives values that are not finite.
    """
    store = EmbeddingStore.open(store)
    if store.kind != EMBEDDINGS:  # before a model is loaded
        raise InputError(f"{store.path} holds {store.kind}; give the store of embeddings that they were made from")
    fingerprint = run_fingerprint(run)
    model = load_run_encoder(run)
    check_space(run, model.config, store)
    kept = layers_among(layers, model.config.num_hidden_layers)
    if (rank is None) != (world_size is None):
        raise InputError("A rank and a world size go together.")
    whole, share = os.fspath(out), set(store.ids)
    if rank is not None and world_size is not None:
        out = rank_store(whole, rank, world_size)
        share = {id_ for id_ in store.ids if in_share(id_, rank, world_size)}
    made_from = _begun(out, run, store, fingerprint, kept, overwrite) or {
        "path": str(run),
        "fingerprint": fingerprint,
        "store": without_secrets(store.path),
        **({"layers": list(kept)} if kept else {}),
    }
    manifest = Manifest(
        space_id=f"{store.space_id}+lvmae-{fingerprint[:12]}",
        dim=store.dim,
        segments=store.manifest.segments,
        encoder=store.manifest.encoder,
        kind=REPRESENTATIONS,
        run=made_from,
    )
    place = pick_device(device)
    context = computing_in(precision, place)
    if rank is not None:
        share -= ids_of_other_ranks(whole, os.fspath(out), manifest)
    stale = _without_removed(out, store)
    with StoreWriter(out, manifest) as writer:
        writer.admit(store.ids)
        todo = [index for index, id_ in enumerate(store.ids) if id_ in share - writer.done or id_ in stale]
        if todo:
            model.to(place)  # type: ignore[arg-type]
            total = max(len(share), len(todo))
            with context, progress(desc="represent", unit="videos", total=total, initial=total - len(todo)) as bar:
                for batch in _batches(todo, store.lengths, batch_tokens):
                    records = _represented(model, store, batch, place)
                    for record in _with_layers(records, model, store, batch, place, kept) if kept else records:
                        writer.add(record, replaces=record.id in stale)
                    bar.update(len(batch))
    return EmbeddingStore(out) if rank is not None else EmbeddingStore.open(out)


def _begun(
    out: str | Path,
    run: str | Path,
    store: EmbeddingStore,
    fingerprint: str,
    layers: tuple[int, ...],
    overwrite: bool,
) -> dict[str, Any] | None:
    """What the representations at `out` were made from; None if there are none, or no longer, being overwritten."""
    try:
        begun = EmbeddingStore(out)
    except InputError:  # none there yet; what else may be wrong with it, the writer says
        return None
    if begun.kind != REPRESENTATIONS:
        raise InputError(f"{out} holds {begun.kind}; choose another place for the representations")
    made_from = dict(begun.manifest.run or {})
    if made_from.get("fingerprint") != fingerprint:
        wrong = f"{out} was made by another run ({made_from.get('path')}, or this one before it changed) than {run}"
    elif not set(begun.ids) <= set(store.ids) | store.removed:
        wrong = f"{out} holds videos that are not in {store.path}; it was made from {made_from.get('store')}"
    elif tuple(made_from.get("layers", ())) != layers:
        had, wanted = (", ".join(map(str, some)) or "last" for some in (made_from.get("layers", ()), layers))
        wrong = f"{out} was made with the layers {had}, not {wanted}"
    else:
        return made_from
    if not overwrite:
        raise InputError(f"{wrong}; choose another place, or overwrite it")
    for part in ("index", "data", "failures", "removed"):
        shutil.rmtree(Path(out) / part, ignore_errors=True)
    (Path(out) / "manifest.json").unlink()
    return None


def _without_removed(out: str | Path, store: EmbeddingStore) -> set[str]:
    """Takes videos out of `out` that were removed from the store; gives those whose embeddings are others by now."""
    try:
        begun = EmbeddingStore(out)
    except InputError:
        return set()
    removed = sorted(set(begun.ids) & store.removed)
    if removed:
        remove_videos(out, removed)
        begun = EmbeddingStore(out)
    stale = begun.stale(store)
    if stale:
        log.info("%d videos were embedded again since; their representations are made again", len(stale))
    return set(stale)


def _batches(todo: list[int], lengths: np.ndarray, batch_tokens: int) -> Iterator[list[int]]:
    """Consecutive videos of at most `batch_tokens` segments together, or one video."""
    batch: list[int] = []
    tokens = 0
    for index in todo:
        if batch and tokens + int(lengths[index]) > batch_tokens:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += int(lengths[index])
    if batch:
        yield batch


@torch.inference_mode()
def _represented(
    model: LVMAEModel, store: EmbeddingStore, batch: list[int], device: torch.device
) -> Iterator[VideoRecord]:
    lengths = [int(store.lengths[index]) for index in batch]
    raw = np.concatenate([store.embeddings(index) for index in batch])
    units = F.normalize(torch.from_numpy(raw).to(device).float(), dim=-1, eps=torch.finfo(torch.float32).tiny)
    features = model(inputs_embeds=units[None], lengths=lengths).last_hidden_state[0].float()
    # All of a batch crosses at once: one wait for the device, whatever the number of videos.
    features, means, centers = features.cpu(), *_means(features, units, lengths)
    start = 0
    for place, (index, length) in enumerate(zip(batch, lengths, strict=True)):
        cls, tokens = features[start], features[start + 1 : start + 1 + length]
        start += 1 + length
        record = store[index]
        if not bool(torch.isfinite(tokens).all() and torch.isfinite(cls).all()):
            raise WorkError(
                f"the encoder gives values that are not finite on video '{record.id}'; its training has diverged"
            )
        yield VideoRecord(
            id=record.id,
            source=record.source,
            duration=record.duration,
            starts=record.starts,
            ends=record.ends,
            embeddings=tokens.numpy(),
            cls=cls.numpy(),
            mean=means[place].numpy(),
            center=centers[place].numpy() if model.config.center == "video" else None,
            shortened=record.shortened,
            made_from=store.digests[record.id],
            identity=record.identity,
        )


def layers_among(asked: str | Sequence[int], count: int) -> tuple[int, ...]:
    """The blocks of an encoder of `count` blocks that "last" (none), "all", "1,2" or a list name, in order."""
    if asked == "last":
        return ()
    if asked == "all":
        return tuple(range(1, count + 1))
    try:
        numbers = sorted({int(part) for part in (asked.split(",") if isinstance(asked, str) else asked)})
    except ValueError:
        raise InputError(f"layers are last, all, or numbers such as 1,2, not '{asked}'") from None
    if not numbers or numbers[0] < 1 or numbers[-1] > count:
        raise InputError(f"the encoder has the layers 1 to {count}, not {', '.join(map(str, numbers)) or 'none'}")
    return tuple(numbers)


@torch.inference_mode()
def _with_layers(
    records: Iterator[VideoRecord],
    model: LVMAEModel,
    store: EmbeddingStore,
    batch: list[int],
    device: torch.device,
    layers: tuple[int, ...],
) -> Iterator[VideoRecord]:
    units = [l2_normalize(store.embeddings(index)) for index in batch]
    for record, means in zip(records, _layer_means(model, units, device, layers), strict=True):
        yield replace(record, layers=means)


def _layer_means(
    model: LVMAEModel, units: list[np.ndarray], device: torch.device, layers: tuple[int, ...]
) -> list[np.ndarray]:
    """Of each video (K, D) float32: the mean of its tokens after each of K blocks, without the final norm.

    A video longer than the model's `max_segments` goes through it in windows that follow each other.
    """
    whole = [torch.from_numpy(unit) for unit in units]
    tokens, _ = model.centered(torch.cat(whole).to(device), make_plan([len(unit) for unit in units]).to(device))
    size = model.config.max_segments if model.config.long_sequences == "windows" else max(map(len, units))
    sizes, owners = [], []
    for number, unit in enumerate(units):
        parts = [min(size, len(unit) - first) for first in range(0, len(unit), size)]
        sizes += parts
        owners += [number] * sum(parts)
    owner = torch.tensor(owners, device=device)
    counts = torch.bincount(owner, minlength=len(units))[:, None]
    found = np.empty((len(units), len(layers), tokens.shape[1]), np.float32)
    squeezed = model.config.max_segments if model.config.long_sequences == "interpolate" else None
    plan = make_plan(sizes, squeeze_to=squeezed).to(device)
    for number, values in enumerate(model.encode_blocks(tokens, plan), start=1):
        if number in layers:
            sums = torch.zeros(len(units), tokens.shape[1], device=device).index_add_(0, owner, values.float())
            found[:, layers.index(number)] = (sums / counts).cpu().numpy()
    return list(found)


def _means(features: Tensor, units: Tensor, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Of each sequence, on the host: the mean of its features, [CLS] left out, and of its embeddings, (B, D) each.

    Args:
        features: (N + B, D), a [CLS] in front of each sequence. units: (N, D).
    """
    sequence = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(units.device)
    every = torch.ones_like(sequence, dtype=torch.bool)
    tokens = features.index_select(0, torch.arange(len(units), device=units.device) + sequence + 1)
    means, centers = (means_by_sequence(each, sequence, every, len(lengths)).cpu() for each in (tokens, units))
    return means, centers
