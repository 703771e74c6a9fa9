"""Representations: what is stored is what the encoder computes, kept, resumed, and refused where it does not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from lvmae import representations
from lvmae.cli import main
from lvmae.errors import InputError, WorkError
from lvmae.evaluation.features import load_features
from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel
from lvmae.pretraining.checkpoints import save_model
from lvmae.representations import load_run_encoder, represent, run_fingerprint
from lvmae.store import EmbeddingStore, Manifest, StoreWriter, VideoRecord, l2_normalize, remove_videos, verify_store
from lvmae.upkeep import verify

D = 16
LENGTHS = [3, 1, 40, 7, 20, 7]
SEGMENTS = {"kind": "fixed", "seconds": 5.0}


def _store(path: Path, lengths: list[int], *, space: str = "space", dim: int = D, first: int = 0) -> EmbeddingStore:
    rng = np.random.default_rng([first, dim])
    with StoreWriter(path, Manifest(space, dim, SEGMENTS, {"name": "toy"})) as writer:
        for number, length in enumerate(lengths, first):
            starts = np.arange(length) * 5.0
            embeddings = 3 * rng.normal(size=(length, dim))
            writer.add(VideoRecord(f"v{number}", f"v{number}.mp4", length * 5.0, starts, starts + 5, embeddings))
    return EmbeddingStore.open(path)


def _run(path: Path, *, seed: int = 0, space: str = "space", dim: int = D, center: str = "none") -> Path:
    torch.manual_seed(seed)
    sizes = {"hidden_size": dim, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * dim}
    decoder = {"decoder_hidden_size": dim, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = LVMAEConfig(
        **sizes, **decoder, decoder_intermediate_size=dim, max_segments=32, space_id=space, center=center
    )
    LVMAEForPreTraining(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return _store(tmp_path / "store", LENGTHS)


def test_packed_batches_equal_one_video_at_a_time(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    reps = represent(run, store, tmp_path / "reps", batch_tokens=30)
    model = LVMAEModel.from_pretrained(run).eval()
    assert (reps.kind, reps.ids, reps.lengths.tolist()) == ("representations", store.ids, LENGTHS)
    for before, after in zip(store, reps, strict=True):
        unit = F.normalize(torch.from_numpy(before.embeddings.astype(np.float32)), dim=-1)
        with torch.inference_mode():
            alone = model(inputs_embeds=unit[None]).last_hidden_state[0].numpy()
        np.testing.assert_allclose(after.cls, alone[0], atol=2e-5)
        np.testing.assert_allclose(after.mean, alone[1:].mean(axis=0), atol=2e-5)
        np.testing.assert_allclose(after.embeddings, alone[1:], atol=2e-3)  # half precision
        np.testing.assert_array_equal(after.starts, before.starts)
        np.testing.assert_array_equal(after.ends, before.ends)
        assert (after.source, after.duration) == (before.source, before.duration)


def test_the_parquet_is_read_without_this_library(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    """A row a video: [CLS], mean, and each segment's features beside its start and end in seconds."""
    reps = represent(run, store, tmp_path / "reps")
    rows = pq.read_table(tmp_path / "reps" / "data").to_pylist()
    assert [row["id"] for row in rows] == store.ids
    for place, row in enumerate(rows):
        assert row["starts"] == [5.0 * number for number in range(LENGTHS[place])]
        assert row["ends"] == [5.0 * number + 5 for number in range(LENGTHS[place])]
        np.testing.assert_array_equal(np.array(row["cls"], np.float32), reps.cls_features[place])
        np.testing.assert_array_equal(np.array(row["mean"], np.float32), reps.mean_features[place])
        features = np.array(row["embeddings"], np.float32)
        assert features.shape == (LENGTHS[place], D)
        np.testing.assert_allclose(features.mean(axis=0), row["mean"], atol=2e-3)  # features are in half precision


