"""What a run leaves behind, what it says, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoModel

from conftest import small, write_store
from lvmae.errors import InputError, WorkError
from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.pretraining import pretrain, read_metrics
from lvmae.pretraining.card import verdict
from lvmae.pretraining.data import TrainingData
from lvmae.pretraining.validation import Validation
from lvmae.sequences import Window, collate_packed
from lvmae.store import EmbeddingStore


@pytest.fixture(scope="module")
def run(store, tmp_path_factory) -> Path:
    return pretrain(store, tmp_path_factory.mktemp("run") / "run", recipe=small())


def test_the_model_loads_and_remembers_its_space(run, store):
    model = AutoModel.from_pretrained(run, trust_remote_code=False)
    config = model.config
    assert (config.hidden_size, config.num_hidden_layers, config.decoder_hidden_size) == (16, 1, 8)
    assert (config.space_id, config.segments["seconds"], config.encoder["name"]) == ("planted", 5.0, "planted")
    tokens = model(
        torch.from_numpy(np.array(EmbeddingStore.open(store)[0].embeddings, np.float32))[None]
    ).last_hidden_state
    assert tokens.shape == (1, 7, 16)


def test_the_last_validation_is_that_of_the_saved_model(run, store):
    """The recorded figures are recomputed here from the run folder alone, one window at a time."""
    recipe = small()
    data = TrainingData([EmbeddingStore.open(store)], recipe)
    model = LVMAEForPreTraining.from_pretrained(run).eval()
    squares, cosines = [], []
    for window in data.validation:
        with torch.no_grad():
            guess = model(**collate_packed([window])).reconstruction[0].numpy()[window.masked]
        wanted = window.embeddings[window.masked]
        squares.append(((guess - wanted) ** 2).mean(axis=1))
        cosines.append((guess * wanted).sum(axis=1) / np.linalg.norm(guess, axis=1) / np.linalg.norm(wanted, axis=1))
    final = read_metrics(run)[-1]
    assert len(data.validation) == 2
    assert final["val_loss"] == pytest.approx(np.concatenate(squares).mean(), rel=1e-5)
    assert final["val_cosine"] == pytest.approx(np.concatenate(cosines).mean(), abs=1e-5)


def test_floors_literally():
    window = Window(
        np.array([[1, 0], [0, 1], [0, 1], [1, 0]], np.float32), np.array([False, True, False, True]), video=0, start=0
    )
    small_model = {"hidden_size": 2, "decoder_hidden_size": 2, "num_hidden_layers": 1, "decoder_num_hidden_layers": 1}
    heads = {"num_attention_heads": 1, "decoder_num_attention_heads": 1}
    found = {
        loss: Validation([window], batch_size=1).score(
            LVMAEForPreTraining(LVMAEConfig(**small_model, **heads, loss=loss)), Accelerator(cpu=True)
        )
        for loss in ("mse", "cosine")
    }
    # Masked: (0, 1) and (1, 0). The mean of the visible is (1/2, 1/2); interpolation says (1/2, 1/2), then repeats (0, 1).
    assert found["mse"]["mean_cosine"] == pytest.approx(0.5**0.5)
    assert found["mse"]["mean_loss"] == pytest.approx(0.25)
    assert found["mse"]["interpolation_cosine"] == pytest.approx(0.5**0.5 / 2)
    assert found["mse"]["interpolation_loss"] == pytest.approx((0.25 + 1.0) / 2)
    assert found["cosine"]["interpolation_loss"] == pytest.approx(1 - 0.5**0.5 / 2)


def test_the_card_says_what_the_run_is(run):
    card = (run / "README.md").read_text()
    final = read_metrics(run)[-1]
    assert verdict(final) in card
    assert "THE MODEL HAS LEARNT NOTHING BEYOND" in card  # 12 steps teach nothing
    assert "| store | 12 | 2 | 0 | 204 |" in card
    assert "Its licence, which may bind what is made with its embeddings: CC0 \\| 'planted'." in card
    assert f"| LV-MAE | {final['val_loss']:.6g} | {final['val_cosine']:.4f} |" in card
    assert '| mask | "random" |' in card
    assert str(run.parent) not in card
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("beaten", "beginning"),
    [
        (
            (True, True),
            "On held-out videos its reconstructions of masked segments reach a cosine of 0.7000; interpolating",
        ),
        ((False, True), "THE MODEL HAS LEARNT NOTHING BEYOND INTERPOLATION: on held-out videos"),
        ((False, False), "THE MODEL HAS LEARNT NOTHING BEYOND INTERPOLATION: on held-out videos"),
        ((True, False), "THE MODEL HAS LEARNT NOTHING BEYOND THE MEAN: on held-out videos"),
    ],
)
def test_verdict(beaten, beginning):
    final = {"val_cosine": 0.7, "interpolation_cosine": 0.6, "mean_cosine": 0.5}
    final |= {"beats_interpolation": beaten[0], "beats_mean": beaten[1]}
    assert verdict(final).startswith(beginning)
    assert "not known" in verdict({"loss": 1.0})


def test_recipe_json_is_enough_to_repeat_the_run(run, tmp_path):
    from lvmae.recipes import Recipe

    description = json.loads((run / "recipe.json").read_text())
    again = pretrain(
        [entry["path"] for entry in description["stores"]],
        tmp_path / "again",
        recipe=Recipe.from_dict(description["recipe"]),
    )
    assert (again / "metrics.jsonl").read_bytes() == (run / "metrics.jsonl").read_bytes()


def test_it_learns_an_order_that_interpolation_cannot_know(tmp_path, caplog):
    store = write_store(tmp_path / "store", [12] * 30, in_step=True)
    whole_videos = 10_000
    settings = {
        "decoder_width": 64,
        "decoder_layers": 2,
        "epochs": 30,
        "batch_size": 4,
        "base_lr": 0.3,
        "warmup_epochs": 3,
    }
    recipe = small(**settings, validate_every=30, min_seconds=whole_videos)
    with caplog.at_level("INFO", logger="lvmae"):
        run = pretrain(store, tmp_path / "run", recipe=recipe)
    final = read_metrics(run)[-1]
    assert final["val_cosine"] > 0.9
    assert max(final["interpolation_cosine"], final["mean_cosine"]) < 0.6
    assert final["beats_interpolation"]
    assert final["beats_mean"]
    assert verdict(final) in caplog.text
    assert "NOTHING" not in verdict(final)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(store, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(
        WorkError, match=r"The (loss|gradient) of step \d+ is not finite: the last good checkpoint is step-0000"
    ):
        pretrain(store, out, recipe=small(base_lr=1e25, checkpoint_every=1, log_every=1))
    from safetensors.torch import load_file

    for checkpoint in (out / "checkpoints").iterdir():
        assert all(tensor.isfinite().all() for tensor in load_file(checkpoint / "model.safetensors").values())
    assert all(np.isfinite(record["loss"]) for record in read_metrics(out))


def test_tensorboard(store, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1, trackers="tensorboard"))
    events = EventAccumulator(str(run / "trackers" / "lvmae")).Reload()
    records = read_metrics(run)
    assert [(e.step, e.value) for e in events.Scalars("loss")][:4] == [
        (r["step"], pytest.approx(r["loss"])) for r in records if "lr" in r
    ]
    assert events.Scalars("val_cosine")[0].value == pytest.approx(records[-1]["val_cosine"])


def wandb_history(run: Path) -> list[dict[str, float]]:
    """What an offline run of W&B recorded: protobufs in a LevelDB log, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
    data, at, part, found = file.read_bytes(), 7, b"", []
    while at + 7 <= len(data):
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if kind == 0:  # the rest of a block is padding
            at += 32768 - at % 32768
            continue
        part += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last of several
            record, part = Record.FromString(part), b""
            if record.WhichOneof("record_type") == "history":
                found.append(
                    {i.nested_key[0] if i.nested_key else i.key: json.loads(i.value_json) for i in record.history.item}
                )
    return found


