"""LVU (Wu and Krähenbühl, CVPR 2021): nine tasks on film clips, in `lvu_1.0/TASK/{train,val,test}.csv` as distributed.

Seven are classifications; like_ratio is 10 x likes / (likes + dislikes), view_count the natural logarithm of the views
(method: section 6). Published figures: the paper's table of attentive probing; accuracies in per cent, mean squared errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from lvmae.errors import InputError
from lvmae.evaluation.splits import SPLITS
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks.family import AVERAGE, TaskFamily, annotation_rows, existing, refuse_shared
from lvmae.evaluation.tasks.youtube import youtube_id

CLASSIFICATIONS = ("director", "genre", "writer", "year", "scene", "way_speaking", "relationship")
REGRESSIONS = ("like_ratio", "view_count")
_COUNTS = {"like_ratio": ("like_count", "dislike_count"), "view_count": ("view_count",)}
_FIGURES = {
    "ViS4mer": (62.61, 54.71, 48.80, 44.75, 67.44, 40.79, 57.14, 53.7, 0.26, 3.63),
    "VideoMamba": (67.29, 65.24, 52.98, 48.23, 70.37, 40.43, 62.50, 58.1, 0.26, 2.90),
    "LanguageBind raw": (64.48, 61.47, 5.95, 29.08, 30.86, 31.91, 48.78, 38.9, 0.21, 2.90),
    "LanguageBind + Transformer": (24.30, 57.88, 16.07, 18.44, 35.80, 32.45, 51.22, 33.7, 0.56, 3.04),
    "LanguageBind + Mamba": (61.68, 70.38, 51.78, 56.74, 74.04, 38.83, 43.90, 56.8, 0.30, 2.98),
    "LV-MAE InternVideo2": (62.62, 68.15, 57.14, 58.15, 77.78, 39.89, 53.66, 59.6, 0.23, 2.68),
    "LV-MAE LanguageBind": (77.57, 71.57, 64.28, 58.15, 72.84, 40.95, 58.53, 63.4, 0.23, 2.52),
}


class LVU(TaskFamily):
    """The nine tasks of the paper's table."""

    name = "lvu"
    parts = (*CLASSIFICATIONS, *REGRESSIONS)
    averaged = CLASSIFICATIONS
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        model: dict(zip((*CLASSIFICATIONS, AVERAGE, *REGRESSIONS), row, strict=True)) for model, row in _FIGURES.items()
    }
    published_probes: ClassVar[Mapping[str, str]] = {
        "LanguageBind raw": "attentive",
        "LanguageBind + Transformer": "transformer",
        "LanguageBind + Mamba": "mamba",
        "LV-MAE InternVideo2": "attentive",
        "LV-MAE LanguageBind": "attentive",
    }

    def read(self, part: str, annotations: Path) -> Task:
        folder = existing(annotations, f"lvu_1.0/{part}", part, file="train.csv")
        columns = _COUNTS.get(part, ("class_id", "class_name"))
        ids: list[str] = []
        splits: list[str] = []
        values: list[list[str]] = []
        for split in SPLITS:
            for row in annotation_rows(folder / f"{split}.csv", " ", ("youtube_id", *columns)):
                ids.append(row["youtube_id"])
                splits.append(split)
                values.append([row[column] for column in columns])
        refuse_shared(folder, ids, splits)
        name, where = f"{self.name}/{part}", np.array(splits)
        try:
            if part in CLASSIFICATIONS:  # by the number in the files
                names = {int(number): label for number, label in values}
                numbers = sorted(names)
                targets = np.array([numbers.index(int(number)) for number, _ in values], dtype=np.int64)
                classes = tuple(names[number] for number in numbers)
                return Task(
                    name, "classification", tuple(ids), targets, classes, where, benchmark=True, spelling=youtube_id
                )
            counts = np.array(values, dtype=np.float64)
        except ValueError as error:
            raise InputError(f"{folder} is not in the form it is distributed in: {error}") from error
        total = counts.sum(axis=1)
        if (total <= 0).any():
            raise InputError(
                f"video '{ids[int(np.argmax(total <= 0))]}' in {folder} has a count of 0, which gives no target"
            )
        figures = 10 * counts[:, 0] / total if part == "like_ratio" else np.log(total)
        return Task(name, "regression", tuple(ids), figures, (), where, benchmark=True, spelling=youtube_id)
