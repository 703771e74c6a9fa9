"""`LVMAE.encode`: the vectors that embedding and representing give, from a file, from frames, from several, and texts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from films import write_film
from lvmae import LVMAE, LVMAEConfig, LVMAEForPreTraining, embed_videos, represent
from lvmae.encoders import load_encoder
from lvmae.errors import InputError

pytest.importorskip("all_minilm_l6_v2", reason="the offline encoder's weights are not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of 12 s, its store, and a run that was never trained."""
    import torch

    folder = tmp_path_factory.mktemp("encoding")
    (folder / "films").mkdir()
    write_film(folder / "films" / "one.mp4", list(range(0, 12_000, 100)), last_milliseconds=100)
    embed_videos(folder / "films", folder / "store", workers=1)
    encoder = load_encoder("conse")
    torch.manual_seed(0)
    sizes = {"hidden_size": 384, "num_hidden_layers": 1, "num_attention_heads": 6, "decoder_hidden_size": 64}
    sizes |= {"decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4}
    about = {"name": "conse", "options": encoder.options}
    config = LVMAEConfig(**sizes, space_id=encoder.space_id, segments={"kind": "fixed", "seconds": 5.0}, encoder=about)
    LVMAEForPreTraining(config).save_pretrained(folder / "run")
    return folder


def test_one_call_gives_what_embedding_and_representing_give(folder: Path) -> None:
    reps = represent(folder / "run", folder / "store", folder / "reps")
    film = folder / "films" / "one.mp4"
    model = LVMAE.from_pretrained(folder / "run", device="cpu")
    assert model.encode(film).shape == (model.dim,)
    np.testing.assert_allclose(model.encode(str(film)), reps.cls_features[0], atol=2e-2)
    np.testing.assert_allclose(model.encode(film, pooling="mean"), reps.mean_features[0], atol=2e-2)
    tokens = model.encode_segments(film, batch_size=1)
    assert isinstance(tokens, np.ndarray)
    assert tokens.shape == (2, 384)
    np.testing.assert_allclose(tokens, reps.embeddings(0), atol=3e-2)
    np.testing.assert_allclose(tokens.mean(axis=0), model.encode(film, pooling="mean"), atol=1e-5)
    both = model.encode([film, film], normalize_embeddings=True, show_progress_bar=False)
    assert both.shape == (2, 384)
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(both[0], both[1])


def test_frames_with_their_rate_are_a_video(folder: Path) -> None:
    import av

    film = folder / "films" / "one.mp4"
    with av.open(str(film)) as container:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    model = LVMAE.from_pretrained(folder / "run", device="cpu")
    theirs, ours = model.raw_segments(film), model.raw_segments({"frames": frames, "fps": 10})
    np.testing.assert_allclose(ours.starts, theirs.starts)
    np.testing.assert_allclose(ours.ends, theirs.ends, atol=0.1)  # the file loses the last frame's duration
    assert (
        np.einsum("nd,nd->n", ours.vectors, theirs.vectors) > 0.97
    ).all()  # colours went through YUV once more or less


def test_texts_are_in_the_segment_encoders_space(folder: Path) -> None:
    model = LVMAE.from_pretrained(folder / "run", device="cpu")
    one, several = model.encode_text("a dog"), model.encode_text(["a dog", "the sea"])
    np.testing.assert_allclose(several[0], one, atol=1e-5)
    assert np.linalg.norm(several, axis=1) == pytest.approx([1, 1], abs=1e-5)


@pytest.mark.parametrize(
    ("video", "said"),
    [
        ("nowhere.mp4", "no file"),
        ({"frames": np.zeros((3, 4, 4, 3))}, "frames come as"),
        ({"frames": np.zeros((3, 4, 4, 3)), "fps": 10}, "uint8"),
        ({"frames": np.zeros((3, 4, 4, 3), np.uint8), "fps": 0}, "above 0"),
        ([], "no video"),
    ],
)
def test_what_is_no_video_is_one_sentence(folder: Path, video: object, said: str) -> None:
    model = LVMAE.from_pretrained(folder / "run", device="cpu")
    with pytest.raises(InputError, match=said):
        model.encode(video)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pooling"):
        model.encode("x.mp4", pooling="max")
