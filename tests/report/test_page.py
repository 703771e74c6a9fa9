"""The report page in a browser: it loads alone, is driven by mouse and keyboard, finds a planted moment, keeps text text."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lvmae.report import Picture, ReportData, ScoreTable, VideoData, render

TEXTS = [
    "a dog runs",
    "<script>alert(1)</script>",
    'Ein Früh­stück & "Tee" </script><img src=x onerror=alert(2)>',
    "the planted moment",
]


def jpeg(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (160, 90), (shade, 80, 120)).save(buffer, "JPEG")
    return buffer.getvalue()


def video(name: str, segments: int, *, pictures: int = 0) -> VideoData:
    """Segment 2 is captioned with a script, segment 3 with markup, segment 7 with the planted text; the worst is segment 4."""
    own = {2: [1], 3: [2], 7: [3]}
    return VideoData(
        id=name,
        duration=segments * 5.0,
        starts=[i * 5.0 for i in range(segments)],
        ends=[i * 5.0 + 5 for i in range(segments)],
        masked=[i % 3 == 0 for i in range(segments)],
        reconstruction=[0.25 if i == 4 else 0.8 for i in range(segments)],
        floor=[0.7] * segments,
        novelty=[None] + [0.1] * (segments - 1),
        captions=[own.get(i, [0]) for i in range(segments)],
        from_original=[[(own.get(i, [0])[0], 0.91), (0, 0.5)] for i in range(segments)],
        from_reconstruction=[[(3, 0.66), (1, 0.33)] for _ in range(segments)],
        neighbours=[("second", 0.875)] if name != "second" else [("first", 0.875), ("elsewhere", 0.5)],
        pictures=[Picture(2.5 + 5 * i * segments / pictures, jpeg(i % 256)) for i in range(pictures)],
    )


def data(*videos: VideoData) -> ReportData:
    scores = ScoreTable(
        "Numbers", ["embedding", "cosine", "R@1"], [["original", 1.0, 0.5], ["reconstruction", 0.81234, None]]
    )
    return ReportData(
        title="films & <b>more</b>",
        lead="Hidden and reconstructed.",
        facts=[("run", "runs/a")],
        scores=scores,
        videos=videos or (video("first", 10, pictures=10), video("second", 12)),
        texts=TEXTS,
        moments={0: [(1, 5, 0.61)], 3: [(1, 7, 0.9), (0, 1, 0.4)]},
        tables=[ScoreTable("Probe", ["features", "linear"], [["raw", "12.0 ± 1.0"]], "Five seeds.")],
        notes=["Two videos are not shown."],
    )


class Opened:
    """A page opened from disk, with all it said and asked for."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.page = browser.new_context(**options).new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("#segment h3")

    def text(self, selector: str) -> str:
        return str(self.page.inner_text(selector))


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Opened]:
    page = Opened(browser, render(data(), tmp_path / "report.html"))
    yield page
    page.page.context.close()
    assert page.said == []  # no error, no warning, no dialog, whatever the test did
    assert [url for url in page.asked if not url.startswith(("data:", "file:"))] == []
    assert sum(url.startswith("file:") for url in page.asked) == 1


def test_the_head_of_the_page_needs_no_script(tmp_path: Path) -> None:
    html = render(data(), tmp_path / "new" / "report.html").read_text(encoding="utf-8")
    assert "<title>films &amp; &lt;b&gt;more&lt;/b&gt; · LV-MAE reading</title>" in html
    assert '<th scope="row">reconstruction</th><td>0.812</td><td>–</td>' in html
    assert "12.0 ± 1.0" in html
    assert "Two videos are not shown." in html


def test_nothing_in_the_file_leads_out_of_it(tmp_path: Path) -> None:
    html = render(data(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"'<]+", html)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(src|href)=\"(?!data:|#)", html)
    assert "default-src &#39;none&#39;" in html
    assert html.count("</script>") == html.count("<script") == 1 + 1 + 2 * 2  # ours, the store's, two a video


def test_opening_shows_the_first_segment(opened: Opened) -> None:
    assert opened.text("#segment h3") == "0:00 – 0:05"
    assert "Segment 1 of 10, hidden in the scored mask" in opened.text("#segment")
    assert opened.text(".measures .rebuilt dd") == "0.800"


def test_clicking_a_segment_shows_its_captions_on_both_sides(opened: Opened) -> None:
    opened.page.click("#segment-7")
    assert opened.text("#segment h3") == "0:35 – 0:40"
    assert opened.text("#segment blockquote") == "the planted moment"
    assert opened.text(".readings .original li:first-child span") == "the planted moment"
    assert opened.text(".readings .original li:first-child data") == "0.91"
    assert opened.text(".readings .rebuilt li:nth-child(2) span") == TEXTS[1]
    assert opened.page.locator(".readings .rebuilt li.own").count() == 1


def test_a_script_in_a_caption_stays_text(opened: Opened) -> None:
    for segment, text in ((2, TEXTS[1]), (3, TEXTS[2])):
        opened.page.click(f"#segment-{segment}")
        assert opened.page.text_content("#segment blockquote") == text
    opened.page.fill("#query", "script")
    opened.page.wait_for_selector(".hit")
    assert opened.page.locator("main script, main img[src='x']").count() == 0


