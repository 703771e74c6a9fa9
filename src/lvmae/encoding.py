"""From videos to vectors in one call, in the manner of sentence-transformers: the segment encoder and a run together.

    model = LVMAE.from_pretrained("run")
    vector = model.encode("film.mp4")                    # (D,) the whole film
    tokens = model.encode_segments("film.mp4")           # (L, D) each segment in its context
    text = model.encode_text("a dog on a beach")         # (D,) in the segment encoder's space

Enters: paths, URLs, or frames with their rate. Leaves: float32 arrays. Price: that of embedding the videos, in this process,
and one pass of the run's encoder. For archives use `lvmae embed`, which resumes, shares the work and keeps the vectors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvmae.devices import pick_device
from lvmae.errors import InputError, WorkError
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.runs import find_run, load_run_encoder
from lvmae.store import Manifest, l2_normalize

if TYPE_CHECKING:
    from lvmae.encoders import SegmentEncoder
    from lvmae.model import LVMAEModel

Video = str | os.PathLike[str] | Mapping[str, Any]
"""A path, a URL, or {"frames": uint8 RGB (N, H, W, 3), "fps": frames a second}."""

_POOLINGS = ("cls", "mean")


@dataclass(frozen=True)
class EncodedSegments:
    """A video's segments: `starts` and `ends` (L,) in seconds, `vectors` (L, D) float32 of length 1."""

    starts: np.ndarray
    ends: np.ndarray
    vectors: np.ndarray