def test_wandb(store, tmp_path, monkeypatch):
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1, trackers="wandb"))
    wandb.teardown()  # waits for W&B's process: it closes the file after the run has finished
    records, history = read_metrics(run), wandb_history(run)
    assert [h["loss"] for h in history if "lr" in h] == pytest.approx([r["loss"] for r in records if "lr" in r])
    assert [h["val_cosine"] for h in history if "val_cosine" in h] == [pytest.approx(records[-1]["val_cosine"])]


def test_a_tracker_that_is_not_installed_is_named(store, tmp_path, monkeypatch):
    monkeypatch.setattr("lvmae.pretraining.loop.get_available_trackers", list)
    with pytest.raises(InputError, match=r"The tracker wandb is not installed: pip install 'lvmae\[wandb\]'"):
        pretrain(store, tmp_path / "run", recipe=small(trackers="wandb"))


def test_videos_too_short_to_mask_are_counted_and_left_out(tmp_path, caplog):
    store = write_store(tmp_path / "store", [1, 1, 8, 1, 9, 10])
    with caplog.at_level("WARNING", logger="lvmae"):
        run = pretrain(store, tmp_path / "run", recipe=small(epochs=1))
    assert "3 of 6 videos in" in caplog.text
    assert "fewer than the 2 segments" in caplog.text
    entry = json.loads((run / "recipe.json").read_text())["stores"][0]
    assert (entry["videos"], entry["too_short"], entry["held_out"]) == (6, 3, 1)
    data = TrainingData([EmbeddingStore.open(store)], small())
    assert {window.video for window in data.validation} | {data.windows[0, i].video for i in range(2)} == {2, 4, 5}


