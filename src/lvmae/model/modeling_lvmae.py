"""LV-MAE: a masked autoencoder over sequences of segment embeddings (Naiman et al., ICCV 2025, section 3).

The encoder sees the visible embeddings and a [CLS]; the decoder sees all places, with a mask token where an embedding
is missing, and predicts the embeddings. Nothing is computed on padding: a batch is one row of its real tokens, whether
it comes padded or packed, and `packing` confines attention to each sequence. The decoder's last layer runs on masked
places alone unless everything is asked for.

    visible ──► + positions, [CLS] in front ──► blocks ──► norm ──► Linear ─┐
    masked  ──► mask token ─────────────────────────────────────────────────┴► + positions ──► blocks ──► norm ──► Linear

torch.compile: what depends on a batch's lengths is planned eagerly and the transformer blocks are what is compiled,
once for all lengths, whether by `torch.compile(model)` or by `for block in model.blocks():
block.compile(dynamic=True)`.

Shapes: B sequences, S places padded, N real tokens of a batch in one row, M = N + B with a [CLS] in front of each sequence,
V = visible tokens + B, D width, H heads, C channels a head.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.generic import ModelOutput

from .attention import Attend, around_graphs, outside_graph, plan_attention, to_device
from .centering import means_by_sequence
from .configuration_lvmae import LVMAEConfig
from .objectives import Objective, Rows, build_objective
from .official import read_official_checkpoint, write_official_checkpoint
from .packing import Batch, Layout, Windows

# A long sequence's windows are encoded in slices of about this many tokens, so that memory beyond the output is
# constant.
_SLICE_TOKENS = 4096


@dataclass
class LVMAEModelOutput(ModelOutput):
    """What the encoder makes of whole sequences.

    Attributes:
        last_hidden_state: (B,S+1,D) with [CLS] first and zeros at padding, or packed (1,N+B,D) with each sequence's
            [CLS] in front of it.
        pooler_output: (B,D), the [CLS] of each sequence.
    """

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None


@dataclass
class LVMAEForPreTrainingOutput(ModelOutput):
    """What the autoencoder makes of masked sequences.

    Attributes:
        loss: (), over the masked tokens of the batch; None where nothing is masked.
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

    def forward(self, x: Tensor, attend: Attend, queries: Tensor | None = None) -> Tensor:
        """x (M,D) -> (M,D), or (Q,D) for the rows in `queries` (Q)."""
        if queries is None:
            q, k, v = self.qkv(x).view(len(x), 3, self.heads, -1).unbind(1)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            q = F.linear(x.index_select(0, queries), weight[: self.width], bias[: self.width])
            q = q.view(len(q), self.heads, -1)
            kv = F.linear(x, weight[self.width :], bias[self.width :])
            k, v = kv.view(len(x), 2, self.heads, -1).unbind(1)
        return cast(Tensor, self.proj(attend(q, k, v).flatten(1)))


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

    def forward(self, x: Tensor, attend: Attend, queries: Tensor | None = None) -> Tensor:
        """x (M,D) -> (M,D), or (Q,D): the same values for the rows in `queries` alone."""
        residual = x if queries is None else x.index_select(0, queries)
        x = residual + self.attn(self.norm1(x), attend, queries)
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

    @around_graphs
    def forward(
        self,
        latent: Tensor,
        *,
        kept: Tensor,
        positions: Tensor,
        wanted: Tensor,
        attend: Attend,
        attend_wanted: Attend,
    ) -> Tensor:
        """Predicts the embeddings at the rows `wanted`.

        Args:
            latent: (V,D) the encoder's tokens. kept: (V) their rows in the full row. positions: (M,width).
            wanted: (Q) rows to predict. attend: plan of the full row. attend_wanted: plan of `wanted` over the full
                row.

        Returns:
            (Q,D)
        """
        tokens = self.mask_token[0].expand(positions.shape[0], -1)
        x = tokens.index_copy(0, kept, self.embed(latent).to(tokens.dtype))
        x = (x + positions).to(tokens.dtype)
        for block in self.blocks[:-1]:
            x = block(x, attend)
        x = self.blocks[-1](x, attend_wanted, wanted)
        return cast(Tensor, self.pred(self.norm(x)))


