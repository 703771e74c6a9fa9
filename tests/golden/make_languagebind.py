"""Records what the `languagebind` package computes with small random weights: tests/golden/languagebind.safetensors.

The package needs transformers below 5, so this runs in an environment of its own, from the repository's root:

    python -m venv golden && golden/bin/pip install languagebind==0.1.0 torchvision pytorchvideo==0.1.5
    golden/bin/python tests/golden/make_languagebind.py

Three models: the first version, V1.5, and the first version with low-rank updates (LoRA) as `peft` saves them. Of each the
weights, the configuration as distributed, tokenizer files, frames, texts, and the features of both sides before
normalisation; and larger frames, resized as the package does.
"""

from __future__ import annotations

import json
import sys
import tempfile
import types
from importlib import import_module, machinery
from pathlib import Path

import numpy as np
import torch
import torchvision.transforms.functional as functional
from safetensors.torch import save_file

SIZE, FRAMES = 14, 4
TEXTS = ["a dog on a beach", "Red flower", "dogs, dogs and more dogs in a red tower by a beach"]
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load_package() -> types.SimpleNamespace:
    """The package's video part. Its __init__ imports audio and video readers, which nothing here needs: it is passed over."""
    package = types.ModuleType("languagebind")
    spec = machinery.PathFinder.find_spec("languagebind")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["languagebind"] = package
    sys.modules["torchvision.transforms.functional_tensor"] = functional  # pytorchvideo 0.1.5 still asks for it
    return types.SimpleNamespace(
        model=import_module("languagebind.video.modeling_video").LanguageBindVideo,
        config=import_module("languagebind.video.configuration_video").LanguageBindVideoConfig,
        tokenizer=import_module("languagebind.video.tokenization_video").LanguageBindVideoTokenizer,
        scale=import_module("pytorchvideo.transforms").ShortSideScale,
    )


def tokenizer_files() -> tuple[dict[str, int], list[str]]:
    """A CLIP vocabulary of single letters, ended or not, a few merges, and the two marks, the end last."""
    letters = [chr(c) for c in range(33, 127)]
    merges = ["d o", "do g</w>", "do g", "r e", "re d</w>", "b e", "a c", "be ac", "beac h</w>"]
    names = [*letters, *(f"{c}</w>" for c in letters), *("".join(m.split()) for m in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    return {name: i for i, name in enumerate(names)}, merges


# Of what the released files carry beside the model's own: leftovers of the configurations of their day.
LEFTOVERS = {
    "_name_or_path": "", "add_cross_attention": False, "architectures": None, "bad_words_ids": None, "chunk_size_feed_forward": 0,
    "do_sample": False, "dropout": 0.0, "finetuning_task": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": False,
    "is_encoder_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "max_length": 20, "num_beams": 1, "prefix": None,
    "output_attentions": False, "output_hidden_states": False, "problem_type": None, "pruned_heads": {}, "return_dict": True,
    "tf_legacy_loss": False, "tie_encoder_decoder": False, "tie_word_embeddings": True, "top_k": 50, "torch_dtype": None,
    "torchscript": False, "transformers_version": "4.30.2", "typical_p": 1.0, "use_bfloat16": False,
}  # fmt: skip


def configuration(vocabulary: int, **vision: object) -> dict:
    return {
        "model_type": "LanguageBindVideo",
        "projection_dim": 12,
        "text_config": LEFTOVERS | {
            "model_type": "clip_text_model", "bos_token_id": 0, "eos_token_id": 2,
            "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": vocabulary, "max_position_embeddings": 20, "hidden_act": "gelu",
        },
        "vision_config": LEFTOVERS | {
            "model_type": "clip_vision_model",
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": SIZE, "patch_size": 7, "num_frames": FRAMES, "hidden_act": "gelu",
            "add_time_attn": True, "force_patch_dropout": 0.5, "lora_r": 0, "lora_alpha": 16, **vision,
        },
    }  # fmt: skip


def photographs() -> np.ndarray:
    """uint8 (T, 42, 63, 3): smooth pictures that move, with some grain."""
    y, x, t = np.meshgrid(np.arange(42), np.arange(63), np.arange(FRAMES), indexing="ij")
    waves = [np.sin((x * a + y * b) / 9 + t) for a, b in ((1, 0.3), (0.4, 1), (0.8, -0.7))]
    grain = np.random.default_rng(0).normal(0, 8, (FRAMES, 42, 63, 3))
    return np.clip(128 + 90 * np.stack(waves, -1).transpose(2, 0, 1, 3) + grain, 0, 255).astype(np.uint8)


def main() -> None:
    package = load_package()
    vocabulary, merges = tokenizer_files()
    tensors: dict[str, torch.Tensor] = {}
    configs = {
        "first": configuration(len(vocabulary)),
        "newer": configuration(len(vocabulary), clip_type="vl_new"),
        "lora": configuration(len(vocabulary), lora_r=2),
    }
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary))
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
        tokens = package.tokenizer.from_pretrained(folder)(
            TEXTS, max_length=20, padding="max_length", truncation=True, return_tensors="pt"
        )
    frames = np.random.default_rng(1).integers(0, 256, (3, FRAMES, SIZE, SIZE, 3), dtype=np.uint8)
    mean, std = torch.tensor(MEAN)[:, None, None, None], torch.tensor(STD)[:, None, None, None]
    pixels = ((torch.from_numpy(frames).permute(0, 4, 1, 2, 3) / 255.0) - mean) / std  # (B, 3, T, S, S)
    for name, config in configs.items():
        torch.manual_seed(3)
        built = package.config(**config)
        for part in (built.text_config, built.vision_config):
            part._attn_implementation = (
                "eager"  # what from_pretrained would choose; built from a config alone there is none
            )
        model = package.model(built).eval()
        with torch.no_grad():
            for key, parameter in sorted(model.named_parameters()):
                # Of a size that lets every part matter, the biases and norms that start at 0 and 1 included.
                near = 1.0 if "norm" in key and key.endswith("weight") else 0.0
                parameter.copy_((near + torch.randn(parameter.shape) * 0.3).half())
            video = model.get_image_features(pixels)
            text = model.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        for key, value in model.state_dict().items():
            if not key.endswith("position_ids"):
                tensors[f"{name}/weights/{key}"] = value.half()  # exact: they were rounded above
        tensors |= {f"{name}/video": video, f"{name}/text": text}
    large = (torch.from_numpy(photographs()).permute(3, 0, 1, 2) / 255.0 - mean) / std  # (3, T, 42, 63)
    resized = functional.center_crop(package.scale(SIZE)(large), [SIZE, SIZE])
    tensors |= {
        "frames": torch.from_numpy(frames),
        "large": torch.from_numpy(photographs()),
        "resized": resized.half(),
        "input_ids": tokens["input_ids"],
    }
    facts = {"configs": configs, "vocabulary": vocabulary, "merges": merges, "texts": TEXTS}
    out = Path(__file__).with_name("languagebind.safetensors")
    save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, out, {k: json.dumps(v) for k, v in facts.items()}
    )
    print(out, out.stat().st_size)


if __name__ == "__main__":
    main()
