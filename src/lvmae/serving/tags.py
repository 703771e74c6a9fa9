"""Tags that visitors give: a table beside the store, which `probe`, `predict` and filters read as labels."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from threading import Lock

from lvmae.errors import InputError
from lvmae.files.urls import is_remote
from lvmae.files.writing import write_text
from lvmae.library.filters import read_labels
from lvmae.store import TAGS_FILE, EmbeddingStore

_LONGEST = 100  # characters
_MOST = 50  # of a video


class Tags:
    """The tags of a store's videos, in `tags.csv` with columns id and label: a row a tag."""

    def __init__(self, store: EmbeddingStore) -> None:
        self._store = store
        self.path = Path(store.path) / TAGS_FILE
        self._lock = Lock()

    def all(self) -> dict[str, list[str]]:
        """The tags of each video that has any."""
        if is_remote(self._store.path) or not self.path.exists() or not self.path.read_text("utf-8").strip():
            return {}
        return {video: sorted(labels) for video, labels in read_labels(self.path).items()}

    def change(self, video: str, label: str, *, remove: bool = False) -> list[str]:
        """Adds or removes a tag and writes the table. Returns the video's tags.

        Raises:
            InputError: no such video, an empty or overlong tag, or too many.
            WorkError: the table cannot be written.
        """
        label = " ".join("".join(sign if sign.isprintable() else " " for sign in label).split())
        if not label or len(label) > _LONGEST:
            raise InputError(f"a tag has 1 to {_LONGEST} characters")
        if is_remote(self._store.path):
            raise InputError("tags are saved beside the store, and this one is not on this machine")
        try:
            self._store.index(video)
        except KeyError:
            raise InputError("there is no such video") from None
        with self._lock:
            tags = self.all()
            mine = set(tags.get(video, ()))
            mine = mine - {label} if remove else mine | {label}
            if len(mine) > _MOST:
                raise InputError(f"a video has at most {_MOST} tags")
            tags[video] = sorted(mine)
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(["id", "label"])
            writer.writerows([name, tag] for name in sorted(tags) for tag in tags[name])
            write_text(self.path, text.getvalue())
            return tags[video]
