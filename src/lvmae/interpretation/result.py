"""`interpret`: from a run and a store to numbers, readings and the report page."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lvmae.devices import pick_device
from lvmae.errors import InputError, WorkError
from lvmae.interpretation.retrieval import INTERPOLATION, KINDS, MEAN, RECONSTRUCTION, Reader, masked_windows
from lvmae.interpretation.texts import Texts
from lvmae.library.captions import Caption, captions_by_video, load_captions
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.report import Picture, ReportData, ScoreTable, VideoData, render
from lvmae.runs import TRAIN, check_space, load_run_autoencoder, read_split
from lvmae.sequences import shortest_maskable
from lvmae.store import EmbeddingStore, located

_SHOWN_SEGMENTS = 20_000  # on a page, at most


@dataclass
class Interpretation:
    """The result of `interpret`: retrieval figures over a store, and reconstructions of its videos as captions.

    `metrics` is plain data: `cosine` of each kind of embedding with the hidden original ("reconstruction" and the two floors),
    and `retrieval` (captions given) or `words` (the encoder's vocabulary), None if there are no texts. `held_out` has
    the same of the videos that the run was not trained on, None if that is not known or there are none. `videos` are those
    shown on the page; positions in their lists of texts refer to `texts`. `moments` maps a text to its best (video, segment,
    cosine). `notes` say what was left out.
    """

    metrics: dict[str, Any]
    videos: list[VideoData]
    texts: list[str] = field(default_factory=list)
    moments: dict[int, list[tuple[int, int, float]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def held_out_table(self) -> ScoreTable | None:
        """Returns the figures on videos that the run was not trained on; None if there are none, or it is not known."""
        held = self.metrics.get("held_out")
        if held is None:
            return None
        title = f"What the hidden segments read as, on {held['videos']:,} videos that the run was not trained on"
        return self._table(held, title)

    def table(self) -> ScoreTable:
        """Returns the figures over all videos, one row per kind of embedding."""
        where = "" if self.metrics.get("held_out") is None else ", on all videos"
        return self._table(self.metrics, f"What the hidden segments read as{where}")

    def _tables(self) -> list[ScoreTable]:
        """The held-out figures first."""
        held = self.held_out_table()
        return [self.table()] if held is None else [held, self.table()]

    @staticmethod
    def _table(metrics: Mapping[str, Any], title: str) -> ScoreTable:
        cosine, retrieval, words = (metrics[name] for name in ("cosine", "retrieval", "words"))
        columns, note = ["embedding", "cosine"], f"{metrics['masked']:,} hidden segments. "
        rows: list[list[str | float | int | None]] = [[kind, cosine[kind]] for kind in KINDS]
        if retrieval:
            names = {"R@1": "R@1", "R@5": "R@5", "R@10": "R@10", "median_rank": "median rank", "agreement": "agreement"}
            note += (
                f"Recall and rank of the own caption of {retrieval['queries']:,} of them among "
                f"{retrieval['captions']:,} distinct captions; agreement is the cosine between the retrieved caption's "
                "text and the true one's."
            )
        elif words:
            names = {"same": "same word", "agreement": "agreement"}
            note += (
                f"Their nearest of {words['vocabulary']:,} words: how often it is the original's, and the cosine between "
                "the two words' texts."
            )
        else:
            names = {}
        columns += names.values()
        for row in rows:
            numbers = {name: (retrieval or words)[row[0]][name] for name in names}
            row += [f"{value:g}" if name == "median_rank" else value for name, value in numbers.items()]
        return ScoreTable(title, columns, rows, note.strip())

    def to_markdown(self) -> str:
        """Returns the tables with their notes as Markdown, held-out videos first."""
        tables = self._tables()
        parts = []
        for table in tables:
            lines = [table.columns, [":--", *["--:"] * (len(table.columns) - 1)]]
            lines += [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in table.rows]
            text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
            parts += [f"{table.title}:"] * (len(tables) > 1) + [text, table.note]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def report(self, *, tables: Sequence[ScoreTable] = (), loss_png: bytes | None = None) -> ReportData:
        """Returns the data of the report page."""
        m = self.metrics
        first = m if m.get("held_out") is None else m["held_out"]
        which = (
            "Of each video" if first is m else f"Of each of {first['videos']:,} videos that the run was not trained on"
        )
        lead = (
            f"{which}, {m['ratio']:.0%} was hidden and reconstructed from the rest: {first['masked']:,} of "
            f"{first['segments']:,} segments, at a mean cosine of {first['cosine'][RECONSTRUCTION]:.3f} with what was there. "
            f"Interpolating the visible neighbours gives {first['cosine'][INTERPOLATION]:.3f}, their mean "
            f"{first['cosine'][MEAN]:.3f}."
        )
        facts = [
            ("run", m["run"]),
            ("store", m["store"]),
            ("encoder", m["encoder"]),
            ("encoder's licence", m["licence"]),
            ("mask", f"{m['mask']}, {m['ratio']:.0%}"),
            ("videos", f"{m['videos']:,}"),
        ]
        return ReportData(
            title=Path(m["store"]).name,
            lead=lead,
            facts=facts,
            scores=self._tables()[0],
            videos=self.videos,
            texts=self.texts,
            moments=dict(self.moments),
            tables=[*self._tables()[1:], *tables],
            loss_png=loss_png,
            texts_are="captions and words" if m["retrieval"] else "words",
            notes=self.notes,
        )


@own_state()
def interpret(
    run: str | Path,
    store: str | Path | EmbeddingStore,
    *,
    captions: str | Path | Sequence[Caption] | None = None,
    out: str | Path | None = None,
    ratio: float = 0.4,
    mask: str = "random",
    seed: int = 0,
    top_k: int = 5,
    max_videos: int = 40,
    pictures: int = 1000,
    tables: Sequence[ScoreTable] = (),
    device: str | None = None,
    precision: str = "auto",
    batch_tokens: int = 8192,
) -> Interpretation:
    """Masks and reconstructs the videos of a store, and retrieves captions for the reconstructions.

    Args:
        run: folder of a trained model.
        store: embeddings of the space the run was trained on.
        captions: a caption file, captions, or None for the encoder's own vocabulary.
        out: where to write the report page; None writes nothing.
        ratio, mask, seed: share of segments hidden, strategy, and what fixes the masks.
        top_k: texts retrieved for a segment.
        max_videos: videos shown, evenly from the store; the numbers are over all of it.
        pictures: pictures on the page, at most; they come from the videos' files where those are at hand.
        tables: further tables for the page, such as a probe's.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None is "auto".
        precision: "fp32", "bf16" or "auto", which is bf16 on CUDA, of the model; what flows between blocks is float32.
        batch_tokens: segments in a batch, at most.

    Raises:
        InputError: no run, no store, of two spaces, captions that cannot be used, or no video long enough to hide a part of.
        WorkError: the reconstructions are not finite.
    """
    for name, value, least in (
        ("seed", seed, 0),
        ("top_k", top_k, 1),
        ("max_videos", max_videos, 1),
        ("pictures", pictures, 0),
        ("batch_tokens", batch_tokens, 1),
    ):
        if value < least:
            raise InputError(f"`{name}` is {value}: it has to be {least} or more")
    shortest_maskable(ratio)  # refuses a ratio that none is
    store = EmbeddingStore.open(store)
    place = pick_device(device)
    model = load_run_autoencoder(run)
    check_space(run, model.config, store)
    if not model.objective.in_embedding_space:
        raise InputError(
            f"the objective of {run}, {model.config.loss}, predicts no embeddings, so there is nothing to read back; train a run "
            "with another loss"
        )
    module: torch.nn.Module = model
    module.to(place).eval()
    notes: list[str] = []
    by_video = None
    if captions is not None:
        loaded = load_captions(captions) if isinstance(captions, (str, Path)) else captions
        by_video = captions_by_video(loaded, store.ids)
    texts = Texts.read(store, by_video, place, notes)
    shown = _choose(store.lengths, max_videos)
    reader = Reader(model, store, texts, set(shown), top_k=top_k, device=place, precision=precision)
    jobs = masked_windows(
        store, set(shown), max_segments=model.config.max_segments, ratio=ratio, strategy=mask, seed=seed
    )
    reader.read(jobs, batch_tokens)
    encoder = store.manifest.encoder
    metrics = {
        "run": str(run),
        "store": str(store.path),
        "space_id": store.space_id,
        "encoder": str(encoder.get("name") or "unknown"),
        "licence": str(encoder.get("licence") or "unknown"),
        "mask": mask,
        "ratio": ratio,
        "seed": seed,
        "videos": len(store),
        "segments": int(store.lengths.sum()),
        **(reader.metrics() or {}),
        **_held_out(run, store, reader, notes),
    }
    if reader.unhidden:
        notes.append(f"{reader.unhidden} stretches were too short to hide {ratio:.0%} of them, and are not scored.")
    if len(shown) < len(store):
        notes.append(f"{len(shown)} of {len(store)} videos are shown; the numbers are over all of them.")
    if out is not None:
        reader.find_neighbours(batch_tokens)
    page_texts, moments = texts.moments(store, shown)
    if len(moments) < len(texts.names):
        notes.append(f"The page can be searched by {len(moments):,} of {len(texts.names):,} texts.")
    result = Interpretation(metrics, *_number_texts([reader.video(i) for i in shown], texts.names, page_texts, moments))
    result.notes = notes
    if out is not None:
        _add_pictures(result, store, shown, pictures)
        loss = Path(run) / "loss.png"
        render(result.report(tables=tables, loss_png=loss.read_bytes() if loss.is_file() else None), out)
    return result


def _held_out(run: str | Path, store: EmbeddingStore, reader: Reader, notes: list[str]) -> dict[str, Any]:
    """The figures on videos that the run was not trained on; says in `notes` what it was trained on."""
    split = read_split(run)
    if split is None:
        notes.append("It is not recorded which of these videos the run was trained on: an older lvmae trained it.")
        return {"held_out": None, "trained_on": None}
    held = [place for place, identity in enumerate(store.ids) if split.get(identity) != TRAIN]
    seen = len(store) - len(held)
    figures = reader.metrics(held) if seen else None
    if not seen:
        notes.append(f"The run was trained on none of the {len(store):,} videos.")
    elif figures is None:
        notes.append(f"The run was trained on {seen:,} of the {len(store):,} videos, and none of the others is scored: "
                     "the figures flatter.")  # fmt: skip
    else:
        notes.append(f"The run was trained on {seen:,} of the {len(store):,} videos; on these the figures flatter.")
        figures |= {"videos": len(held), "segments": int(store.lengths[held].sum())}
    return {"held_out": figures, "trained_on": seen}


def _choose(lengths: np.ndarray, most: int) -> list[int]:
    """Videos to show: `most` of them, evenly through the store, of `_SHOWN_SEGMENTS` segments together."""
    chosen: list[int] = np.unique(
        np.linspace(0, len(lengths) - 1, min(most, len(lengths))).round().astype(int)
    ).tolist()
    while len(chosen) > 1 and sum(int(lengths[i]) for i in chosen) > _SHOWN_SEGMENTS:
        chosen = chosen[::2]
    return chosen


def _number_texts(
    videos: list[VideoData], names: list[str], searchable: list[int], moments: dict[int, list[tuple[int, int, float]]]
) -> tuple[list[VideoData], list[str], dict[int, list[tuple[int, int, float]]]]:
    """Keeps the texts that the page needs, the searchable first, and renumbers all places to that list."""
    new = {text: i for i, text in enumerate(searchable)}
    for video in videos:
        video.captions = [[new.setdefault(t, len(new)) for t in texts] for texts in video.captions]
        for name in ("from_original", "from_reconstruction"):
            found = getattr(video, name)
            setattr(video, name, [[(new.setdefault(t, len(new)), score) for t, score in texts] for texts in found])
    return videos, [names[text] for text in new], {new[text]: hits for text, hits in moments.items()}


def _add_pictures(result: Interpretation, store: EmbeddingStore, shown: Sequence[int], most: int) -> None:
    """Pictures from the videos' own files, evenly along them; a note if there are none, or not of every segment."""
    every = math.ceil(sum(len(video.starts) for video in result.videos) / max(1, most))
    try:
        from lvmae.video.decoding import thumbnails
    except ImportError as error:
        result.notes.append(f"There are no pictures: {error.name}, which reads video files, is not installed.")
        return

    def pictures(video: VideoData, source: str) -> list[Picture] | WorkError:
        times = [(start + end) / 2 for start, end in zip(video.starts[::every], video.ends[::every], strict=True)]
        if not Path(source).is_file():
            return WorkError("its file is not at hand")
        try:
            return [Picture(t, jpeg) for t, jpeg in zip(times, thumbnails(source, times, 90), strict=True) if jpeg]
        except WorkError as error:
            return error

    missing: list[str] = []
    sources = [located(store, store[index].source) for index in shown]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # decoding lets other threads run
        found = pool.map(pictures, result.videos, sources)
        bar = progress(found, desc="pictures", unit="videos", total=len(shown))
        for video, got in zip(result.videos, bar, strict=True):
            if isinstance(got, WorkError):
                missing.append(f"{video.id} ({got})")
            else:
                video.pictures = got
    if missing:
        result.notes.append(f"{len(missing)} videos have no pictures; the first is {missing[0]}.")
    if every > 1 and len(missing) < len(shown):
        result.notes.append(f"One picture was taken every {every} segments.")
