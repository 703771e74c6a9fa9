"""What is taken for a caption, and what a server cannot do to who asks it."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback import EXPECTED, KEY, body, captions, chat, error, run_cli, saw, sentence, written

from lvmae.captioning.answers import caption_in, one_line, without_key
from lvmae.library.captions import as_cell, from_cell, load_captions

TEXT = "A man walks on a beach."


@pytest.mark.parametrize(
    "answer",
    [
        TEXT,
        f"  {TEXT}\n",
        f"<think>hm</think>{TEXT}",
        f"The user wants a caption.\n</think>\n\n{TEXT}",
        f"<thinking>hm <b>\n\n</thinking>\n{TEXT}",
        f"<think>a</think><think>b</think>{TEXT}",
        f"<THINK>hm</THINK> {TEXT}",
        f"<thought>hm</thought>{TEXT}",
        f"<seed:think>hm</seed:think>{TEXT}",
        f"\u25c1think\u25b7hm\u25c1/think\u25b7{TEXT}",
        f"[THINK]hm[/THINK]{TEXT}",
        f"<think>hm</think><answer><|begin_of_box|>{TEXT}<|end_of_box|></answer>",
        f"<answer>\\boxed{{{TEXT}}}</answer>",
        f"<|begin_of_box|>{TEXT}<|end_of_box|>",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}",
        f"<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}<|return|>",
        f"analysisThe user wants a caption.assistantfinal{TEXT}",
        f"<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>{TEXT}<|END_RESPONSE|>",
        f"Here are my reasoning steps:\nhm\n[BEGIN FINAL RESPONSE]\n{TEXT}\n[END FINAL RESPONSE]",
        f"{TEXT}<|im_end|>",
        f"{TEXT}</s>",
        f"{TEXT}<end_of_turn>",
        f"\x1b[2J{TEXT}\0\u202e",
    ],
)
def test_the_caption_is_what_follows_the_thoughts(answer: str) -> None:
    assert caption_in(answer) == TEXT


@pytest.mark.parametrize(
    "answer",
    [
        "<think>The user",
        "<think>hm</think>",
        "hm</think>\n",
        "\u25c1think\u25b7hm",
        "<|channel|>analysis<|message|>hm",
        "<thinking>a\n",
        "[THINK]hm",
    ],
)
def test_thoughts_alone_are_no_caption(answer: str) -> None:
    assert caption_in(answer) is None


@pytest.mark.parametrize("answer", ["I think <this> is a man.", "Two of 3 < 5 dogs.", "The analysis of a final exam."])
def test_words_that_look_like_marks_stay(answer: str) -> None:
    assert caption_in(answer) == answer


def test_thoughts_alone_are_asked_again_and_say_so(server, job):
    server.behave = lambda request, nth: f"<think>{saw(request)}" if nth == 1 else saw(request)
    job().run()
    assert captions(job()) == EXPECTED
    server.behave = lambda request, nth: body(
        chat(None, message={"content": "", "reasoning_content": "hm"}, finish_reason="length")
    )
    Path(job().out).unlink()
    summary = job(retries=0).run()
    assert {failure.reason for failure in summary.failures} == {
        "the answer is thoughts alone, without a caption, cut at `max_tokens`"
    }


# --- servers that are not what they seem --------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_frames_go_to_no_other_address(server, job, status):
    server.behave = lambda request, nth: (
        status,
        {"Location": f"{server.url}/elsewhere?token=secret", "Content-Length": "0"},
        b"",
    )
    code, _, err = run_cli(job(), "--retries", "0")
    assert code == 2
    assert "sends requests on to http://127.0.0.1" in sentence(err)
    assert "secret" not in err
    assert len(server.requests) <= 4


@pytest.mark.parametrize("kind", ["long", "gzip", "brotli", "deep", "long error", "deep error"])
def test_answers_end_at_their_measure(server, job, kind):
    deep = b"[" * 200_000 + b"]" * 200_000
    bomb = gzip.compress(bytes(64 << 20))
    answers = {
        "long": (200, {}, b" " * (5 << 20)),
        "gzip": (200, {"Content-Encoding": "gzip"}, bomb),
        "brotli": (200, {"Content-Encoding": "br"}, b"x"),
        "deep": (200, {}, deep),
        "long error": (500, {}, b"x" * (5 << 20)),
        "deep error": (400, {}, deep),
    }
    server.behave = lambda request, nth: answers[kind] if request.segment == 3 else saw(request)
    summary = job(retries=0).run()
    assert summary.captioned == 11
    (failure,) = summary.failures
    says = {
        "long": "more than 4 MiB",
        "gzip": "more than 4 MiB",
        "brotli": "packed as br",
        "deep": "no JSON",
        "long error": "more than 4 MiB",
    }
    assert says.get(kind, "the server said 400") in failure.reason


def test_an_answer_that_is_packed_is_read(server, job):
    packed = {"Content-Encoding": "gzip"}
    server.behave = lambda request, nth: (200, packed, gzip.compress(chat(saw(request))))
    job().run()
    assert captions(job()) == EXPECTED
    assert server.requests[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "said", [f"bad key {KEY[:7]}", f"bad key {KEY[:5]}****{KEY[-4:]}", f"bad key ...{KEY[-4:]}", f"Bearer {KEY[:-1]}"]
)
def test_no_part_of_the_key_is_shown(server, job, monkeypatch, said):
    monkeypatch.setenv("LVMAE_API_KEY", KEY)
    server.behave = lambda request, nth: error(500, said)
    _, out, err = run_cli(job(), "--retries", "0")
    for place in (out, err, written(job())):
        assert KEY[:5] not in place
        assert KEY[-4:] not in place


# --- tables and terminals -----------------------------------------------------------------------------------------------------


def test_nothing_is_calculated_from_a_caption_or_steers_a_terminal(server, job, tmp_path, films):
    evil = '=cmd|" /C calc"!A0'
    server.behave = lambda request, nth: f"{evil}\x1b[31m\0 {request.segment}"
    job().run()
    with Path(job().out).open(newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert not any(cell[:1] in "=+@\t\r" for cell in cells)
    assert "\x1b" not in Path(job().out).read_text()
    assert {caption.text for caption in load_captions(job().out)} == {f"{evil} {segment}" for segment in range(12)}
    assert job().run().captioned == 0  # and they are known again


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_cells_come_back(text: str) -> None:
    cell = as_cell(text)
    assert from_cell(cell) == text or text.startswith("'")
    assert cell[:1] not in ("=", "@", "\t", "\r")


def test_ids_and_numbers_that_begin_with_a_dash_stay() -> None:
    for text in ("-Ab3xYz01_k", "-1.5", "+7", "plain", "a=b"):
        assert as_cell(text) == text
    assert as_cell("-2+3") == "'-2+3"


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_one_line_is_one_line(text: str) -> None:
    line = one_line(text)
    assert not any(ord(c) < 32 or ord(c) == 127 for c in line)
    line.encode()


def test_what_looks_like_no_key_stays() -> None:
    assert without_key("a street with skis and 6789", KEY, least=4) == "a street with skis and 6789"
    assert without_key(f"{KEY[:6]}!", KEY, least=8) == f"{KEY[:6]}!"
