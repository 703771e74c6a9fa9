"""Pre-training: stores in, a run folder out. See `loop` for how, `run_folder` and `checkpoints` for what lies on disk."""

from lvmae.pretraining.card import verdict
from lvmae.pretraining.loop import Stopped, pretrain
from lvmae.pretraining.run_folder import read_metrics

__all__ = ["Stopped", "pretrain", "read_metrics", "verdict"]
