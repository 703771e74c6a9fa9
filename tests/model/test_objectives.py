"""Objectives by hand, and what all of them have to keep: weights, dummies, and a floor that is what it says."""

from __future__ import annotations

import math

import pytest
import torch

from lvmae.model import LVMAEConfig, LVMAEForPreTraining
from lvmae.model.objectives import OBJECTIVES, Rows, build_objective, objective_class, read_options

SMALL = {
    "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2, "max_segments": 16,
}  # fmt: skip
LENGTHS = [5, 3, 6]


def model_of(loss: str, **options: object) -> LVMAEForPreTraining:
    options = {"clusters": 4, **options} if loss == "clusters" else options
    torch.manual_seed(0)
    model = LVMAEForPreTraining(LVMAEConfig(**SMALL, loss=loss, loss_options=options or None))
    model.objective.begin(model, lambda: torch.nn.functional.normalize(torch.randn(64, 8), dim=-1))
    return model


def batch() -> dict[str, object]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.nn.functional.normalize(torch.randn(sum(LENGTHS), 8, generator=generator), dim=-1)
    masked = torch.tensor([0, 1, 0, 1, 1, 1, 0, 0, 0, 1, 1, 0, 0, 1]).bool()
    return {"inputs_embeds": tokens[None], "lengths": LENGTHS, "bool_masked_pos": masked[None]}


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_loss_is_a_weighted_sum_that_dummies_do_not_change(loss: str) -> None:
    model, inputs = model_of(loss), batch()
    output = model(**inputs, output_predictions=True)
    said, wanted = output.predictions, output.targets
    weights = torch.full((len(said),), 1 / len(said))
    objective = model.objective
    assert torch.equal(objective.loss(said, wanted, weights), output.loss)
    torch.testing.assert_close(objective.loss(said, wanted, 3 * weights), 3 * output.loss)
    more = torch.cat([said, torch.ones(3, 8)]), torch.cat([wanted, wanted[:3]]), torch.cat([weights, torch.zeros(3)])
    torch.testing.assert_close(objective.loss(*more), output.loss)
    found = torch.autograd.grad(objective.loss(*more), more[0], allow_unused=True)[0] if more[0].requires_grad else None
    assert found is not None
    assert torch.isfinite(found).all()
    assert torch.equal(found[len(said) :], torch.zeros(3, 8))


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_the_whole_loss_has_gradients_for_everything_that_learns_and_nothing_else(loss: str) -> None:
    model = model_of(loss)
    model(**batch()).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
        else:
            assert name.startswith("objective.")
            assert parameter.grad is None


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_a_model_comes_back_with_its_objective(loss: str, tmp_path: pytest.TempPathFactory) -> None:
    model = model_of(loss).eval()
    model.save_pretrained(tmp_path)
    again = LVMAEForPreTraining.from_pretrained(tmp_path).eval()
    assert type(again.objective) is objective_class(loss)
    ours, theirs = model(**batch()), again(**batch())
    assert torch.equal(ours.loss, theirs.loss)
    assert torch.equal(ours.reconstruction, theirs.reconstruction)


@pytest.mark.parametrize("loss", OBJECTIVES)
def test_everything_reconstructed_holds_what_is_reconstructed_alone(loss: str) -> None:
    model, inputs = model_of(loss), batch()
    part, full = model(**inputs), model(**inputs, output_full_reconstruction=True)
    hidden = inputs["bool_masked_pos"]
    torch.testing.assert_close(full.reconstruction[hidden], part.reconstruction[hidden])
    torch.testing.assert_close(full.loss, part.loss)


def rows_of(tokens: torch.Tensor, masked: list[int], sequence: list[int]) -> Rows:
    visible = torch.ones(len(tokens), dtype=torch.bool)
    visible[masked] = False
    return Rows(torch.tensor(masked), torch.tensor(sequence), visible, max(sequence) + 1, lambda encoder: [])


