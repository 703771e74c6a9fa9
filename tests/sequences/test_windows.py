"""Windows depend on (seed, epoch, item) alone; batches hold every item once and no padding; floors by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvmae.errors import InputError
from lvmae.sequences import (
    STRATEGIES,
    DurationSampling,
    Window,
    WindowDataset,
    collate_packed,
    dealt_batches,
    epoch_batches,
    interpolate_visible,
    mask_segments,
    mean_of_visible,
    pad,
    parts_of,
    split_videos,
    token_batches,
    unpad,
)
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize


def make_store(path: Path, lengths: list[int], space: str = "space") -> EmbeddingStore:
    rng = np.random.default_rng(len(lengths))
    with StoreWriter(path, Manifest(space, 6, {"kind": "fixed", "seconds": 5.0}, {})) as writer:
        for number, length in enumerate(lengths):
            starts = np.arange(length) * 5.0
            writer.add(
                VideoRecord(f"v{number}", "", length * 5.0, starts, starts + 5, rng.normal(size=(length, 6)) * 3)
            )
    return EmbeddingStore.open(path)


def test_a_window_is_normalised_and_from_its_place(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [40, 300, 7])
    dataset = WindowDataset([store], seed=3)
    for item in range(3):
        window = dataset[(5, item)]
        length = len(window.masked)
        expected = l2_normalize(store.embeddings(item, window.start, window.start + length))
        np.testing.assert_array_equal(window.embeddings, expected)
        np.testing.assert_allclose(np.linalg.norm(window.embeddings, axis=1), 1, atol=1e-6)
        assert window.video == item
        assert (~window.masked).sum() == int(length * 0.6)


def test_windows_depend_on_seed_epoch_and_item_alone(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [60, 400])
    dataset, again = WindowDataset([store], seed=1), WindowDataset([EmbeddingStore.open(store.path)], seed=1)
    for _ in range(3):
        again[(0, 1)]
    first, second = dataset[(4, 1)], again[(4, 1)]
    assert (first.start, first.masked.tolist()) == (second.start, second.masked.tolist())
    again.set_epoch(4)
    assert again[1].start == first.start
    others = {(dataset[(epoch, 1)].start, len(dataset[(epoch, 1)].masked)) for epoch in range(8)}
    assert len(others) > 4
    assert WindowDataset([store], seed=2)[(4, 1)].masked.tolist() != first.masked.tolist()


def test_durations_are_uniform_between_ten_seconds_and_the_cap() -> None:
    sampling, generator = DurationSampling(), np.random.default_rng(0)
    drawn = np.array([sampling.draw(10_000, 5.0, 2, generator)[1] for _ in range(20_000)])
    assert (drawn.min(), drawn.max()) == (2, 256)
    np.testing.assert_allclose(np.quantile(drawn, [0.25, 0.5, 0.75]), [65.5, 129.0, 192.5], atol=3)
    starts = np.array([sampling.draw(20, 5.0, 2, generator)[0] for _ in range(5000)])
    assert starts.min() == 0
    assert all(DurationSampling().draw(5, 5.0, 2, generator)[1] <= 5 for _ in range(100))
    capped = [DurationSampling(max_seconds=300).draw(10_000, 5.0, 2, generator)[1] for _ in range(2000)]
    assert max(capped) == 60


@given(
    seconds=st.floats(0.5, 20),
    overlap=st.floats(0.05, 1),
    least=st.floats(1, 60),
    more=st.floats(0, 200),
    most=st.integers(2, 300),
    seed=st.integers(0, 99),
)
def test_seconds_count_the_stride(
    seconds: float, overlap: float, least: float, more: float, most: int, seed: int
) -> None:
    """A window lasts at least min_seconds and at most max_seconds, to a segment where it cannot be exact."""
    stride = seconds * overlap
    sampling = DurationSampling(min_seconds=least, max_segments=most, max_seconds=least + more)
    _, length = sampling.draw(10_000, seconds, 1, np.random.default_rng(seed), stride=stride)
    lasts = seconds + (length - 1) * stride
    assert length <= most
    assert lasts <= max(least + more, seconds) + 1e-4 * stride
    assert lasts > min(least, seconds + (most - 1) * stride) - stride


def test_seconds_of_overlapping_segments() -> None:
    generator = np.random.default_rng(0)
    sampling = DurationSampling(min_seconds=10.0, max_segments=256, max_seconds=60.0)
    drawn = [sampling.draw(10_000, 5.0, 2, generator, stride=1.0)[1] for _ in range(2000)]
    assert (min(drawn), max(drawn)) == (6, 56)  # 5 + 5 x 1 = 10 s to 5 + 55 x 1 = 60 s


def test_short_videos_are_counted_not_sampled(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s", [1, 2, 30, 1])
    dataset = WindowDataset([store])
    assert (len(dataset), dataset.too_short) == (2, 2)
    assert {dataset[(0, i)].video for i in range(2)} == {1, 2}
    with pytest.raises(InputError, match="no video has the 34 segments"):
        WindowDataset([store], mask_ratio=0.97)


def test_mixtures_follow_their_weights(tmp_path: Path) -> None:
    small, large = make_store(tmp_path / "a", [20] * 4), make_store(tmp_path / "b", [20] * 12)
    dataset = WindowDataset([small, large], weights=[1, 1])
    for epoch in range(3):
        videos = np.array([dataset[(epoch, i)].video for i in range(len(dataset))])
        assert (videos < 4).sum() == 8
        assert np.bincount(videos[videos < 4]).tolist() == [2, 2, 2, 2]
        assert len(set(videos[videos >= 4])) == 8
    plain = WindowDataset([small, large])
    assert sorted(plain[(0, i)].video for i in range(16)) == list(range(16))
    with pytest.raises(InputError, match="two spaces never mix"):
        WindowDataset([small, make_store(tmp_path / "c", [9], space="other")])


def test_runs_of_older_versions_keep_their_windows(tmp_path: Path) -> None:
    """Start, length and the first masks, as they were drawn before an epoch had one generator."""
    store = make_store(tmp_path / "s", [12, 400, 9])

    def said(windows: list[Window]) -> list[tuple[int, int, str]]:
        return [(w.start, len(w.masked), "".join("01"[int(m)] for m in w.masked[:12])) for w in windows]

    drawn = {}
    for mask in ("random", "semantic"):
        dataset = WindowDataset([store], seed=5, mask=mask, draws="window")
        drawn[mask] = said([dataset[2, i] for i in range(3)]), said(dataset.fixed_windows())
    assert drawn["random"] == (
        [(0, 12, "010000011110"), (73, 204, "010000110100"), (0, 9, "010101001")],
        [(0, 12, "100011101000"), (144, 138, "011101010101"), (0, 9, "101000101")],
    )
    assert drawn["semantic"] == (
        [(0, 12, "010110001010"), (73, 204, "010010000010"), (0, 9, "001011010")],
        [(0, 12, "010110001010"), (144, 138, "000011000111"), (0, 9, "001011010")],
    )


@pytest.mark.parametrize("mask", sorted(STRATEGIES))
def test_masks_without_reading_are_those_of_what_is_read(tmp_path: Path, mask: str) -> None:
    stores = [make_store(tmp_path / "a", [40, 300, 7]), make_store(tmp_path / "b", [30, 60])]
    dataset = WindowDataset(stores, seed=3, mask=mask)
    for place in (4, 1, 0, 3, 2):  # in any order
        drawn = dataset.draw(6, place)
        masked = dataset.masked(drawn)
        rows = l2_normalize(stores[drawn.store].embeddings(drawn.video, drawn.start, drawn.start + drawn.length))
        read = mask_segments(mask, rows, 0.4, dataset.draw(6, place).generator)
        np.testing.assert_array_equal(masked, read)
        window = dataset[6, place]
        np.testing.assert_array_equal(window.masked, masked)
        assert (window.start, len(window.masked)) == (drawn.start, drawn.length)
    assert dataset.lengths(6).tolist() == [dataset.draw(6, place).length for place in range(5)]
    assert dataset.lengths(6, [3, 0]).tolist() == dataset.lengths(6)[[3, 0]].tolist()


def greedy(embeddings: np.ndarray, _ratio: float, _generator: np.random.Generator) -> np.ndarray:
    return np.ones(len(embeddings), dtype=bool)


def test_a_mask_that_hides_another_number_is_refused(tmp_path: Path) -> None:
    mask = f"{__name__}:greedy"
    dataset = WindowDataset([make_store(tmp_path / "s", [10])], sampling=DurationSampling(50.0), mask=mask)
    with pytest.raises(InputError, match=r"greedy' hides 10 of 10 segments; of the ratio 0\.4 it has to hide 4"):
        dataset[0, 0]


def test_masks_differ_between_items_and_epochs(tmp_path: Path) -> None:
    dataset = WindowDataset([make_store(tmp_path / "s", [40] * 4)], sampling=DurationSampling(200.0), seed=3)
    masks = {tuple(dataset[epoch, place].masked.tolist()) for epoch in range(4) for place in range(4)}
    assert len(masks) == 16


def test_validation_windows_are_fixed(tmp_path: Path) -> None:
    dataset = WindowDataset([make_store(tmp_path / "s", [50, 60, 70])], seed=9)
    before = dataset.fixed_windows()
    dataset.set_epoch(7)
    after = dataset.fixed_windows()
    assert [w.masked.tolist() for w in before] == [w.masked.tolist() for w in after]
    assert [w.video for w in dataset.fixed_windows(2)] == [0, 2]


def test_packed_batches_hold_every_token_once(tmp_path: Path) -> None:
    dataset = WindowDataset([make_store(tmp_path / "s", [50, 3, 70])])
    windows = [dataset[(0, i)] for i in range(3)]
    batch = collate_packed(windows)
    assert batch["lengths"] == [len(w.masked) for w in windows]
    assert batch["num_visible"] == [int(length * 0.6) for length in batch["lengths"]]
    offset = 0
    for window in windows:
        rows = slice(offset, offset + len(window.masked))
        np.testing.assert_array_equal(batch["inputs_embeds"][0, rows], window.embeddings)
        np.testing.assert_array_equal(batch["bool_masked_pos"][0, rows], window.masked)
        offset += len(window.masked)
    assert batch["inputs_embeds"].shape == (1, offset, 6)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_unpad_undoes_pad(lengths: list[int]) -> None:
    sequences = [torch.full((length, 2), float(i + 1)) for i, length in enumerate(lengths)]
    padded, mask = pad(sequences)
    assert padded.shape == (len(lengths), max(lengths), 2)
    row, found = unpad(padded, mask)
    assert found == lengths
    assert torch.equal(row, torch.cat(sequences))


@given(count=st.integers(1, 50), batch=st.integers(1, 8), epoch=st.integers(0, 5))
def test_an_epoch_holds_every_item_once_in_its_own_order(count: int, batch: int, epoch: int) -> None:
    batches = epoch_batches(count, epoch, 0, batch)
    flat = [item for items in batches for item in items]
    assert sorted(flat) == list(range(count))
    assert all(len(items) == batch for items in batches[:-1])
    assert batches == epoch_batches(count, epoch, 0, batch)


def test_epochs_are_reshuffled() -> None:
    assert epoch_batches(30, 0, 0, 30) != epoch_batches(30, 1, 0, 30)


@given(lengths=st.lists(st.integers(2, 60), min_size=1, max_size=70), batch=st.integers(1, 9), epoch=st.integers(0, 3))
def test_a_dealt_epoch_holds_every_item_once_and_one_of_each_length_a_batch(
    lengths: list[int], batch: int, epoch: int
) -> None:
    drawn = np.array(lengths)
    batches = dealt_batches(drawn, epoch, 0, batch)
    assert sorted(item for items in batches for item in items) == list(range(len(lengths)))
    assert all(len(items) == batch for items in batches[:-1])
    assert len(batches) == -(-len(lengths) // batch)
    assert batches == dealt_batches(drawn, epoch, 0, batch)
    full = np.array([items for items in batches if len(items) == batch])
    if len(full):
        bands = drawn[full]  # (batches, bands): no length of a band exceeds one of the band before
        assert (bands[:, :-1].min(axis=0, initial=99) >= bands[:, 1:].max(axis=0, initial=0)).all()


@pytest.mark.parametrize(("shortest", "longest"), [(60, 360), (12, 36)])
@pytest.mark.parametrize("batch", [16, 128])
def test_dealt_batches_fill_one_capacity(shortest: int, longest: int, batch: int) -> None:
    """4,000 films of 5 to 30 minutes, or clips of 1 to 3, as the paper samples them: under 2 % is filled up."""
    rng = np.random.default_rng(batch)
    lengths = np.minimum(rng.integers(shortest, longest + 1, 4000), rng.integers(2, 257, 4000))
    full = [lengths[items] for items in dealt_batches(lengths, 0, 0, batch) if len(items) == batch]
    visible = max(int((drawn // 2).sum()) for drawn in full)
    masked = max(int((drawn - drawn // 2).sum()) for drawn in full)
    mean = np.mean([drawn.sum() for drawn in full])
    assert 1 - mean / (visible + masked) < 0.02
    shuffled = [lengths[items] for items in epoch_batches(4000, 0, 0, batch) if len(items) == batch]
    assert 1 - mean / max(drawn.sum() for drawn in shuffled) > 0.05


@given(count=st.integers(1, 40), parts=st.integers(1, 6))
def test_parts_are_alike_in_number_and_tokens(count: int, parts: int) -> None:
    hands = parts_of(list(range(count)), parts)
    assert sorted(card for hand in hands for card in hand) == list(range(count))
    assert len(hands) == parts
    assert max(map(len, hands)) - min(map(len, hands)) <= 1
    if count % (2 * parts) == 0:
        assert len({sum(hand) for hand in hands}) == 1


@given(lengths=st.lists(st.integers(1, 300), min_size=1, max_size=40), most=st.integers(1, 500))
def test_token_batches_respect_the_budget(lengths: list[int], most: int) -> None:
    batches = token_batches(lengths, most)
    assert sorted(place for batch in batches for place in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or sum(lengths[place] for place in batch) <= most for batch in batches)


def test_floors_by_hand() -> None:
    embeddings = np.array([[0.0], [9.0], [9.0], [6.0], [9.0], [8.0], [9.0]], np.float32)
    masked = np.array([False, True, True, False, True, False, True])
    np.testing.assert_allclose(interpolate_visible(embeddings, masked)[:, 0], [0, 2, 4, 6, 7, 8, 8])
    np.testing.assert_allclose(
        mean_of_visible(embeddings, masked)[:, 0], [0, 14 / 3, 14 / 3, 6, 14 / 3, 8, 14 / 3], rtol=1e-6
    )
    front = np.array([True, True, False, False, True, True, True])
    np.testing.assert_allclose(interpolate_visible(embeddings, front)[:, 0], [9, 9, 9, 6, 6, 6, 6])


@given(st.integers(0, 2**31))
def test_interpolation_is_exact_on_straight_lines(seed: int) -> None:
    rng = np.random.default_rng(seed)
    line = np.outer(np.arange(12), rng.normal(size=3)).astype(np.float32)
    masked = rng.random(12) < 0.5
    masked[[0, -1]] = False
    np.testing.assert_allclose(interpolate_visible(line, masked), line, atol=1e-4)


def test_splits_are_disjoint_and_whole() -> None:
    train, held_out = split_videos(50, 0.1, seed=4)
    assert len(held_out) == 5
    assert sorted([*train, *held_out]) == list(range(50))
    assert split_videos(50, 0.1, seed=5)[1].tolist() != held_out.tolist()
