"""`lvmae probe`, as it is typed: the benchmarks on their real annotation files, one's own labels, and every refusal."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lvmae.cli import main
from lvmae.evaluation import Task, family_of, load_task
from lvmae.evaluation.splits import SPLITS
from lvmae.files.tables import read_parquet_rows
from lvmae.store import EMBEDDINGS, REPRESENTATIONS, Manifest, StoreWriter, VideoRecord

D, TOLD = 96, 12  # each of the numbers a video may have is told by eight dimensions
Refused = Callable[..., str]
LVU = family_of("lvu").parts
PUBLISHED = family_of("lvu").published


def _probe(*arguments: object) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(["probe", *map(str, arguments)])
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


def _refused(*arguments: object) -> str:
    """The one sentence of a request that cannot be carried out."""
    code, out, err = _probe(*arguments)
    assert (code, out) == (2, ""), (out, err)
    (sentence,) = [line for line in err.splitlines() if line.startswith("lvmae probe: ")]
    assert "Traceback" not in err
    return sentence.removeprefix("lvmae probe: ")


def _store(path: Path, told: dict[str, int], *, segments: int = 2, learnt: bool = False) -> Path:
    """A video an id, whose every segment points the way of its number, with noise."""
    rng = np.random.default_rng(0)
    run = {"path": "runs/one", "fingerprint": "of run one", "store": "raw"} if learnt else None
    kind = REPRESENTATIONS if learnt else EMBEDDINGS
    manifest = Manifest("toy", D, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"}, kind=kind, run=run)
    starts = 5.0 * np.arange(segments)
    with StoreWriter(path, manifest) as writer:
        for id_, number in told.items():
            tokens = 0.1 * rng.normal(size=(segments, D))
            tokens[:, number::TOLD] += 10 if learnt else 1
            mean = tokens.mean(axis=0) if learnt else None
            writer.add(VideoRecord(f"{id_}.mp4", id_, 5.0 * segments, starts, starts + 5, tokens, mean, mean))
    return path


def _told(*tasks: Task) -> dict[str, int]:
    return {id_: int(number) for task in tasks for id_, number in zip(task.ids, task.targets.tolist(), strict=True)}


def _row(text: str, *names: str) -> list[str]:
    """The figures behind the first line that begins with these names."""
    (line,) = [line for line in text.splitlines() if line.split()[: len(names)] == list(names)]
    return line.split()[len(names) :]


# ------------------------------------------------------------------------------------------------ the benchmarks


@pytest.fixture(scope="module")
def annotations(shared: Path) -> Path:
    folder = shared / "annotations"
    if not (folder / "lvu_1.0").is_dir():
        pytest.skip("the benchmarks' annotation files (../shared/annotations) are not beside this checkout")
    return folder


@pytest.fixture(scope="module")
def lvu_store(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third of LVU's videos, and of `relationship` none for the test; the embeddings tell the scene or the genre."""
    tasks = {name: load_task(f"lvu/{name}", annotations) for name in LVU}
    ids = {id_ for task in tasks.values() for id_ in task.ids[::3]}
    relationship = tasks["relationship"]
    assert relationship.splits is not None
    ids -= {id_ for id_, split in zip(relationship.ids, relationship.splits, strict=True) if split == "test"}
    told = _told(tasks["genre"], tasks["scene"])
    return _store(tmp_path_factory.mktemp("lvu") / "store", {id_: told.get(id_, TOLD - 1) for id_ in sorted(ids)})


def _lines(annotations: Path, name: str, split: str) -> list[str]:
    return (annotations / "lvu_1.0" / name / f"{split}.csv").read_text().splitlines()[1:]


