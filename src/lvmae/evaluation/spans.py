"""Labels on spans of time: which segments show what, and where something begins and ends.

    table = probe_spans("reps", "spans.csv", raw="store", detect=True)
    saved = fit_span_probe("reps", "spans.csv"); predict_spans(saved, "reps")

A segment belongs to the span that it shares most with, where they share at least half of the shorter of the two; a segment
without a span belongs to no class. A linear probe reads each segment's own token, which of representations is
contextual. Videos, never segments, are on one side of a split, and drawn in a bootstrap.

Shapes: V videos, N segments of them all, C classes; class 0 of the segments is none.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lvmae.errors import InputError
from lvmae.evaluation.class_names import is_missing, one_name_a_class
from lvmae.evaluation.estimators import answers, fit_estimator, learnt_from, linear, quiet, standardised
from lvmae.evaluation.features import LEARNT, RAW
from lvmae.evaluation.labels import Labelled, read_label_table, splits_of
from lvmae.evaluation.matching import match_ids
from lvmae.evaluation.metrics import ACCURACY, Answered, bootstrap, probabilities
from lvmae.evaluation.probing import raw_store
from lvmae.evaluation.saved import SEGMENTS, SavedProbe, space_of, validate
from lvmae.evaluation.splits import SPLITS, balanced_split
from lvmae.evaluation.tables import Predictions, Rendered, plain
from lvmae.evaluation.task import Task, TooFewVideosError
from lvmae.evaluation.verdicts import constant_answers, details
from lvmae.files.table_files import cell_text, column_of
from lvmae.library.spans import Span, mean_average_precision, spans_of
from lvmae.process import own_state
from lvmae.progress import progress
from lvmae.store import REPRESENTATIONS, EmbeddingStore, VideoRecord, l2_normalize

log = logging.getLogger(__name__)

NONE = ""
OVERLAPS = (0.3, 0.4, 0.5, 0.6, 0.7)
_LEVELS = tuple(round(0.1 * n, 1) for n in range(1, 10))
_REPEATED = 0.5  # two spans of a class that overlap more are one


@dataclass(frozen=True)
class SpanLabels:
    """Labels on spans of videos.

    Attributes:
        spans: every labelled span.
        classes: the names, in order.
        splits: video -> "train", "val" or "test"; None if every seed draws its own split.
    """

    name: str
    spans: tuple[Span, ...]
    classes: tuple[str, ...]
    splits: dict[str, str] | None = None
    notes: tuple[str, ...] = ()

    @property
    def videos(self) -> tuple[str, ...]:
        return tuple(sorted({span.video for span in self.spans}))

    def clips(self, **more: Any) -> Task:
        """Returns the task of classifying each span from its own segments; spans of one video stay in one split."""
        number = {name: place for place, name in enumerate(self.classes)}
        splits = None if self.splits is None else np.array([self.splits[span.video] for span in self.spans])
        return Task(
            self.name,
            "classification",
            tuple(span.video for span in self.spans),
            np.array([number[span.label] for span in self.spans], dtype=np.int64),
            self.classes,
            splits,
            tuple((span.start, span.end) for span in self.spans),
            groups=tuple(span.video for span in self.spans) if splits is None else None,
            notes=self.notes,
            **more,
        )


def load_spans(path: str | Path) -> SpanLabels:
    """Reads a table of id, start, end, label and optionally split.

    Raises:
        InputError: for a file that is missing or malformed, a span without a label or of no length, one class only, or a
            video in two splits.
    """
    path = Path(path)
    table = read_label_table(path)
    rows = spans_of(table, path)
    if not rows:
        raise InputError(f"{path} labels no span; it has a header and nothing below it")
    for span, row in rows:
        if is_missing(span.label):
            raise InputError(f"the span of video '{span.video}' on {row.where} of {path} has no label; fill it in")
    names, notes = one_name_a_class([span.label for span, _ in rows], path)
    split_column = column_of(table.columns, ("split",))
    labelled = [
        Labelled(
            span.video, name, "" if split_column is None else cell_text(row.values.get(split_column)), "", row.where
        )
        for (span, row), name in zip(rows, names, strict=True)
    ]
    splits = splits_of(path, labelled)
    of_video: dict[str, str] = {}
    if splits is not None:
        for row_, split in zip(labelled, splits.tolist(), strict=True):
            if of_video.setdefault(row_.id, split) != split:
                raise InputError(
                    f"video '{row_.id}' in {path} is in both {of_video[row_.id]} and {split}; "
                    "a test must not share videos with what it tests"
                )
    spans = tuple(replace(span, label=name) for (span, _), name in zip(rows, names, strict=True))
    return SpanLabels(path.stem, spans, tuple(sorted(set(names))), of_video or None, tuple(notes))


# ------------------------------------------------------------------------------------------------------- segments


@dataclass(frozen=True)
class _Segments:
    """All segments of the labelled videos of a store: tokens (N, D), their videos (N) and targets (N), 0 is none."""

    name: str
    tokens: NDArray[np.float64]
    video: NDArray[np.intp]
    targets: NDArray[np.int64]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]


def segment_targets(record: VideoRecord, spans: Sequence[Span], classes: Sequence[str]) -> NDArray[np.int64]:
    """(L): the number of each segment's class, from 1, by the span that it shares most with; 0 if it is of none."""
    found, best = np.zeros(len(record.starts), np.int64), np.zeros(len(record.starts))
    for span in spans:
        shared = np.minimum(record.ends, span.end) - np.maximum(record.starts, span.start)
        enough = shared >= 0.5 * np.minimum(record.ends - record.starts, span.end - span.start) - 1e-9
        better = enough & (shared > best)
        found[better], best[better] = list(classes).index(span.label) + 1, shared[better]
    return found