def test_the_manifest_says_what_they_were_made_from(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    reps = represent(run, store, tmp_path / "reps")
    assert reps.manifest.run == {"path": str(run), "fingerprint": run_fingerprint(run), "store": store.path}
    assert reps.space_id == f"space+lvmae-{run_fingerprint(run)[:12]}"
    assert reps.manifest.segments == SEGMENTS


def test_a_second_call_computes_nothing(
    run: Path, store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = represent(run, store, tmp_path / "reps")

    def refuse(*_: object) -> None:
        raise AssertionError("the encoder ran again")

    monkeypatch.setattr(representations, "_represented", refuse)
    assert represent(run, store, tmp_path / "reps").fingerprint == first.fingerprint


def test_interrupted_and_grown_it_computes_the_rest(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = _store(tmp_path / "store", LENGTHS)
    whole = represent(run, store, tmp_path / "whole")
    real, batches = representations._represented, []

    def interrupted(model: LVMAEModel, store: EmbeddingStore, batch: list[int], device: torch.device) -> object:
        batches.append(batch)
        if len(batches) == 2:
            raise KeyboardInterrupt
        return real(model, store, batch, device)

    monkeypatch.setattr(representations, "_represented", interrupted)
    with pytest.raises(KeyboardInterrupt):
        represent(run, store, tmp_path / "reps", batch_tokens=30)
    assert EmbeddingStore.open(tmp_path / "reps").ids == ["v0", "v1"]
    resumed = represent(run, store, tmp_path / "reps", batch_tokens=30)
    assert batches[1:] == [[2], [2], [3, 4], [5]]
    assert resumed.ids == whole.ids
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(one.mean, other.mean, atol=2e-5)
    grown = represent(run, _store(tmp_path / "store", [2, 5], first=6), tmp_path / "reps")
    assert grown.lengths.tolist() == [*LENGTHS, 2, 5]


def test_a_changed_run_is_refused_unless_overwritten(store: EmbeddingStore, tmp_path: Path) -> None:
    run = _run(tmp_path / "run", seed=1)
    before = represent(run, store, tmp_path / "reps").mean_features.copy()
    _run(tmp_path / "run", seed=2)
    with pytest.raises(InputError, match=r"made by another run .* or this one before it changed"):
        represent(run, store, tmp_path / "reps")
    after = represent(run, store, tmp_path / "reps", overwrite=True)
    assert len(after) == len(LENGTHS)
    assert np.abs(after.mean_features - before).max() > 0.1


def test_a_moved_run_is_the_same_run(store: EmbeddingStore, tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    reps = represent(run, store, tmp_path / "reps")
    moved = run.rename(tmp_path / "moved")
    assert represent(moved, store, tmp_path / "reps").fingerprint == reps.fingerprint


def test_what_does_not_belong_together_is_refused(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    other_space = _store(tmp_path / "other", [2], space="elsewhere")
    with pytest.raises(InputError, match=r"trained on the space space and .* is of elsewhere"):
        represent(run, other_space, tmp_path / "x")
    unnamed = _run(tmp_path / "unnamed", space="")
    assert len(represent(unnamed, other_space, tmp_path / "y")) == 1
    with pytest.raises(InputError, match=r"takes embeddings 16 wide and those of .* are 8 wide"):
        represent(unnamed, _store(tmp_path / "narrow", [2], dim=8), tmp_path / "x")
    reps = represent(run, store, tmp_path / "reps")
    with pytest.raises(InputError, match="holds representations; give the store of embeddings"):
        represent(run, reps, tmp_path / "x")
    with pytest.raises(InputError, match="holds embeddings; choose another place"):
        represent(run, store, other_space.path)
    with pytest.raises(InputError, match=r"holds videos that are not in"):
        represent(run, _store(tmp_path / "part", [2], first=50), tmp_path / "reps")
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_no_run_is_refused(store: EmbeddingStore, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a run"):
        represent(tmp_path / "absent", store, tmp_path / "reps")
    broken = _run(tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_run_encoder(broken)


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    run = _run(tmp_path / "run")
    save_file({"some.weight": torch.zeros(2)}, run / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds no LV-MAE encoder"):
        load_run_encoder(run)


def test_a_diverged_run_is_reported(store: EmbeddingStore, tmp_path: Path) -> None:
    run = _run(tmp_path / "run")
    model = LVMAEForPreTraining.from_pretrained(run)
    torch.nn.init.constant_(model.lvmae.norm.bias, torch.nan)
    model.save_pretrained(run)
    with pytest.raises(WorkError, match="not finite on video 'v0'"):
        represent(run, store, tmp_path / "reps")


@pytest.mark.parametrize("center", ["video", "none"])
def test_what_was_taken_off_a_video_is_kept(store: EmbeddingStore, tmp_path: Path, center: str) -> None:
    """With center=video the mean of a video's embeddings, which its features no longer hold, is a column of its own."""
    run = _run(tmp_path / "run", center=center)
    reps = represent(run, store, tmp_path / "reps")
    if center == "none":
        assert reps.center_features is None
        assert reps[0].center is None
        assert load_features(reps, np.arange(2)).readouts() == ("mean", "cls", "both", "mean+std")
        return
    expected = np.stack([l2_normalize(store.embeddings(i)).mean(axis=0) for i in range(len(store))])
    np.testing.assert_allclose(reps.center_features, expected, atol=1e-6)
    np.testing.assert_allclose(reps[1].center, expected[1], atol=1e-6)
    np.testing.assert_allclose(reps[1].mean, reps[1].embeddings[0].astype(np.float32), atol=2e-3)  # it has one segment
    features = load_features(reps, np.arange(len(reps)))
    assert features.readouts() == ("mean", "cls", "both", "mean+std", "mean+center", "mean+std+center")
    blocks = [reps.mean_features, features.deviation(), expected]
    np.testing.assert_allclose(features.pooled("mean+std+center"), np.concatenate(blocks, axis=1), atol=1e-6)
    some = features.take(np.array([4, 2]))
    np.testing.assert_allclose(some.pooled("mean+center")[:, D:], expected[[4, 2]], atol=1e-6)


def _replaced(path: Path, number: int, embeddings: np.ndarray) -> None:
    with StoreWriter(path, EmbeddingStore(path).manifest) as writer:
        starts = np.arange(len(embeddings)) * 5.0
        writer.add(
            VideoRecord(f"v{number}", f"v{number}.mp4", len(embeddings) * 5.0, starts, starts + 5, embeddings),
            replaces=True,
        )


def test_representations_of_embeddings_that_changed_are_stale_and_made_again(
    run: Path, store: EmbeddingStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = represent(run, store, tmp_path / "reps")
    assert before.stale() == []
    other = np.random.default_rng(7).normal(size=(20, D))
    _replaced(tmp_path / "store", 4, other)
    stale = EmbeddingStore.open(tmp_path / "reps")
    assert stale.stale() == ["v4"]
    assert "is stale: the embeddings of v4 have changed or gone since" in caplog.text
    assert [problem.ids for problem in verify_store(tmp_path / "reps").problems] == [("v4",)]
    again = represent(run, tmp_path / "store", tmp_path / "reps")
    fresh = represent(run, tmp_path / "store", tmp_path / "fresh")
    assert again.stale() == []
    np.testing.assert_allclose(again[4].embeddings, fresh[4].embeddings, atol=2e-3)  # alone, and in a batch
    assert np.abs(again[4].embeddings - before[4].embeddings).max() > 0.1
    np.testing.assert_array_equal(again[2].embeddings, before[2].embeddings)


def test_a_removed_video_leaves_the_representations_and_returns_when_it_is_admitted(
    run: Path, store: EmbeddingStore, tmp_path: Path
) -> None:
    before = represent(run, store, tmp_path / "reps")
    remove_videos(tmp_path / "store", ["v2"])
    assert EmbeddingStore.open(tmp_path / "reps").stale() == ["v2"]
    after = represent(run, tmp_path / "store", tmp_path / "reps")
    assert after.ids == ["v0", "v1", "v3", "v4", "v5"]
    assert not any(b"v2" in file.read_bytes() for file in (tmp_path / "reps").glob("[di]*/*"))
    with StoreWriter(tmp_path / "store", store.manifest) as writer:
        writer.admit(["v2"])
    _replaced(tmp_path / "store", 2, np.random.default_rng(1).normal(size=(40, D)))
    back = represent(run, tmp_path / "store", tmp_path / "reps")
    assert back.ids == before.ids
    assert back.stale() == []


def test_a_flipped_bit_in_a_run_is_noticed(store: EmbeddingStore, tmp_path: Path) -> None:
    config = LVMAEConfig.from_pretrained(_run(tmp_path / "made"))
    model = LVMAEForPreTraining.from_pretrained(tmp_path / "made")
    (tmp_path / "run").mkdir()
    save_model(tmp_path / "run", config, model.state_dict())
    represent(tmp_path / "run", store, tmp_path / "reps")
    weights = tmp_path / "run/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1000] ^= 64
    weights.write_bytes(content)
    with pytest.raises(WorkError, match=r"model\.safetensors is damaged: its bytes are not those that were written"):
        represent(tmp_path / "run", store, tmp_path / "other")
    found = verify(tmp_path / "run")
    assert [problem.file for problem in found.problems] == ["model.safetensors"]
    assert main(["verify", str(tmp_path / "run")]) == 1


@pytest.mark.parametrize("center", ["none", "video"])
def test_the_means_of_layers_are_those_of_each_video_alone(store: EmbeddingStore, tmp_path: Path, center: str) -> None:
    run = _run(tmp_path / "run", center=center)
    reps = represent(run, store, tmp_path / "reps", batch_tokens=30, layers="all")
    assert list(reps.layer_features) == [1, 2]
    model = LVMAEModel.from_pretrained(run).eval()
    for place, record in enumerate(store):
        unit = l2_normalize(record.embeddings)
        if center == "video":
            unit = unit - unit.mean(axis=0)
        seen: list[torch.Tensor] = []
        hooks = [block.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out)) for block in model.blocks]
        with torch.inference_mode():  # a video longer than the model's 32 segments goes through in windows
            for first in range(0, len(unit), 32):
                model.config.center, own = "none", model.config.center
                model(inputs_embeds=torch.from_numpy(unit[None, first : first + 32]))
                model.config.center = own
        for hook in hooks:
            hook.remove()
        for layer in (1, 2):
            tokens = torch.cat([values.reshape(-1, D)[1:] for values in seen[layer - 1 :: 2]])
            np.testing.assert_allclose(reps.layer_features[layer][place], tokens.mean(dim=0), atol=2e-5)
        np.testing.assert_array_equal(reps[place].layers, [reps.layer_features[layer][place] for layer in (1, 2)])
    plain = represent(run, store, tmp_path / "plain")
    assert plain.layer_features == {}
    np.testing.assert_allclose(plain.mean_features, reps.mean_features, atol=2e-5)


def test_layers_are_asked_for_once(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    part = _store(tmp_path / "part", LENGTHS[:3])
    represent(run, part, tmp_path / "reps", layers=[2])
    again = represent(run, store, tmp_path / "reps", layers="2")
    assert again.layer_features[2].shape == (len(LENGTHS), D)
    with pytest.raises(InputError, match="was made with the layers 2, not last; choose another place, or overwrite it"):
        represent(run, store, tmp_path / "reps")
    for wrong, says in (("3", "has the layers 1 to 2, not 3"), ("0", "not 0"), ("first", "last, all, or numbers")):
        with pytest.raises(InputError, match=says):
            represent(run, store, tmp_path / "other", layers=wrong)
    assert main(["represent", str(run), store.path, "--out", str(tmp_path / "typed"), "--layers", "1,2"]) == 0
    assert list(EmbeddingStore.open(tmp_path / "typed").layer_features) == [1, 2]


def test_ranks_share_the_videos_and_merge_into_the_same_store(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    whole = represent(run, store, tmp_path / "whole")
    assert (
        main(["represent", str(run), store.path, "--out", str(tmp_path / "ranks"), "--rank", "0", "--world-size", "3"])
        == 0
    )
    first = EmbeddingStore(tmp_path / "ranks" / "rank-00000-of-00003")
    # Another number of ranks takes the rest, whoever it would have been of.
    parts = [represent(run, store, tmp_path / "ranks", rank=rank, world_size=2) for rank in range(2)]
    assert sorted([*first.ids, *parts[0].ids, *parts[1].ids]) == store.ids
    assert len(first.ids) < len(store)
    assert main(["merge", str(tmp_path / "ranks"), "--out", str(tmp_path / "merged")]) == 0
    merged = EmbeddingStore(tmp_path / "merged")
    assert merged.ids == whole.ids
    for ours, theirs in zip(merged, whole, strict=True):
        np.testing.assert_allclose(ours.embeddings, theirs.embeddings, atol=2e-3)
        np.testing.assert_allclose(ours.cls, theirs.cls, atol=1e-5)
    with pytest.raises(InputError, match="A rank and a world size go together"):
        represent(run, store, tmp_path / "ranks", rank=1)
    with pytest.raises(InputError, match="must lie between 0 and world size - 1, not be 2 of 2"):
        represent(run, store, tmp_path / "ranks", rank=2, world_size=2)


def test_slurm_says_the_rank(run: Path, store: EmbeddingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "2")
    assert main(["represent", str(run), store.path, "--out", str(tmp_path / "ranks"), "--slurm"]) == 0
    assert (tmp_path / "ranks" / "rank-00001-of-00002").is_dir()


def test_bf16_stays_near_float32(run: Path, store: EmbeddingStore, tmp_path: Path) -> None:
    exact = represent(run, store, tmp_path / "fp32", precision="fp32")
    assert main(["represent", str(run), store.path, "--out", str(tmp_path / "bf16"), "--precision", "bf16"]) == 0
    half = EmbeddingStore(tmp_path / "bf16")
    ours, theirs = (torch.from_numpy(np.concatenate([r.embeddings for r in s])).float() for s in (half, exact))
    assert not torch.equal(ours, theirs)
    assert F.cosine_similarity(ours, theirs, dim=-1).min() > 0.999
    with pytest.raises(InputError, match="There is no precision 'int8'; choose auto, fp32, bf16"):
        represent(run, store, tmp_path / "int8", precision="int8")
