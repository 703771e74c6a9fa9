"""Captions asked for at a real HTTP server on loopback, which fails, stalls and answers badly in the ways such servers do.

The film's grey tells the time: picture k of the film is k grey levels above black, so a test reads from the JPEGs which
seconds of which segment the server was shown, and the server's caption says what it saw.
"""

from __future__ import annotations

import asyncio
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import (
    DRIP,
    EXPECTED,
    FRAMES,
    KEY,
    SEGMENT_SECONDS,
    STEP,
    Answer,
    Request,
    body,
    captions,
    chat,
    error,
    free_port,
    make_store,
    run_cli,
    saw,
    sentence,
    written,
)

from lvmae.captioning import CaptionJob, endpoint
from lvmae.captioning.endpoint import Pace
from lvmae.errors import InputError, WorkError
from lvmae.library.captions import load_captions

# --- what is asked, and what comes of it ------------------------------------------------------------------------------------


def test_each_segment_has_its_own_caption_whatever_order_the_answers_come_in(server, job):
    def later_ones_first(request: Request, nth: int) -> str:
        # Of two neighbours that are asked at once, the first waits until the second one's caption is in the file.
        deadline = time.monotonic() + 5
        while request.segment % 2 == 0 and f"segment {request.segment + 1}\n" not in Path(job().out).read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        return saw(request)

    server.behave = later_ones_first
    summary = job(concurrency=4).run()
    assert captions(job()) == EXPECTED
    assert server.asked() == dict.fromkeys(range(12), 1)
    assert (summary.captioned, summary.before, summary.failures) == (12, 0, [])
    assert (summary.tokens_in, summary.tokens_out) == (1200, 120)
    order = [int(caption.text.split()[1]) for caption in load_captions(job().out)]
    assert all(order.index(number + 1) < order.index(number) for number in range(0, 12, 2))


def test_the_pictures_are_n_whole_jpegs_of_the_segment_in_order_of_time(server, job):
    job(prompt="What is it?", max_tokens=77).run()
    for request in server.requests:
        first = request.segment * SEGMENT_SECONDS
        times = first + (np.arange(FRAMES) + 0.5) / FRAMES * SEGMENT_SECONDS
        np.testing.assert_allclose(np.array(request.greys) / STEP, times, atol=0.3)
        assert request.greys == sorted(request.greys)
        assert request.sizes == {(64, 32)}
        assert request.prompt == "What is it?"
        assert (request.body["model"], request.body["max_tokens"]) == ("m", 77)


@pytest.mark.parametrize("concurrency", [1, 3])
def test_no_more_requests_at_once_than_allowed(server, job, concurrency):
    def slow(request: Request, nth: int) -> str:
        time.sleep(0.03)
        return saw(request)

    server.behave = slow
    job(concurrency=concurrency).run()
    assert server.most_at_once == concurrency
    assert captions(job()) == EXPECTED


def test_a_request_starts_when_its_turn_comes():
    now, starts = 0.0, []

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    async def ask() -> None:
        pace = Pace(30, clock=lambda: now, sleep=sleep)
        for number in range(6):
            if number == 3:
                pace.hold(100)
            await pace.turn()
            starts.append(now)

    asyncio.run(ask())
    assert starts == [0, 2, 4, 104, 106, 108]


def test_retries_count_against_the_rate_limit(server, job):
    server.behave = lambda request, nth: error(500, "oops") if nth == 1 else saw(request)
    began = time.monotonic()
    job(requests_per_minute=60 * 50, concurrency=8).run()
    assert len(server.requests) == 24
    assert time.monotonic() - began >= 23 / 50


# --- servers that fail ------------------------------------------------------------------------------------------------------