def test_the_keyboard_alone_moves(opened: Opened) -> None:
    press = opened.page.keyboard.press
    press("ArrowRight")
    assert opened.text("#segment h3") == "0:05 – 0:10"
    opened.page.focus("#next")
    press("Tab")
    assert opened.page.evaluate("document.activeElement.id") == "strip"
    for key, chosen in (("End", 9), ("ArrowRight", 9), ("ArrowLeft", 8), ("Home", 0), ("PageDown", 9), ("PageUp", 0)):
        press(key)
        assert opened.page.get_attribute("#strip", "aria-activedescendant") == f"segment-{chosen}"
        assert opened.page.locator("[aria-selected=true]").get_attribute("id") == f"segment-{chosen}"
    assert opened.page.evaluate("getComputedStyle(document.getElementById('strip')).outlineStyle") == "solid"
    press("Tab")
    press("Enter")  # the first of the most surprising moments
    assert opened.text("#segment h3") == "0:20 – 0:25"


def test_search_finds_the_planted_moment(opened: Opened) -> None:
    opened.page.fill("#query", "PLANTED mom")
    opened.page.wait_for_selector(".hit")
    assert opened.text("#search-help") == "1 of 4 captions match."
    assert opened.text(".hit h3") == "the planted moment"
    # Where it is the caption comes first, then what the encoder finds nearest, without repeating: two captioned, one near.
    assert [t.split("\n") for t in opened.page.locator(".hit .tile").all_inner_texts()] == [
        ["first", "0:35, its caption"],
        ["the planted moment", "second", "0:35, its caption"],
        ["first", "0:05, 0.40"],
    ]
    opened.page.click(".hit .tile >> nth=1")
    assert opened.page.input_value("#pick") == "1"
    assert opened.text("#segment blockquote") == "the planted moment"
    opened.page.fill("#query", "fruhstuck")  # accents and soft hyphens do not matter to whoever types
    opened.page.locator(".hit h3", has_text="Tee").wait_for()
    opened.page.fill("#query", "zebra")
    opened.page.locator("#search-help", has_text="contains “zebra”").wait_for()


def test_neighbours_and_the_picker_change_the_video(opened: Opened) -> None:
    assert opened.text("#neighbours .name") == "second"
    assert opened.text("#neighbours .score") == "0.88"
    opened.page.click("#neighbours button")
    assert opened.page.locator("#strip [role=option]").count() == 12
    assert opened.page.is_disabled("#next")
    assert "elsewhere" in opened.text("#neighbours")  # not on this page: named, no link
    assert opened.page.locator("#neighbours button").count() == 1
    opened.page.click("#previous")
    assert opened.page.locator("#strip [role=option]").count() == 10


def test_clicking_the_curves_goes_to_that_time(opened: Opened) -> None:
    opened.page.locator("#overview").scroll_into_view_if_needed()
    box = opened.page.locator("#overview").bounding_box()
    opened.page.mouse.click(box["x"] + box["width"] * 0.75, box["y"] + 50)
    assert opened.text("#segment h3") == "0:35 – 0:40"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_and_a_phone_does_not_scroll_sideways(browser: Any, tmp_path: Path, scheme: str) -> None:
    path = render(data(), tmp_path / "report.html")
    opened = Opened(browser, path, viewport={"width": 360, "height": 740}, color_scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= 360

    def light(selector: str, name: str) -> float:
        colour = opened.page.eval_on_selector(selector, f"node => getComputedStyle(node).{name}")
        channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    paper = light("body", "backgroundColor")
    for selector in ("h1", ".note", ".readings .original h4", ".readings .rebuilt h4", ".kicker"):
        low, high = sorted((paper, light(selector, "color")))
        assert (high + 0.05) / (low + 0.05) >= 4.5, selector  # WCAG AA
    opened.page.context.close()


def test_a_film_of_two_hours_opens_at_once(browser: Any, tmp_path: Path) -> None:
    path = render(data(video("film", 1440, pictures=1440)), tmp_path / "film.html")
    opened = Opened(browser, path)
    timing = opened.page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert timing < 2000, f"{timing:.0f} ms"
    assert opened.page.locator("#strip [role=option]").count() == 1440
    assert opened.page.locator("#strip img[src]").count() < 100  # pictures are painted when they come into view
    opened.page.context.close()


def test_pictures_are_thinned_to_the_weight_asked_for(tmp_path: Path) -> None:
    full = render(data(video("first", 100, pictures=100)), tmp_path / "full.html").stat().st_size
    path = render(data(video("first", 100, pictures=100)), tmp_path / "thin.html", max_bytes=full - 10_000)
    assert path.stat().st_size <= full - 10_000
    assert "50 of 100 pictures were left out" in path.read_text(encoding="utf-8")


def test_a_page_without_texts_or_videos(browser: Any, tmp_path: Path) -> None:
    bare = VideoData(
        "v", 10, [0, 5], [5, 10], [True, False], [0.5, None], [0.4, None], [None, 0.2], [[], []], [[], []], [[], []]
    )
    page = ReportData("t", "l", [], ScoreTable("n", ["a"], []), [bare])
    opened = Opened(browser, render(page, tmp_path / "bare.html"))
    assert opened.page.is_disabled("#query")
    assert opened.page.locator(".readings section").count() == 0
    assert opened.said == []
    opened.page.context.close()
