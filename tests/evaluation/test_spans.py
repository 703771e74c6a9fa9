"""Labels on spans of time: segments told apart, spans found and judged, kept probes that say spans, timelines that show them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lvmae.cli import main
from lvmae.errors import InputError
from lvmae.evaluation import SavedProbe, fit_span_probe, load_spans, predict, predict_spans, probe_spans
from lvmae.evaluation.spans import detect_spans, segment_targets
from lvmae.files.table_files import read_table
from lvmae.library.chapters import timeline
from lvmae.library.spans import Span, mean_average_precision, spans_of
from lvmae.store import REPRESENTATIONS, Manifest, StoreWriter, VideoRecord

D, VIDEOS, LENGTH = 12, 30, 24
CLASSES = ("boil", "cut")


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """30 videos of two minutes. In each one something boils and something is cut; raw embeddings see the boiling alone."""
    folder, rng = tmp_path_factory.mktemp("kitchen"), np.random.default_rng(0)
    starts = 5.0 * np.arange(LENGTH)
    rows = []
    learnt = {"kind": REPRESENTATIONS, "run": {"path": "r", "fingerprint": "f", "store": "raw"}}
    manifests = {
        name: Manifest(f"s{'+lvmae-f' * bool(more)}", D, {"kind": "fixed", "seconds": 5.0}, {"name": "t"}, **more)
        for name, more in (("raw", {}), ("reps", learnt))
    }
    with StoreWriter(folder / "raw", manifests["raw"]) as raw, StoreWriter(folder / "reps", manifests["reps"]) as reps:
        for number in range(VIDEOS):
            shown = np.zeros(LENGTH, int)
            first, second = rng.integers(0, 6), rng.integers(12, 17)
            shown[first : first + 5], shown[second : second + 6] = 1, 2
            rows += [(f"v{number:02d}", 5.0 * first, 5.0 * first + 25, "boil")]
            rows += [(f"v{number:02d}", 5.0 * second, 5.0 * second + 30, "cut")]
            for writer, sees in ((raw, (0, 1, 0)), (reps, (0, 1, 2))):
                told = np.array(sees)[shown]
                tokens = 2 * np.eye(D)[told] + 0.5 * rng.normal(size=(LENGTH, D))
                mean = tokens.mean(axis=0) if writer is reps else None
                writer.add(VideoRecord(f"v{number:02d}", "", 120.0, starts, starts + 5, tokens, mean, mean))
    (folder / "spans.csv").write_text("id,start,end,label\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return folder


def test_a_segment_is_of_the_span_it_shares_most_with() -> None:
    starts = 5.0 * np.arange(6)
    record = VideoRecord("v", "", 30.0, starts, starts + 5, np.ones((6, 2)))
    spans = [Span("v", 3, 12, "a"), Span("v", 11, 17.4, "b"), Span("v", 26, 27, "a")]
    assert segment_targets(record, spans, ("a", "b")).tolist() == [0, 1, 2, 0, 0, 1]


def test_detection_is_judged_as_by_hand() -> None:
    truth = [Span("v", 0, 10, "a"), Span("v", 20, 30, "a"), Span("w", 0, 10, "a"), Span("w", 50, 60, "b")]
    said = [
        Span("v", 0, 8, "a", 0.9),  # 0.8 of the first
        Span("v", 1, 9, "a", 0.8),  # of the same again: wrong
        Span("w", 0, 5, "a", 0.7),  # 0.5
        Span("v", 24, 34, "a", 0.6),  # 6 of 14
        Span("v", 50, 60, "b", 0.9),  # in another video
    ]
    found = mean_average_precision(said, truth, (0.3, 0.5, 0.7))
    # a: right at ranks 1, 3 and 4 of 4: 1/3 of recall each at 1, 3/4 and 3/4 (interpolated); b: nothing.
    assert found[0.3] == pytest.approx(100 * (1 + 3 / 4 + 3 / 4) / 3 / 2)
    assert found[0.5] == pytest.approx(100 * (1 + 2 / 3) / 3 / 2)
    assert found[0.7] == pytest.approx(100 * 1 / 3 / 2)
    assert mean_average_precision(truth, truth, (0.7,)) == {0.7: 100.0}


def test_runs_of_probable_segments_are_spans() -> None:
    p = np.array([0.05, 0.1, 0.9, 0.95, 0.85, 0.1, 0.05, 0.6, 0.1])
    scores = np.stack([1 - p, p], axis=1)
    starts = 5.0 * np.arange(9)
    found = detect_spans("v", scores, starts, starts + 5, ("a",))
    assert [(span.start, span.end) for span in found[:2]] == [(10.0, 25.0), (35.0, 40.0)]
    assert found[0].score == pytest.approx(0.9 - 0.1)
    assert found[1].score == pytest.approx(0.6 - 0.075)


def test_contextual_tokens_tell_segments_and_find_spans(kitchen: Path) -> None:
    table = probe_spans(
        kitchen / "reps", kitchen / "spans.csv", raw=kitchen / "raw", detect=True, seeds=2, resamples=200
    )
    raw, own = table.rows
    assert (raw.features, own.features, table.counts) == (
        "raw embeddings",
        "LV-MAE",
        {"train": 18, "val": 6, "test": 6},
    )
    assert own.mean > 93
    assert raw.mean == pytest.approx(75, abs=7)  # what is cut looks like what is nothing: 6 of 24 segments
    assert own.minus_raw is not None
    assert own.minus_raw["value"] == pytest.approx(own.mean - raw.mean)
    assert own.minus_raw["low"] > 5
    assert own.detection["0.5"] > 85
    assert raw.detection["0.5"] < 60  # one class of two
    assert own.detection["mean"] == pytest.approx(
        np.mean([own.detection[k] for k in ("0.3", "0.4", "0.5", "0.6", "0.7")])
    )
    assert table.chance["majority of train"] == pytest.approx(100 * 13 / 24)
    assert json.loads(table.to_json())["rows"][1]["detection"] == own.detection
    assert "mAP@0.3" in table.to_text()
    assert "LV-MAE minus raw, segments: +" in table.to_text()
    assert 0 < own.stderr < 5


def test_splits_are_by_video_and_may_be_fixed(kitchen: Path, tmp_path: Path) -> None:
    lines = (kitchen / "spans.csv").read_text().splitlines()
    parts = [("train", "train", "train", "val", "test")[int(line[1:3]) % 5] for line in lines[1:]]
    path = tmp_path / "s.csv"
    path.write_text("\n".join([lines[0] + ",split", *(f"{a},{b}" for a, b in zip(lines[1:], parts, strict=True))]))
    table = probe_spans(kitchen / "reps", path, seeds=3, resamples=50)
    assert (table.split, table.seeds, table.counts) == ("fixed", 1, {"train": 18, "val": 6, "test": 6})
    labels = load_spans(path)
    clips = labels.clips()
    assert len(clips) == 60
    assert clips.spans is not None
    assert clips.spans[0] == (labels.spans[0].start, labels.spans[0].end)
    path.write_text(path.read_text().replace(",train", ",test", 1))
    with pytest.raises(InputError, match=r"video 'v00' in .* is in both test and train"):
        load_spans(path)


def test_a_kept_probe_says_spans_and_test_stays_unseen(kitchen: Path, tmp_path: Path) -> None:
    saved = fit_span_probe(kitchen / "reps", kitchen / "spans.csv")
    saved = SavedProbe.load(saved.save(tmp_path / "P"))
    found = predict_spans(saved, kitchen / "reps")
    truth = [span for span, _ in spans_of(read_table(kitchen / "spans.csv"), "s")]
    assert mean_average_precision(found, truth, (0.5,))[0.5] > 90
    assert all(0.5 < span.score <= 1 for span in found if span.end - span.start > 20)
    with pytest.raises(InputError, match="it predicts spans, not classes of whole videos"):
        predict(saved, kitchen / "reps")
    with pytest.raises(InputError, match="this probe reads representations of the space"):
        predict_spans(saved, kitchen / "raw")
    labels = load_spans(kitchen / "spans.csv")
    splits = {id_: ("test" if n % 3 == 0 else "train") for n, id_ in enumerate(labels.videos)}
    one = fit_span_probe(kitchen / "reps", replace(labels, splits=splits))
    moved = tuple(replace(s, label="boil") if splits[s.video] == "test" else s for s in labels.spans)
    other = fit_span_probe(kitchen / "reps", replace(labels, splits=splits, spans=moved))
    np.testing.assert_array_equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("id,start,end,label\nv,5,5,a\n", "line 2 of .*: the span ends at 5 s, which is not after"),
        ("id,start,end,label\nv,x,5,a\n", "line 2 of .*: start 'x' and end '5' must be seconds"),
        ("id,start,end,label\nv,1,5,NA\n", "the span of video 'v' on line 2 of .* has no label"),
        ("id,start,end\nv,1,5\n", "has no column label"),
        ("id,start,end,label\n", "labels no span"),
        ("id,start,end,label\nv,1,5,Dog\nv,5,9,dog\n", "differ only in case"),
    ],
)
def test_a_wrong_table_of_spans_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "s.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        load_spans(tmp_path / "s.csv")


def test_what_is_typed(kitchen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reps, spans = str(kitchen / "reps"), str(kitchen / "spans.csv")
    out, kept, said = (str(tmp_path / name) for name in ("t.json", "P", "said.csv"))
    asked = ["probe", reps, "--labels", spans, "--seeds", "1"]
    assert main([*asked, "--detect", "--save", kept, "--out", out]) == 0
    assert "mAP@0.5" in capsys.readouterr().out
    assert set(json.loads(Path(out).read_text())["rows"][0]["detection"]) == {"0.3", "0.4", "0.5", "0.6", "0.7", "mean"}
    assert main(["predict", kept, reps, "--out", said]) == 0
    rows = read_table(said)
    assert rows.columns == ("id", "start", "end", "label", "score")
    picture, page = tmp_path / "t.png", tmp_path / "t.txt"
    assert main(["timeline", reps, "v03", "--spans", said, "--out", str(picture)]) == 0
    assert main(["timeline", reps, "v03", "--spans", said, "--out", str(page)]) == 0
    assert " cut (" in page.read_text()
    assert " boil (" in page.read_text()
    plain = timeline(reps, "v03").to_png()
    assert len(picture.read_bytes()) > 1000
    assert picture.read_bytes() != plain
    capsys.readouterr()
    for more, says in (
        (["--readout", "cls"], "--readout goes with labels of whole videos"),
        (["--kind", "regression"], "--kind goes with"),
    ):
        assert main([*asked, *more]) == 2
        assert says in capsys.readouterr().err
    (tmp_path / "l.csv").write_text("id,label\n" + "".join(f"v{n:02d},{'ab'[n % 2]}\n" for n in range(30)))
    assert main(["probe", reps, "--labels", str(tmp_path / "l.csv"), "--detect"]) == 2
    assert "--detect goes with labels on spans of time" in capsys.readouterr().err
    assert main(["timeline", reps, "v03", "--spans", said, "--out", str(tmp_path / "t.vtt")]) == 2
