"""The end-to-end baselines of the paper's table: a Transformer and a Mamba, trained from scratch on the embeddings.

They see what LV-MAE sees, the raw embeddings in their order, and only the labels teach them: what they reach says what
pre-training is worth. The paper gives neither's size nor training; ours are in `ProbeSettings`. Both bring the
embeddings, scaled to a mean square of 1, to an inner width W by a linear layer, and end in a norm and a linear layer.

Shapes: B videos, S segments padded on the right, D embedding width, W inner width, N states of a channel.
Price of a step of 16 videos of 30 segments at W 128 and 2 layers, one thread of a busy machine: Transformer 20 ms, Mamba 40.
"""

from __future__ import annotations

import importlib.util
import math
import threading
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MambaConfig, MambaModel
from transformers.models.mamba.modeling_mamba import MambaMixer

from lvmae.model.positions import sincos_positions

_HEAD_WIDTH = 32
_EPS = 1e-6
_global_generator = threading.Lock()  # fits run side by side, and libraries initialise from torch's one generator


def end_to_end(name: str, dim: int, outputs: int, *, width: int, layers: int, seed: int) -> nn.Module:
    """A fresh "transformer" or "mamba" with weights drawn by `seed`; torch's global generator is left as it was.

    It maps tokens (B, S, D), a mask (B, S), True where a segment is real, and an unused third argument to (B, K).
    """
    build = {"transformer": TransformerBaseline, "mamba": MambaBaseline}[name]
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(dim, outputs, width, layers)


class TransformerBaseline(nn.Module):
    """Pre-norm blocks over a learned [CLS] and the segments with the method's sin-cos positions; [CLS] answers."""

    def __init__(self, dim: int, outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        self.cls = nn.Parameter(torch.empty(width).normal_(std=0.02))
        heads = next(h for h in range(max(1, width // _HEAD_WIDTH), 0, -1) if width % h == 0)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, 0.0, F.gelu, _EPS, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width, _EPS), enable_nested_tensor=False)
        for layer in self.blocks.layers:  # torch copies one block's weights; each is to start from its own
            for parameter in layer.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, mask: Tensor, _cls: Tensor | None = None) -> Tensor:
        x = self.embed(_unit_square(tokens))
        x = x + sincos_positions(torch.arange(x.shape[1]), x.shape[2]).to(x)
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        hidden = F.pad(~mask, (1, 0), value=False)
        return self.head(self.blocks(x, src_key_padding_mask=hidden)[:, 0])  # type: ignore[no-any-return]


class MambaBaseline(nn.Module):
    """Mamba blocks (Gu and Dao 2023, as transformers has them) over the segments; the mean of the real ones answers.

    A Mamba only looks back, so padding on the right changes nothing before it.
    """

    def __init__(self, dim: int, outputs: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(dim, width)
        config = MambaConfig(vocab_size=1, hidden_size=width, num_hidden_layers=layers, use_cache=False)
        self.blocks = MambaModel(config)
        del self.blocks.embeddings  # it is given embeddings
        if importlib.util.find_spec("mamba_ssm") is None:
            for index, block in enumerate(self.blocks.layers):
                mixer = ScanMixer(config, index)
                mixer.load_state_dict(block.get_submodule("mixer").state_dict())
                block.mixer = mixer
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens: Tensor, mask: Tensor, _cls: Tensor | None = None) -> Tensor:
        x = self.blocks(inputs_embeds=self.embed(_unit_square(tokens))).last_hidden_state
        real = mask[..., None]
        return self.head((x * real).sum(dim=1) / real.sum(dim=1))  # type: ignore[no-any-return]


class ScanMixer(MambaMixer):
    """transformers' mixer, computed one segment after the other: the same numbers at a fifth of its reference's time.

    The reference indexes a step out of tensors (B, channels, S, N), whose gradients are as large for every step. Here a
    step's states (B, N, channels) stay in the processor's cache, channels innermost.
    """

    def forward(
        self, hidden_states: Tensor, cache: Any = None, attention_mask: Tensor | None = None, **_: Any
    ) -> Tensor:
        if cache is not None or attention_mask is not None:
            raise NotImplementedError("this mixer is for whole sequences without a mask")
        length = hidden_states.shape[1]
        x, gate = self.in_proj(hidden_states).chunk(2, dim=-1)  # (B, S, channels) each
        x = self.act(self.conv1d(x.mT)[..., :length].mT)
        step, b, c = self.x_proj(x).split([self.time_step_rank, self.ssm_state_size, self.ssm_state_size], dim=-1)
        step = F.softplus(self.dt_proj(step))
        decay = -self.A_log.exp().T.contiguous()  # (N, channels)
        state: Tensor | None = None
        seen = []
        parts = (step.unbind(1), (step * x).unbind(1), b.unbind(1), c.unbind(1))
        for step_t, x_t, b_t, c_t in zip(*parts, strict=True):
            added = b_t[:, :, None] * x_t[:, None]  # (B, N, channels)
            state = added if state is None else torch.addcmul(added, torch.exp(step_t[:, None] * decay), state)
            seen.append((c_t[:, None] @ state)[:, 0])
        y = torch.stack(seen, dim=1) + x * self.D
        return self.out_proj(y * F.silu(gate))  # type: ignore[no-any-return]


def _unit_square(tokens: Tensor) -> Tensor:
    """Unit vectors with a mean square of 1 instead, which is what linear layers are initialised for."""
    return tokens * math.sqrt(tokens.shape[-1])