def test_contrastive_by_hand() -> None:
    objective = build_objective(LVMAEConfig(**SMALL, loss="contrastive", loss_options={"temperature": 0.5}))
    guess, own = torch.tensor([[2.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    # Cosines: 1 and 0 in both rows, own first and own second; over the temperature 2 and 0.
    right, wrong = math.log(1 + math.exp(-2)), math.log(1 + math.exp(2))
    assert objective.loss(guess, own, torch.tensor([0.5, 0.5])).item() == pytest.approx((right + wrong) / 2)


def test_residual_by_hand() -> None:
    model = model_of("residual")
    tokens = torch.eye(8)[[0, 1, 2, 3, 4]]
    rows = rows_of(tokens, [2, 4], [0, 0, 0, 1, 1])
    mean = torch.stack([(tokens[0] + tokens[1]) / 2, tokens[3]])
    assert torch.equal(model.objective.targets(tokens, model, rows), tokens[[2, 4]] - mean)
    said = torch.randn(2, 8)
    assert torch.equal(model.objective.reconstruct(said, tokens, rows), said + mean)
    floor = model.objective.floors(tokens, model, rows, {"mean": lambda values: mean})["mean"]
    assert torch.equal(floor, torch.zeros(2, 8))


def test_the_mean_of_the_visible_leaves_dummies_out() -> None:
    values = torch.arange(6.0)[:, None].repeat(1, 2)
    rows = rows_of(values, [1, 3], [0, 0, 0, 1, 1, 0])
    rows.visible[5] = False  # a dummy that is counted to the first sequence
    assert rows.mean_of_visible(values).tolist() == [[1.0, 1.0], [4.0, 4.0]]


def test_codes_are_the_nearest_centres() -> None:
    model = model_of("clusters")
    objective = model.objective
    tokens = objective.codebook + objective.centre
    rows = rows_of(tokens, [0, 1, 2, 3], [0, 0, 0, 0])
    assert objective.targets(tokens, model, rows).tolist() == [0, 1, 2, 3]
    sharp = objective.reconstruct(1e3 * objective.codebook, tokens, rows)
    assert torch.cosine_similarity(sharp, tokens).min() > 0.9
    scores = objective.scores(objective.codebook, torch.tensor([0, 1, 2, 0]), tokens, rows)
    assert scores["accuracy"].tolist() == [1.0, 1.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="1 different segments cannot make 4 clusters"):
        objective.begin(model, lambda: torch.ones(9, 8))


def test_the_teacher_follows() -> None:
    model = model_of("latent", momentum=0.75)
    first = model.lvmae.cls_token.detach().clone()
    assert torch.equal(model.objective.teacher.cls_token, first)
    with torch.no_grad():
        model.lvmae.cls_token += 1.0
    model.objective.after_step(model)
    torch.testing.assert_close(model.objective.teacher.cls_token, first + 0.25)


def test_the_readout_teaches_the_model_nothing() -> None:
    """Other embeddings to read, the same features: the model's gradients stay, to the bit, and the readout's do not."""
    model = model_of("latent")
    output = model(**batch(), output_predictions=True)
    weights = torch.full((len(output.targets),), 1 / len(output.targets))
    other = output.targets.clone()
    other[:, 8:] = torch.randn_like(other[:, 8:])
    found = []
    for targets in (output.targets, other):
        model.zero_grad()
        model.objective.loss(output.predictions, targets, weights).backward(retain_graph=True)
        found.append((model.decoder.pred.weight.grad.clone(), model.objective.readout.weight.grad.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("loss", "options", "said"),
    [
        ("mse", {"temperature": 1}, "its options are: none"),
        ("contrastive", {"temperature": 0}, "temperature is 0; choose a number above 0"),
        ("clusters", {"clusters": 1}, "clusters is 1; choose a whole number of at least 2"),
        ("latent", {"momentum": 1.0}, "momentum is 1.0"),
        ("latent", {"top": 3}, "top is 3; choose a whole number from 1 to the 2 layers"),
        ("os:getcwd", None, "runs code of the module os; allow it with trust_code"),
    ],
)
def test_bad_options_are_one_sentence(loss: str, options: dict[str, object] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LVMAEForPreTraining(LVMAEConfig(**SMALL, loss=loss, loss_options=options))


def test_what_is_no_objective_is_refused() -> None:
    with pytest.raises(ValueError, match="'os:getcwd' is no objective"):
        objective_class("os:getcwd", trust_code=True)
    with pytest.raises(ValueError, match="cannot be imported"):
        objective_class("no_such_module_here:Mine", trust_code=True)
    with pytest.raises(ValueError, match="choose one of mse"):
        objective_class("a b:c", trust_code=True)


def test_options_are_read_as_what_they_look_like() -> None:
    assert read_options(("a=1", "b=0.5", "c=true", "d=none", "e=x")) == {
        "a": 1,
        "b": 0.5,
        "c": True,
        "d": None,
        "e": "x",
    }
    with pytest.raises(ValueError, match="'a' is not of the form NAME=VALUE"):
        read_options(("a",))
