"""LV-MAE: a masked autoencoder over sequences of segment embeddings (Naiman et al., ICCV 2025, section 3).

The encoder sees the visible embeddings and a [CLS]; the decoder sees all places, with a mask token where an embedding
is missing, and predicts the embeddings. Nothing is computed on padding: a batch is one row of its real tokens, a `Plan` says
where everything lies, and attention stays in each sequence. The decoder's last layer runs on wanted places alone.

    visible ──► + positions, [CLS] in front ──► blocks ──► norm ──► Linear ─┐
    masked  ──► mask token ─────────────────────────────────────────────────┴► + positions ──► blocks ──► norm ──► Linear

Given a plan, a model computes on tensors alone, whose sizes do not depend on values: one compiled block serves all batches, and
one CUDA graph all batches of one `Capacity`. Padded and packed inputs have their plan made first.

Shapes: B sequences, S places padded; N tokens of a batch in one row; of the full row, with a [CLS] in front of each sequence,
M rows, V visible ones, Q wanted ones; D width, H heads.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .attention import Spans, attend
from .centering import means_by_sequence
from .claims import check_claims
from .configuration_lvmae import LVMAEConfig
from .objectives import Objective, Rows, build_objective
from .official import read_official_checkpoint, write_official_checkpoint
from .packing import Batch, Windows
from .plan import Plan, make_plan
from .positions import row_positions

# A long sequence's windows are encoded in slices of about this many tokens, so that memory beyond the output is
# constant.
_SLICE_TOKENS = 4096


@dataclass
class LVMAEModelOutput(ModelOutput):
    """The output of the encoder for whole sequences.

    Attributes:
        last_hidden_state: (B,S+1,D) with [CLS] first and zeros at padding, or packed (1,N+B,D) with each sequence's
            [CLS] in front of it.
        pooler_output: (B,D), the [CLS] of each sequence.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


@dataclass
class LVMAEForPreTrainingOutput(ModelOutput):
    """The output of the autoencoder for masked sequences.

    Attributes:
        loss: (), over the masked tokens of the batch; None if nothing is masked.
        reconstruction: (B,S,D) or packed (1,N,D), the predicted embeddings at masked places, zeros elsewhere; at all
            real places with `output_full_reconstruction=True` or where nothing is masked. Where the objective predicts
            something else than embeddings, what its prediction says they are.
        encoder_last_hidden_state: (1,V,D), always packed: each sequence's [CLS] and visible tokens, in order.
        predictions, targets, rows, tokens: with `output_predictions=True`, what the loss was computed from: (Q,D), (Q,...),
            where the Q predicted segments lie, and the embeddings (N,D), centred.
    """

    loss: Tensor | None = None
    reconstruction: Tensor | None = None
    encoder_last_hidden_state: Tensor | None = None
    predictions: Tensor | None = None
    targets: Tensor | None = None
    rows: Rows | None = None
    tokens: Tensor | None = None


