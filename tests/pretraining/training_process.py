"""What runs in the processes of these tests: a training, alone or as one of several, that may be killed at a chosen spot."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from lvmae.errors import LVMAEError
from lvmae.pretraining import accelerate_state, pretrain
from lvmae.recipes import Recipe


def train(
    store: Path,
    out: Path,
    recipe: Recipe,
    *,
    spot: tuple[str, int, str] | None = None,
    largest_file: int | None = None,
    launched: tuple[int, int, int] | None = None,
    sharded: bool = False,
    scaled: bool = False,
    graphs_only: bool = False,
) -> None:
    """Trains; an error's sentence goes to `<out>.said`, its exit code is the process's.

    `spot` names a function, which call of it, and when to die of SIGKILL or stop by SIGINT. `largest_file` is what the disk
    has room for. `launched` is (rank, world, port), as torchrun says it. `sharded`: by FSDP, as `accelerate launch --use_fsdp`;
    `scaled`: in fp16 with a loss scaler, as on a GPU. `graphs_only`: what is compiled is traced, and run without generating code.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method(
        "fork", force=True
    )  # for loader workers; inherited is a server that imports all again
    if launched is not None:
        rank, world, port = map(str, launched)
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if sharded:
        _shard()
    if scaled:
        _scale()
    if graphs_only:
        torch.compile = functools.partial(torch.compile, backend="eager")
    if spot is not None:
        _arm(*spot)
    if largest_file is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))
    try:
        pretrain(store, out, recipe=recipe)
    except LVMAEError as error:
        Path(f"{out}.said").write_text(str(error))
        sys.exit(error.exit_code)


def _shard() -> None:
    """accelerate takes FSDP for GPUs only, though torch shards over gloo as well: past its one check, all runs as it is."""
    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    }

    class Sharding(Accelerator):
        def __init__(self, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.state.distributed_type = DistributedType.FSDP
            self.state.fsdp_plugin = FullyShardedDataParallelPlugin()

        def prepare(self, *args: Any, **kwargs: Any) -> Any:
            prepared = super().prepare(*args, **kwargs)
            blocks = [m for m in prepared[0].modules() if isinstance(m, FSDPModule)]
            assert len(blocks) > 2
            assert all(isinstance(p, DTensor) for p in prepared[0].parameters())
            return prepared

    accelerate_state.Accelerator = Sharding


def _scale() -> None:
    """accelerate takes fp16 for GPUs only, though torch computes it on a CPU as well: past the two checks, all runs as it is."""
    truth = torch.accelerator.is_available
    torch.accelerator.is_available = lambda *_: True

    class Scaling(Accelerator):
        def __init__(self, **kwargs: Any) -> None:
            torch.accelerator.is_available = truth
            super().__init__(**{**kwargs, "cpu": True})
            assert self.mixed_precision == "fp16"
            self.native_amp = True
            # The first steps overflow in half precision with this much, so they are skipped and the scale is halved.
            self.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**28, growth_interval=4)

    accelerate_state.Accelerator = Scaling
    accelerate_state.pick_device = lambda *_: torch.device("cuda")


def _arm(function: str, call: int, when: str) -> None:
    module_name, _, path = function.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module_name)
    for part in owners:
        owner = getattr(owner, part)
    real = getattr(owner, name)
    calls = 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls != call:
            return real(*args, **kwargs)
        if when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        if when == "interrupted":
            os.kill(os.getpid(), signal.SIGINT)
        result = real(*args, **kwargs)
        if when == "half a file":
            os.truncate(args[1], args[1].stat().st_size // 2)
        if when == "half a line":
            folder = args[0]
            os.ftruncate(folder._metrics, os.fstat(folder._metrics).st_size - 20)
        if when != "interrupted":
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, deadly)
