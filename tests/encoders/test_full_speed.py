"""Encoders at the speed of their device: static batches, compiled blocks, one transfer, and no kind of device taken for granted."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_models import clip_tokenizer, clips, randomised
from torch import nn

import lvmae
from lvmae.devices import all_of_its_kind, pick_device
from lvmae.encoders import load_encoder
from lvmae.encoders.half_precision import lower_precision, natural_dtype, repeated_blocks
from lvmae.encoders.transfer import Transfer
from lvmae.errors import InputError

SIZE = 28


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    path = tmp_path_factory.mktemp("clip")
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = CLIPConfig(
        vision_config=tower | {"image_size": SIZE, "patch_size": 14},
        text_config=tower | {"vocab_size": 600, "max_position_embeddings": 20},
        projection_dim=12,
    )
    randomised(CLIPModel(config)).save_pretrained(path)
    clip_tokenizer(20).save_pretrained(path)
    CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}).save_pretrained(path)
    return path


def test_a_staged_batch_is_encoded_as_any_other(folder: Path) -> None:
    encoder: Any = load_encoder("clip", model=str(folder), num_frames=2, device="cpu")
    frames = clips(2, SIZE)
    whole = encoder.encode_video(frames)
    np.testing.assert_array_equal(encoder.encode_staged(encoder.stage(list(frames))), whole)
    seen: list[int] = []
    embed = encoder._embed_video
    encoder._embed_video = lambda pixels: seen.append(len(pixels)) or embed(pixels)
    encoder.on_accelerator = True  # as on a GPU, but for the place
    encoder.warm_up(5)
    got = [encoder.encode_staged(encoder.stage(list(frames[:n]))) for n in (1, 3)]
    assert [len(rows) for rows in got] == [1, 3]
    assert seen == [5, 5, 5]  # one shape for all batches
    np.testing.assert_array_equal(
        got[0], got[1][:1]
    )  # so a segment's vector is the same to the bit whatever is beside it
    np.testing.assert_allclose(got[1], whole, atol=2e-6)


def test_compiled_blocks_give_the_same_and_what_does_not_compile_runs_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = clips(2, SIZE)
    encoder: Any = load_encoder("clip", model=str(folder), num_frames=2, device="cpu", compile="true")
    eager = encoder.encode_video(frames)
    compiled: list[dict[str, Any]] = []
    compile = nn.Module.compile

    def with_graphs_alone(block: nn.Module, **options: Any) -> None:
        compiled.append(options)
        compile(block, backend="aot_eager", **options)  # the code generator takes a quarter of a minute

    monkeypatch.setattr(nn.Module, "compile", with_graphs_alone)
    encoder.warm_up(3)
    assert compiled == [{"dynamic": False}] * 6  # both towers' layers
    assert encoder._network.vision_model.encoder.layers[0]._compiled_call_impl is not None
    np.testing.assert_allclose(encoder.encode_video(frames), eager, atol=2e-6)

    def broken(block: nn.Module, **options: Any) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("no compiler here")

        block._compiled_call_impl = fail

    monkeypatch.setattr(nn.Module, "compile", broken)
    other: Any = load_encoder("clip", model=str(folder), num_frames=2, device="cpu", compile=True)
    other.warm_up(3)
    assert "'clip' runs uncompiled: RuntimeError: no compiler here" in capsys.readouterr().err
    np.testing.assert_array_equal(other.encode_video(frames), eager)
    assert not load_encoder("clip", model=str(folder), device="cpu")._compiles  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="compile must be true or false"):
        load_encoder("clip", model=str(folder), compile="perhaps")


def test_norms_keep_float32_and_buffers_keep_what_they_hold() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    network.register_buffer("table", torch.rand(3))
    seen: list[torch.dtype] = []
    lower_precision(network, torch.bfloat16)
    network[1].forward = lambda x: seen.append(x.dtype) or nn.functional.layer_norm(x, (4,))  # type: ignore[method-assign]
    assert network(torch.rand(2, 4, dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert seen == [torch.float32]
    assert network.table.dtype == network[1].weight.dtype == torch.float32
    assert network[0].weight.dtype == network[2].bias.dtype == torch.bfloat16
    blocks = nn.ModuleList([nn.ModuleDict({"in": nn.ModuleList([nn.Linear(1, 1)] * 2)}) for _ in range(2)])
    assert repeated_blocks(nn.Sequential(blocks)) == list(blocks)


def test_a_transfer_fills_a_batch_up() -> None:
    segments = [np.full((2, 3), n, np.uint8) for n in (7, 9)]
    batch = Transfer(torch.device("cpu"))(segments, fill_to=4)()
    assert (batch.dtype, batch[:, 0, 0].tolist()) == (torch.uint8, [7, 9, 0, 0])


# --- devices --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "count"), [("cuda", 4), ("mps", 1), ("xpu", 2)])
def test_the_device_is_what_the_machine_has(kind: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pick_device(None) == pick_device("auto") == torch.device("cpu")  # no accelerator here
    assert all_of_its_kind(torch.device("cpu")) == ("cpu",)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert pick_device("auto").type == kind
    names = all_of_its_kind(pick_device("auto"))
    assert names == ((kind,) if count == 1 else tuple(f"{kind}:{n}" for n in range(count)))
    assert all_of_its_kind(torch.device(f"{kind}:1")) == (f"{kind}:1",)
    assert natural_dtype(torch.device("cpu")) == torch.float32
    if kind != "cuda":
        assert natural_dtype(torch.device(kind)) == torch.bfloat16


def test_one_function_chooses_devices() -> None:
    """Nothing else asks for a kind of device, or names one as the one to use."""
    apart = ("process.py", "doctor.py")  # the one saves generators of what is in use, the other tells what there is
    found = []
    for path in sorted(Path(next(iter(lvmae.__path__))).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "is_available":
                asked = ast.unparse(node.value)
                if asked != "torch.accelerator" and path.name not in apart:
                    found.append(f"{path.name}:{node.lineno} {asked}")
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                called, names = node.func.attr, {a.value for a in node.args if isinstance(a, ast.Constant)}
                if called == "cuda" or (called in ("to", "device") and {"cuda", "mps"} & names):
                    found.append(f"{path.name}:{node.lineno} {called}")
    assert found == []
