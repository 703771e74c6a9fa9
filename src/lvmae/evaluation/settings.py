"""How probes and baselines are trained: the paper's numbers, and ours where it gives none."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from lvmae.errors import InputError

PROTOCOLS = ("standard", "paper")
PROBES_OF = {"standard": ("linear", "knn", "attentive"), "paper": ("linear", "attentive")}
BASELINES = ("transformer", "mamba")
ALL_PROBES = ("linear", "knn", "attentive", "linear-standardized", *BASELINES)
ATTENTIVE_RATES = (1e-4, 1e-3, 3e-3)  # that val chooses among by the standard protocol


@dataclass(frozen=True)
class Plan:
    """The training of one probe: epochs, the rate and its course, and how often an epoch goes over the videos.

    Attributes:
        epochs: to choose from on val.
        lr: the highest rate.
        decay: what the rate is multiplied by after each epoch; None warms it up and lets it fall on a cosine to zero.
        weight_decay: AdamW's, on matrices alone.
        min_steps: the least number of steps of the whole; 0 leaves it to the epochs.
    """

    epochs: int
    lr: float
    decay: float | None
    weight_decay: float
    min_steps: int

    def passes(self, epoch_steps: int) -> int:
        """How often each epoch goes over the training videos, where once is `epoch_steps` steps."""
        return max(1, math.ceil(self.min_steps / (self.epochs * epoch_steps)))


@dataclass(frozen=True)
class ProbeSettings:
    """The training settings of probes; the defaults are the paper's, except for minimum numbers of steps.

    The paper's epochs are of hundreds or thousands of videos. Over a few dozen they make too few steps to learn anything
    (on 36 videos the linear probe's 30 epochs are 90 steps of 1e-4), so there an epoch goes over the training videos
    several times, until the whole makes at least so many steps; the number of epochs to choose from and the course of
    the rate stay as they are. 1,500 linear steps are what the paper's epochs make on LVU's middling tasks of 800 videos.
    `ProbeSettings.paper()` is the paper to the letter, and what `probe` takes by the protocol "paper".

    The linear probe's rate is low for features of length 1, such as raw embeddings: Adam moves a weight by at most 1e-4 a step,
    whatever the features are. At the size of LVU's scene task it took the same synthetic features to 42 % where they were of
    length 1 and to 92 % where they were of length sqrt(D), as an encoder's tokens are (docs/log.md). So raw rows of "linear"
    say less than they seem to; "linear-standardized" trains alike on features of any scale.

    Of the Transformer and the Mamba trained end to end the paper gives no settings. Ours are those of a small model on
    little data: AdamW, the rate warmed up over a tenth of the steps and falling on a cosine, no dropout, the epoch
    chosen on val like any probe's. They always make at least `baseline_min_steps`: nothing is pre-trained that few
    steps could draw on.

    Attributes:
        batch_size: videos a step.
        linear_epochs, linear_lr, linear_min_steps: Adam at a constant rate.
        attentive_epochs, attentive_lr, attentive_decay, attentive_min_steps: Adam, the rate multiplied by the decay
            after each epoch.
        baseline_width, baseline_layers: of the end-to-end models, behind a linear layer from the embeddings' width.
        baseline_epochs, baseline_lr, baseline_weight_decay, baseline_min_steps: their training.
        bootstrap: resamples of the test videos behind the interval.
        device: "auto", "cpu", "cuda", "cuda:N" or "mps"; None is "auto".
    """

    batch_size: int = 16
    linear_epochs: int = 30
    linear_lr: float = 1e-4
    linear_min_steps: int = 1500
    attentive_epochs: int = 20
    attentive_lr: float = 1e-3
    attentive_decay: float = 0.9
    attentive_min_steps: int = 300
    baseline_width: int = 128
    baseline_layers: int = 2
    baseline_epochs: int = 30
    baseline_lr: float = 1e-3
    baseline_weight_decay: float = 0.05
    baseline_min_steps: int = 600
    bootstrap: int = 1000
    device: str | None = None

    @classmethod
    def paper(cls, **changes: Any) -> ProbeSettings:
        """Returns the paper's settings: its epochs for the linear and attentive probe, however few the videos."""
        return cls(**{"linear_min_steps": 0, "attentive_min_steps": 0} | changes)

    def __post_init__(self) -> None:
        """Raises InputError if a value is out of its range."""
        for name, value in vars(self).items():
            if name == "device":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                raise InputError(f"the probes' {name} needs a number, not {value!r}")
            whole = name not in ("linear_lr", "attentive_lr", "attentive_decay", "baseline_lr", "baseline_weight_decay")
            least = 0 if name.endswith(("min_steps", "weight_decay", "bootstrap")) else 1 if whole else None
            if (whole and value != int(value)) or (value <= 0 if least is None else value < least):
                rule = "more than 0" if least is None else f"{'a whole number of ' if whole else ''}{least} or more"
                raise InputError(f"the probes' {name} is {value!r}: it has to be {rule}")

    @classmethod
    def of(
        cls, settings: ProbeSettings | Mapping[str, Any] | None, protocol: str, device: str | None = None
    ) -> ProbeSettings:
        """Returns the chosen settings, or a protocol's settings with changes by name; and the device.

        Raises InputError on a name that is not a setting's, naming what comes near, and on a value out of its range.
        """
        if isinstance(settings, ProbeSettings):
            chosen = settings
        else:
            known = [field.name for field in fields(cls)]
            for name in settings or {}:
                if name not in known:
                    near = difflib.get_close_matches(name, known, n=2)
                    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
                    raise InputError(f"probes have no setting {name!r}; {hint}")
            chosen = replace(cls.default_for(protocol), **(settings or {}))
        return chosen if device is None else replace(chosen, device=device)

    @classmethod
    def default_for(cls, protocol: str) -> ProbeSettings:
        """Returns the exact paper settings for the paper's protocol; otherwise settings with minimum numbers of steps."""
        return cls.paper() if protocol == "paper" else cls()

    def plan(self, probe: str) -> Plan:
        """Returns the training plan of one of `ALL_PROBES`."""
        if probe in BASELINES:
            return Plan(
                self.baseline_epochs, self.baseline_lr, None, self.baseline_weight_decay, self.baseline_min_steps
            )
        if probe == "attentive":
            return Plan(self.attentive_epochs, self.attentive_lr, self.attentive_decay, 0.0, self.attentive_min_steps)
        return Plan(self.linear_epochs, self.linear_lr, 1.0, 0.0, self.linear_min_steps)