def _segments(store: EmbeddingStore, places: Sequence[int], ids: Sequence[str], labels: SpanLabels) -> _Segments:
    of_video: dict[str, list[Span]] = {}
    for span in labels.spans:
        of_video.setdefault(span.video, []).append(span)
    parts = []
    for number, (place, id_) in enumerate(zip(places, ids, strict=True)):
        record = store[place]
        targets = segment_targets(record, of_video[id_], labels.classes)
        parts.append((_tokens(store, record), np.full(len(targets), number), targets, record.starts, record.ends))
    tokens, video, targets, starts, ends = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _Segments(LEARNT if store.kind == REPRESENTATIONS else RAW, tokens, video, targets, starts, ends)


def _tokens(store: EmbeddingStore, record: VideoRecord) -> NDArray[np.float64]:
    values = record.embeddings if store.kind == REPRESENTATIONS else l2_normalize(record.embeddings)
    return np.asarray(values, dtype=np.float64)


def _labelled(store: EmbeddingStore, labels: SpanLabels) -> tuple[list[int], list[str], tuple[str, ...], list[str]]:
    """Places and ids of the labelled videos that a store has, those that it has not, and notes."""
    matches = match_ids(labels.videos, store.ids, labels.name)
    here = [(place, id_) for place, id_ in zip(matches.places, labels.videos, strict=True) if place is not None]
    missing = tuple(id_ for place, id_ in zip(matches.places, labels.videos, strict=True) if place is None)
    bad = [id_ for place, id_ in here if not np.isfinite(store.embeddings(place)).all()]
    notes = [*labels.notes, matches.note()]
    if bad:
        notes.append(f"{len(bad)} videos have values that are not finite and are left out: {', '.join(bad[:3])}.")
        here = [(place, id_) for place, id_ in here if id_ not in bad]
    if not here:
        some = f" such as '{labels.videos[0]}'; its ids look like '{store.ids[0]}'" if len(store) else ""
        raise TooFewVideosError(f"the store has none of the {len(labels.videos)} videos of {labels.name},{some}")
    return [place for place, _ in here], [id_ for _, id_ in here], missing, [note for note in notes if note]


def _task(labels: SpanLabels, ids: Sequence[str], segments: _Segments, seed: int) -> Task:
    """The segments as a task, split by video."""
    if labels.splits is not None:
        of_video = np.array([labels.splits[id_] for id_ in ids])
    else:
        shown = np.array(
            [[(segments.targets[segments.video == n] == c).any() for c in range(1, len(labels.classes) + 1)]
             for n in range(len(ids))]
        )  # fmt: skip
        of_video = np.full(len(ids), "train", dtype="<U5")
        for name, rows in balanced_split(ids, shown, None, seed).items():
            of_video[rows] = name
    names = tuple(f"{ids[n]}#{i}" for i, n in enumerate(segments.video.tolist()))
    where = of_video[segments.video]
    empty = [name for name in SPLITS if name not in where]
    if empty:
        raise TooFewVideosError(
            f"the store has no video of {labels.name} for {' and '.join(empty)}; label or embed more"
        )
    return Task(labels.name, "classification", names, segments.targets, (NONE, *labels.classes), where)


