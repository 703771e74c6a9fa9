"""The base class of objectives: the prediction for a masked segment, its score, and the baselines to beat.

Everything the rest of the project knows of "what is learnt" it asks here: the model's forward (`targets`, `loss`), the
training loop (`begin`, `after_step`), validation (`scores`, `floors`), card, progress line and demo (`verdict`, `standing`,
`table`), interpretation (`reconstruct`).

Shapes: N segments of a batch in one row, Q masked ones that are predicted, B sequences, D the embeddings' width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..centering import means_by_sequence

if TYPE_CHECKING:
    from ..configuration_lvmae import LVMAEConfig
    from ..modeling_lvmae import LVMAEForPreTraining

# The floors under every objective, and what a reader calls them.
FLOORS = {
    "interpolation": "interpolating between the nearest visible segments",
    "mean": "the mean of the visible segments",
}

Guess = Callable[[Tensor], Tensor]
"""(N,D) values of all segments -> (Q,D): what a floor says of the masked ones, looking at the visible ones alone."""


class Rows(NamedTuple):
    """Where the predicted rows lie in a batch: tensors whose sizes do not depend on which segments are masked.

    A batch that was filled up to a fixed size has dummy tokens, which are not visible, and dummy predictions, whose weight
    in `Objective.loss` is 0.
    """

    wanted: Tensor
    """(Q) int64, which of the N tokens are predicted."""
    sequence: Tensor
    """(N) int64, the sequence that a token belongs to, 0..B-1; any of them for a dummy."""
    visible: Tensor
    """(N) bool, what the encoder sees."""
    sequences: int
    """B."""
    encode_whole: Callable[[Any], list[Tensor]]
    """Runs an encoder on the whole sequences, nothing masked -> what each of its blocks gives, (N,D) each."""

    def mean_of_visible(self, values: Tensor) -> Tensor:
        """(N,D) -> (Q,D): of each predicted row, the mean over what is visible of its sequence."""
        means = means_by_sequence(values, self.sequence, self.visible, self.sequences)
        return means.index_select(0, self.sequence.index_select(0, self.wanted))


class Objective(nn.Module):
    """What is learnt. Subclass it and give `loss`; what is below already fits objectives that predict the embedding itself.

    What it has to keep (a codebook, a teacher) it registers as buffers or as parameters without gradient: they are part of
    the model's weights, so checkpoints and the finished run hold them.

    Args:
        config: of the model.
        options: `loss_options` of the recipe; a subclass names those that it takes as keyword arguments of `__init__`.
    """

    score: ClassVar[str] = "cosine"
    """The name of the score, higher is better, in which the model is compared with the floors."""
    in_embedding_space: ClassVar[bool] = True
    """Whether `reconstruct` gives embeddings, which can be captioned and searched."""
    per_row: ClassVar[bool] = True
    """Whether a row's loss depends on that row alone, so that a step's does not on how its rows are dealt to micro-batches."""
    floors_move: ClassVar[bool] = False
    """Whether the floors change as the model learns, so that they are measured at every validation."""

    def __init__(self, config: LVMAEConfig) -> None:
        super().__init__()

    def targets(self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows) -> Tensor:
        """What is to be predicted of the masked segments: (N,D) embeddings, centred -> (Q,...). Without gradient."""
        return tokens.index_select(0, rows.wanted)

    def loss(self, predicted: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """The loss over the masked segments, in float32.

        Args:
            predicted: (Q,D) float32, the decoder's output. targets: (Q,...), what `targets` gave.
            weights: (Q) what each row counts, 1 / (masked segments of the whole step); 0 for a dummy, whose values may be
                anything finite.

        Returns:
            ()
        """
        raise NotImplementedError(f"{type(self).__name__} has to say what its loss is")

    def begin(self, model: LVMAEForPreTraining, sample: Callable[[], Tensor]) -> None:
        """Called once, before the first step of a run; a resumed run has what this made in its checkpoint.

        Args:
            model: with its first weights. sample: gives (n,D) float32 embeddings of training segments, the same at every call.
        """

    def after_step(self, model: LVMAEForPreTraining) -> None:
        """Called after every optimiser step."""

    # Validation and interpretation

    def reconstruct(self, predicted: Tensor, tokens: Tensor, rows: Rows) -> Tensor:
        """What a prediction says the embedding is: (Q,D) -> (Q,D)."""
        return predicted

    def scores(self, predicted: Tensor, targets: Tensor, tokens: Tensor, rows: Rows) -> dict[str, Tensor]:
        """Scores of each row by name, (Q) each, `score` among them; their means over masked segments are in the curves."""
        wanted = tokens.index_select(0, rows.wanted)
        return {"cosine": F.cosine_similarity(self.reconstruct(predicted, tokens, rows), wanted, dim=-1)}

    def floors(
        self, tokens: Tensor, model: LVMAEForPreTraining, rows: Rows, guesses: Mapping[str, Guess]
    ) -> dict[str, Tensor]:
        """What can be said without a model, as if it were predicted: a name of `FLOORS` -> (Q,D)."""
        return {name: guess(tokens) for name, guess in guesses.items()}

    # Words and tables

    @classmethod
    def beaten(cls, figures: Mapping[str, Any]) -> dict[str, bool]:
        """Which floors a validation's figures lie above."""
        return {name: figures[f"val_{cls.score}"] > figures[f"{name}_{cls.score}"] for name in FLOORS}

    @classmethod
    def table(cls, figures: Mapping[str, Any]) -> list[tuple[str, float, float]]:
        """Rows of (what, loss, score): the model, then the floors. Empty where nothing was validated."""
        if f"val_{cls.score}" not in figures:
            return []
        named = {"LV-MAE": "val", **{label: name for name, label in FLOORS.items()}}
        return [(label, figures[f"{key}_loss"], figures[f"{key}_{cls.score}"]) for label, key in named.items()]

    @classmethod
    def standing(cls, figures: Mapping[str, Any]) -> str:
        """What the progress line says of the last validation."""
        model, floor = figures[f"val_{cls.score}"], figures[f"interpolation_{cls.score}"]
        return f"held-out {cls.score.replace('_', ' ')} {model:.3f} (interpolating {floor:.3f})"

    @classmethod
    def verdict(cls, figures: Mapping[str, Any]) -> str:
        """One sentence on whether anything was learnt, from the figures of the last validation and `beats_NAME`."""
        if f"val_{cls.score}" not in figures:
            return "Nothing was held out, so it is not known whether the model has learnt more than interpolation."
        what = "reconstructions" if cls.in_embedding_space else "predictions"
        if figures["beats_interpolation"] and figures["beats_mean"]:
            found = f"On held-out videos its {what}"
        else:
            beyond = "THE MEAN" if figures["beats_interpolation"] else "INTERPOLATION"
            found = f"THE MODEL HAS LEARNT NOTHING BEYOND {beyond}: on held-out videos its {what}"
        score = cls.score.replace("_", " ")
        return (
            f"{found} of masked segments reach a {score} of {figures[f'val_{cls.score}']:.4f}; "
            + ", ".join(f"{label} reaches {figures[f'{name}_{cls.score}']:.4f}" for name, label in FLOORS.items())
            + "."
        )


def weighted(per_row: Tensor, weights: Tensor) -> Tensor:
    """(Q) and (Q) -> (): the sum of what each row counts."""
    return (per_row * weights).sum()


def in_full_precision(like: Tensor) -> torch.autocast:
    """Computes in float32 whatever the training's precision: products of unit vectors over a small temperature need it."""
    return torch.autocast(like.device.type, enabled=False)


def read_options(options: Sequence[str]) -> dict[str, Any]:
    """`loss_options` of a recipe, NAME=VALUE each -> keyword arguments. Raises ValueError."""
    found: dict[str, Any] = {}
    for option in options:
        name, mark, text = option.partition("=")
        if not mark or not name.strip().isidentifier():
            raise ValueError(f"the loss option {option!r} is not of the form NAME=VALUE")
        found[name.strip()] = _read(text.strip())
    return found


def _read(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)
