"""Centring: nothing hidden leaks through the mean, a shift of a video changes nothing, and what was taken off comes back."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel
from lvmae.model.centering import means_by_sequence

SIZES = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "max_segments": 16,
}  # fmt: skip
LENGTHS = [5, 3, 6]
MASKED = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1]).bool()
SEQUENCE = torch.repeat_interleave(torch.arange(3), torch.tensor(LENGTHS))


def model_of(center: str, **more: object) -> LVMAEForPreTraining:
    torch.manual_seed(0)
    model = LVMAEForPreTraining(LVMAEConfig(**SIZES, center=center, **more)).eval()
    model.begin(lambda: tokens_of(5))
    return model


def tokens_of(seed: int) -> torch.Tensor:
    return normalize(torch.randn(sum(LENGTHS), 8, generator=torch.Generator().manual_seed(seed)), dim=-1)


def packed(tokens: torch.Tensor) -> dict[str, object]:
    return {"inputs_embeds": tokens[None], "lengths": LENGTHS, "bool_masked_pos": MASKED[None]}


def test_means_by_hand() -> None:
    values = torch.tensor([[1.0], [3.0], [7.0], [5.0]])
    counted = torch.tensor([True, True, False, False])
    assert means_by_sequence(values, torch.tensor([0, 0, 0, 1]), counted, 2).tolist() == [[2.0], [0.0]]


@pytest.mark.parametrize("loss", ["mse", "cosine", "residual"])
def test_nothing_hidden_leaks_through_the_mean(loss: str) -> None:
    model, tokens = model_of("video", loss=loss), tokens_of(1)
    other = tokens.clone()
    other[MASKED] = tokens_of(2)[MASKED]
    with torch.no_grad():
        assert torch.equal(model(**packed(tokens)).reconstruction, model(**packed(other)).reconstruction)


def test_a_videos_own_shift_changes_nothing_but_itself() -> None:
    """What a video adds to all of its segments goes through to the reconstruction, and the loss does not see it."""
    model, tokens = model_of("video"), tokens_of(1)
    shift = torch.randn(3, 8)[SEQUENCE]
    with torch.no_grad():
        before, after = model(**packed(tokens)), model(**packed(tokens + shift))
        torch.testing.assert_close(after.loss, before.loss)
        expected = before.reconstruction + torch.where(MASKED[:, None], shift, 0.0)
        torch.testing.assert_close(after.reconstruction, expected, rtol=1e-4, atol=1e-5)
        whole = [model.lvmae(x[None], lengths=LENGTHS).last_hidden_state for x in (tokens, tokens + shift)]
        torch.testing.assert_close(whole[0], whole[1], rtol=1e-4, atol=1e-5)
        plain = model_of("none")
        assert not torch.allclose(plain(**packed(tokens + shift)).loss, plain(**packed(tokens)).loss, rtol=1e-2)


def test_it_is_the_model_without_a_centre_on_centred_embeddings() -> None:
    """With `video` the visible mean, with `store` one vector for all, which lies in the weights."""
    plain, tokens = model_of("none"), tokens_of(1)
    mean = means_by_sequence(tokens, SEQUENCE, ~MASKED, 3)[SEQUENCE]
    for center, taken in (("video", mean), ("store", tokens_of(5).mean(0).expand(14, -1))):
        model = model_of(center)
        with torch.no_grad():
            ours, theirs = model(**packed(tokens)), plain(**packed(tokens - taken))
        torch.testing.assert_close(ours.loss, theirs.loss)
        torch.testing.assert_close(ours.reconstruction[0, MASKED], theirs.reconstruction[0, MASKED] + taken[MASKED])


def test_long_sequences_have_one_mean_for_all_windows() -> None:
    model = model_of("video")
    tokens = torch.randn(1, 40, 8)
    with torch.no_grad():
        shifted = model.lvmae(tokens + torch.randn(8))
        torch.testing.assert_close(
            shifted.last_hidden_state, model.lvmae(tokens).last_hidden_state, rtol=1e-4, atol=1e-5
        )


def test_the_corpus_mean_is_saved_with_the_encoder(tmp_path: object) -> None:
    model = model_of("store")
    model.save_pretrained(tmp_path)
    encoder = LVMAEModel.from_pretrained(tmp_path).eval()
    assert torch.equal(encoder.center, tokens_of(5).mean(0))
    tokens = tokens_of(3)[None]
    with torch.no_grad():
        expected = model.lvmae(tokens, lengths=LENGTHS).last_hidden_state
        assert torch.equal(encoder(tokens, lengths=LENGTHS).last_hidden_state, expected)


def test_an_unknown_centre_is_one_sentence() -> None:
    with pytest.raises(ValueError, match="center is 'film'; choose one of none, video, store"):
        LVMAEConfig(**SIZES, center="film")
