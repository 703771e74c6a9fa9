"""Labels to watch a pre-training with: never one of the test split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lvmae.errors import InputError
from lvmae.files.table_files import cell_text, column_of, read_table

_WATCHED = {"train", "training", "val", "valid", "validation", "dev"}
_TEST = {"test", "testing"}
_FEWEST, _MOST_CLASSES = 10, 100


@dataclass(frozen=True)
class WatchLabels:
    """Classes of held-out videos.

    Attributes:
        path: the file they come from.
        places: (n,) which of the held-out windows have a label.
        classes: (n,) their classes, as numbers.
        digest: changes with what was read; rows of the test split do not count.
    """

    path: str
    places: np.ndarray
    classes: np.ndarray
    digest: str


def read_watch_labels(path: str | Path, held_out: Sequence[str]) -> WatchLabels:
    """The classes of held-out videos, from a table with the columns id, label and split; rows of the test split are passed over.

    Args:
        path: the table. held_out: the id of the video of each held-out window.

    Raises:
        InputError: no such table, no split, or too few labelled held-out videos or classes to judge anything by.
    """
    table = read_table(path)
    names = {
        what: column_of(table.columns, choices)
        for what, choices in (("id", ("id", "video", "video_id")), ("label", ("label",)), ("split", ("split",)))
    }
    lacking = [what for what, name in names.items() if name is None]
    if lacking:
        why = ": without it test labels cannot be told from others" if lacking == ["split"] else ""
        raise InputError(
            f"{path} has no column {' and no column '.join(lacking)}{why}; add it to watch with these labels"
        )
    labels: dict[str, str] = {}
    for row in table.rows:
        split = cell_text(row.values.get(str(names["split"]))).lower()
        if split in _TEST:
            continue
        if split not in _WATCHED:
            raise InputError(f"{row.where}: {split or 'nothing'!r} is no split; write train, val or test")
        id_, label = (cell_text(row.values.get(str(names[what]))) for what in ("id", "label"))
        if not id_ or not label:
            raise InputError(f"{row.where}: an id or a label is missing")
        if labels.get(id_, label) != label:
            raise InputError(f"{row.where}: '{id_}' has another label above")
        labels[id_] = label
    known = [(place, labels[id_]) for place, id_ in enumerate(held_out) if id_ in labels]
    counts = Counter(label for _, label in known)
    usable = sorted(label for label, count in counts.items() if count > 1)
    kept = [(place, usable.index(label)) for place, label in known if label in usable]
    if len(kept) < _FEWEST or not 2 <= len(usable) <= _MOST_CLASSES:
        raise InputError(
            f"{path} labels {len(kept)} of the {len(held_out)} held-out videos, in {len(usable)} classes that come twice or more; "
            f"to watch takes {_FEWEST} videos and 2 to {_MOST_CLASSES} classes: raise val_fraction or val_windows, or label more"
        )
    said = json.dumps(sorted(labels.items())).encode()
    places, classes = (np.array([pair[which] for pair in kept]) for which in (0, 1))
    return WatchLabels(str(path), places, classes, hashlib.sha256(said).hexdigest()[:16])