BAD_ONCE = {
    "500": error(500, "out of memory"),
    "503 while the model loads": error(503, "Loading model"),
    "502 with a page": (502, {"Content-Type": "text/html"}, b"<html>Bad gateway</html>"),
    "429": error(429, "slow down"),
    "429, zero seconds": error(429, "slow down", **{"Retry-After": "0"}),
    "429, a date": error(429, "slow down", **{"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "429, nonsense": error(429, "slow down", **{"Retry-After": "soon"}),
    "reset in the middle of the body": None,
    "no choices": body(b'{"id": "x", "choices": []}'),
    "choices are null": body(b'{"choices": null}'),
    "an error in a 200": body(b'{"error": {"message": "upstream died"}}'),
    "null content": body(chat(None)),
    "empty content": body(chat(" \n ")),
    "a number as content": body(chat(7)),
    "only thoughts": body(chat("<think>what could this be", finish_reason="length")),
    "truncated JSON": body(chat("half")[:60]),
    "a page": body(b"<!doctype html><title>Welcome</title>", "text/html"),
    "a list": body(b"[1, 2]"),
    "nothing": body(b""),
    "no UTF-8": body(b"\xff\xfe\x00"),
    "a book": body(chat("word " * 10_000)),
}


@pytest.mark.parametrize("first", [0, len(BAD_ONCE) - 12])
def test_what_went_wrong_once_is_asked_again(server, job, first):
    """Each of twelve segments meets another of the ways first, and its caption the second time."""
    ways = list(BAD_ONCE.values())[first:][:12]
    server.behave = lambda request, nth: ways[request.segment] if nth == 1 else saw(request)
    assert job().run().failures == []
    assert captions(job()) == EXPECTED
    assert server.asked() == dict.fromkeys(range(12), 2)


def test_a_stall_is_cut_off_and_asked_again(server, job):
    def stall(request: Request, nth: int) -> Answer | str:
        if nth == 1 and request.segment == 2:
            server.stop.wait(20)
        if nth == 1 and request.segment == 9:
            return body(DRIP)
        return saw(request)

    server.behave = stall
    assert job(timeout=0.7).run().failures == []
    assert captions(job()) == EXPECTED
    assert server.asked() == {n: 1 + (n in (2, 9)) for n in range(12)}


def test_a_slow_start_is_waited_for(server, job):
    began = time.monotonic()

    def loading(request: Request, nth: int) -> Answer | str:
        return saw(request) if time.monotonic() - began > 0.5 else error(503, "Loading model", **{"Retry-After": "1"})

    server.behave = loading
    assert job().run().failures == []
    assert captions(job()) == EXPECTED


def test_retry_after_is_honoured_by_all_requests(server, job):
    told: list[float] = []
    arrived: list[float] = []

    def limited(request: Request, nth: int) -> Answer | str:
        arrived.append(time.monotonic())
        if not told:
            told.append(time.monotonic())
            return error(429, "slow down", **{"Retry-After": "1"})
        return saw(request)

    server.behave = limited
    job(concurrency=2).run()
    # At most what the other asker had under way when the server spoke came before its time.
    early = [moment for moment in arrived[1:] if moment - told[0] < 0.95]
    assert len(early) <= 2
    assert len(arrived) == 13
    assert captions(job()) == EXPECTED


@pytest.mark.parametrize("as_date", [False, True])
def test_a_server_that_wants_an_hour_of_peace_gets_it(server, job, as_date):
    def limited(request: Request, nth: int) -> Answer:
        date = format_datetime(datetime.now(UTC) + timedelta(seconds=3601), usegmt=True)
        return error(429, "daily limit", **{"Retry-After": date if as_date else "3600"})

    server.behave = limited
    with pytest.raises(WorkError, match=r"a pause of 60 minutes \(the server said 429: daily limit\)"):
        job().run()
    assert len(server.requests) <= 4


def test_failures_are_listed_and_tried_again_by_the_same_command(server, job):
    answers = {
        1: error(500, "out of memory"),
        3: body(chat(None, finish_reason="content_filter")),
        5: error(400, "The response was filtered", "content_filter"),
        6: error(413, "too large"),
        8: None,
        10: body(chat("", message={"role": "assistant", "content": None, "refusal": "I cannot help with that"})),
    }
    server.behave = lambda request, nth: answers.get(request.segment, saw(request))
    summary = job(retries=2).run()
    reasons = {f.reason.partition(" (")[0]: (f.video, f.start, f.end) for f in summary.failures}
    assert reasons == {
        "the server said 500: out of memory, 3 times": ("film 0", 2.0, 4.0),
        "the content was refused: content_filter": ("film 0", 6.0, 8.0),
        "the content was refused": ("film 0", 10.0, 12.0),
        "the server said 413: too large": ("film 1", 0.0, 2.0),
        "the connection broke": ("film 1", 4.0, 6.0),
        "the content was refused: I cannot help with that": ("film 1", 8.0, 10.0),
    }
    assert server.asked() == {n: 3 if n in (1, 8) else 1 for n in range(12)}
    assert captions(job()) == {c for c in EXPECTED if int(c.text.split()[1]) not in answers}
    answers.clear()
    again = job().run()
    assert (again.captioned, again.before, again.failures) == (6, 6, [])
    assert captions(job()) == EXPECTED
    assert job().run().captioned == 0
    assert server.asked() == {n: {1: 4, 8: 4}.get(n, 2 if n in (3, 5, 6, 10) else 1) for n in range(12)}


def test_backoff_grows_and_jitters(server, job, monkeypatch):
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 8.0)
    monkeypatch.setattr(endpoint.asyncio, "sleep", sleep)
    server.behave = lambda request, nth: error(500, "no") if request.segment == 0 and nth < 6 else saw(request)
    assert job().run().failures == []
    for wait, whole in zip(slept, [8, 16, 32, 60, 60], strict=True):
        assert whole / 2 <= wait <= whole
    assert len({wait / whole for wait, whole in zip(slept, [8, 16, 32, 60, 60], strict=True)}) == 5


def test_a_server_that_only_fails_is_left_alone(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 5)
    server.behave = lambda request, nth: error(400, "this model takes no images")
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    with pytest.raises(WorkError, match=r"failed on 16 segments in a row, the last time because .* takes no images"):
        job.run()
    assert len(server.requests) < 16 + 4


def test_failures_between_answers_do_not_end_a_run(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 4)
    server.behave = lambda request, nth: error(400, "no") if request.segment % 4 else saw(request)
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    assert len(job.run().failures) == 36


def test_refusals_do_not_end_a_run(server, tmp_path, films):
    store = make_store(tmp_path / "store", films * 2)
    server.behave = lambda request, nth: body(chat(None, refusal="x", finish_reason="content_filter"))
    job = CaptionJob(store, tmp_path / "c.csv", endpoint=server.url, model="m", frames=1, frame_height=32)
    assert len(job.run().failures) == 24


# --- endpoints that are wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (error(401, "Incorrect API key provided"), 2, "wants a key; set LVMAE_API_KEY or OPENAI_API_KEY"),
        (error(403, "not in your country"), 2, "does not permit this (the server said 403: not in your country)"),
        (error(404, "model 'm' not found, try pulling it first"), 2, "knows no model 'm'"),
        ((404, {"Content-Type": "text/plain"}, b"404 page not found"), 2, "or is no OpenAI-compatible endpoint"),
        (error(429, "You exceeded your quota", "insufficient_quota"), 1, "is used up"),
        (error(402, "Insufficient credits"), 1, "is used up"),
    ],
)
def test_what_no_retry_can_help_is_one_sentence_at_once(server, job, answer, code, says):
    server.behave = lambda request, nth: answer
    done, _, err = run_cli(job())
    assert done == code
    assert says in sentence(err)
    assert len(server.requests) <= 4