class LVMAE:
    """A trained model with the segment encoder of its data: videos and texts to vectors."""

    def __init__(
        self,
        model: LVMAEModel,
        encoder: SegmentEncoder | None = None,
        *,
        device: str | None = None,
    ) -> None:
        """A model, and its segment encoder where it is not to be found from the model's own configuration."""
        self.model, self.device = model, pick_device(device)
        self.model.to(self.device)  # type: ignore[arg-type]
        if encoder is not None:
            self.__dict__["segment_encoder"] = encoder

    @classmethod
    def from_pretrained(cls, run: str | os.PathLike[str], *, device: str | None = None) -> LVMAE:
        """Loads the model of a finished run, with the encoder for videos and texts.

        Args:
            run: a folder made by `lvmae pretrain`.
            device: "cpu", "cuda", "mps"; None takes the best there is.

        Raises:
            InputError: there is no run, or it does not say which encoder its data came from.
        """
        return cls(load_run_encoder(find_run(run)), device=device)

    @cached_property
    def segment_encoder(self) -> SegmentEncoder:
        """The encoder of segments. Raises InputError if it is not installed, or the run was trained on imported features."""
        from lvmae.encoders import encoder_of

        config = self.model.config
        if not config.space_id or not config.encoder:
            raise InputError("this run does not say which segment encoder its data came from; give one as `encoder`")
        return encoder_of(Manifest(config.space_id, config.hidden_size, config.segments or {}, config.encoder))

    @property
    def dim(self) -> int:
        """Returns the width D of every vector."""
        return int(self.model.config.hidden_size)

    def encode(
        self,
        videos: Video | Sequence[Video],
        *,
        pooling: str = "cls",
        batch_size: int = 16,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = False,
    ) -> np.ndarray:
        """Returns one vector per video: (D,) for one, (n, D) for a list, float32.

        Args:
            videos: a path, a URL, frames with their rate, or a list of these.
            pooling: "cls", or "mean" of the segments' tokens.
            batch_size: segments that the segment encoder takes at once.
            show_progress_bar: None shows one for several videos.
            normalize_embeddings: scale the vectors to length 1.

        Raises:
            InputError: an unknown pooling, nothing to encode, or something that is no video.
            WorkError: a video cannot be decoded.
        """
        if pooling not in _POOLINGS:
            raise InputError(f"pooling is one of {', '.join(_POOLINGS)}, not {pooling!r}")
        rows = [
            features[0] if pooling == "cls" else features[1:].mean(axis=0)
            for features in self._features(videos, batch_size, show_progress_bar)
        ]
        vectors = np.stack(rows)
        if normalize_embeddings:
            vectors = l2_normalize(vectors)
        found: np.ndarray = vectors[0] if _is_one(videos) else vectors
        return found

    def encode_segments(
        self,
        videos: Video | Sequence[Video],
        *,
        batch_size: int = 16,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = False,
    ) -> np.ndarray | list[np.ndarray]:
        """Returns one contextual token per segment: (L, D) for one video, a list for several. See `encode`."""
        rows = [features[1:] for features in self._features(videos, batch_size, show_progress_bar)]
        if normalize_embeddings:
            rows = [l2_normalize(row) for row in rows]
        return rows[0] if _is_one(videos) else rows

    def encode_text(self, texts: str | Sequence[str]) -> np.ndarray:
        """Returns unit vectors of texts: (D,) or (n, D), in the segment encoder's space, not that of the run's tokens.

        Raises InputError if the segment encoder has no text side.
        """
        one = isinstance(texts, str)
        vectors = l2_normalize(self.segment_encoder.encode_text([texts] if isinstance(texts, str) else list(texts)))
        found: np.ndarray = vectors[0] if one else vectors
        return found

    def raw_segments(self, video: Video, *, batch_size: int = 16) -> EncodedSegments:
        """Returns the segment encoder's embeddings of a video, the input of the model."""
        return encode_video(self.segment_encoder, self.model.config.segments or {}, video, batch_size=batch_size)

    def _features(
        self, videos: Video | Sequence[Video], batch_size: int, show_progress_bar: bool | None
    ) -> Iterator[np.ndarray]:
        """(1 + L, D) of each video: [CLS], then its tokens."""
        several: list[Video] = [videos] if _is_one(videos) else list(videos)  # type: ignore[list-item, arg-type]
        if not several:
            raise InputError("there is no video to encode")
        shown = len(several) > 1 if show_progress_bar is None else show_progress_bar
        for video in progress(several, desc="encode", unit="videos") if shown else several:
            yield self._represented(self.raw_segments(video, batch_size=batch_size).vectors)

    @own_state()
    def _represented(self, units: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            inputs = torch.from_numpy(units).to(self.device)[None]
            features = self.model(inputs_embeds=inputs, lengths=[len(units)]).last_hidden_state[0].float().cpu()
        if not bool(torch.isfinite(features).all()):
            raise WorkError("the run gives values that are not finite; its training has diverged")
        found: np.ndarray = features.numpy()
        return found


def encode_video(
    encoder: SegmentEncoder, rule: Mapping[str, Any], video: Video, *, batch_size: int = 16
) -> EncodedSegments:
    """A video's segments under a segment rule, through a segment encoder.

    Args:
        encoder: the segment encoder.
        rule: as in a store's manifest: {"kind": "fixed", "seconds": 5.0}.
        video: a path, a URL, or frames with their rate.
        batch_size: segments encoded at once.

    Raises:
        InputError: something that is no video, or shots of frames without a file.
        WorkError: the video cannot be decoded.
    """
    if batch_size < 1:
        raise InputError(f"a batch holds at least one segment, not {batch_size}")
    starts, ends, segments = _frames_of(encoder, rule, video)
    vectors: list[np.ndarray] = []
    waiting: list[np.ndarray] = []
    for frames in segments:
        waiting.append(frames)
        if len(waiting) == batch_size:
            vectors.append(encoder.encode_video(np.stack(waiting)))
            waiting = []
    if waiting:
        vectors.append(encoder.encode_video(np.stack(waiting)))
    return EncodedSegments(starts, ends, l2_normalize(np.concatenate(vectors)))


def _frames_of(
    encoder: SegmentEncoder, rule: Mapping[str, Any], video: Video
) -> tuple[np.ndarray, np.ndarray, Iterator[np.ndarray]]:
    from lvmae.video.decoding import decode_segments, prepared_frames, probe
    from lvmae.video.segmentation import segment_rule

    kind = "shots" if rule.get("kind") == "shots" else "fixed"
    cut = segment_rule(kind, rule.get("seconds") or rule.get("max_seconds"), rule.get("stride"))
    looks: dict[str, Any] = {"interpolation": encoder.interpolation, "framing": encoder.framing}
    if isinstance(video, Mapping):
        pictures, rate = _checked(video)
        if kind == "shots":
            raise InputError("shots are found in files: give a path, not frames")
        starts, ends = _laid_out(cut.lay_out("", 0.0, len(pictures) / rate))
        offsets = (np.arange(encoder.num_frames) + 0.5) / encoder.num_frames
        times = starts[:, None] + offsets * (ends - starts)[:, None]  # (L, T): the frame that a player shows then
        places = np.clip((times * rate + 1e-6).astype(np.int64), 0, len(pictures) - 1)
        return starts, ends, (prepared_frames(pictures[row], encoder.image_size, **looks) for row in places)
    path = os.fspath(video)
    if "://" not in path and not Path(path).is_file():
        raise InputError(f"there is no file {path}")
    starts, ends = _laid_out(cut.lay_out(path, 0.0, probe(path).duration))
    size: dict[str, Any] = {"num_frames": encoder.num_frames, "image_size": encoder.image_size}
    return starts, ends, decode_segments(path, starts, ends, **size, **looks)


def _laid_out(timeline: Any) -> tuple[np.ndarray, np.ndarray]:
    while True:
        try:
            next(timeline)
        except StopIteration as done:
            starts, ends = done.value
            return np.asarray(starts), np.asarray(ends)


def _checked(video: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    try:
        pictures, rate = np.asarray(video["frames"]), float(video["fps"])
    except (KeyError, TypeError, ValueError):
        raise InputError('frames come as {"frames": array, "fps": frames a second}') from None
    if pictures.ndim != 4 or pictures.dtype != np.uint8 or pictures.shape[-1] != 3 or not len(pictures):
        raise InputError(f"frames must be uint8 RGB (N, H, W, 3), not {pictures.dtype} {pictures.shape}")
    if not 0 < rate < float("inf"):
        raise InputError(f"fps must be a number above 0, not {rate}")
    return pictures, rate


def _is_one(videos: Video | Sequence[Video]) -> bool:
    return isinstance(videos, (str, os.PathLike, Mapping))
