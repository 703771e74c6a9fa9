"""Saved probes: from a few labels to all videos of a store, or of any store of the same space.

    saved = fit_probe("reps", "labels.csv")
    saved.save("PROBE")
    predict("PROBE", "reps")       # every video's classes, with calibrated scores
    suggest("PROBE", "reps", 20)   # the videos whose label would teach most

A kept probe is linear: weights and a bias on a pooled vector (or on each segment's token, see `spans`), in a safetensors
file, and a JSON file that says what they are of. Nothing in it is executed.

How it is fitted: the strength of regularisation is chosen by the loss of cross-validation over the labelled videos, the
logits are divided by the temperature at which that loss is least (Guo et al. 2017), and the weights are then fitted to all
labelled videos; those of a fixed test split stay unseen, so that they can still be tested on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

import lvmae
from lvmae.errors import InputError, WorkError
from lvmae.evaluation.estimators import STRENGTHS, answers, learnt_from, linear, quiet, standardised
from lvmae.evaluation.features import Features, has_span, load_features
from lvmae.evaluation.labels import load_labels
from lvmae.evaluation.metrics import loss, probabilities
from lvmae.evaluation.task import Task, found_in
from lvmae.files.writing import write_bytes, write_json
from lvmae.process import own_state
from lvmae.store import EmbeddingStore

FORMAT = 1
_JSON, _WEIGHTS = "probe.json", "probe.safetensors"
_FOLDS = 5
_LEAST_CANDIDATES = 50
_NEAREST = 10
VIDEOS, SEGMENTS = "videos", "segments"


@dataclass(frozen=True)
class SavedProbe:
    """A saved linear probe with its classes, readout and embedding space.

    Attributes:
        weights, bias: float64 (D, K) and (K), on vectors as `readout` pools them; logits, or a value.
        kind: "classification", "multilabel" or "regression".
        classes: (K) names; none of a regression.
        of: "videos", or "segments" whose first class is none.
        readout: of `READOUTS`; "tokens" of segments.
        space: what the features must be of: kind, space_id and dim of the store.
        temperature: what logits are divided by to be calibrated.
        error: of a regression, the root of the mean squared error in cross-validation.
        agreement: the score in cross-validation, in the metric's own unit, and the metric's name.
        chosen: the strength of regularisation.
        labelled: the ids that it was fitted to.
        run: the path and fingerprint of the run that the features are of; empty for raw embeddings.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    kind: str
    classes: tuple[str, ...]
    of: str
    readout: str
    space: dict[str, Any]
    temperature: float = 1.0
    error: float | None = None
    agreement: tuple[str, float] | None = None
    chosen: dict[str, float] = field(default_factory=dict)
    labelled: tuple[str, ...] = ()
    run: dict[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Writes the probe to the folder `path`, and replaces a probe there.

        Raises:
            InputError: something else is there.
            WorkError: the disk refuses it.
        """
        folder = Path(path)
        if folder.exists() and not (folder / _JSON).is_file() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} exists and holds no probe; name another folder for this one")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WorkError(f"{folder} cannot be made: {error.strerror}; name another folder for the probe") from None
        told = {key: value for key, value in asdict(self).items() if key not in ("weights", "bias")}
        write_bytes(folder / _WEIGHTS, save({"weights": self.weights, "bias": self.bias}))
        write_json(folder / _JSON, {"format": FORMAT, "lvmae": lvmae.__version__, **told})
        return folder

    @classmethod
    def load(cls, path: str | Path) -> SavedProbe:
        """Reads a probe that `save` wrote.

        Raises:
            InputError: there is none, or it is damaged or of a later version.
        """
        folder = Path(path)
        try:
            told = json.loads((folder / _JSON).read_text(encoding="utf-8"))
            if told.pop("format") != FORMAT:
                raise InputError(f"the probe {folder} was saved by a later lvmae ({told.get('lvmae')}); update lvmae")
            told.pop("lvmae")
            arrays = load((folder / _WEIGHTS).read_bytes())
            told |= {"classes": tuple(told["classes"]), "labelled": tuple(told["labelled"])}
            told["agreement"] = tuple(told["agreement"]) if told["agreement"] else None
            found = cls(arrays["weights"], arrays["bias"], **told)
            if found.weights.ndim != 2 or found.bias.shape != found.weights.shape[1:]:
                raise ValueError("its weights have another shape")
        except FileNotFoundError:
            raise InputError(f"{folder} holds no saved probe; make one with `lvmae probe ... --save`") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise InputError(f"the probe {folder} cannot be read ({error}); save it again") from None
        return found

    def check(self, store: EmbeddingStore) -> None:
        """Raises InputError for a store of another space."""
        has = space_of(store)
        if has != self.space:
            names = ("kind", "space_id", "dim")
            wrong = next(name for name in names if has[name] != self.space[name])
            raise InputError(
                f"this probe reads {self.space['kind']} of the space {self.space['space_id']} ({self.space['dim']} wide), "
                f"and {store.path} holds {has['kind']} of {has['space_id']} ({has['dim']} wide): another {wrong}; "
                "give a store of the same encoder and run, or fit a probe to this one"
            )

    def outputs(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """Returns probabilities, or values of a regression, (V, K), for pooled vectors (V, D)."""
        return probabilities(self.kind, (x @ self.weights + self.bias) / self.temperature)


def space_of(store: EmbeddingStore) -> dict[str, Any]:
    """What a probe's features must agree in."""
    return {"kind": store.kind, "space_id": store.space_id, "dim": store.dim}


@own_state()
def fit_probe(
    features: str | Path | EmbeddingStore,
    labels: str | Path | Task,
    *,
    kind: str | None = None,
    readouts: Sequence[str] | None = None,
    class_weight: str | None = None,
    group: str | None = None,
) -> SavedProbe:
    """Fits a linear probe to all labelled videos of a store, except those of a fixed test split.

    Args:
        features, labels, kind, class_weight, group: as `probe` takes them.
        readouts: of `READOUTS`, among which cross-validation chooses; None takes all that the features have.

    Raises:
        InputError: for labels or a store that do not fit.
    """
    store = EmbeddingStore.open(features)
    if not isinstance(labels, Task):
        labels = load_labels(labels, kind=kind, known=store.ids, group=group)
    task, places = found_in(labels, store.ids, lambda place, span: has_span(store[place], *span))
    known = load_features(store, places, task.spans)
    rows = np.flatnonzero(known.finite() if task.splits is None else known.finite() & (task.splits != "test"))
    task, known = task.take(rows), known.take(rows)
    possible = [readout for readout in known.readouts() if readout != "layers"]
    wrong = [r for r in readouts or () if r not in possible]
    if wrong:
        raise InputError(f"{known.name} have no readout '{wrong[0]}'; choose of {', '.join(possible)}")
    best: tuple[float, _Validated, str] | None = None
    for readout in readouts or possible:
        found = validate(known.pooled(readout), task, class_weight)
        if best is None or found.loss < best[0]:
            best = found.loss, found, readout
    assert best is not None
    _, chosen, readout = best
    with quiet():
        everything = np.arange(len(task))
        pipeline = linear(task.kind, chosen.strength, class_weight)
        pipeline.fit(known.pooled(readout), learnt_from(task, "linear", everything))
    weights, bias = standardised(pipeline)
    made_by = store.manifest.run or {}
    return SavedProbe(
        weights,
        bias,
        task.kind,
        task.classes,
        VIDEOS,
        readout,
        space_of(store),
        chosen.temperature,
        chosen.error,
        (task.scored_by.name, chosen.score),
        {"alpha": 1 / chosen.strength} if task.kind == "regression" else {"C": chosen.strength},
        tuple(store.ids[place] for place in places[rows]),
        {key: str(made_by[key]) for key in ("path", "fingerprint") if key in made_by},
    )


@dataclass(frozen=True)
class _Validated:
    """What cross-validation chose and found."""

    strength: float
    loss: float
    score: float
    temperature: float
    error: float | None


def validate(
    x: NDArray[np.float64], task: Task, class_weight: str | None, groups: Sequence[str] | None = None
) -> _Validated:
    """Chooses the strength for pooled vectors x (V, D) by the loss of cross-validation, and calibrates its logits.

    Args:
        groups: (V), what is held out together; None takes the task's, or each video alone.
    """
    folds = _folds(task, groups or task.groups)
    best: _Validated | None = None
    with quiet():
        for strength in STRENGTHS:
            outputs = np.empty((len(task), len(task.classes) or 1))
            for train, held_out in folds:
                fitted = linear(task.kind, strength, class_weight).fit(x[train], learnt_from(task, "linear", train))
                outputs[held_out] = answers(task.kind, fitted, x[held_out], len(task.classes))
            temperature, reached = _calibrated(task, outputs)
            if best is None or reached < best.loss:
                error = float(np.sqrt(reached)) if task.kind == "regression" else None
                best = _Validated(strength, reached, task.scored_by.score(outputs, task.targets), temperature, error)
    assert best is not None
    return best


def _folds(task: Task, groups: Sequence[str] | None) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    of = np.array(groups or task.ids)
    count = min(_FOLDS, len(set(of.tolist())))
    if task.kind == "classification":  # every class in every part that is learnt from, as far as there are videos
        least = min(len(set(of[task.targets == n].tolist())) for n in range(len(task.classes)))
        count = min(count, max(2, least))
        splitter: Any = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    else:
        splitter = GroupKFold(max(2, count), shuffle=True, random_state=0)
    if len(set(of.tolist())) < 2:
        raise InputError("a probe needs labelled videos of at least two groups to be fitted and calibrated")
    with quiet():
        return list(splitter.split(of, task.targets if task.kind == "classification" else None, of))


def _calibrated(task: Task, outputs: NDArray[np.float64]) -> tuple[float, float]:
    """The temperature of the least loss, and that loss."""
    if task.kind == "regression":
        return 1.0, loss(task.kind, outputs, task.targets)
    found = minimize_scalar(
        lambda log: loss(task.kind, outputs / np.exp(log), task.targets), bounds=(-4, 4), method="bounded"
    )
    return float(np.exp(found.x)), float(found.fun)


# ------------------------------------------------------------------------------------------------------------ predict


@dataclass(frozen=True)
class Predictions:
    """What a kept probe says of videos.

    Attributes:
        ids: (V).
        scores: (V, K) probabilities, or values of a regression.
        failed: ids of videos whose values are not finite, of which it says nothing.
    """

    probe: SavedProbe
    ids: tuple[str, ...]
    scores: NDArray[np.float64]
    failed: tuple[str, ...] = ()

    def answers(self) -> list[str | float]:
        """The class of each video (of sets, those above one half, with bars between), or its value."""
        classes = self.probe.classes
        if self.probe.kind == "regression":
            return [float(value) for value in self.scores[:, 0]]
        if self.probe.kind == "multilabel":
            return ["|".join(c for c, s in zip(classes, row, strict=True) if s > 0.5) for row in self.scores]
        return [classes[number] for number in self.scores.argmax(axis=1)]

    def records(self) -> list[dict[str, Any]]:
        """A row a video: id, predicted and a score a class; of a regression the value and its error."""
        found = []
        for id_, said, row in zip(self.ids, self.answers(), self.scores, strict=True):
            one: dict[str, Any] = {"id": id_, "predicted": said}
            if self.probe.kind == "regression":
                found.append(one | {"error": self.probe.error})
                continue
            found.append(one | {f"score:{c}": float(s) for c, s in zip(self.probe.classes, row, strict=True)})
        return found


@own_state()
def predict(probe: str | Path | SavedProbe, store: str | Path | EmbeddingStore) -> Predictions:
    """Returns the predictions of a saved probe for every video of a store.

    Raises:
        InputError: there is no such probe or store, or the store is of another space, or the probe is one of segments.
    """
    saved = probe if isinstance(probe, SavedProbe) else SavedProbe.load(probe)
    store = EmbeddingStore.open(store)
    saved.check(store)
    if saved.of != VIDEOS:
        raise InputError("this probe was fitted to spans of time; it predicts spans, not classes of whole videos")
    every = load_features(store, np.arange(len(store), dtype=np.intp))
    good = every.finite()
    rows = np.flatnonzero(good)
    scores = saved.outputs(every.take(rows).pooled(saved.readout))
    failed = (*store.unsound, *(store.ids[row] for row in np.flatnonzero(~good)))  # the store leaves the first ones out
    return Predictions(saved, tuple(store.ids[row] for row in rows), scores, failed)


# ------------------------------------------------------------------------------------------------------------ suggest


@dataclass(frozen=True)
class Suggestion:
    """A video to label next: what the probe takes it for, its probability, and how unsure that is (0 to 1)."""

    id: str
    predicted: str
    score: float
    unsure: float


@own_state()
def suggest(
    probe: str | Path | SavedProbe,
    store: str | Path | EmbeddingStore,
    count: int = 20,
    *,
    by: str = "margin",
    labelled: Sequence[str] = (),
) -> list[Suggestion]:
    """Returns the videos to label next: those the probe is unsure of, spread over the store.

    Taken in turn is the unlabelled video for which how unsure the probe is times how far it lies from all that is labelled
    or taken (by the cosine of centred features) is largest: k-centre among the ten times as many that it is least sure of.

    Args:
        by: "margin", between the two most probable classes, or "entropy".
        labelled: ids that have a label, besides those that the probe was fitted to.

    Raises:
        InputError: as `predict`; for a regression, which has no classes to be unsure of; when all videos have labels.
    """
    if count < 1:
        raise InputError(f"suggest at least 1 video, not {count}")
    if by not in ("margin", "entropy"):
        raise InputError(f"`by` must be margin or entropy, not '{by}'")
    saved = probe if isinstance(probe, SavedProbe) else SavedProbe.load(probe)
    if saved.kind == "regression":
        raise InputError("a regression has no classes to be unsure of; label videos at random, or by what they show")
    store = EmbeddingStore.open(store)
    found = predict(saved, store)
    known = set(saved.labelled) | set(labelled)
    open_ = np.array([row for row, id_ in enumerate(found.ids) if id_ not in known], dtype=np.intp)
    if not len(open_):
        raise InputError(f"every video of {store.path} has a label already")
    unsure = _unsure(saved.kind, found.scores, by)
    candidates = open_[np.argsort(-unsure[open_], kind="stable")][: max(10 * count, _LEAST_CANDIDATES)]
    places = {id_: place for place, id_ in enumerate(store.ids)}
    rows = np.array([places[id_] for id_ in found.ids], dtype=np.intp)
    vectors = _centred(load_features(store, rows), saved.readout)
    worth = unsure[candidates] * _typical(vectors[open_], vectors[candidates])
    centres = [row for row, id_ in enumerate(found.ids) if id_ in known]
    away = np.full(len(candidates), 2.0)
    if centres:
        away = 1 - (vectors[candidates] @ vectors[centres].T).max(axis=1)
    far = float(np.median(away))  # what lies farther off than most is no better for it: it may be an outlier
    said = found.answers()
    taken: list[int] = []
    for _ in range(min(count, len(candidates))):
        place = int(np.argmax(np.where(np.isinf(away), -1.0, worth * np.clip(away, 0.0, far))))
        taken.append(int(candidates[place]))
        away = np.minimum(away, 1.0 - vectors[candidates] @ vectors[candidates[place]])
        away[place] = -np.inf
    return [
        Suggestion(found.ids[row], str(said[row]), float(found.scores[row].max()), float(unsure[row])) for row in taken
    ]


def _unsure(kind: str, scores: NDArray[np.float64], by: str) -> NDArray[np.float64]:
    """(V): from 0, sure, to 1."""
    if kind == "multilabel":  # of the class that is closest to one half
        return np.asarray((1 - 2 * np.abs(scores - 0.5)).max(axis=1))
    if by == "entropy":
        known = np.clip(scores, 1e-12, 1)
        return np.asarray(-(known * np.log(known)).sum(axis=1) / np.log(scores.shape[1]))
    first_two = np.sort(scores, axis=1)[:, -2:]
    return np.asarray(1 - (first_two[:, 1] - first_two[:, 0]))


def _typical(others: NDArray[np.float64], vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """How alike each of some unit vectors is to its ten nearest others, from 0 to 1: an outlier teaches nothing of others
    (information density, Settles & Craven 2008)."""
    nearest = min(_NEAREST, len(others))
    cosines = np.partition(vectors @ others.T, -nearest, axis=1)[:, -nearest:]
    return np.asarray(np.clip(cosines.mean(axis=1), 1e-3, 1.0))


def _centred(features: Features, readout: str) -> NDArray[np.float64]:
    x = features.pooled(readout)
    x = (x - x.mean(axis=0)) / np.maximum(x.std(axis=0), 1e-9)
    return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12))