class LVMAEAttention(nn.Module):
    """Multi-head self-attention with a fused projection (rows q, k, v) that has biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width = width
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        """x (M,D) -> (M,D), or (Q,D) for the wanted rows."""
        starts = spans.starts
        if spans.wanted is None or spans.wanted_starts is None:
            q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        else:
            starts, weight, bias = spans.wanted_starts, self.qkv.weight, self.qkv.bias
            q = F.linear(x.index_select(0, spans.wanted), weight[: self.width], bias[: self.width])
            q = q.view(len(q), self.heads, -1)
            kv = F.linear(x, weight[self.width :], bias[self.width :])
            k, v = kv.view(len(x), 2, self.heads, -1).unbind(1)
        return cast(Tensor, self.proj(attend(q, k, v, starts, spans.starts, spans.longest).flatten(1)))


class LVMAEMLP(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.fc2(F.gelu(self.fc1(x))))


class LVMAEBlock(GradientCheckpointingLayer):  # type: ignore[no-untyped-call]
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int, inner: int, eps: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = LVMAEAttention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = LVMAEMLP(width, inner)

    def forward(self, x: Tensor, spans: Spans) -> Tensor:
        """x (M,D) -> (M,D), or (Q,D): the same values for the wanted rows alone."""
        residual = x if spans.wanted is None else x.index_select(0, spans.wanted)
        x = residual + self.attn(self.norm1(x), spans)
        return cast(Tensor, x + self.mlp(self.norm2(x)))


class LVMAEDecoder(nn.Module):
    """From the encoder's tokens to a prediction of the embeddings."""

    def __init__(self, config: LVMAEConfig) -> None:
        super().__init__()
        width = config.decoder_hidden_size
        self.embed = nn.Linear(config.hidden_size, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.ModuleList(
            LVMAEBlock(
                width, config.decoder_num_attention_heads, config.decoder_intermediate_size, config.layer_norm_eps
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.pred = nn.Linear(width, config.hidden_size)

    def forward(self, latent: Tensor, plan: Plan) -> Tensor:
        """Predicts the wanted tokens: the encoder's tokens (V,D) -> (Q,D)."""
        row = self.mask_token[0].expand(len(plan.places), -1)
        row = row.index_copy(0, plan.visible, self.embed(latent).to(row.dtype))
        x = (row + row_positions(plan.places, plan.longest, row.shape[1])).to(row.dtype)
        for block in self.blocks[:-1]:
            x = block(x, Spans(plan.row_starts, plan.longest))
        x = self.blocks[-1](x, Spans(plan.row_starts, plan.longest, plan.wanted, plan.wanted_starts))
        return cast(Tensor, self.pred(self.norm(x)))


class LVMAEPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Initialisation and loading, common to both models."""

    config: LVMAEConfig
    config_class = LVMAEConfig
    base_model_prefix = "lvmae"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LVMAEBlock"]  # noqa: RUF012

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **options: Any) -> Any:
        """As of any model of transformers; what config.json claims is held against the weights first.

        Raises ValueError if they do not agree, or where config.json chooses code to run.
        """
        check_claims(pretrained_model_name_or_path)
        return super().from_pretrained(pretrained_model_name_or_path, *args, **options)

    def get_input_embeddings(self) -> None:  # type: ignore[override]
        """None: embeddings come in from outside. FSDP asks, and the inherited answer is an error."""
        return

    def get_output_embeddings(self) -> None:
        """None: there is no vocabulary."""
        return

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, LVMAEModel):
            init.normal_(module.cls_token, std=self.config.initializer_range)
        elif isinstance(module, LVMAEDecoder):
            init.normal_(module.mask_token, std=self.config.initializer_range)


class LVMAEModel(LVMAEPreTrainedModel):  # type: ignore[no-untyped-call]
    """The encoder: turns sequences of segment embeddings into contextual tokens and a [CLS]."""

    # A checkpoint of the autoencoder is a checkpoint of its encoder.
    _keys_to_ignore_on_load_unexpected = [r"^decoder\.", r"^objective\."]  # noqa: RUF012

    def __init__(self, config: LVMAEConfig) -> None:
        super().__init__(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.blocks = nn.ModuleList(
            LVMAEBlock(config.hidden_size, config.num_attention_heads, config.intermediate_size, config.layer_norm_eps)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        if config.center == "store":
            self.register_buffer("center", torch.zeros(config.hidden_size))
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        return_dict: bool | None = None,
    ) -> LVMAEModelOutput | tuple[Any, ...]:
        """Encodes whole sequences of any length, without a mask.

        Args:
            inputs_embeds: (B,S,D) L2-normalised segment embeddings, or packed (1,N,D) where `lengths` is given.
            attention_mask: (B,S), 1 is real, 0 padding; all is real without it.
            lengths: (B) segments of each sequence of a packed row, on the host.

        Sequences longer than `config.max_segments` go the way of `config.long_sequences`.

        Raises:
            ValueError: where shapes and lengths do not fit together.
        """
        config = self.config
        batch = Batch.of(inputs_embeds, attention_mask, lengths=lengths, config=config)
        plan = batch.plan(config)
        tokens, _ = self.centered(batch.tokens, plan)
        if max(batch.lengths, default=0) > config.max_segments and config.long_sequences == "windows":
            row = self._encode_in_windows(tokens, batch.lengths)
        else:
            row = self.encode(tokens, plan)
        output = LVMAEModelOutput(
            last_hidden_state=batch.with_cls(row), pooler_output=row.index_select(0, plan.row_starts[:-1])
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def centered(self, tokens: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None]:
        """Subtracts the centre from tokens (N,D); returns them and the centre, (N,D) or (D), or None if there is none."""
        if self.config.center == "none":
            return tokens, None
        if self.config.center == "store":
            center = cast(Tensor, self.center)
        else:
            means = means_by_sequence(tokens, plan.sequence, plan.seen, len(plan.row_starts) - 1)
            center = means.index_select(0, plan.sequence)
        return tokens - center, center

    def encode(self, tokens: Tensor, plan: Plan) -> Tensor:
        """Encodes the visible rows: (N,D) -> (V,D)."""
        (last,) = deque(self._through_blocks(tokens, plan), maxlen=1)
        return cast(Tensor, self.norm(last))

    def encode_blocks(self, tokens: Tensor, plan: Plan) -> list[Tensor]:
        """Encodes whole sequences (N,D) without a mask; returns each block's output (N,D), before the final norm."""
        rows = torch.arange(len(tokens), device=tokens.device) + plan.sequence + 1
        return [x.index_select(0, rows) for x in self._through_blocks(tokens, plan.whole())]

    def _through_blocks(self, tokens: Tensor, plan: Plan) -> Iterator[Tensor]:
        """(N,D) -> what each block makes of the visible rows, (V,D) each."""
        scaled = tokens.to(self.dtype) * self.config.embedding_scale
        row = torch.cat([scaled, self.cls_token[0]]).index_select(0, plan.tokens.index_select(0, plan.visible))
        places = plan.places.index_select(0, plan.visible)
        x = (row + row_positions(places, plan.longest, row.shape[1])).to(self.dtype)
        for block in self.blocks:
            x = block(x, Spans(plan.visible_starts, plan.longest))
            yield x

    def _encode_in_windows(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encodes overlapping windows of `max_segments`; (N,D) -> (M,D).

        Each window starts at position 0, as in training. Where windows overlap, tokens are cross-faded with weights that fall
        linearly to a window's ends, where it knows least of the surroundings; [CLS] is the mean over a sequence's windows.
        They are packed, a bounded number of tokens at a time, so memory beyond the output does not grow with the length.
        """
        size, device = self.config.max_segments, tokens.device
        windows = Windows.of(lengths, size)
        out = torch.zeros(len(tokens) + len(lengths), tokens.shape[1], dtype=torch.float32, device=device)
        for part in windows.slices(_SLICE_TOKENS):
            source, target, weight = (torch.from_numpy(x).to(device) for x in (part.source, part.target, part.weight))
            row = self.encode(tokens.index_select(0, source), make_plan(part.sizes, longest=size).to(device))
            out = out.index_add_(0, target, row.float() * weight[:, None])
        return out.to(self.dtype)


class LVMAEForPreTraining(LVMAEPreTrainedModel):  # type: ignore[no-untyped-call]
    """The masked autoencoder. `lvmae` is its encoder; `decoder` and `objective` serve pre-training only.

    Args:
        config: sizes and the objective.
        trust_code: run the code of an objective that `config.loss` names as module:Class. `from_pretrained` takes it too.

    Raises:
        ValueError: if there is no such objective, or it may not be run.
    """

    def __init__(self, config: LVMAEConfig, *, trust_code: bool = False) -> None:
        super().__init__(config)
        self.lvmae = LVMAEModel(config)
        self.decoder = LVMAEDecoder(config)
        self.objective: Objective = build_objective(config, trust_code=trust_code)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def begin(self, sample: Callable[[], Tensor]) -> None:
        """Fits the corpus mean and the state of the objective, before the first step.

        Args:
            sample: gives (n,D) float32 embeddings of training segments, the same at every call.
        """
        if self.config.center == "store":
            cast(Tensor, self.lvmae.center).copy_(sample().mean(0))
        self.objective.begin(self, sample)

    def blocks(self) -> Iterator[nn.Module]:
        """Yields all transformer blocks, the encoder's first, to compile, shard or freeze."""
        yield from self.lvmae.blocks
        yield from self.decoder.blocks

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        num_visible: Sequence[int] | None = None,
        plan: Plan | None = None,
        output_full_reconstruction: bool = False,
        output_predictions: bool = False,
        return_dict: bool | None = None,
    ) -> LVMAEForPreTrainingOutput | tuple[Any, ...]:
        """Reconstructs masked embeddings from the visible ones.

        Args:
            inputs_embeds: (B,S,D) L2-normalised segment embeddings, or packed (1,N,D) where `lengths` is given.
            attention_mask: (B,S), 1 is real, 0 padding; all is real without it.
            bool_masked_pos: (B,S) or (1,N), True is masked; what it says of padding is ignored. Without it nothing is
                masked, there is no loss, and everything is reconstructed.
            lengths, num_visible: (B) segments and visible segments of each sequence of a packed row, on the host.
            plan: where everything lies, for inputs_embeds (N,D); instead of masks and lengths, and without waiting for the
                device. Then there is no `reconstruction`.
            output_full_reconstruction: predict visible places too; costs the decoder's last layer on them.
            output_predictions: give what the loss was computed from too.

        Raises:
            ValueError: where shapes, lengths and masks do not fit together; where nothing is masked although a mask is
                given; where a sequence is longer than `config.max_segments` and `config.long_sequences` is "windows":
                masked prediction has no windows, so cut such sequences, or choose "extrapolate" or "interpolate".
        """
        batch, tokens = None, inputs_embeds
        if plan is None:
            sizes: dict[str, Any] = {"lengths": lengths, "num_visible": num_visible, "config": self.config}
            batch = Batch.of(inputs_embeds, attention_mask, bool_masked_pos, **sizes)
            plan = batch.plan(self.config, everywhere=output_full_reconstruction or batch.masked is None, windows=False)
            tokens = batch.tokens
        tokens, center = self.lvmae.centered(tokens, plan)
        latent = self.lvmae.encode(tokens, plan)
        predicted = self.decoder(latent, plan)

        rows = Rows(
            wanted=plan.tokens.index_select(0, plan.wanted),
            sequence=plan.sequence,
            visible=plan.seen,
            sequences=len(plan.row_starts) - 1,
            encode_whole=lambda encoder: encoder.encode_blocks(tokens, plan),
        )
        loss = targets = None
        if batch is None or batch.masked is not None:
            with torch.no_grad():
                targets = self.objective.targets(tokens, self, rows)
            loss = self.objective.loss(predicted.float(), targets, plan.weights)
        reconstruction = None
        if batch is not None:
            said = self.objective.reconstruct(predicted, tokens, rows)
            if center is not None:
                said = said + center.expand(len(tokens), -1).index_select(0, rows.wanted)
            reconstruction = batch.without_cls(said, rows.wanted)
        output = LVMAEForPreTrainingOutput(
            loss=loss,
            reconstruction=reconstruction,
            encoder_last_hidden_state=latent[None],
            predictions=predicted if output_predictions else None,
            targets=targets if output_predictions else None,
            rows=rows if output_predictions else None,
            tokens=tokens if output_predictions else None,
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    @classmethod
    def from_official_checkpoint(cls, path: str | os.PathLike[str]) -> LVMAEForPreTraining:
        """Loads a checkpoint of the authors' code; heads and loss come from the arguments stored in it.

        Raises:
            ValueError: where the file is not such a checkpoint, or carries a pickled object other than tensors, plain
                values and argparse.Namespace; nothing of it is executed.
        """
        config, state = read_official_checkpoint(path)
        with torch.device("meta"):
            model: LVMAEForPreTraining = cls(config)
        model.load_state_dict(state, strict=True, assign=True)
        model.eval()  # type: ignore[no-untyped-call]
        return model

    def to_official_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Writes the model as a checkpoint for the authors' code."""
        write_official_checkpoint(self.config, self.state_dict(), path)
