"""The caption file: rows are written whole or not at all, and captioned segments are not requested again."""

from __future__ import annotations

import csv
import errno
import io
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from lvmae.errors import InputError, WorkError
from lvmae.files.json_files import read_object
from lvmae.files.locks import Lock
from lvmae.files.writing import write_json
from lvmae.library.captions import COLUMNS, as_cell, from_cell

Key = tuple[str, float, float]

_HEADER = (",".join(COLUMNS) + "\n").encode()


def key_of(video: str, start: float, end: float) -> Key:
    """What names a segment in a caption file."""
    return video, float(start), float(end)


class CaptionTable:
    """Rows are appended while it is entered; outside of that nothing is written and `done` can be looked at.

    Beside `path` lies `path`.json with the settings that the captions were made with, so that two models' captions never mix.

    Raises:
        InputError: the file is no CSV, not one of ours, made with other settings, or being written by another process.
    """

    done: set[Key]

    def __init__(self, path: str | os.PathLike[str], settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._settings = settings
        self._settings_path = self.path.with_name(self.path.name + ".json")
        self._lock = Lock(
            self.path.with_name(f".{self.path.name}.lock"),
            f"another process is writing to {self.path}; wait for it to end, or choose another file",
        )
        self._file: io.FileIO | None = None
        if self.path.suffix.lower() != ".csv":
            raise InputError(f"{self.path} must end in .csv: captions are written as CSV")
        self._read()

    def __enter__(self) -> CaptionTable:
        self._lock.take()
        try:
            whole = self._read()
            write_json(self._settings_path, self._settings)
            self._file = self.path.open("ab", buffering=0)
            self._file.truncate(whole)
            if not whole:
                self._append(_HEADER)
        except OSError as error:
            self._lock.release()
            raise InputError(f"{self.path} cannot be written: {error.strerror}; choose another place") from None
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        self._file.close()
        self._lock.release()

    def add(self, video: str, start: float, end: float, text: str) -> None:
        """Appends one caption; it is in the file when this returns. Raises WorkError if the disk takes no more."""
        row = io.StringIO()
        csv.writer(row, lineterminator="\n").writerow(
            (as_cell(video), repr(float(start)), repr(float(end)), as_cell(text))
        )
        try:
            # A server may send half of a surrogate pair, which UTF-8 has no bytes for.
            self._append(row.getvalue().encode("utf-8", "replace"))
        except OSError as error:
            raise WorkError(
                f"{self.path} cannot be written any more ({error.strerror}); make room and rerun the same command"
            ) from None
        self.done.add(key_of(video, start, end))

    def _append(self, line: bytes) -> None:
        file = self._file
        assert file is not None
        before = file.seek(0, os.SEEK_END)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(before)
            raise

    def _read(self) -> int:
        """Fills `done`, checks the settings; returns how many bytes are whole rows: a process killed in a write leaves a half."""
        self.done = set()
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return 0
        except OSError as error:
            raise InputError(f"{self.path} cannot be read: {error.strerror}") from None
        whole = _whole_rows(data)
        foreign = InputError(f"{self.path} exists and was not written by this command; choose another file")
        if not whole:
            if _HEADER.startswith(data):
                return 0
            raise foreign
        try:
            rows = csv.reader(io.StringIO(data[:whole].decode("utf-8-sig"), newline=""))
            if tuple(next(rows)) != COLUMNS:
                raise foreign
            self.done = {key_of(from_cell(video), float(start), float(end)) for video, start, end, _ in rows}
        except (ValueError, csv.Error) as error:
            if error is foreign:
                raise
            raise InputError(
                f"{self.path} has rows that this command did not write; choose another file, or repair it"
            ) from None
        if self.done:
            self._must_match(foreign)
        return whole

    def _must_match(self, foreign: InputError) -> None:
        try:
            made = read_object(self._settings_path)
        except (OSError, InputError):
            raise foreign from None
        for name, value in self._settings.items():
            if made.get(name) != value:
                raise InputError(
                    f"{self.path} was made with {name} {made.get(name)!r}, and this asks for {value!r}: "
                    "give the same, or another `out`"
                )


def _whole_rows(data: bytes) -> int:
    """How many bytes of a CSV are rows that end; a line inside quotes does not end its row."""
    whole = place = quotes = 0
    for line in io.BytesIO(data):
        place += len(line)
        quotes += line.count(b'"')
        if line.endswith(b"\n") and quotes % 2 == 0:
            whole = place
    return whole