def test_an_endpoint_where_nothing_is_is_one_sentence_at_once(job):
    for url in (f"http://127.0.0.1:{free_port()}/v1", "http://nowhere.invalid/v1"):
        began = time.monotonic()
        code, _, err = run_cli(job(), url=url)
        assert (code, "nothing answers at" in sentence(err)) == (2, True)
        assert time.monotonic() - began < 5


@pytest.mark.parametrize("url", ["localhost:11434/v1", "ftp://x/v1", "", "http://", "http://[::1", "http://h:99999/v1"])
def test_what_is_no_address_is_refused(job, url):
    with pytest.raises(InputError, match="address like http") as caught:
        job(endpoint=url).run()
    assert KEY not in str(caught.value)


def test_a_server_that_goes_away_is_asked_again(server, job, monkeypatch):
    """After an answer, nothing listening is a restart, not a wrong address."""
    monkeypatch.setattr(endpoint, "_FIRST_WAIT", 0.001)
    tries: list[int] = []

    def judged(self: Any, response: Any, limit: Any) -> Exception:
        # The server says goodbye; from then on its address leads nowhere.
        tries.append(1)
        self._client.base_url = f"http://127.0.0.1:{free_port()}/v1"
        return endpoint._Again("restarting")

    monkeypatch.setattr(endpoint.Endpoint, "_judged", judged)
    server.behave = lambda request, nth: saw(request) if request.segment < 5 else error(503, "restarting")
    summary = job(concurrency=1).run()
    assert summary.captioned == 5
    assert len(tries) == 1
    assert all("the connection broke" in failure.reason for failure in summary.failures)


