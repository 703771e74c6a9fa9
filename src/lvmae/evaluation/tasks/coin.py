"""COIN (Tang et al., CVPR 2019): 180 tasks of instructional videos, in `COIN.json` as distributed.

A video is its annotated [start, end] (method: section 6). Every fifth training video of a class becomes val. Published
figures: the paper's, accuracy in per cent.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from lvmae.errors import InputError
from lvmae.evaluation.spans import SpanLabels
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks.family import TaskFamily, existing
from lvmae.evaluation.tasks.youtube import youtube_id
from lvmae.library.spans import Span

_HELD_OUT_EVERY = 5


class COIN(TaskFamily):
    """One task: which of 180 tasks is done."""

    name = "coin"
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "VideoMamba": {"coin": 90.4},
        "LanguageBind raw": {"coin": 91.13},
        "InternVideo2 raw": {"coin": 88.41},
        "LV-MAE LanguageBind": {"coin": 92.42},
        "LV-MAE InternVideo2": {"coin": 92.72},
    }

    def read(self, part: str, annotations: Path) -> Task:
        path = existing(annotations, ".", file="COIN.json") / "COIN.json"
        try:
            database = json.loads(path.read_text(encoding="utf-8"))["database"]
            videos = [
                (str(id_), str(v["class"]), str(v["subset"]), (float(v["start"]), float(v["end"])))
                for id_, v in database.items()
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is not in the form COIN.json is distributed in ({error!r})") from error
        if not videos:
            raise InputError(f"{path} has no videos")
        trained: dict[str, int] = {}
        splits: dict[str, str] = {}
        for id_, label, subset, _ in videos:
            if subset not in {"training", "testing"}:
                raise InputError(f"video '{id_}' in {path} has the subset '{subset}', neither training nor testing")
            if subset == "testing":
                splits[id_] = "test"
                continue
            trained[label] = trained.get(label, 0) + 1
            splits[id_] = "val" if trained[label] % _HELD_OUT_EVERY == 0 else "train"
        classes = tuple(sorted({label for _, label, _, _ in videos}))
        spans = tuple(Span(id_, start, end, label) for id_, label, _, (start, end) in videos)
        return SpanLabels(self.name, spans, classes, splits).clips(benchmark=True, spelling=youtube_id)