class LVMAEPreTrainedModel(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Initialisation and loading, common to both models."""

    config: LVMAEConfig
    config_class = LVMAEConfig
    base_model_prefix = "lvmae"
    main_input_name = "inputs_embeds"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LVMAEBlock"]  # noqa: RUF012

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

    @outside_graph
    def _plan(self, queries: Sequence[int], keys: Sequence[int], head_dim: int) -> Attend:
        """The attention plan of a batch, for the kind of numbers that this forward pass computes in."""
        device = self.device
        autocast = torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if autocast else self.dtype
        return plan_attention(queries, keys, head_dim=head_dim, dtype=dtype, device=device)


class LVMAEModel(LVMAEPreTrainedModel):  # type: ignore[no-untyped-call]
    """The encoder: sequences of segment embeddings to contextual tokens and a [CLS]."""

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

    @around_graphs
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        return_dict: bool | None = None,
    ) -> LVMAEModelOutput | tuple[Any, ...]:
        """Encodes whole sequences, nothing masked, of any length.

        Args:
            inputs_embeds: (B,S,D) L2-normalised segment embeddings, or packed (1,N,D) where `lengths` is given.
            attention_mask: (B,S), 1 is real, 0 padding; all is real without it.
            lengths: (B) segments of each sequence of a packed row, on the host.

        Sequences longer than `config.max_segments` go the way of `config.long_sequences`.

        Raises:
            ValueError: where shapes and lengths do not fit together.
        """
        batch = Batch.of(inputs_embeds, attention_mask, lengths=lengths, config=self.config)
        layout = Layout.of(batch.lengths, self.device)
        longest = max(batch.lengths, default=0)
        sequence = to_device(np.repeat(np.arange(len(batch.lengths)), batch.lengths), batch.tokens.device)
        center = self.centers(batch.tokens, sequence, torch.ones_like(sequence, dtype=torch.bool), len(batch.lengths))
        tokens = batch.tokens if center is None else batch.tokens - center
        if longest > self.config.max_segments and self.config.long_sequences == "windows":
            row = self._encode_in_windows(tokens, batch.lengths)
        else:
            row = self.encode(tokens, layout)
        output = LVMAEModelOutput(
            last_hidden_state=batch.with_cls(row, layout), pooler_output=row.index_select(0, layout.cls_rows)
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    def centers(self, tokens: Tensor, sequence: Tensor, visible: Tensor, sequences: int) -> Tensor | None:
        """What is taken off each token: (N,D), (N), (N) and B -> (N,D) or, the same for all, (D); None where nothing is."""
        if self.config.center == "none":
            return None
        if self.config.center == "store":
            return cast(Tensor, self.center)
        return means_by_sequence(tokens, sequence, visible, sequences).index_select(0, sequence)

    @around_graphs
    def encode(
        self, tokens: Tensor, layout: Layout, kept: Tensor | None = None, kept_lengths: Sequence[int] | None = None
    ) -> Tensor:
        """Runs the blocks on a row of tokens, or on the part of it that is visible.

        Args:
            tokens: (N,D), packed. layout: of the full row.
            kept: (V) rows of the full row to run on, [CLS] included. kept_lengths: (B) how many of them each sequence
                has.

        Returns:
            (M,D), or (V,D)
        """
        config = self.config
        row = self._embed(tokens, layout)
        if kept is not None:
            row = row.index_select(0, kept)
        counts = layout.row_lengths if kept_lengths is None else kept_lengths
        attend = self._plan(counts, counts, config.hidden_size // config.num_attention_heads)
        for block in self.blocks:
            row = block(row, attend)
        return cast(Tensor, self.norm(row))

    @around_graphs
    def encode_blocks(self, tokens: Tensor, layout: Layout) -> list[Tensor]:
        """Whole sequences, nothing masked: (N,D) -> what each block gives, (N,D) each, before the final norm."""
        config = self.config
        row = self._embed(tokens, layout)
        attend = self._plan(layout.row_lengths, layout.row_lengths, config.hidden_size // config.num_attention_heads)
        given = []
        for block in self.blocks:
            row = block(row, attend)
            given.append(row.index_select(0, layout.token_rows))
        return given

    def _embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        """Scaled embeddings with positions and a [CLS] in front of each sequence: (N,D) -> (M,D)."""
        config = self.config
        scaled = tokens.to(self.dtype) * config.embedding_scale
        row = self.cls_token[0].expand(layout.size, -1).index_copy(0, layout.token_rows, scaled)
        return (row + layout.positions(config.hidden_size, config)).to(self.dtype)

    @around_graphs
    def _encode_in_windows(self, tokens: Tensor, lengths: Sequence[int]) -> Tensor:
        """Encodes overlapping windows of `max_segments`; (N,D) -> (M,D).

        Each window starts at position 0, as in training. Where windows overlap, tokens are cross-faded with weights
        that fall linearly to a window's ends, where it knows least of the surroundings; [CLS] is the mean over a
        sequence's windows. Windows are packed like any batch, a bounded number of tokens at a time, so what is needed
        beyond the output does not grow with the length.
        """
        windows = Windows.of(lengths, self.config.max_segments)
        out = torch.zeros(len(tokens) + len(lengths), tokens.shape[1], dtype=torch.float32, device=tokens.device)
        for part in windows.slices(_SLICE_TOKENS):
            layout = Layout.of(part.sizes, tokens.device)
            row = self.encode(tokens.index_select(0, to_device(part.source, tokens.device)), layout)
            weight = to_device(part.weight, tokens.device)
            out = out.index_add_(0, to_device(part.target, tokens.device), row.float() * weight[:, None])
        return out.to(self.dtype)


class LVMAEForPreTraining(LVMAEPreTrainedModel):  # type: ignore[no-untyped-call]
    """The masked autoencoder: `lvmae` is its encoder; `decoder` and `objective` are discarded after pre-training.

    Args:
        config: sizes and the objective.
        trust_code: run the code of an objective that `config.loss` names as module:Class. `from_pretrained` takes it too.

    Raises:
        ValueError: where there is no such objective, or it may not be run.
    """

    def __init__(self, config: LVMAEConfig, *, trust_code: bool = False) -> None:
        super().__init__(config)
        self.lvmae = LVMAEModel(config)
        self.decoder = LVMAEDecoder(config)
        self.objective: Objective = build_objective(config, trust_code=trust_code)
        self.post_init()  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def begin(self, sample: Callable[[], Tensor]) -> None:
        """Fits what is fitted before the first step: the corpus's mean, and what the objective keeps.

        Args:
            sample: gives (n,D) float32 embeddings of training segments, the same at every call.
        """
        if self.config.center == "store":
            cast(Tensor, self.lvmae.center).copy_(sample().mean(0))
        self.objective.begin(self, sample)

    def blocks(self) -> Iterator[nn.Module]:
        """All transformer blocks, the encoder's first: what to compile, shard or freeze."""
        yield from self.lvmae.blocks
        yield from self.decoder.blocks

    @around_graphs
    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Tensor | None = None,
        bool_masked_pos: Tensor | None = None,
        *,
        lengths: Sequence[int] | None = None,
        num_visible: Sequence[int] | None = None,
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
            lengths, num_visible: (B) segments and visible segments of each sequence, on the host: with them a packed
                batch is planned without waiting for the device. Padded batches on a GPU cost one such wait.
            output_full_reconstruction: predict visible places too; costs the decoder's last layer on them.
            output_predictions: give what the loss was computed from too.

        Raises:
            ValueError: where shapes, lengths and masks do not fit together; where nothing is masked although a mask is
                given; where a sequence is longer than `config.max_segments` and `config.long_sequences` is "windows":
                masked prediction has no windows, so cut such sequences, or choose "extrapolate" or "interpolate".
        """
        config = self.config
        batch = Batch.of(
            inputs_embeds, attention_mask, bool_masked_pos, lengths=lengths, num_visible=num_visible, config=config
        )
        longest = max(batch.lengths, default=0)
        if longest > config.max_segments and config.long_sequences == "windows":
            raise ValueError(
                f"a sequence has {longest} segments and max_segments is {config.max_segments}; cut it into "
                f"windows, or set long_sequences to extrapolate or interpolate"
            )
        layout = Layout.of(batch.lengths, self.device)
        kept, masked = batch.split(layout)
        kept_lengths = [visible + 1 for visible in batch.num_visible]
        rows = self._rows(batch, layout)
        center = self.lvmae.centers(batch.tokens, rows.sequence, rows.visible, rows.sequences)
        inputs = batch.tokens if center is None else batch.tokens - center
        latent = self.lvmae.encode(inputs, layout, kept, kept_lengths)

        full = output_full_reconstruction or batch.masked is None
        wanted = layout.token_rows if full else masked
        wanted_lengths = batch.lengths if full else batch.num_masked
        head_dim = config.decoder_hidden_size // config.decoder_num_attention_heads
        predicted = self.decoder(
            latent,
            kept=kept,
            positions=layout.positions(config.decoder_hidden_size, config),
            wanted=wanted,
            attend=self._plan(layout.row_lengths, layout.row_lengths, head_dim),
            attend_wanted=self._plan(wanted_lengths, layout.row_lengths, head_dim),
        )
        rows = rows._replace(
            wanted=layout.token_of(wanted), encode_whole=lambda encoder: encoder.encode_blocks(inputs, layout)
        )
        said = self.objective.reconstruct(predicted, inputs, rows)
        if center is not None:
            said = said + center.expand(len(inputs), -1).index_select(0, rows.wanted)
        reconstruction = batch.without_cls(said, rows.wanted)
        loss = targets = None
        if batch.masked is not None:
            if full:
                rows = rows._replace(wanted=layout.token_of(masked))
                predicted = predicted.index_select(0, rows.wanted)
            with torch.no_grad():
                targets = self.objective.targets(inputs, self, rows)
            weights = torch.full((len(predicted),), 1 / len(predicted), device=predicted.device)
            loss = self.objective.loss(predicted.float(), targets, weights)
        output = LVMAEForPreTrainingOutput(
            loss=loss,
            reconstruction=reconstruction,
            encoder_last_hidden_state=latent[None],
            predictions=predicted if output_predictions else None,
            targets=targets if output_predictions else None,
            rows=rows if output_predictions else None,
            tokens=inputs if output_predictions else None,
        )
        return output if return_dict is None or return_dict else output.to_tuple()

    @outside_graph
    def _rows(self, batch: Batch, layout: Layout) -> Rows:
        """Where rows lie, for the objective; which are wanted comes later."""
        sequence = to_device(np.repeat(np.arange(len(batch.lengths)), batch.lengths), batch.tokens.device)
        masked = torch.zeros(len(batch.tokens), dtype=torch.bool, device=batch.tokens.device)
        return Rows(
            wanted=layout.token_index[:0],
            sequence=sequence,
            visible=~(masked if batch.masked is None else batch.masked),
            sequences=len(batch.lengths),
            encode_whole=lambda encoder: [],
        )

    @classmethod
    def from_official_checkpoint(cls, path: str | os.PathLike[str]) -> LVMAEForPreTraining:
        """The model in a checkpoint of the authors' code; heads and loss are taken from the arguments stored in it.

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
        """Writes the model in the layout of the authors' code."""
        write_official_checkpoint(self.config, self.state_dict(), path)