def test_the_limit_of_tokens_has_two_names(server, job):
    def modern(request: Request, nth: int) -> Answer | str:
        if "max_tokens" in request.body:
            return error(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
        assert request.body["max_completion_tokens"] == 300
        return body(chat(saw(request), finish_reason="length"))

    server.behave = modern
    summary = job().run()
    assert captions(job()) == EXPECTED
    assert summary.cut == 12
    assert "12 captions were cut" in summary.to_text("x")
    assert len(server.requests) <= 12 + 4


# --- the key ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (error(401, f"Incorrect API key provided: {KEY}"), 2),
        (error(403, f"key {KEY} may not"), 2),
        (error(404, f"no model for {KEY}"), 2),
        (error(429, f"{KEY} has no quota", "insufficient_quota"), 1),
        (error(500, "x" * 190 + KEY), 1),
        (error(400, f"bad header Bearer {KEY}"), 1),
        ((500, {}, f"<p>{KEY}".encode()), 1),
        (body(chat(f"the key {KEY} on a table")), 0),
        (body(chat(None, message={"content": None, "refusal": f"not for {KEY}"})), 1),
        (body(json.dumps({"error": {"message": KEY}}).encode()), 1),
    ],
)
def test_the_key_is_sent_and_written_nowhere(server, job, monkeypatch, answer, expected, caplog):
    monkeypatch.setenv("OPENAI_API_KEY", KEY + "\n")
    server.behave = lambda request, nth: answer
    caplog.set_level("DEBUG", "openai")
    code, out, err = run_cli(job(), "--retries", "0")
    assert code == expected
    for place in (out, err, written(job()), caplog.text):
        assert KEY[:12] not in place
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"


def test_our_own_variable_goes_first(server, job, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("LVMAE_API_KEY", KEY)
    job().run()
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("key", ["two words and more", "a\nb-0123456789", "schlüssel-0123456789"])
def test_a_key_that_no_request_can_carry_is_refused_unseen(server, job, monkeypatch, key):
    monkeypatch.setenv("LVMAE_API_KEY", key)
    code, out, err = run_cli(job())
    assert code == 2
    assert "LVMAE_API_KEY holds characters that no key has" in sentence(err)
    assert key not in out + err
    assert server.requests == []


def test_a_word_that_stands_for_no_key_stays_in_captions(server, job, monkeypatch):
    monkeypatch.setenv("LVMAE_API_KEY", "EMPTY")
    server.behave = lambda request, nth: f"An EMPTY street, {saw(request)}"
    job().run()
    assert {c.text for c in captions(job())} == {f"An EMPTY street, segment {n}" for n in range(12)}
