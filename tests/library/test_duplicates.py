"""Near-duplicates: what vectors alone tell, what pictures decide, and the command's files."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from films import write_film
from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.library.duplicates import duplicate_ids, find_duplicates
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 24


def write(path: Path, rows: dict[str, np.ndarray], sources: dict[str, Path] | None = None) -> EmbeddingStore:
    with StoreWriter(path, Manifest("made", DIM, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for name, values in rows.items():
            starts = np.arange(len(values)) * 5.0
            source = str((sources or {}).get(name, ""))
            writer.add(VideoRecord(name, source, len(values) * 5.0, starts, starts + 5, values))
    return EmbeddingStore.open(path)


@pytest.mark.parametrize("late", [0.0, 0.5, 0.2])
def test_a_copy_that_starts_within_a_segment_is_met_by_vectors(tmp_path: Path, late: float) -> None:
    """20 segments of `a` from its 5th on lie in `b` from 17.5 s or so on, `late` of a segment off the grid."""
    generator = np.random.default_rng(0)
    rows = {name: generator.normal(size=(40, DIM)) for name in "abc"}
    fine = l2_normalize(rows["a"])
    rows["b"][3:23] = l2_normalize(late * fine[4:24] + (1 - late) * fine[5:25])
    found = find_duplicates(write(tmp_path / "store", rows), pictures=False)
    assert [(one.a, one.b, one.checked) for one in found] == [("a", "b", "vectors")]
    one = found[0]
    assert one.b_start - one.a_start == pytest.approx(15 - 25 + 5 * late, abs=0.51)
    assert (one.a_start, one.a_end) == pytest.approx((25, 125), abs=5)
    assert one.b_end - one.b_start == pytest.approx(one.a_end - one.a_start)
    assert one.score > 0.97


def test_segments_alike_in_another_order_are_no_run(tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    a = generator.normal(size=(30, DIM))
    assert find_duplicates(write(tmp_path / "store", {"a": a, "b": a[::-1].copy()}), pictures=False) == []


# ---- pictures --------------------------------------------------------------------------------------------------------------


class Scenes:
    """Films of random textures: a shot is a texture that a camera passes over."""

    def __init__(self, shots: list[int], camera: int, *, cut: int = 0, seconds: int = 4) -> None:
        self.shots, self.cut, self.seconds = shots, cut, seconds
        self.ways = np.random.default_rng(camera).uniform(0, 40, size=(len(shots), 2, 2))

    def __call__(self, number: int) -> np.ndarray:
        shot, moment = divmod(number / 5 / self.seconds, 1)
        texture = np.random.default_rng(self.shots[int(shot)]).normal(size=(11, 11, 3))
        large = np.kron(texture, np.ones((12, 12, 1)))
        for axis in (0, 1):  # soft edges, as photographs have
            large = (large + np.roll(large, 3, axis) + np.roll(large, 6, axis)) / 3
        x, y = ((1 - moment) * self.ways[int(shot), 0] + moment * self.ways[int(shot), 1]).astype(int)
        view = large[y + self.cut : y + 80 - self.cut, x + self.cut : x + 80 - self.cut]
        at = np.linspace(0, len(view) - 1, 80).round().astype(int)
        return np.clip(128 + 50 * view[at][:, at], 0, 255).astype(np.uint8)

    def film(self, path: Path) -> Path:
        times = list(range(0, len(self.shots) * self.seconds * 1000, 200))
        return write_film(path, times, pictures=self, last_milliseconds=200, options={"preset": "ultrafast"})


def test_pictures_tell_a_copy_from_a_look_alike(tmp_path: Path) -> None:
    """All vectors are those of the shots: only pixels tell that `like` was filmed on another camera path."""
    shots = list(range(10))
    made = {
        "film": Scenes(shots, 1),
        "cropped": Scenes(shots, 1, cut=4),
        "like": Scenes(shots, 2),
        "late": Scenes([90, 91, *shots[:6]], 3),
    }
    made["late"].ways[2:] = made["film"].ways[:6]
    sources = {name: scenes.film(tmp_path / f"{name}.mp4") for name, scenes in made.items()}
    topics = np.random.default_rng(0).normal(size=(100, DIM))
    # Segments of 5 s, shots of 4 s: a segment has the vector of what is shown when it starts.
    rows = {
        name: topics[[scenes.shots[start // 4] for start in range(0, 4 * len(scenes.shots) - 4, 5)]]
        for name, scenes in made.items()
    }
    store = write(tmp_path / "store", rows, sources)
    found = find_duplicates(store)
    assert {frozenset((one.a, one.b)) for one in found} == {
        frozenset(("cropped", "film")),
        frozenset(("film", "late")),
        frozenset(("cropped", "late")),
    }
    assert {one.checked for one in found} == {"pictures"}
    whole = next(one for one in found if (one.a, one.b) == ("cropped", "film"))
    assert (whole.a_start, whole.b_start) == pytest.approx((0, 0), abs=0.4)
    assert whole.a_end > 35
    later = next(one for one in found if (one.a, one.b) == ("film", "late"))
    assert later.b_start - later.a_start == pytest.approx(8, abs=0.2)
    assert (later.a_start, later.a_end) == pytest.approx(
        (0, 22), abs=0.5
    )  # the store's last segment of `late` ends at 30 s
    # Where the films cannot be read, vectors decide, and the look-alike passes.
    for path in sources.values():
        path.unlink()
    blind = find_duplicates(store)
    assert {one.checked for one in blind} == {"vectors"}
    assert ("film", "like") in {(one.a, one.b) for one in blind}


def test_the_command_writes_tables_and_what_to_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    generator = np.random.default_rng(0)
    rows = {name: generator.normal(size=(12, DIM)) for name in "abcd"}
    rows["b"], rows["d"] = rows["a"].copy(), rows["c"].copy()
    store = write(tmp_path / "store", rows)
    out, left_out = tmp_path / "d.csv", tmp_path / "exclude.txt"
    assert main(["duplicates", store.path, "--out", str(out), "--exclude-into", str(left_out)]) == 0
    assert "2 pairs of videos share 2 spans" in capsys.readouterr().out
    with out.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0])[:7] == ["a", "b", "a_start", "a_end", "b_start", "b_end", "score"]
    assert [(row["a"], row["b"], row["a_start"], row["b_end"]) for row in table] == [
        ("a", "b", "0.0", "60.0"),
        ("c", "d", "0.0", "60.0"),
    ]
    assert left_out.read_text() == "b\nd\n"
    assert main(["duplicates", store.path, "--out", str(tmp_path / "d.json")]) == 0
    assert [one["b"] for one in json.loads((tmp_path / "d.json").read_text())] == ["b", "d"]
    assert main(["duplicates", store.path, "--out", "d.txt"]) == 2
    with pytest.raises(InputError, match="least length"):
        find_duplicates(store, min_seconds=0)


def test_of_a_chain_of_copies_one_stays(tmp_path: Path) -> None:
    rows = {name: np.random.default_rng(0).normal(size=(12, DIM)) for name in "abc"}
    rows["x"] = np.random.default_rng(1).normal(size=(200, DIM))
    found = find_duplicates(write(tmp_path / "store", rows))
    assert len(found) == 3
    assert duplicate_ids(found) == ["b", "c"]
