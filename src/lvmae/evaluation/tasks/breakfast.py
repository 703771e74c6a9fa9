"""Breakfast (Kuehne et al., CVPR 2014): ten activities in kitchens, in `breakfast/{train,test}.csv`.

There is no val split: every fifth person of train is held out as val. Published figures: the paper's, accuracy in per cent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from lvmae.errors import InputError
from lvmae.evaluation.matching import bare_name
from lvmae.evaluation.task import Task
from lvmae.evaluation.tasks.family import TaskFamily, annotation_rows, existing, refuse_shared

_HELD_OUT_EVERY = 5
_NEEDED = ("file_name", "action", "class_id")
# P03-cam01-P03_cereals (annotations), P03/cam01/P03_cereals.avi (videos), P03_cam01_P03_cereals (I3D features);
# P03-stereo-P03_tea_ch0, P03/stereo/P03_tea_ch0.avi, P03_stereo01_P03_tea.
_NAME = re.compile(
    r"(?:^|[/_-])(P\d+)[/_-](cam\d+|webcam\d+|stereo)(?:(?<=stereo)\d+)?[/_-](?:(P\d+)[_-])?([a-z]+)(?:[_-]ch(\d+))?$"
)


class Breakfast(TaskFamily):
    """One task: which of ten dishes or drinks is made."""

    name = "breakfast"
    published: ClassVar[Mapping[str, Mapping[str, float]]] = {
        "VideoMamba": {"breakfast": 96.9},
        "LanguageBind raw": {"breakfast": 73.52},
        "InternVideo2 raw": {"breakfast": 83.94},
        "LV-MAE LanguageBind": {"breakfast": 91.55},
        "LV-MAE InternVideo2": {"breakfast": 93.24},
    }

    def read(self, part: str, annotations: Path) -> Task:
        folder = existing(annotations, "breakfast", ".", file="train.csv")
        train = annotation_rows(folder / "train.csv", ",", _NEEDED)
        test = annotation_rows(folder / "test.csv", ",", _NEEDED)
        people = sorted({_person(row["file_name"]) for row in train})
        held_out = set(people[_HELD_OUT_EVERY - 1 :: _HELD_OUT_EVERY])
        splits = ["val" if _person(row["file_name"]) in held_out else "train" for row in train] + ["test"] * len(test)
        rows = train + test
        ids = tuple(row["file_name"] for row in rows)
        refuse_shared(folder, ids, splits)
        classes = tuple(sorted({row["action"] for row in rows}))
        targets = np.array([classes.index(row["action"]) for row in rows], dtype=np.int64)
        return Task(
            self.name, "classification", ids, targets, classes, np.array(splits), benchmark=True, spelling=video_name
        )


def video_name(name: str) -> str | None:
    """Person, camera, activity and channel of a video, however the data set's parts write them; None for another name.

    The stereo camera's channel 0 is the one that annotations and features have, which leave its number out at times.
    """
    folders = name.replace("\\", "/").rpartition("/")[0]
    found = _NAME.search(f"{folders}/{bare_name(name)}" if folders else bare_name(name))
    if found is None or (found[3] is not None and found[3] != found[1]):
        return None
    channel = int(found[5] or 0)
    return f"{found[1]}-{found[2]}-{found[4]}-{channel}"


def _person(file_name: str) -> str:
    match = re.match(r"P\d+", file_name)
    if match is None:
        raise InputError(f"the Breakfast file name '{file_name}' does not begin with a person, such as P03")
    return match.group()
