"""How fast a GPU encodes, alone and fed by decoders; at most six minutes on one GPU. Prints JSON, and writes it to results/.

    make gpu-embed                                     # or: PYTHONPATH=src python benchmarks/gpu_embed.py
    python benchmarks/gpu_embed.py --device cpu --small --out gpu.json      # what a machine without a GPU can try of it

Needs torch, transformers and this checkout; `av` for real decoding, else decoders make frames, and the result says so. Each encoder
has random weights of its real size (the text towers, which take no part, are small). A part that cannot be run is listed under
`skipped` with what to bring, and makes the exit code 1.

Rates are segments a second: `alone` in one process, batches staged while others are encoded; `pipeline` from decoding processes
through shared memory to the encoding process, as `lvmae embed` runs. `idle_share` is what the encoding process waits for batches.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
NEEDED = (
    "filelock",
    "fsspec",
    "huggingface_hub",
    "pyarrow",
    "safetensors",
    "tokenizers",
    "tqdm",
    "transformers",
    "wrapt",
)
DECODERS = (1, 2, 4, 8, 16)
SEGMENT_SECONDS, FILM_SECONDS, HEIGHT, RATE = 5.0, 60, 360, 25

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
_TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 600,
}
_TEXT |= {"max_position_embeddings": 20, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


def _tower(width: int, layers: int, heads: int, patch: int, image: int = 224) -> dict[str, Any]:
    own = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
    return own | {"num_attention_heads": heads, "patch_size": patch, "image_size": image}


# --- networks of their real sizes, with random weights ----------------------------------------------------------------------


def languagebind(width: int, layers: int, heads: int, *, patch: int = 14, image: int = 224, frames: int = 8) -> Any:
    def make(folder: Path) -> Any:
        from lvmae.encoders.hub import fetch
        from lvmae.encoders.languagebind import _configuration, _VideoCLIP

        vision = _tower(width, layers, heads, patch, image)
        vision |= {
            "add_time_attn": True,
            "num_frames": frames,
            "clip_type": "vl_new",
            "hidden_act": "gelu",
            "lora_r": 0,
        }
        config = {"projection_dim": 64, "text_config": _TEXT, "vision_config": vision}
        (folder / "config.json").write_text(json.dumps(config))
        return _VideoCLIP(_configuration(fetch(str(folder))))

    return make


def clip(width: int, layers: int, heads: int, *, patch: int = 32, image: int = 224) -> Any:
    def make(folder: Path) -> Any:
        from transformers import CLIPConfig, CLIPModel

        tower = _tower(width, layers, heads, patch, image)
        return CLIPModel(CLIPConfig(text_config=_TEXT, vision_config=tower, projection_dim=64))

    return make


def siglip2(folder: Path) -> Any:
    from transformers import SiglipConfig, SiglipModel

    return SiglipModel(
        SiglipConfig(text_config=_TEXT | {"projection_size": 768}, vision_config=_tower(768, 12, 12, 16))
    )


def videoprism(width: int, spatial: int, temporal: int, heads: int, frames: int) -> Any:
    def make(folder: Path) -> Any:
        from transformers import VideoPrismClipModel, VideoPrismConfig

        vision = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        vision |= {"num_spatial_layers": spatial, "num_temporal_layers": temporal, "num_frames": frames}
        text = _TEXT | {"hidden_size": width, "intermediate_size": width, "num_attention_heads": heads}
        return VideoPrismClipModel(VideoPrismConfig(vision_config=vision, text_config=text))

    return make


def xclip(folder: Path) -> Any:
    from transformers import XCLIPConfig, XCLIPModel

    config = XCLIPConfig(text_config=_TEXT | {"hidden_size": 512, "num_attention_heads": 8}, projection_dim=512)
    return XCLIPModel(config)


REAL: dict[str, Callable[[Path], Any]] = {  # with LanguageBind-Huge first: the pipeline is measured with it
    "languagebind-huge": languagebind(1280, 32, 16),
    "languagebind-base": languagebind(1024, 24, 16),
    "videoprism": videoprism(768, 12, 4, 12, 16),
    "videoprism-large": videoprism(1024, 24, 4, 16, 8),
    "clip": clip(768, 12, 12),
    "siglip2": siglip2,
    "xclip": xclip,
}
SMALL = {
    "languagebind-huge": languagebind(32, 2, 2, image=28, frames=2),
    "clip": clip(32, 2, 2, patch=14, image=28),
}
SKIPPED = {
    "internvideo2": "its network is code in its own repository: bring a copy of it and its weights, and measure with `lvmae embed`",
    "pe-av": "its image tower is timm's, drawn from its own configuration: bring its weights, and measure with `lvmae embed`",
}


def written(name: str, make: Callable[[Path], Any], folder: Path, device: torch.device) -> Path:
    """A model's folder as the encoder loads it, with weights in bfloat16."""
    from safetensors.torch import save_file
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import CLIPTokenizer

    path = folder / name
    path.mkdir()
    letters = sorted(ByteLevel.alphabet())
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=20).save_pretrained(path)
    with torch.device(device):
        network = make(path)
    vision = network.config.vision_config
    side = {"height": vision.image_size, "width": vision.image_size}
    processor: dict[str, Any] = {"size": {"shortest_edge": vision.image_size}, "crop_size": side}
    processor |= {"do_center_crop": True, "resample": 3, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        (path / file).write_text(json.dumps(processor))
    network.to(torch.bfloat16)
    if name.startswith("languagebind"):
        state = {key: value.contiguous().cpu() for key, value in network.state_dict().items()}
        save_file(state, path / "model.safetensors", {"format": "pt"})
    else:
        network.save_pretrained(path)
    return path


# --- measuring ----------------------------------------------------------------------------------------------------------------


def alone(name: str, path: Path, device: str, batch: int, seconds: float) -> dict[str, Any]:
    """An encoder's rate by itself: the next batch is staged while one is encoded."""
    from lvmae.devices import release_memory
    from lvmae.encoders import load_encoder

    began = time.perf_counter()
    encoder: Any = load_encoder(name, model=str(path), device=device)
    encoder.warm_up(batch)
    ready = time.perf_counter() - began
    shape = (batch, encoder.num_frames, encoder.image_size, encoder.image_size, 3)
    frames = list(np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    done = 0
    with ThreadPoolExecutor(1) as staging:
        following = staging.submit(encoder.stage, frames)
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            staged, following = following.result(), staging.submit(encoder.stage, frames)
            encoder.encode_staged(staged)
            done += batch
        took = time.perf_counter() - began
    found = {
        "segments_a_second": round(done / took, 2),
        "batch": batch,
        "frames": encoder.num_frames,
        "pixels": encoder.image_size,
        "million_parameters_of_video": round(_video_parameters(encoder) / 1e6, 1),
        "dtype": str(encoder._dtype).removeprefix("torch."),
        "compiled": bool(encoder._compiles),
        "seconds_to_load_and_warm_up": round(ready, 1),
        "memory_gib": memory_in_use(device),
    }
    del encoder
    release_memory()
    return found


def _video_parameters(encoder: Any) -> int:
    return sum(p.numel() for name, p in encoder._network.named_parameters() if not name.startswith("text"))


def memory_in_use(device: str) -> float | None:
    """GiB of a GPU that are taken, by whatever process; None if that cannot be told."""
    if torch.device(device).type != "cuda":
        return None
    free, total = torch.cuda.mem_get_info(device)
    return round((total - free) / 2**30, 2)


def pipeline(
    path: Path,
    device: str,
    batch: int,
    seconds: float,
    decoders: tuple[int, ...],
    folder: Path,
    *,
    decodes: bool,
    film_seconds: int,
) -> dict[str, Any]:
    """Rates with so many decoders, one after the other, on one crew whose encoder is loaded once."""
    from lvmae.embedding.pipeline import Advanced, FrameFormat, Job
    from lvmae.embedding.sources import VideoFile
    from lvmae.embedding.two_stages import TwoStages
    from lvmae.encoders import load_encoder

    segments = int(film_seconds / SEGMENT_SECONDS)
    rule: Any
    if decodes:
        from lvmae.video.segmentation import SegmentRule

        rule, film = SegmentRule(SEGMENT_SECONDS), written_film(folder / "film.mp4", film_seconds)
    else:
        from made_frames import MadeFrames

        rule, film = MadeFrames(segments), folder / "none.mp4"
    encoder = load_encoder("languagebind-huge", model=str(path), device="cpu")
    job = Job("languagebind-huge", {"model": str(path)}, rule, batch, devices=(device,), frames=FrameFormat.of(encoder))
    del encoder
    rows: dict[str, Any] = {}
    with TwoStages(job, workers=max(decoders), timeout=300) as crew:
        for number in decoders:
            crew.workers = number
            files = [VideoFile(f"{number}-{i}", str(film)) for i in range(100_000 // segments)]
            stop, counted = threading.Event(), 0
            began: float | None = None
            took = waited = 0.0
            busy, idle = crew.encoder_seconds
            for happened in crew.run(files, stop):
                now = time.perf_counter()
                if happened is not None and isinstance(happened[1], Advanced):
                    if began is None and sum(d.started for d in crew._decoders) >= number:  # all are at work
                        began = now
                        busy, idle = crew.encoder_seconds
                    elif began is not None and not stop.is_set():
                        counted += happened[1].segments
                        took = now - began
                if began is not None and now - began > seconds and not stop.is_set():
                    stop.set()
                    busy, idle = (a - b for a, b in zip(crew.encoder_seconds, (busy, idle), strict=True))
                    waited = idle / max(busy + idle, 1e-9)
            rows[str(number)] = {
                "segments_a_second": round(counted / max(took, 1e-9), 2),
                "idle_share": round(waited, 3),
                "memory_gib": memory_in_use(device),
            }
    kind = f"decoded from a made film of {HEIGHT}p at {RATE} frames/s, H.264" if decodes else "made in the decoders"
    return {"frames": kind, "batch": batch, "decoders": rows}


def written_film(path: Path, seconds: int) -> Path:
    """Clouds that drift and a ball that flies, H.264, key frames ten seconds apart."""
    import av
    from PIL import Image

    random = np.random.default_rng(0)
    clouds = Image.fromarray(random.integers(0, 256, (30, 60, 3), np.uint8)).resize(
        (1280, HEIGHT), Image.Resampling.BICUBIC
    )
    sky = np.asarray(clouds)
    down, across = np.mgrid[:HEIGHT, :640]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"g": "250"})
        stream.width, stream.height, stream.pix_fmt = 640, HEIGHT, "yuv420p"
        for k in range(seconds * RATE):
            picture = sky[:, k % 640 : k % 640 + 640].copy()
            picture[(down - 180 - 150 * np.sin(k / 9)) ** 2 + (across - 320 - 300 * np.cos(k / 31)) ** 2 < 900] = 255
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@contextlib.contextmanager
def noting(skipped: dict[str, str], part: str) -> Iterator[None]:
    """A part that fails is skipped, and what it lacks is told."""
    try:
        yield
    except Exception as error:
        skipped[part] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def measure(
    device: str, *, small: bool, batch: int, seconds: float, decoders: tuple[int, ...], decodes: bool
) -> dict[str, Any]:
    """Everything, as a dictionary."""
    place = torch.device(device)
    skipped = {} if small else dict(SKIPPED)
    if not decodes:
        skipped["decoding"] = "frames were made in the decoders: bring av (pip download av)"
    found: dict[str, Any] = {
        "card": torch.cuda.get_device_name(place) if place.type == "cuda" else f"none ({place.type})",
        "torch": torch.__version__,
        "commit": commit(),
        "command": " ".join(["python", "benchmarks/gpu_embed.py", *sys.argv[1:]]),
        "encoders": {},
        "pipeline": None,
        "skipped": skipped,
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for encoder, make in (SMALL if small else REAL).items():
            with noting(skipped, encoder):
                path = written(encoder, make, folder, place)
                found["encoders"][encoder] = alone(encoder, path, device, batch, seconds)
                print(encoder, found["encoders"][encoder], file=sys.stderr, flush=True)
        with noting(skipped, "pipeline"):
            path = folder / "languagebind-huge"
            found["pipeline"] = pipeline(
                path,
                device,
                batch,
                seconds,
                decoders,
                folder,
                decodes=decodes,
                film_seconds=10 if small else FILM_SECONDS,
            )
            reached = [row["segments_a_second"] for row in found["pipeline"]["decoders"].values()]
            own = found["encoders"]["languagebind-huge"]["segments_a_second"]
            found["pipeline"]["best_share_of_encoder_alone"] = round(max(reached) / own, 3)
    return found


def commit() -> str:
    """The checkout's commit; with `+` where it has changes."""
    said = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return said.stdout.strip() or "unknown"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=5.0, help="that each rate is measured for (5)")
    parser.add_argument("--decoders", type=int, nargs="+", default=list(DECODERS))
    parser.add_argument("--small", action="store_true", help="two tiny encoders, to try the benchmark itself")
    parser.add_argument("--made-frames", action="store_true", help="decoders make frames, as where av is missing")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu-embed-CARD.json")
    arguments = parser.parse_args(argv)
    if torch.device(arguments.device).type == "cuda" and not torch.cuda.is_available():
        print("gpu_embed: there is no CUDA device here; bring this checkout to a machine with a GPU.", file=sys.stderr)
        return 1
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        print(f"gpu_embed: bring {' '.join(lacking)} (pip download {' '.join(lacking)})", file=sys.stderr)
        return 1
    decodes = find_spec("av") is not None and not arguments.made_frames
    if not decodes:
        from made_frames import stand_in_for_pyav

        stand_in_for_pyav(Path(tempfile.mkdtemp()))
    found = measure(
        arguments.device,
        decodes=decodes,
        small=arguments.small,
        batch=arguments.batch,
        seconds=arguments.seconds,
        decoders=tuple(sorted(arguments.decoders)),
    )
    text = json.dumps(found, indent=2)
    card = re.sub(r"[^a-z0-9]+", "-", found["card"].lower()).strip("-")
    out = arguments.out or RESULTS / f"gpu-embed-{card}.json"
    out.write_text(text + "\n")
    print(text)
    for part, why in found["skipped"].items():
        print(f"skipped {part}: {why}", file=sys.stderr)
    return 1 if found["skipped"] else 0


if __name__ == "__main__":
    sys.exit(main())