def test_held_out_videos_are_never_trained_on(tmp_path):
    stores = [EmbeddingStore.open(write_store(tmp_path / name, [6] * count)) for name, count in (("a", 9), ("b", 5))]
    data = TrainingData(stores, small(val_fraction=0.3, mixture="1,3"))
    held = {window.video for window in data.validation}
    seen = [data.windows[epoch, i].video for epoch in range(20) for i in range(len(data.windows))]
    assert held.isdisjoint(seen)
    assert held | set(seen) == set(range(14))
    assert np.mean([video >= 9 for video in seen]) == pytest.approx(0.75, abs=0.05)


def test_what_the_data_overrules_is_said(store, tmp_path, caplog):
    with caplog.at_level("WARNING", logger="lvmae"):
        pretrain(store, tmp_path / "run", recipe=small(epochs=1, batch_size=64, max_seconds=1000))
    assert "batch_size is 64 and an epoch has 10 windows" in caplog.text
    assert "max_seconds is 1000 and changes nothing: max_segments=36 segments last 180 s" in caplog.text


def test_without_held_out_videos_it_says_so(store, tmp_path, caplog):
    with caplog.at_level("INFO", logger="lvmae"):
        run = pretrain(store, tmp_path / "run", recipe=small(epochs=1, val_fraction=0))
    assert "No video is held out" in caplog.text
    assert read_metrics(run)[-1].keys() == {"event", "step", "loss"}
    assert "it is not known whether the model has learnt more" in (run / "README.md").read_text()


@pytest.fixture
def begun(store, tmp_path) -> Path:
    return pretrain(store, tmp_path / "run", recipe=small(epochs=1))


def test_another_recipe_is_refused_with_what_differs(begun, store):
    with pytest.raises(
        InputError, match=r"\(base_lr is 0.5 there and 0.1 here; epochs|epochs is 1 there and 2 here; base_lr is"
    ):
        pretrain(store, begun, recipe=small(epochs=2, base_lr=0.1))


def test_another_store_is_refused(begun, tmp_path):
    other = write_store(tmp_path / "other", [8] * 6, seed=1)
    with pytest.raises(InputError, match="other has other content than when the run was started"):
        pretrain(other, begun, recipe=small(epochs=1))
    strange = write_store(tmp_path / "strange", [8] * 6, space_id="clip")
    with pytest.raises(InputError, match=r"its store is of the space planted, .*strange of clip"):
        pretrain(strange, begun, recipe=small(epochs=1))
    with pytest.raises(InputError, match="1 stores there and 2 here"):
        pretrain([other, other], begun, recipe=small(epochs=1))


