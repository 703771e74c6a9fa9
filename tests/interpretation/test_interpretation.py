"""Reading reconstructions back as texts: against the padded model and brute force, and the numbers that are known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.evaluation import ProbeRow, ProbeTable
from lvmae.interpretation import CaptionIndex, complementary_masks, interpret
from lvmae.interpretation.retrieval import INTERPOLATION, MEAN, ORIGINAL, RECONSTRUCTION
from lvmae.interpretation.texts import first_alike
from lvmae.library.captions import Caption
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.report import VideoData
from lvmae.runs import run_fingerprint
from lvmae.sequences import interpolate_visible, mask_segments, mean_of_visible
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize

DIM = 16
TOPICS = ["cat", "dog", "rain", "sea", "snow", "fire", "bread", "train", "clock", "moon"]
LENGTHS = [24, 1, 9, 40, 15]  # one too short to hide a part of, one longer than the model's 32


class TopicEncoder:
    """A text is the sum of the topics it names, each an axis of its own."""

    name, dim, num_frames, image_size, interpolation, framing = "topics", DIM, 1, 64, "bicubic", "crop"
    space_id, licence, has_text = "topics/1", "none", True

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.vocabulary = list(TOPICS)

    def encode_video(self, frames: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def encode_text(self, texts: list[str]) -> np.ndarray:
        return l2_normalize(
            np.array([[topic in text for topic in TOPICS] + [0.01] * (DIM - 10) for text in texts], np.float32)
        )

    def self_test(self) -> None:
        pass


def topic(video: int, segment: int) -> int:
    return (segment // 3 + video) % len(TOPICS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingStore:
    return make_store(tmp_path_factory.mktemp("i") / "store", {"name": f"{__name__}:TopicEncoder", "licence": "none"})


def make_store(path: Path, encoder: dict[str, Any]) -> EmbeddingStore:
    generator = np.random.default_rng(0)
    with StoreWriter(path, Manifest("topics/1", DIM, {"kind": "fixed", "seconds": 5.0}, encoder)) as writer:
        for video, length in enumerate(LENGTHS):
            starts = np.arange(length) * 5.0
            noise = 0.1 * generator.normal(size=(length, DIM))
            embeddings = np.eye(DIM)[[topic(video, s) for s in range(length)]] + noise
            writer.add(VideoRecord(f"v{video}", f"/nowhere/v{video}.mp4", length * 5.0, starts, starts + 5, embeddings))
    return EmbeddingStore.open(path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("i") / "run")


def make_run(path: Path, **settings: Any) -> Path:
    torch.manual_seed(0)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_segments": 32}
    decoder = {f"decoder_{name}": value for name, value in sizes.items() if name != "max_segments"}
    widths = {"hidden_size": DIM, "decoder_hidden_size": 8, "space_id": "topics/1"}
    config = LVMAEConfig(**{**widths, **sizes, **decoder, **settings})
    LVMAEForPreTraining(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def captions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every segment of v0, v2 and v3 but the last has its topic's caption; many segments share one."""
    path = tmp_path_factory.mktemp("i") / "captions.jsonl"
    rows = [
        {"video": f"v{v}", "start": s * 5, "end": s * 5 + 5, "text": f"a {TOPICS[topic(v, s)]} in view"}
        for v in (0, 2, 3)
        for s in range(LENGTHS[v] - 1)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


def windows(store: EmbeddingStore) -> list[tuple[int, int, int]]:
    """Video, first and last segment of what is masked: v3 in two halves."""
    return [(0, 0, 24), (2, 0, 9), (3, 0, 20), (3, 20, 40), (4, 0, 15)]


def test_cosines_are_those_of_the_padded_model_and_of_the_floors(run: Path, store: EmbeddingStore) -> None:
    result = interpret(run, store, ratio=0.4, seed=3)
    model = LVMAEForPreTraining.from_pretrained(run)
    expected: dict[str, list[np.ndarray]] = {RECONSTRUCTION: [], INTERPOLATION: [], MEAN: []}
    for video, start, stop in windows(store):
        rows = l2_normalize(store.embeddings(video, start, stop))
        masked = mask_segments("random", rows, 0.4, np.random.default_rng([3, video, start]))
        assert masked.tolist() == result.videos[video].masked[start:stop]
        with torch.no_grad():
            output = model(inputs_embeds=torch.from_numpy(rows)[None], bool_masked_pos=torch.from_numpy(masked)[None])
        guesses = {
            RECONSTRUCTION: output.reconstruction[0].numpy(),
            INTERPOLATION: interpolate_visible(rows, masked),
            MEAN: mean_of_visible(rows, masked),
        }
        for kind, guess in guesses.items():
            cosines = (l2_normalize(guess)[masked] * rows[masked]).sum(1)
            expected[kind].append(cosines)
            if kind == RECONSTRUCTION:
                shown = np.array(result.videos[video].reconstruction[start:stop], float)[masked]
                np.testing.assert_allclose(shown, cosines, atol=1e-5)
    for kind, parts in expected.items():
        assert result.metrics["cosine"][kind] == pytest.approx(np.concatenate(parts).mean(), abs=1e-5)
    assert result.metrics["cosine"][ORIGINAL] == pytest.approx(1, abs=1e-6)
    assert result.metrics["masked"] == sum(map(len, expected[MEAN])) == 10 + 4 + 8 + 8 + 6
    assert result.metrics["unhidden"] == 1
    assert any("too short" in note for note in result.notes)


def test_every_segment_is_reconstructed_once_and_both_ways(run: Path, store: EmbeddingStore) -> None:
    for video, length in zip(interpret(run, store, ratio=0.3).videos, LENGTHS, strict=True):
        assert len(video.starts) == length
        if length > 1:
            assert all(value is not None and -1 <= value <= 1.0001 for value in video.reconstruction)
            assert all(len(found) == 5 for found in (*video.from_original, *video.from_reconstruction))
        else:
            assert video.reconstruction == [None]
            assert video.from_reconstruction == [[]]
        assert video.novelty[0] is None
        assert all(video.novelty[i] < 0.35 for i in range(1, length) if i % 3)
        assert all(video.novelty[i] > 0.65 for i in range(3, length, 3))


def test_retrieval_over_the_store(run: Path, store: EmbeddingStore, captions: Path) -> None:
    result = interpret(run, store, captions=captions)
    retrieval = result.metrics["retrieval"]
    assert retrieval["captions"] == 10  # distinct texts, not rows
    uncaptioned = sum(result.videos[v].masked[-1] for v in (0, 2, 3))
    assert retrieval["queries"] == 10 + 4 + 8 + 8 - uncaptioned
    assert retrieval[ORIGINAL] == {
        "R@1": 1.0,
        "R@5": 1.0,
        "R@10": 1.0,
        "median_rank": 1.0,
        "agreement": pytest.approx(1),
    }
    # Neighbours two thirds of the time show the same topic, the whole video's mean seldom, an untrained model by chance.
    assert retrieval[INTERPOLATION]["R@1"] > 0.6
    assert retrieval[RECONSTRUCTION]["R@1"] < retrieval[INTERPOLATION]["R@1"]
    assert retrieval[RECONSTRUCTION]["agreement"] < 0.5
    for kind in (RECONSTRUCTION, INTERPOLATION, MEAN):
        assert retrieval[kind]["R@1"] <= retrieval[kind]["R@5"] <= retrieval[kind]["R@10"] == 1.0
    assert "| original | 1.000 | 1.000 | 1.000 | 1.000 | 1 | 1.000 |" in result.to_markdown()
    first = result.videos[0]
    assert [result.texts[t] for t in first.captions[4]] == ["a dog in view"]
    assert first.captions[23] == []
    assert result.texts[first.from_original[4][0][0]] == "a dog in view"


def test_moments_of_a_text_are_where_it_is_seen(run: Path, store: EmbeddingStore, captions: Path) -> None:
    result = interpret(run, store, captions=captions)
    for text in ("a snow in view", "moon"):  # a caption, and a word of the encoder's vocabulary
        hits = result.moments[result.texts.index(text)]
        names = {TOPICS[topic(video, segment)] for video, segment, _ in hits[:3]}
        assert names == {text.split()[-3] if " " in text else text}
        assert [score for *_, score in hits] == sorted((score for *_, score in hits), reverse=True)


def test_figures_on_held_out_videos_come_first(store: EmbeddingStore, captions: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    parts = {"v0": "train", "v2": "held_out", "v3": "train", "v4": "excluded", "v1": "too_short"}
    (run / "split.csv").write_text("id,split,store\n" + "".join(f"{k},{v},s\n" for k, v in parts.items()))
    result = interpret(run, store, captions=captions, out=tmp_path / "page.html")
    held = result.metrics["held_out"]
    assert (held["videos"], held["segments"], held["masked"]) == (3, 1 + 9 + 15, 4 + 6)
    assert result.metrics["trained_on"] == 2

    # The others' figures and these are together those of all.
    swap = {"train": "held_out"}
    others = {k: swap.get(v, "train") for k, v in parts.items()}
    (run / "split.csv").write_text("id,split,store\n" + "".join(f"{k},{v},s\n" for k, v in others.items()))
    rest = interpret(run, store, captions=captions).metrics["held_out"]
    for kind in (MEAN, INTERPOLATION, RECONSTRUCTION):
        both = held["cosine"][kind] * held["masked"] + rest["cosine"][kind] * rest["masked"]
        assert both / result.metrics["masked"] == pytest.approx(result.metrics["cosine"][kind], abs=1e-6)
    assert 3 <= held["retrieval"]["queries"] <= 4  # those of v2, whose last segment has no caption
    (run / "split.csv").write_text("id,split,store\nother,train,s\n")
    unseen = interpret(run, store)
    assert unseen.metrics["held_out"] is None
    assert "trained on none of the 5 videos" in unseen.to_markdown()
    text = result.to_markdown()
    assert text.index("on 3 videos that the run was not trained on") < text.index("on all videos")
    assert "trained on 2 of the 5 videos" in text
    assert (tmp_path / "page.html").read_text().count("3 videos that the run was not trained on") >= 2


def test_words_where_there_are_no_captions(run: Path, store: EmbeddingStore) -> None:
    result = interpret(run, store)
    assert result.metrics["retrieval"] is None
    words = result.metrics["words"]
    assert words["vocabulary"] == 10
    assert words[ORIGINAL] == {"same": 1.0, "agreement": pytest.approx(1)}
    assert words[RECONSTRUCTION]["same"] < 0.6 < words[INTERPOLATION]["same"] < 1
    assert result.texts[result.videos[4].from_original[0][0][0]] == TOPICS[4]
    assert "| reconstruction |" in result.to_markdown()


def test_a_store_without_a_text_side_still_has_cosines(
    run: Path, store: EmbeddingStore, tmp_path: Path, captions: Path
) -> None:
    bare = make_store(tmp_path / "bare", {})
    result = interpret(run, bare, out=tmp_path / "report.html")
    assert result.metrics["retrieval"] is result.metrics["words"] is None
    assert result.texts == []
    assert result.metrics["cosine"] == interpret(run, store).metrics["cosine"]
    assert any("Nothing is read back as text" in note for note in result.notes)
    assert any("5 videos have no pictures" in note for note in result.notes)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count(
        "Interpolating the visible neighbours gives"
    ) == 1
    with pytest.raises(InputError, match="captions need the text side"):
        interpret(run, bare, captions=captions)


def test_neighbours_show_who_is_alike(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    for video in interpret(run, store, out=tmp_path / "r.html").videos:
        names = [name for name, _ in video.neighbours]
        assert video.id not in names
        assert len(names) == 4
        scores = [score for _, score in video.neighbours]
        assert scores == sorted(scores, reverse=True)


def test_numbers_depend_on_neither_batches_nor_what_is_shown(run: Path, store: EmbeddingStore, captions: Path) -> None:
    one = interpret(run, store, captions=captions, batch_tokens=1)
    few = interpret(run, store, captions=captions, max_videos=2)
    assert [video.id for video in few.videos] == ["v0", "v4"]
    for kind in (RECONSTRUCTION, INTERPOLATION, MEAN):
        assert one.metrics["cosine"][kind] == pytest.approx(few.metrics["cosine"][kind], abs=1e-6)
        assert one.metrics["retrieval"][kind] == pytest.approx(few.metrics["retrieval"][kind], abs=1e-5)


@given(st.integers(2, 60), st.floats(0.02, 0.98), st.integers(0, 2**31))
def test_complementary_masks_hide_every_segment_once_by_masks_of_one_size(length: int, share: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    size = min(max(1, round(length * share)), length - 1)
    scored = np.zeros(length, bool)
    scored[generator.permutation(length)[:size]] = True
    seen = np.zeros(length, int)
    for masked, fresh in complementary_masks(scored, generator):
        assert masked.sum() == size
        assert not (fresh & ~masked).any()
        seen += fresh
    assert seen.tolist() == [1] * length


def test_index_against_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lvmae.interpretation.texts._SCORE_BLOCK", 150)  # three queries a block
    generator = np.random.default_rng(0)
    texts, queries = generator.normal(size=(50, 8)), generator.normal(size=(7, 8))
    own = [[3], [4, 5], [0], [49], [7, 8, 9], [1], [2]]
    scores = l2_normalize(queries) @ l2_normalize(texts).T
    index = CaptionIndex(texts)
    found, cosines = index.search(queries, 4)
    np.testing.assert_array_equal(found, np.argsort(-scores, axis=1)[:, :4])
    np.testing.assert_allclose(cosines, -np.sort(-scores, axis=1)[:, :4], atol=1e-6)
    ranks, agreement = index.grade(queries, own)
    assert ranks.tolist() == [
        min(1 + int((row > row[t]).sum()) for t in mine) for row, mine in zip(scores, own, strict=True)
    ]
    nearest = l2_normalize(texts)[scores.argmax(1)]
    best = [max(float(near @ l2_normalize(texts)[t]) for t in mine) for near, mine in zip(nearest, own, strict=True)]
    np.testing.assert_allclose(agreement, best, atol=1e-6)


def test_texts_of_one_vector_are_found_whatever_the_order() -> None:
    rng = np.random.default_rng(0)
    distinct = l2_normalize(rng.normal(size=(40, 8)))
    which = rng.integers(40, size=300)
    noisy = l2_normalize(distinct[which] + 1e-8 * rng.normal(size=(300, 8)))
    first = first_alike(noisy)
    assert first.tolist() == [int(np.flatnonzero(which == w)[0]) for w in which]
    assert first_alike(distinct).tolist() == list(range(40))


def test_captions_of_one_vector_do_not_count_against_each_other(run: Path, store: EmbeddingStore) -> None:
    """Each caption also in capitals, which this encoder reads alike: every measure stays as it is."""
    plain = [Caption("v0", 5.0 * i, 5.0 * i + 5, TOPICS[i % 10]) for i in range(24)]
    doubled = [c for one in plain for c in (one, Caption(one.video, one.start, one.end, f"{one.text}!"))]
    one, other = (interpret(run, store, captions=captions).metrics["retrieval"] for captions in (plain, doubled))
    assert one == other
    assert one["captions"] == 10


def test_ties_count_against() -> None:
    ranks, _ = CaptionIndex(np.ones((20, 4))).grade(np.ones((3, 4)), [[0], [19], [7, 8]])
    assert ranks.tolist() == [20, 20, 20]


def test_what_cannot_be_interpreted_is_one_sentence(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        interpret(tmp_path, store)
    with pytest.raises(InputError, match="trained on the space other/1"):
        interpret(make_run(tmp_path / "other", space_id="other/1"), store)
    with pytest.raises(InputError, match=r"32 wide and those of .* are 16 wide"):
        interpret(make_run(tmp_path / "wide", hidden_size=32, space_id=None), store)
    with pytest.raises(InputError, match="there is no mask 'all'"):
        interpret(run, store, mask="all")
    with pytest.raises(InputError, match=r"mask ratio 1\.5"):
        interpret(run, store, ratio=1.5)
    with pytest.raises(InputError, match="1 of 1 videos that are not in the store"):
        interpret(run, store, captions=[Caption("v9", 0, 5, "x")])
    with pytest.raises(InputError, match="no caption lies within its video"):
        interpret(run, store, captions=[Caption("v0", 900, 905, "x")])


def test_videos_are_the_reports_plain_data(run: Path, store: EmbeddingStore, captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "report.html"
    result = interpret(run, store, captions=captions, out=out, top_k=3)
    assert all(isinstance(video, VideoData) and len(video.from_original[0]) == 3 for video in result.videos)
    block = out.read_text(encoding="utf-8").split('id="video-2">')[1].split("</script>")[0]
    assert json.loads(block)["reconstruction"] == [round(value, 3) for value in result.videos[2].reconstruction]


def test_a_table_of_probes_of_another_run_or_space_is_not_shown(
    run: Path, store: EmbeddingStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = ProbeRow("LV-MAE", "linear", 50.0, 0.0, (50.0,), (40.0, 60.0), (), 0, 0)
    counts = {"train": 3, "val": 1, "test": 1}
    own = {"store": "reps", "space_id": f"{store.space_id}+lvmae-x", "fingerprint": "", "run": run_fingerprint(run)}
    for source, says in (
        ({**own, "run": "another"}, "which another run than"),
        ({**own, "run": "", "space_id": "other/1"}, "of the space other/1"),
        (own, ""),
        ({}, ""),  # a table from before there was a source
    ):
        table = ProbeTable(
            "t", "classification", "accuracy", ("a",), counts, "fixed", 1, {}, (row,), (), {}, source=source
        )
        (tmp_path / "t.json").write_text(table.to_json())
        asked = ["interpret", str(run), store.path, "--out", str(tmp_path / "r.html"), "--probe-table"]
        assert main([*asked, str(tmp_path / "t.json")]) == (2 if says else 0)
        assert says in capsys.readouterr().err