# ---------------------------------------------------------------------------------------------------------- probing


@dataclass(frozen=True)
class SpanRow:
    """One set of features: accuracy of its segments, macro-F1, and mAP of its spans by least overlap, all in per cent.

    Attributes:
        stderr, interval: of the accuracy, over test videos; `minus_raw` is its paired difference to the raw row.
        detection: "0.3" and so on, and "mean" -> mAP; empty if spans were not asked for.
        chosen: the strength that val chose, a seed each.
    """

    features: str
    probe: str
    mean: float
    stderr: float
    interval: tuple[float, float]
    detection: dict[str, float]
    chosen: tuple[dict[str, float], ...]
    minus_raw: dict[str, float] | None = None
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpanTable(Rendered):
    """The results of linear probes on segments and spans. `counts` are videos in the first seed's split."""

    task: str
    classes: tuple[str, ...]
    counts: dict[str, int]
    segments: int
    seeds: int
    split: str
    chance: dict[str, float]
    rows: tuple[SpanRow, ...]
    missing: tuple[str, ...] = ()
    said: tuple[str, ...] = ()
    metric: str = ACCURACY.name

    def cells(self, *, compare: bool = False) -> tuple[list[str], list[list[str]]]:
        header = ["features", "probe", "segments, accuracy %", "± SE", "macro-F1 %"]
        detected = list(self.rows[0].detection)
        header += [f"mAP@{name}" if name != "mean" else "mAP, mean" for name in detected]
        rows = [
            [r.features, r.probe, f"{r.mean:.1f}", f"± {r.stderr:.1f}", f"{r.details['macro_f1']:.1f}",
             *(f"{r.detection[name]:.1f}" for name in detected)]
            for r in self.rows
        ]  # fmt: skip
        empty = [""] * (len(header) - 3)
        rows += [[f"chance: {name}", "", f"{value:.1f}", *empty] for name, value in self.chance.items()]
        return header, rows

    def notes(self) -> list[str]:
        counts = ", ".join(f"{number} {name}" for name, number in self.counts.items())
        notes = [
            f"{self.task}: spans of {len(self.classes)} classes; {self.segments} segments of videos: {counts}; split "
            f"{self.split}; the strength chosen on val. SE: over test videos. A segment of no span is a class of its own."
        ]
        for row in self.rows:
            if row.minus_raw:
                value, low, high = (f"{row.minus_raw[key]:+.1f}" for key in ("value", "low", "high"))
                notes.append(f"{row.features} minus raw, segments: {value} ({low} to {high}), paired over test videos.")
        if self.missing:
            some = ", ".join(self.missing[:3])
            notes.append(f"{len(self.missing)} labelled videos are not in the store, such as {some}.")
        return [*notes, *self.said]

    def absent(self) -> list[tuple[str, str, str]]:
        return [(self.task, "", name) for name in self.missing]

    def predicted(self) -> list[Predictions]:
        return []

    def records(self) -> list[dict[str, Any]]:
        return [
            {"task": self.task, "features": r.features, "probe": r.probe, "accuracy": r.mean, "stderr": r.stderr,
             "macro_f1": r.details["macro_f1"], **{f"mAP@{name}": value for name, value in r.detection.items()}}
            for r in self.rows
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return plain(asdict(self))  # type: ignore[no-any-return]


@own_state()
def probe_spans(
    features: str | Path | EmbeddingStore,
    labels: str | Path | SpanLabels,
    *,
    raw: str | Path | EmbeddingStore | None = None,
    detect: bool = False,
    seeds: int = 5,
    class_weight: str | None = None,
    resamples: int = 1000,
) -> SpanTable:
    """Classifies the segments of videos with a linear probe, and detects spans with it.

    Args:
        features: representations, or raw embeddings.
        labels: a table of spans (`load_spans`). Videos that the store lacks are counted and listed.
        raw: the store of raw embeddings, for a row of its own.
        detect: also find spans in test videos, and judge them by mAP at overlaps of 0.3 to 0.7.
        seeds: splits to draw, where the labels name none; with a fixed split one says all.
        class_weight: "balanced" weights every class alike.
        resamples: of the test videos, behind the standard error.

    Raises:
        InputError: for labels or stores that do not fit.
    """
    if seeds < 1:
        raise InputError(f"a probe needs at least 1 seed, not {seeds}")
    store = EmbeddingStore.open(features)
    spans = labels if isinstance(labels, SpanLabels) else load_spans(labels)
    places, ids, missing, notes = _labelled(store, spans)
    sets = [_segments(store, places, ids, spans)]
    if raw is not None:
        other = raw_store(raw, store)
        where = {id_: place for place, id_ in enumerate(other.ids)}
        lacking = [store.ids[place] for place in places if store.ids[place] not in where]
        if lacking:
            raise InputError(f"{len(lacking)} labelled videos are not in {other.path}, such as '{lacking[0]}'")
        sets.insert(0, _segments(other, [where[store.ids[place]] for place in places], ids, spans))
        if len(sets[0].targets) != len(sets[1].targets):
            raise InputError(f"{other.path} has other segments than {store.path}; represent the store again")
    seeds = 1 if spans.splits is not None else seeds
    tasks = [_task(spans, ids, sets[0], seed) for seed in range(seeds)]
    splits = [task.split(0) for task in tasks]
    answered: list[list[Answered]] = []
    chosen: list[list[dict[str, float]]] = []
    found: list[list[dict[float, float]]] = []
    with progress(desc=f"probe {spans.name}", unit="fits", total=len(sets) * seeds) as bar:
        for part in sets:
            answered.append([])
            chosen.append([])
            found.append([])
            for task, parts in zip(tasks, splits, strict=True):
                best = fit_estimator("linear", part.tokens, task, parts, class_weight=class_weight)
                outputs = answers("classification", best.pipeline, part.tokens[parts["test"]], len(task.classes))
                answered[-1].append(Answered(outputs, parts["test"]))
                chosen[-1].append(best.setting)
                if detect:
                    found[-1].append(_judged(spans, ids, part, answered[-1][-1]))
                bar.update(1)
    rows = []
    for number, part in enumerate(sets):
        figure = bootstrap(ACCURACY, answered[number], part.targets, resamples, clusters=part.video)
        beyond = None
        if len(sets) == 2 and number == 1:
            beyond = bootstrap(ACCURACY, answered[1], part.targets, resamples, minus=answered[0], clusters=part.video)
        detection = {f"{o:g}": float(np.mean([one[o] for one in found[number]])) for o in OVERLAPS} if detect else {}
        if detect:
            detection["mean"] = float(np.mean(list(detection.values())))
        rows.append(
            SpanRow(
                part.name,
                "linear",
                figure.value,
                figure.stderr,
                (figure.low, figure.high),
                detection,
                tuple(chosen[number]),
                asdict(beyond) if beyond else None,
                details(tasks[0], answered[number]),
            )
        )
    ((name, constant),) = constant_answers(tasks[0], splits).items()
    videos = {part: len({ids[n] for n in sets[0].video[rows_].tolist()}) for part, rows_ in splits[0].items()}
    return SpanTable(
        spans.name,
        spans.classes,
        videos,
        len(sets[0].targets),
        seeds,
        "drawn by each seed" if spans.splits is None else "fixed",
        {name: bootstrap(ACCURACY, constant, sets[0].targets, 1, clusters=sets[0].video).value},
        tuple(rows),
        missing,
        tuple(notes),
    )


def _judged(labels: SpanLabels, ids: Sequence[str], part: _Segments, run: Answered) -> dict[float, float]:
    scores = probabilities("classification", run.outputs)
    videos = part.video[run.rows]
    predicted: list[Span] = []
    for number in np.unique(videos).tolist():
        here = run.rows[videos == number]
        predicted += detect_spans(
            ids[number], scores[videos == number], part.starts[here], part.ends[here], labels.classes
        )
    tested = {ids[number] for number in np.unique(videos).tolist()}
    return mean_average_precision(predicted, [span for span in labels.spans if span.video in tested], OVERLAPS)


def detect_spans(
    video: str,
    scores: NDArray[np.float64],
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    classes: Sequence[str],
) -> list[Span]:
    """The spans that segments' probabilities (L, C + 1) show, the surest first.

    Runs of segments at least as probable as each of nine levels, judged by how much more probable they are than their
    surroundings (the outer-inner contrast of Shou et al. 2018, AutoLoc); of those of a class that overlap by more than
    half the best is kept.
    """
    found: list[Span] = []
    for number, name in enumerate(classes, start=1):
        p = scores[:, number]
        runs = {run for level in _LEVELS for run in _runs(p >= level)}
        candidates = []
        for first, last in runs:
            margin = max(1, round((last - first) / 4))
            around = np.concatenate([p[max(0, first - margin) : first], p[last : last + margin]])
            contrast = float(p[first:last].mean() - (around.mean() if len(around) else 0.0))
            candidates.append(Span(video, float(starts[first]), float(ends[last - 1]), name, contrast))
        kept: list[Span] = []
        for one in sorted(candidates, key=lambda span: (-span.score, span.start, span.end)):
            shared = [min(one.end, k.end) - max(one.start, k.start) for k in kept]
            shorter = [min(one.end - one.start, k.end - k.start) for k in kept]
            if all(s <= _REPEATED * length for s, length in zip(shared, shorter, strict=True)):
                kept.append(one)
        found += kept
    return sorted(found, key=lambda span: (-span.score, span.start))


def _runs(inside: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """[first, last) of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], inside, [False]]).astype(np.int8)))
    return [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]


# ------------------------------------------------------------------------------------------------------ kept probes


@own_state()
def fit_span_probe(
    features: str | Path | EmbeddingStore, labels: str | Path | SpanLabels, *, class_weight: str | None = None
) -> SavedProbe:
    """Fits a linear probe on segments to all labelled videos, except those of a fixed test split; see `saved`.

    Raises:
        InputError: for labels or a store that do not fit.
    """
    store = EmbeddingStore.open(features)
    spans = labels if isinstance(labels, SpanLabels) else load_spans(labels)
    if spans.splits is not None:
        spans = replace(spans, spans=tuple(s for s in spans.spans if spans.splits[s.video] != "test"))
    places, ids, _, _ = _labelled(store, spans)
    part = _segments(store, places, ids, spans)
    present = np.unique(part.targets)
    classes = tuple((NONE, *spans.classes)[number] for number in present)
    if len(classes) < 2:
        raise InputError(
            f"the spans of {spans.name} make every segment one class; a probe needs two, or unlabelled time"
        )
    videos = [ids[number] for number in part.video.tolist()]
    names = tuple(f"{video}#{i}" for i, video in enumerate(videos))
    task = Task(spans.name, "classification", names, np.searchsorted(present, part.targets), classes)
    found = validate(part.tokens, task, class_weight, groups=videos)
    with quiet():
        pipeline = linear(task.kind, found.strength, class_weight)
        pipeline.fit(part.tokens, learnt_from(task, "linear", np.arange(len(task))))
    weights, bias = standardised(pipeline)
    made_by = store.manifest.run or {}
    return SavedProbe(
        weights,
        bias,
        task.kind,
        classes,
        SEGMENTS,
        "tokens",
        space_of(store),
        found.temperature,
        None,
        (ACCURACY.name, found.score),
        {"C": found.strength},
        tuple(store.ids[place] for place in places),
        {key: str(made_by[key]) for key in ("path", "fingerprint") if key in made_by},
    )


@own_state()
def predict_spans(probe: str | Path | SavedProbe, store: str | Path | EmbeddingStore) -> list[Span]:
    """Returns the spans that a saved segment probe finds in every video: runs of segments with one most probable class.

    A span's score is the mean of its segments' calibrated probabilities.

    Raises:
        InputError: there is no such probe or store, the store is of another space, or the probe is one of whole videos.
    """
    saved = probe if isinstance(probe, SavedProbe) else SavedProbe.load(probe)
    store = EmbeddingStore.open(store)
    saved.check(store)
    if saved.of != SEGMENTS:
        raise InputError("this probe was fitted to whole videos; it predicts classes of videos, not spans")
    found, failed = [], []
    for place in range(len(store)):
        record = store[place]
        tokens = _tokens(store, record)
        if not np.isfinite(tokens).all():
            failed.append(record.id)
            continue
        scores = saved.outputs(tokens)
        best = scores.argmax(axis=1)
        for number, name in enumerate(saved.classes):
            if name == NONE:
                continue
            for first, last in _runs(best == number):
                score = float(scores[first:last, number].mean())
                found.append(Span(record.id, float(record.starts[first]), float(record.ends[last - 1]), name, score))
    if failed:
        log.warning(
            "%d videos have values that are not finite and are left out: %s", len(failed), ", ".join(failed[:5])
        )
    return sorted(found, key=lambda span: (span.video, span.start))
