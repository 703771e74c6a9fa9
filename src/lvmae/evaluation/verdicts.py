"""The context of a probe's score: baselines without features, and scores per class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, f1_score

from lvmae.evaluation.metrics import Answered
from lvmae.evaluation.splits import Parts
from lvmae.evaluation.task import Task


def constant_answers(task: Task, splits: Sequence[Parts]) -> dict[str, list[Answered]]:
    """Answers that look at train's labels alone, a run a split: its majority class, base rates, or mean."""
    name = {"classification": "majority of train", "multilabel": "base rate", "regression": "mean of train"}
    runs = []
    for parts in splits:
        known = task.targets[parts["train"]]
        if task.kind == "classification":
            one = np.bincount(known, minlength=len(task.classes)).astype(np.float64)
            one = np.eye(len(task.classes))[np.argmax(one)]
        else:
            one = np.atleast_1d(known.mean(axis=0)).astype(np.float64)
        runs.append(Answered(np.tile(one, (len(parts["test"]), 1)), parts["test"]))
    return {name[task.kind]: runs}


def by_counting(task: Task, splits: Sequence[Parts]) -> dict[str, float]:
    """Of a classification: the share of test's most frequent class (a mean over splits), and 1 / classes; in per cent."""
    if task.kind != "classification":
        return {}
    shares = [float(np.bincount(task.targets[parts["test"]]).max()) / len(parts["test"]) for parts in splits]
    return {"most frequent class": 100 * float(np.mean(shares)), "1 / classes": 100 / len(task.classes)}


def details(task: Task, runs: Sequence[Answered]) -> dict[str, Any]:
    """Of classes: macro-F1 (per cent, a mean over runs) and the confusion matrix; of a regression: the share of variance
    explained.

    The matrix counts the test videos of all runs, a row a true class, a column an answer; of sets of classes it is one of
    2 x 2 a class.
    """
    if task.kind == "regression":
        shares = []
        for run in runs:
            targets = task.targets[run.rows]
            spread = float(((targets - targets.mean()) ** 2).mean())
            if spread > 0:
                shares.append(1 - float(((run.outputs[:, 0] - targets) ** 2).mean()) / spread)
        return {"r2": float(np.mean(shares)) if shares else None}
    truth = [task.targets[run.rows] for run in runs]
    if task.kind == "multilabel":
        said = [run.outputs > 0 for run in runs]
        f1 = [f1_score(t, s, average="macro", zero_division=0) for t, s in zip(truth, said, strict=True)]
        every, answered = np.concatenate(truth), np.concatenate(said)
        matrices = [
            confusion_matrix(every[:, n], answered[:, n], labels=[False, True]) for n in range(len(task.classes))
        ]
        return {"macro_f1": 100 * float(np.mean(f1)), "confusion": [matrix.tolist() for matrix in matrices]}
    said = [run.outputs.argmax(axis=1) for run in runs]
    f1 = [f1_score(t, s, average="macro", zero_division=0) for t, s in zip(truth, said, strict=True)]
    matrix = confusion_matrix(np.concatenate(truth), np.concatenate(said), labels=np.arange(len(task.classes)))
    return {"macro_f1": 100 * float(np.mean(f1)), "confusion": matrix.tolist()}