@pytest.mark.parametrize("name", LVU)
def test_each_of_lvus_tasks_on_some_of_its_videos(name: str, annotations: Path, tmp_path: Path) -> None:
    task = load_task(f"lvu/{name}", annotations)
    assert task.splits is not None
    numbers = np.clip(np.round(task.targets - task.targets.min()), 0, TOLD - 1).astype(int)
    told = dict(zip(task.ids, numbers.tolist(), strict=True))
    in_train = np.flatnonzero(task.splits == "train")
    for row in in_train[::2]:
        del told[task.ids[row]]
    store = _store(tmp_path / "store", told)
    out = tmp_path / "out.json"
    probes = ["--probe", "linear", "--seeds", 1, "--out", out]
    code, text, _ = _probe(store, "--task", f"lvu/{name}", "--annotations", annotations, "--compare", *probes)
    assert code == 0
    table = json.loads(out.read_text())
    assert table["annotated"] == dict(Counter(task.splits.tolist()))
    assert table["counts"] == table["annotated"] | {"train": len(in_train) // 2}
    # Read off the files once more, without the reader of the tasks.
    lines = _lines(annotations, name, "test")
    assert table["counts"]["test"] == len(lines)
    if task.kind == "classification":
        most = max(Counter(line.split(" ")[0] for line in lines).values())
        assert table["chance"]["most frequent class"] == pytest.approx(100 * most / len(lines))
        classes = {line.split(" ")[0] for split in SPLITS for line in _lines(annotations, name, split)}
        assert table["chance"]["1 / classes"] == pytest.approx(100 / len(classes))
    (row,) = table["rows"]
    assert row["steps"] == row["paper_steps"] == 30 * -(-table["counts"]["train"] // 16)  # the paper to the letter
    assert _row(text, "LV-MAE", "LanguageBind", "(published)", "attentive") == [
        f"{PUBLISHED['LV-MAE LanguageBind'][name]:.2f}"
    ]
    assert text.count("(published)") == 7


def test_missing_videos_are_counted_and_listed_and_the_figure_says_so(
    annotations: Path, lvu_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "tables" / "scene.json"
    asked = ["--task", "lvu/scene", "--annotations", annotations, "--probe", "linear", "--seeds", 1, "--standardize"]
    code, text, err = _probe(lvu_store, *asked, "--out", out)
    assert code == 0
    table = json.loads(out.read_text())
    assert table["annotated"] == {"train": 557, "val": 120, "test": 86}
    assert f"The figures stand on {table['counts']['test']} of 86 test videos." in text
    assert f"{len(table['missing'])} of 763 annotated videos are not in the store" in text
    with (tmp_path / "tables" / "scene.missing.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert "scene.missing.csv" in err
    assert {row["task"] for row in listed} == {"lvu/scene"}
    counted = Counter(row["split"] for row in listed)
    assert {split: counted[split] + table["counts"][split] for split in counted} == table["annotated"]
    scene = load_task("lvu/scene", annotations)
    assert {row["video"] for row in listed} <= set(scene.ids)
    # The planted classes are there for a probe that is trained long enough, which the paper's rate is not on unit vectors.
    assert table["rows"][1]["probe"] == "linear-standardized"


def test_lvu_in_one_go_is_the_papers_row(annotations: Path, lvu_store: Path, tmp_path: Path) -> None:
    listed = tmp_path / "missing.csv"
    asked = ["--task", "lvu", "--annotations", annotations, "--probe", "linear", "--seeds", 1]
    code, text, _ = _probe(lvu_store, *asked, "--compare", "--missing", listed, "--out", tmp_path / "lvu.md")
    assert code == 0
    header = text.splitlines()[0]
    assert header.split()[2:10] == [*LVU[:7], "average"]
    assert _row(text, "LV-MAE", "InternVideo2", "(published)", "attentive") == [
        f"{value:.2f}"
        for value in (PUBLISHED["LV-MAE InternVideo2"][column] for column in [*LVU[:7], "average", *LVU[7:]])
    ]
    assert "lvu/relationship was not run: the store has" in text
    own = _row(text, "raw", "embeddings", "linear")
    assert len(own) == 8  # of ten: relationship was not run, and so there is no average of seven
    assert (tmp_path / "lvu.md").read_text().startswith("| features | probe | director |")
    with listed.open(newline="") as file:
        tasks = Counter(row["task"] for row in csv.DictReader(file))
    assert set(tasks) == {f"lvu/{name}" for name in LVU}
    assert f"{sum(tasks.values())} annotated videos, over all tasks, are not in the store." in text


def test_breakfast(annotations: Path, tmp_path: Path) -> None:
    task = load_task("breakfast", annotations)
    store = _store(tmp_path / "store", _told(task))
    asked = ["--task", "breakfast", "--annotations", annotations, "--probe", "linear", "--standardize", "--seeds", 1]
    code, text, _ = _probe(store, *asked, "--compare")
    assert code == 0
    assert _row(text, "raw", "embeddings", "linear-standardized")[0] == "100.0"
    assert _row(text, "LV-MAE", "InternVideo2", "(published)") == ["93.24"]
    assert _row(text, "VideoMamba", "(published)") == ["96.90"]
    with (annotations / "breakfast" / "test.csv").open(newline="") as file:
        counts = Counter(row["action"] for row in csv.DictReader(file))
    assert _row(text, "chance:", "most", "frequent", "class") == [f"{100 * max(counts.values()) / 355:.1f}"]
    assert _row(text, "chance:", "1", "/", "classes") == ["10.0"]


@pytest.fixture
def coin(tmp_path: Path) -> Path:
    """A sample in the form COIN.json is distributed in: two tasks, told by what lies within [start, end] alone."""
    database = {}
    for number in range(60):
        database[f"id{number:02d}"] = {
            "class": ("MakeTea", "WaxSkis")[number % 2],
            "recipe_type": 7 + number % 2,
            "subset": "testing" if number >= 40 else "training",
            "start": 10.0,
            "end": 26.5,
            "duration": 60.0,
            "annotation": [{"id": "1", "segment": [11.0, 19.0], "label": "boil"}],
        }
    (tmp_path / "COIN.json").write_text(json.dumps({"database": database}))
    return tmp_path


def test_coin_is_probed_on_its_clips(coin: Path) -> None:
    rng = np.random.default_rng(0)
    manifest = Manifest("toy", D, {"kind": "fixed", "seconds": 5.0}, {"name": "toy"})
    starts = 5.0 * np.arange(12)
    with StoreWriter(coin / "store", manifest) as writer:
        for number in range(58):
            tokens = 0.1 * rng.normal(size=(12, D))
            tokens[:, 2 + number % 3] += 1  # outside the clip: something that is no help
            tokens[2:5] = 0.1 * rng.normal(size=(3, D))
            tokens[2:5, number % 2] += 1
            writer.add(VideoRecord(f"id{number:02d}", "x", 60.0, starts, starts + 5, tokens))
    asked = ["--task", "coin", "--annotations", coin, "--probe", "attentive", "--seeds", 1, "--compare"]
    code, text, _ = _probe(coin / "store", *asked)
    assert code == 0
    assert _row(text, "raw", "embeddings", "attentive")[0] == "100.0"
    assert "The figures stand on 18 of 20 test videos." in text
    assert "videos: 32 train, 8 val, 18 test" in text
    assert _row(text, "LV-MAE", "LanguageBind", "(published)") == ["92.42"]
    assert _row(text, "InternVideo2", "raw", "(published)") == ["88.41"]


# ------------------------------------------------------------------------------------------------ one's own labels


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 representations, told apart by their number modulo 4, and the raw store they were made from."""
    folder = tmp_path_factory.mktemp("own")
    told = {f"v{number:02d}": number % 4 for number in range(40)}
    _store(folder / "reps", told, learnt=True)
    _store(folder / "raw", told)
    _labels(folder / "labels.csv", *"abcd")
    return folder


def _labels(path: Path, *labels: str, rows: int = 40, split: bool = False) -> Path:
    lines = ["id,label" + ",split" * split]
    for number in range(rows):
        part = f",{('train', 'train', 'val', 'test')[number // 4 % 4]}" if split else ""
        lines.append(f"v{number:02d},{labels[number % len(labels)]}{part}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize(
    ("labels", "kind", "metric"),
    [
        (["a", "b", "c", "d"], "classification", "accuracy"),
        (["a|b", "b", "c|a", "c"], "multilabel", "mAP"),
        (["0.5", "1.5", "2.5", "3.5"], "regression", "MSE"),
    ],
)
def test_kinds_of_labels_are_read_off_them_or_said(
    labels: list[str], kind: str, metric: str, own: Path, tmp_path: Path
) -> None:
    path, out = _labels(tmp_path / "labels.csv", *labels), tmp_path / "out.json"
    for said in ([],) if kind == "multilabel" else ([], ["--kind", kind]):
        code, text, _ = _probe(own / "reps", "--labels", path, *said, "--probe", "linear", "--seeds", 1, "--out", out)
        assert code == 0
        table = json.loads(out.read_text())
        assert (table["kind"], table["metric"]) == (kind, metric)
        assert table["rows"][0]["mean"] == pytest.approx(0 if kind == "regression" else 100, abs=0.3)
        assert metric in text.splitlines()[0]
    assert table["annotated"] == {"": 40}


def test_a_share_of_labels_and_baselines(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    asked = ["--labels", own / "labels.csv", "--raw", own / "raw", "--probe", "linear", "--baseline", "transformer"]
    code, text, _ = _probe(own / "reps", *asked, "--label-fraction", 0.1, "--seeds", 1, "--out", out)
    assert code == 0
    table = json.loads(out.read_text())
    assert (table["label_fraction"], table["counts"]) == (0.1, {"train": 4, "val": 8, "test": 8})
    assert "Trained on 10 % of the train labels" in text
    rows = {(row["features"], row["probe"]): row["mean"] for row in table["rows"]}
    assert list(rows) == [("raw embeddings", "linear"), ("raw embeddings", "transformer"), ("LV-MAE", "linear")]
    assert rows[("raw embeddings", "transformer")] == 100
    assert min(rows.values()) > 50  # of chance 25: four labels, and standardising enlarges 64 dimensions of noise


def test_forms(own: Path, tmp_path: Path) -> None:
    asked = [own / "reps", "--labels", own / "labels.csv", "--probe", "linear", "--seeds", 1]
    _, markdown, _ = _probe(*asked, "--format", "markdown", "--out", tmp_path / "t.tex")
    assert "| LV-MAE | linear | 100.0 | ± 0.0 | 100.0 to 100.0 |" in markdown.splitlines()
    _, latex, _ = _probe(*asked, "--format", "latex", "--out", tmp_path / "t.txt")
    assert r"LV-MAE & linear & 100.0 & $\pm$ 0.0 & 100.0 to 100.0 \\" in latex.splitlines()
    assert r"features & probe & accuracy \% & $\pm$ SE & 95 \% interval \\" in latex.splitlines()
    assert (tmp_path / "t.tex").read_text() == latex
    _, printed, _ = _probe(*asked, "--format", "json", "--out", tmp_path / "t.md")
    assert json.loads(printed)["rows"][0]["mean"] == 100.0
    assert (tmp_path / "t.md").read_text() == markdown
    assert (tmp_path / "t.txt").read_text().startswith("features ")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["x,lonely"], "the class 'lonely' in LABELS has a single video"),
        (["x,nan"], "video 'x' on line 42 of LABELS has no label; fill it in or remove the line"),
    ],
)
def test_wrong_labels_get_one_sentence(lines: list[str], sentence: str, own: Path, tmp_path: Path) -> None:
    path = _labels(tmp_path / "labels.csv", "a", "b")
    path.write_text(path.read_text().replace("v39,b", "v39,b\n" + lines[0]))
    if "single" in sentence:
        path.write_text(path.read_text().replace("x,lonely", "").replace("v39,b", "v39,lonely"))
    assert sentence.replace("LABELS", str(path)) in _refused(own / "reps", "--labels", path)


def test_a_constant_target_and_one_that_is_no_number(own: Path, tmp_path: Path) -> None:
    path = _labels(tmp_path / "labels.csv", "2.5")
    assert f"all 40 targets in {path} are 2.5; a constant" in _refused(own / "reps", "--labels", path)
    path = _labels(tmp_path / "labels.csv", "2.5", "inf")
    said = _refused(own / "reps", "--labels", path, "--kind", "regression")
    assert f"the label 'inf' in {path} is not a finite number" in said


def test_val_must_not_share_videos_with_test(own: Path, annotations: Path, tmp_path: Path) -> None:
    path = _labels(tmp_path / "labels.csv", *"abcd", split=True)
    path.write_text(path.read_text() + "v08,a,test\n")
    said = _refused(own / "reps", "--labels", path)
    assert "video 'v08' is in both val and test (lines 10 and 42 of" in said
    assert "a test must not share videos with what it tests" in said
    scene = tmp_path / "lvu_1.0" / "scene"
    scene.mkdir(parents=True)
    for split in ("train", "val", "test"):
        scene.joinpath(f"{split}.csv").write_text((annotations / f"lvu_1.0/scene/{split}.csv").read_text())
    taken = (scene / "test.csv").read_text().splitlines()[1]
    (scene / "val.csv").write_text((scene / "val.csv").read_text().rstrip("\n") + f"\n{taken}\n")
    said = _refused(own / "reps", "--task", "lvu/scene", "--annotations", tmp_path)
    assert f"video '{taken.split(' ')[2]}' in {scene} is in both val and test; a test must not share" in said


def test_representations_of_another_run_than_said(own: Path, tmp_path: Path) -> None:
    from lvmae.model import LVMAEConfig, LVMAEForPreTraining

    sizes = {f"{part}{name}": size for part in ("", "decoder_") for name, size in (("hidden_size", D), ("num_hidden_layers", 1),
             ("num_attention_heads", 2), ("intermediate_size", D))}  # fmt: skip
    LVMAEForPreTraining(LVMAEConfig(**sizes)).save_pretrained(tmp_path / "two")
    asked = ["--labels", own / "labels.csv", "--run", tmp_path / "two"]
    said = _refused(own / "reps", *asked)
    assert "reps was made by another run (runs/one) than" in said
    assert "represent the store with this run first" in said
    assert "holds raw embeddings, not representations of the run" in _refused(own / "raw", *asked)


def test_requests_that_do_not_go_together(own: Path, annotations: Path, coin: Path, tmp_path: Path) -> None:
    reps, labels = own / "reps", ["--labels", own / "labels.csv"]
    assert "--task coin needs --annotations" in _refused(reps, "--task", "coin")
    assert "go with --task" in _refused(reps, *labels, "--compare")
    assert "--kind goes with --labels" in _refused(
        reps, "--task", "coin", "--annotations", coin, "--kind", "regression"
    )
    assert "there is no task 'lvu/plot'" in _refused(reps, "--task", "lvu/plot", "--annotations", annotations)
    assert "train.csv does not exist" in _refused(reps, "--task", "lvu", "--annotations", tmp_path)
    assert "has 0 of the 60 videos of coin" in _refused(reps, "--task", "coin", "--annotations", coin)
    assert "above 0 and at most 1, not 1.5" in _refused(reps, *labels, "--label-fraction", 1.5)
    assert "transformer learn end to end from raw" in _refused(reps, *labels, "--baseline", "transformer")
    assert "cannot be written" in _refused(reps, *labels, "--out", own)
    code, _, err = _probe(reps)
    assert code == 2
    assert "one of the arguments --labels --task is required" in err


# ------------------------------------------------------------------------------------------------ what is written


def test_predictions_and_csv_are_the_figures_of_the_table(own: Path, tmp_path: Path) -> None:
    asked = ["--labels", own / "labels.csv", "--probe", "linear", "--probe", "knn", "--seeds", 2]
    out, said = tmp_path / "t.csv", tmp_path / "p.csv"
    code, _text, _ = _probe(own / "reps", *asked, "--out", out, "--predictions", said)
    assert code == 0
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    with said.open(newline="") as file:
        predictions = list(csv.DictReader(file))
    assert [(row["features"], row["probe"]) for row in rows[:2]] == [("LV-MAE", "linear"), ("LV-MAE", "knn")]
    assert {row["probe"] for row in rows if row["features"] == "chance"} >= {"majority of train", "1 / classes"}
    for row in rows[:2]:
        here = [one for one in predictions if one["probe"] == row["probe"]]
        assert len(here) == 2 * 8
        right = [one["label"] == one["predicted"] for one in here]
        assert float(row["mean"]) == pytest.approx(100 * np.mean(right))
        assert all(sum(float(one[f"score:{name}"]) for name in "abcd") == pytest.approx(1) for one in here)
        assert all(one["predicted"] == max("abcd", key=lambda c, o=one: float(o[f"score:{c}"])) for one in here)
    code, _, _ = _probe(own / "reps", *asked, "--predictions", tmp_path / "p.parquet")
    assert len(list(read_parquet_rows(tmp_path / "p.parquet"))) == len(predictions)
    assert "choose .json, .md, .tex, .txt, .csv" in _refused(own / "reps", *asked, "--out", tmp_path / "t.xlsx")


def test_what_is_written_is_there_before_it_is_printed(own: Path, tmp_path: Path) -> None:
    class Gone(io.StringIO):
        encoding = "ascii"

        def write(self, text: str) -> int:
            text.encode("ascii")
            raise BrokenPipeError

    out = tmp_path / "t.json"
    with contextlib.redirect_stdout(Gone()), contextlib.redirect_stderr(io.StringIO()):
        main(list(map(str, ["probe", own / "reps", "--labels", own / "labels.csv", "--probe", "linear", "--out", out])))
    assert json.loads(out.read_text())["rows"]


def test_the_papers_protocol_for_ones_own_labels(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    asked = ["--labels", own / "labels.csv", "--protocol", "paper", "--seeds", 1, "--out", out]
    code, _text, _ = _probe(own / "reps", *asked)
    assert code == 0
    table = json.loads(out.read_text())
    assert [row["probe"] for row in table["rows"]] == ["linear", "attentive"]
    assert [row["steps"] for row in table["rows"]] == [60, 40]  # 24 videos in batches of 16, 30 and 20 epochs
    assert "the paper's protocol has no class weights" in _refused(own / "reps", *asked, "--class-weight", "balanced")


def test_a_list_of_absent_videos_does_not_refuse_a_label_file(own: Path, tmp_path: Path) -> None:
    path = _labels(tmp_path / "labels.csv", "a", "b")
    path.write_text(path.read_text() + "gone1,a\ngone2,b\n")
    out = tmp_path / "t.json"
    code, text, _err = _probe(own / "reps", "--labels", path, "--probe", "linear", "--seeds", 1, "--out", out)
    assert code == 0
    assert "2 of 42 annotated videos are not in the store, such as gone1, gone2." in text
    assert json.loads(out.read_text())["missing"] == ["gone1", "gone2"]
    assert "gone2" in (tmp_path / "t.missing.csv").read_text()
