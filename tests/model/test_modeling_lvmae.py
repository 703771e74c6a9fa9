from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from lvmae.model import LVMAEConfig, LVMAEForPreTraining, LVMAEModel
from lvmae.model.modeling_lvmae import LVMAEBlock
from lvmae.model.objectives.cosine import Cosine
from lvmae.model.objectives.mse import MSE
from lvmae.model.plan import make_plan
from lvmae.model.positions import position_table, sincos_positions

MakeModel = Callable[..., LVMAEForPreTraining]
# 1, and around the widths at which rows of attention change: joined up to 64 with [CLS], then by steps of 32.
LENGTHS = [1, 2, 30, 62, 63, 64, 65, 94, 95, 96, 127, 128, 159, 160]


def gradients(model: LVMAEForPreTraining, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters), strict=True))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance * max(scale, 1e-6), msg=name)


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_packed_padded_and_one_by_one_agree(make_model: MakeModel, example: Any, plain: Any, loss: str) -> None:
    model = make_model(loss=loss)
    batch = example(LENGTHS[1:], model.config.hidden_size)
    packed, padded = model(**batch.packed), model(**batch.padded)

    guesses, targets, latents = [], [], []
    for x, masked in zip(batch.sequences, batch.masks, strict=True):
        latent, predicted = plain.reconstruct(model, x, masked)
        latents.append(latent)
        guesses.append(predicted[masked])
        targets.append(x[masked])
    guess, target = torch.cat(guesses), torch.cat(targets)
    if loss == "mse":
        expected = ((guess - target) ** 2).sum(1).mean() / model.config.hidden_size
    else:
        norms = guess.norm(dim=1) * target.norm(dim=1)
        expected = (1 - (guess * target).sum(1) / norms).mean()

    torch.testing.assert_close(packed.loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(padded.loss, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(packed.encoder_last_hidden_state[0], torch.cat(latents), rtol=1e-4, atol=1e-5)
    masked = torch.cat(batch.masks)
    torch.testing.assert_close(packed.reconstruction[0, masked], guess, rtol=1e-4, atol=1e-5)
    assert packed.reconstruction[0, ~masked].abs().max() == 0

    exact = gradients(model, expected)
    assert_same(gradients(model, packed.loss), exact)
    assert_same(gradients(model, padded.loss), exact)


def test_predictions_everywhere(make_model: MakeModel, example: Any, plain: Any) -> None:
    model = make_model()
    batch = example([5, 70, 1, 33], model.config.hidden_size)
    part, full = model(**batch.packed), model(**batch.packed, output_full_reconstruction=True)
    padded = model(**batch.padded, output_full_reconstruction=True).reconstruction
    expected = [plain.reconstruct(model, x, m)[1] for x, m in zip(batch.sequences, batch.masks, strict=True)]
    torch.testing.assert_close(full.reconstruction[0], torch.cat(expected), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(full.loss, part.loss, rtol=1e-6, atol=0)
    for b, n in enumerate(batch.lengths):
        torch.testing.assert_close(padded[b, :n], expected[b], rtol=1e-4, atol=1e-5)
        assert padded[b, n:].abs().max() == 0
    assert_same(gradients(model, full.loss), gradients(model, part.loss))


def test_without_a_mask_there_is_no_loss_and_everything_is_reconstructed(
    make_model: MakeModel, example: Any, plain: Any
) -> None:
    model = make_model()
    batch = example([4, 7], model.config.hidden_size)
    output = model(batch.packed["inputs_embeds"], lengths=batch.lengths)
    assert output.loss is None
    expected = [plain.reconstruct(model, x, torch.zeros(len(x), dtype=torch.bool))[1] for x in batch.sequences]
    torch.testing.assert_close(output.reconstruction[0], torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_the_encoder_sees_whole_sequences(make_model: MakeModel, example: Any, plain: Any) -> None:
    model = make_model().lvmae
    whole = make_model()
    batch = example(LENGTHS, whole.config.hidden_size)
    packed = model(batch.packed["inputs_embeds"], lengths=batch.lengths)
    padded = model(batch.padded["inputs_embeds"], batch.padded["attention_mask"])
    expected = [plain.encode(whole, x, [float(t) for t in range(len(x))]) for x in batch.sequences]
    torch.testing.assert_close(packed.last_hidden_state[0], torch.cat(expected), rtol=1e-4, atol=1e-5)
    assert packed.pooler_output.shape == padded.pooler_output.shape == (len(LENGTHS), whole.config.hidden_size)
    for b, tokens in enumerate(expected):
        torch.testing.assert_close(padded.last_hidden_state[b, : len(tokens)], tokens, rtol=1e-4, atol=1e-5)
        assert (padded.last_hidden_state[b, len(tokens) :] == 0).all()
        torch.testing.assert_close(padded.pooler_output[b], tokens[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(packed.pooler_output[b], tokens[0], rtol=1e-4, atol=1e-5)


def test_the_embedding_scale_is_the_encoders_input_and_not_the_targets(make_model: MakeModel, example: Any) -> None:
    scaled, paper = make_model(embedding_scale=3.0), make_model()
    assert paper.config.embedding_scale == 1.0
    inputs = dict(example(LENGTHS, paper.config.hidden_size).padded)
    x, hidden = inputs["inputs_embeds"], inputs["bool_masked_pos"] & inputs["attention_mask"].bool()
    ours, theirs = scaled(**inputs), paper(**{**inputs, "inputs_embeds": 3.0 * x})
    torch.testing.assert_close(ours.reconstruction, theirs.reconstruction)
    torch.testing.assert_close(ours.loss, (ours.reconstruction[hidden] - x[hidden]).square().mean())
    assert not torch.allclose(ours.loss, theirs.loss)


def test_a_batch_without_padding_needs_no_attention_mask(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([6, 6, 6], model.config.hidden_size, extra=0)
    masked = torch.stack(batch.masks)
    bare = model(batch.padded["inputs_embeds"], bool_masked_pos=masked)
    torch.testing.assert_close(bare.loss, model(**batch.packed).loss, rtol=1e-6, atol=0)
    encoded = model.lvmae(batch.padded["inputs_embeds"]).last_hidden_state
    again = model.lvmae(**{k: batch.padded[k] for k in ("inputs_embeds", "attention_mask")}).last_hidden_state
    torch.testing.assert_close(encoded, again, rtol=1e-6, atol=1e-6)


def test_sequences_do_not_see_each_other(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([10, 12, 100, 90], model.config.hidden_size)
    x = batch.packed["inputs_embeds"].clone().requires_grad_()
    output = model.lvmae(x, lengths=batch.lengths).last_hidden_state
    starts = [0, 10, 22, 122, 212]
    for b, n in enumerate(batch.lengths):
        rows = output[0, starts[b] + b : starts[b] + b + n + 1]
        (gradient,) = torch.autograd.grad(rows.square().sum(), x, retain_graph=True)
        own = torch.zeros(x.shape[1], dtype=torch.bool)
        own[starts[b] : starts[b + 1]] = True
        assert (gradient[0, own] != 0).any(dim=1).all()
        assert gradient[0, ~own].abs().max() == 0


def test_the_encoder_does_not_see_what_is_masked(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([20, 80], model.config.hidden_size)
    changed = dict(batch.packed)
    masked = batch.packed["bool_masked_pos"]
    changed["inputs_embeds"] = torch.where(masked[..., None], torch.nan, batch.packed["inputs_embeds"])
    expected = model(**batch.packed)
    assert torch.equal(model(**changed).encoder_last_hidden_state, expected.encoder_last_hidden_state)
    assert torch.equal(model(**changed).reconstruction, expected.reconstruction)


def test_positions_are_the_fixed_sincos_ones(plain: Any) -> None:
    half = [1.0, 0.01]  # 1 / 10000^(i/2)
    expected = [[torch.tensor(3 * r).sin() for r in half] + [torch.tensor(3 * r).cos() for r in half]]
    torch.testing.assert_close(sincos_positions(torch.tensor([3]), 4), torch.tensor(expected))
    torch.testing.assert_close(
        sincos_positions(torch.tensor([0, 7, 17_279]), 10), plain.sincos([0.0, 7.0, 17_279.0], 10), rtol=0, atol=1e-7
    )
    table = position_table(5, 4, torch.device("cpu"))
    assert torch.equal(table[0], torch.zeros(4))
    assert torch.equal(table[1:], sincos_positions(torch.arange(5), 4))


def test_a_table_first_made_in_inference_mode_serves_training(make_model: MakeModel, example: Any) -> None:
    position_table.cache_clear()
    model = make_model()
    batch = example([6, 9], model.config.hidden_size)
    with torch.inference_mode():
        model(**batch.packed)
    model(**batch.packed).loss.backward()
    assert model.lvmae.cls_token.grad is not None


def test_initial_weights() -> None:
    torch.manual_seed(0)
    config = LVMAEConfig(hidden_size=256, num_hidden_layers=1, decoder_hidden_size=128, decoder_num_hidden_layers=1)
    model = LVMAEForPreTraining(config)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            limit = (6 / sum(module.weight.shape)) ** 0.5
            assert 0.99 * limit < module.weight.abs().max() <= limit, name
            assert module.weight.std().item() == pytest.approx(limit / 3**0.5, rel=0.02), name
            assert (module.bias == 0).all(), name
        elif isinstance(module, torch.nn.LayerNorm):
            assert (module.weight == 1).all(), name
            assert (module.bias == 0).all(), name
            assert module.eps == 1e-6
    for token, count in ((model.lvmae.cls_token, 256), (model.decoder.mask_token, 128)):
        assert token.shape == (1, 1, count)
        assert token.std().item() == pytest.approx(0.02, rel=0.3)
        assert abs(token.mean().item()) < 0.01


def test_losses_by_hand() -> None:
    guess, target = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    config, weights = LVMAEConfig(), torch.tensor([0.5, 0.5])
    assert MSE(config).loss(guess, target, weights).item() == pytest.approx((0.5 + 0.5) / 2)
    assert MSE(config).loss(guess, target, torch.tensor([0.25, 0.0])).item() == pytest.approx(0.5 / 4)
    target = torch.tensor([[1.0, 1.0], [0.0, 3.0]])
    assert Cosine(config).loss(guess, target, weights).item() == pytest.approx((1 - 0.5**0.5 + 0) / 2)


def test_half_precision(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([40, 90, 3], model.config.hidden_size)
    exact = model(**batch.packed)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = model(**batch.packed)
    assert mixed.loss.dtype == torch.float32
    assert mixed.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)
    mixed.loss.backward()
    half = model.to(torch.bfloat16)(**batch.packed)
    assert half.encoder_last_hidden_state.dtype == half.reconstruction.dtype == torch.bfloat16
    assert half.loss.dtype == torch.float32
    assert half.loss.item() == pytest.approx(exact.loss.item(), rel=0.02)


def test_gradient_checkpointing_changes_nothing(make_model: MakeModel, example: Any) -> None:
    model = make_model().train()
    batch = example([30, 70], model.config.hidden_size)
    expected = gradients(model, model(**batch.packed).loss)
    model.gradient_checkpointing_enable()
    runs = []
    for block in model.blocks():
        block.attn.register_forward_hook(lambda *_: runs.append(1))
    found = gradients(model, model(**batch.packed).loss)
    assert len(runs) == 2 * 4  # each block ran again in the backward pass
    assert_same(found, expected, tolerance=1e-6)


def test_compiled_blocks_give_the_same_and_compile_once(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    graphs = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    lengths = [[70, 80], [75, 5, 9], [3, 4], [66, 150, 20, 2]]
    batches = [example(drawn, 24, seed=n) for n, drawn in enumerate(lengths)]
    expected = [model(**batch.packed).loss.item() for batch in batches]
    for block in model.blocks():
        block.compile(backend=backend, dynamic=True)
    found = []
    compiled = []
    for batch in batches:
        found.append(model(**batch.packed).loss.item())
        compiled.append(len(graphs))
    torch._dynamo.reset()
    assert found == pytest.approx(expected, rel=1e-5)
    assert compiled == [compiled[0]] * 4, "batches of other lengths should not be compiled again"


def test_a_planned_step_never_waits_for_the_device(make_model: MakeModel, example: Any) -> None:
    """On the meta device there are no values: whatever asked for one would fail."""
    model = make_model().to("meta")
    batch = example([40, 90, 3], 24)
    plan = make_plan(batch.lengths, torch.cat(batch.masks).numpy())
    output = model(batch.packed["inputs_embeds"][0].to("meta"), plan=plan.to(torch.device("meta")))
    output.loss.backward()
    assert output.encoder_last_hidden_state.shape == (1, sum(batch.num_visible) + 3, 24)
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_last_decoder_layer_runs_on_masked_places_alone(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([40, 90], model.config.hidden_size)
    seen: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, LVMAEBlock):
            module.mlp.register_forward_hook(lambda _, args, __, name=name: seen.update({name: len(args[0])}))
    model(**batch.packed)
    visible, every = sum(batch.num_visible), sum(batch.lengths)
    assert seen == {
        "lvmae.blocks.0": visible + 2,
        "lvmae.blocks.1": visible + 2,
        "decoder.blocks.0": every + 2,
        "decoder.blocks.1": every - visible,
    }


# -- longer than in training


def test_windows_are_cross_faded_and_their_cls_averaged(make_model: MakeModel, plain: Any) -> None:
    whole = make_model(max_segments=4)
    x = F.normalize(torch.randn(9, 24), dim=-1)
    windows = [plain.encode(whole, x[start : start + 4], [0.0, 1.0, 2.0, 3.0]) for start in (0, 2, 4, 5)]
    found = whole.lvmae(x[None]).last_hidden_state[0]
    torch.testing.assert_close(found[0], sum(w[0] for w in windows) / 4, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], windows[0][1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[3], (2 * windows[0][3] + 1 * windows[1][1]) / 3, rtol=1e-4, atol=1e-5)
    # Segment 7 is the last of the third window (weight 1) and the third of the fourth (weight 2).
    torch.testing.assert_close(found[8], (1 * windows[2][4] + 2 * windows[3][3]) / 3, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[9], windows[3][4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["windows", "extrapolate", "interpolate"])
def test_long_sequences_packed_and_padded(make_model: MakeModel, example: Any, plain: Any, rule: str) -> None:
    whole = make_model(max_segments=8, long_sequences=rule)
    batch = example([3, 8, 9, 40, 1], 24)
    packed = whole.lvmae(batch.packed["inputs_embeds"], lengths=batch.lengths).last_hidden_state[0]
    padded = whole.lvmae(batch.padded["inputs_embeds"], batch.padded["attention_mask"]).last_hidden_state
    start = 0
    for b, n in enumerate(batch.lengths):
        one = packed[start : start + n + 1]
        start += n + 1
        torch.testing.assert_close(padded[b, : n + 1], one, rtol=1e-4, atol=1e-5)
        scale = 7 / (n - 1) if rule == "interpolate" and n > 8 else 1.0
        if rule != "windows" or n <= 8:
            expected = plain.encode(whole, batch.sequences[b], [t * scale for t in range(n)])
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)


def test_windows_have_gradients(make_model: MakeModel, example: Any) -> None:
    model = make_model(max_segments=8).lvmae
    x = example([20], 24).packed["inputs_embeds"].requires_grad_()
    model(x).last_hidden_state.square().sum().backward()
    assert (x.grad != 0).any(dim=-1).all()
    assert model.cls_token.grad.abs().max() > 0


def test_the_slices_of_a_long_video_do_not_show(make_model: MakeModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model(max_segments=16).lvmae.eval()
    x = F.normalize(torch.randn(1, 300, 24), dim=-1)
    with torch.no_grad():
        whole = model(x).last_hidden_state
        monkeypatch.setattr("lvmae.model.modeling_lvmae._SLICE_TOKENS", 50)
        torch.testing.assert_close(model(x).last_hidden_state, whole, rtol=1e-5, atol=1e-5)


def test_masked_prediction_beyond_the_training_length(make_model: MakeModel, example: Any, plain: Any) -> None:
    batch = example([20, 5], 24)
    with pytest.raises(ValueError) as caught:
        make_model(max_segments=8)(**batch.packed)
    assert str(caught.value) == (
        "a sequence has 20 segments and max_segments is 8; cut it into windows, "
        "or set long_sequences to extrapolate or interpolate"
    )
    model = make_model(max_segments=8, long_sequences="extrapolate")
    found = model(**batch.packed).reconstruction[0]
    masked = batch.masks[0]
    expected = plain.reconstruct(model, batch.sequences[0], masked)[1]
    torch.testing.assert_close(found[:20][masked], expected[masked], rtol=1e-4, atol=1e-5)


def test_outputs_as_tuples(make_model: MakeModel, example: Any) -> None:
    model = make_model()
    batch = example([4, 6], 24)
    output = model(**batch.packed)
    loss, reconstruction, latent = model(**batch.packed, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert torch.equal(reconstruction, output.reconstruction)
    assert torch.equal(latent, output.encoder_last_hidden_state)
    assert isinstance(model.lvmae, LVMAEModel)
    tokens, cls = model.lvmae(batch.packed["inputs_embeds"], lengths=batch.lengths, return_dict=False)
    assert torch.equal(tokens[0, [0, 5]], cls)