def test_a_run_from_before_a_setting_is_resumed(begun, store):
    written = json.loads((begun / "recipe.json").read_text())
    del written["recipe"]["beta1"], written["recipe"]["accumulation"], written["recipe"]["compile"]
    (begun / "recipe.json").write_text(json.dumps(written))
    assert pretrain(store, begun, recipe=small(epochs=1)) == begun
    with pytest.raises(InputError, match=r"beta1 is 0.9 there and 0.5 here"):
        pretrain(store, begun, recipe=small(epochs=1, beta1=0.5))
    (begun / "recipe.json").write_text(json.dumps({**written, "recipe": {**written["recipe"], "dropout": 0.1}}))
    with pytest.raises(InputError, match=r"the setting dropout, which lvmae .* does not know"):
        pretrain(store, begun, recipe=small(epochs=1))


def test_no_resume_refuses_a_run(begun, store):
    with pytest.raises(InputError, match="already holds a run"):
        pretrain(store, begun, recipe=small(epochs=1), resume=False)


def test_a_folder_of_something_else_is_refused_untouched(store, tmp_path):
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_text("a")
    with pytest.raises(InputError, match=r"holds other files \(a.mp4\): name a new or empty folder"):
        pretrain(store, tmp_path / "films", recipe=small())
    assert [path.name for path in (tmp_path / "films").iterdir()] == ["a.mp4"]
    with pytest.raises(InputError, match="is a file"):
        pretrain(store, tmp_path / "films" / "a.mp4", recipe=small())


def test_stores_that_do_not_go_together_are_refused(store, tmp_path):
    other = write_store(tmp_path / "other", [8] * 4, space_id="clip")
    with pytest.raises(InputError, match="differ in their space_id"):
        pretrain([store, other], tmp_path / "run", recipe=small())
    with pytest.raises(InputError, match="mixture has 3 weights for 1 stores"):
        pretrain(store, tmp_path / "run", recipe=small(mixture="1,2,3"))
    with pytest.raises(InputError, match="No store was given"):
        pretrain([], tmp_path / "run", recipe=small())
    assert not (tmp_path / "run").exists()


def test_heads_that_do_not_divide_the_store_are_refused(store, tmp_path):
    with pytest.raises(
        InputError, match=r"heads=3 does not divide .* embeddings, 16: set heads to one of 1, 2, 4, 8, 16"
    ):
        pretrain(store, tmp_path / "run", recipe=dataclasses.replace(small(), heads=3))


def test_fp16_without_a_gpu_is_refused(store, tmp_path):
    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(InputError, match="precision=fp16 needs a GPU"):
        pretrain(store, tmp_path / "run", recipe=small(precision="fp16"))


def test_a_store_that_lost_a_shard(tmp_path):
    store = write_store(tmp_path / "store", [200] * 6)
    shards = sorted((store / "data").glob("*.parquet"))
    assert len(shards) > 1
    shards[0].unlink()
    with pytest.raises(WorkError, match=r"lost data/part-00000000.parquet"):
        pretrain(store, tmp_path / "run", recipe=small())


def test_an_error_in_a_worker_arrives_as_itself(tmp_path, monkeypatch):
    def lost(self, index, start=0, stop=None):
        raise WorkError("the shard is gone")

    store = write_store(tmp_path / "store", [8] * 6)
    data = TrainingData([EmbeddingStore.open(store)], small(num_workers=1))
    monkeypatch.setattr(EmbeddingStore, "embeddings", lost)
    with pytest.raises(WorkError, match=r"^the shard is gone$"):
        next(data.batches(0, 0, 1, torch.device("cpu")))


def test_a_device_that_is_not_here_is_refused(store, tmp_path):
    with pytest.raises(InputError, match="use auto, cpu, cuda"):
        pretrain(store, tmp_path / "run", recipe=small(epochs=1), device="cuda:99")
    run = pretrain(store, tmp_path / "run", recipe=small(epochs=1), device="cpu")
    assert read_metrics(run)[-1]["event"] == "finished"
