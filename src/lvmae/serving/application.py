"""The routes of the page and of the API for other programs, without access control."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import lvmae
from lvmae.errors import InputError, LVMAEError
from lvmae.files.urls import is_remote
from lvmae.library import Library, Moment
from lvmae.library.chapters import timeline
from lvmae.library.playlists import FORMATS
from lvmae.library.projection import segment_places
from lvmae.library.search import place_of, segment_at
from lvmae.serving.embeddings import MOST_BYTES, embeddings
from lvmae.serving.limits import BodyError, body_of
from lvmae.serving.measures import Measures
from lvmae.serving.openapi import openapi
from lvmae.serving.queries import Searcher, query_of
from lvmae.serving.tags import Tags
from lvmae.store import l2_normalize, located, why_missing

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_MOMENTS = 24  # shown for a query
_ALIKE = 8  # moments like one that was opened
_GLIMPSES = 12  # shown before anything is asked for
_LISTED = 200  # videos told at once
_PICTURE_HEIGHT = 180
_PICTURES_KEPT = 4096  # of about 8 kB
_TAG_BYTES = 4096
_PICTURE_BYTES = 32 << 20
_PLAYABLE = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm"}
_PLAYABLE |= {".mkv": "video/x-matroska", ".ogv": "video/ogg", ".avi": "video/x-msvideo", ".mpg": "video/mpeg"}

_ASSETS = {
    "report.css": ("lvmae.report", "text/css"),
    "page.js": ("lvmae.report", "text/javascript"),
    "serve.css": ("lvmae.serving", "text/css"),
    "serve.js": ("lvmae.serving", "text/javascript"),
    "views.js": ("lvmae.serving", "text/javascript"),
    "map.js": ("lvmae.serving", "text/javascript"),
}

Handler = Callable[["Request"], Awaitable["Response"]]


class Application:
    """The routes of one library, as an ASGI application, with its measures."""

    def __init__(
        self, library: Library, *, allowed: Collection[str] = (), connections: Callable[[], int] = lambda: 0
    ) -> None:
        """`allowed`: hosts that videos to embed may be fetched from; `connections`: how many there are now."""
        self.library, self.store, self.allowed = library, library.store, tuple(allowed)
        self.tags = Tags(library.store)
        self.searcher = Searcher(library)
        self.model = library.encoder.name
        self.measures = Measures(
            lambda: {
                "lvmae_connections": ("gauge", "Open connections.", float(connections())),
                "lvmae_search_batches": ("counter", "Batches that searches were answered in.", self.searcher.batches),
                "lvmae_searches": ("counter", "Searches answered.", self.searcher.answered),
                "lvmae_segments": ("gauge", "Segments of the library.", float(self.store.lengths.sum())),
            }
        )
        self.picture = lru_cache(_PICTURES_KEPT)(self._picture)
        self.playable = lru_cache(1024)(self._playable)
        self.chapters = lru_cache(64)(self._chapters)
        self.places = lru_cache(1)(self._places)
        self.app = self.measures.around(self._routes())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request."""
        await self.app(scope, receive, send)

    # ---- what there is -------------------------------------------------------------------------------------------------

    def _picture(self, video: int, segment: int) -> bytes | str:
        """A JPEG, or why there is none."""
        from lvmae.video.decoding import thumbnails

        record = self.store[video]
        missing = why_missing(self.store, record.source)
        if missing:
            return (
                missing  # a remote one too: whoever may see the page must not have this machine ask others for things
            )
        try:
            middle = float(record.starts[segment] + record.ends[segment]) / 2
            jpeg = thumbnails(located(self.store, record.source), [middle], _PICTURE_HEIGHT)[0]
            return jpeg or "the video holds no picture at this time"
        except LVMAEError as error:
            return f"the video cannot be read: {error}"

    def _playable(self, video: int) -> tuple[str, str] | None:
        """Path and media type of a video that a browser may be given: a file that is one, by its name and its content."""
        from lvmae.video.decoding import probe

        source = self.store[video].source
        path = located(self.store, source)
        kind = _PLAYABLE.get(Path(path).suffix.lower())
        if kind is None or is_remote(path) or why_missing(self.store, source):
            return None
        try:
            probe(path)
        except LVMAEError:
            return None
        return path, kind

    def _chapters(self, video: int) -> list[dict[str, Any]]:
        found = timeline(self.store, self.store.ids[video])
        return [{"start": one.start, "end": one.end, "title": one.title} for one in found.chapters]

    def _places(self) -> bytes:
        """Of each segment, in the order of the videos, two int16: its place on the map, in 32,767ths."""
        places: bytes = (np.clip(segment_places(self.store), -1, 1) * 32767).round().astype("<i2").tobytes()
        return places

    def segment(self, video: int, segment: int) -> dict[str, Any]:
        """One segment as a moment without a score."""
        record = self.store[video]
        start, end = float(record.starts[segment]), float(record.ends[segment])
        return {"video": record.id, "index": video, "segment": segment, "start": start, "end": end}

    # ---- routes --------------------------------------------------------------------------------------------------------

    def _routes(self) -> Starlette:
        from starlette.applications import Starlette
        from starlette.convertors import Convertor, register_url_convertor
        from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
        from starlette.routing import Route

        class Place(Convertor[int]):
            """A place in a list: no number is longer than nine digits."""

            regex = "[0-9]{1,9}"

            def convert(self, value: str) -> int:
                return int(value)

            def to_string(self, value: int) -> str:
                return str(value)

        register_url_convertor("place", Place())
        store, library = self.store, self.library
        page = (files("lvmae.serving") / "assets" / "serve.html").read_bytes()
        assets = {name: (files(room) / "assets" / name).read_bytes() for name, (room, _) in _ASSETS.items()}
        # A reader may be shared by threads once its shards are mapped and its columns are read.
        ids, lengths, durations = store.ids, store.lengths, store.durations
        manual = openapi(lvmae.__version__, model=self.model, dim=store.dim)

        def spoken(handler: Handler) -> Handler:
            """Errors of ours as one sentence."""

            async def told(request: Request) -> Response:
                try:
                    return await handler(request)
                except BodyError as error:
                    return PlainTextResponse(error.reason, error.status)
                except LVMAEError as error:
                    return PlainTextResponse(f"{error}", 400 if isinstance(error, InputError) else 500)

            told.__name__ = handler.__name__
            return told

        def at_place(request: Request) -> tuple[int, int] | None:
            video, segment = request.path_params["video"], request.path_params["segment"]
            return (video, segment) if video < len(ids) and segment < lengths[video] else None

        async def index(_: Request) -> Response:
            return Response(page, media_type="text/html")

        async def asset(request: Request) -> Response:
            name = request.path_params["name"]
            if name not in assets:
                return PlainTextResponse("There is nothing here.", 404)
            return Response(assets[name], media_type=_ASSETS[name][1])

        async def about(_: Request) -> Response:
            some = np.unique(np.linspace(0, len(ids) - 1, min(_GLIMPSES, len(ids))).round().astype(int)).tolist()
            return JSONResponse(
                {
                    "name": store.path.rstrip("/").rsplit("/", 1)[-1],
                    "videos": len(ids),
                    "segments": int(lengths.sum()),
                    "seconds": float(durations.sum()),
                    "encoder": self.model,
                    "tags": sorted({tag for tags in self.tags.all().values() for tag in tags}),
                    "glimpses": [self.segment(video, int(lengths[video]) // 2) for video in some],
                }
            )

        async def videos(request: Request) -> Response:
            first = request.path_params["first"]
            wanted = request.query_params.get("q", "")[:200].lower()
            places = [place for place, name in enumerate(ids) if wanted in name.lower()]
            tags = self.tags.all()
            return JSONResponse(
                {
                    "total": len(places),
                    "videos": [
                        {
                            "index": place,
                            "video": ids[place],
                            "duration": float(durations[place]),
                            "segments": int(lengths[place]),
                            "tags": tags.get(ids[place], []),
                        }
                        for place in places[first : first + _LISTED]
                    ],
                }
            )

        async def search(request: Request) -> Response:
            query = query_of(request.query_params, str(self.tags.path))
            video, at = request.query_params.get("video"), request.query_params.get("at")
            if video is not None:
                place = place_of(store, video[:2000])
                try:
                    second = float((at or "0")[:30])
                except ValueError:
                    raise InputError("at is a number of seconds") from None
                query = replace(query, text="", minus="", moment=(place, segment_at(store[place], second)))
            elif not query.text:
                return JSONResponse({"moments": [], "seconds": 0.0})
            began = time.perf_counter()
            found = await self.searcher(query)
            seconds = time.perf_counter() - began
            form = request.query_params.get("format", "json")[:10]
            if request.url.path == "/search" and form != "json":
                return as_file(found, form)
            return JSONResponse({"moments": [asdict(moment) for moment in found], "seconds": seconds})

        def as_file(found: list[Moment], form: str) -> Response:
            if f".{form}" not in FORMATS:
                raise InputError(f"format is one of {', '.join(name[1:] for name in FORMATS)}")
            kind = {"csv": "text/csv", "edl": "text/plain"}.get(form, "audio/x-mpegurl")
            return Response(FORMATS[f".{form}"](store, found), media_type=kind)

        async def search_picture(request: Request) -> Response:
            query = query_of(request.query_params, str(self.tags.path))
            picture = await body_of(request, _PICTURE_BYTES)
            vector = await asyncio.to_thread(self._vector_of, picture)
            began = time.perf_counter()
            found = await self.searcher(replace(query, text="", minus="", vector=tuple(vector.tolist())))
            seconds = time.perf_counter() - began
            return JSONResponse({"moments": [asdict(moment) for moment in found], "seconds": seconds})

        async def moment(request: Request) -> Response:
            place = at_place(request)
            if place is None:
                return PlainTextResponse("There is no such segment.", 404)
            video, segment = place
            query = query_of({"q": request.query_params.get("q", "")}, "")
            alike = await self.searcher(replace(query, moment=place, top=_ALIKE + 1))
            return JSONResponse(
                await asyncio.to_thread(self._moment, video, segment, query.text, alike),
            )

        async def chapters(request: Request) -> Response:
            video = request.path_params["video"]
            if video >= len(ids):
                return PlainTextResponse("There is no such video.", 404)
            return JSONResponse({"chapters": await asyncio.to_thread(self.chapters, video)})

        async def thumbnail(request: Request) -> Response:
            place = at_place(request)
            if place is None:
                return PlainTextResponse("There is no such segment.", 404)
            jpeg = await asyncio.to_thread(self.picture, *place)
            if isinstance(jpeg, str):
                return PlainTextResponse("There is no picture.", 404)
            return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

        async def missing(request: Request) -> Response:
            """Why a picture is missing: an image's error says nothing to the page."""
            place = at_place(request)
            if place is None:
                return PlainTextResponse("There is no such segment.", 404)
            jpeg = await asyncio.to_thread(self.picture, *place)
            return JSONResponse({"why": jpeg if isinstance(jpeg, str) else ""})

        async def play(request: Request) -> Response:
            video = request.path_params["video"]
            found = await asyncio.to_thread(self.playable, video) if video < len(ids) else None
            if found is None:
                return PlainTextResponse("There is no video to play.", 404)
            return FileResponse(found[0], media_type=found[1], headers={"Cache-Control": "private, max-age=3600"})

        async def map_(_: Request) -> Response:
            return Response(await asyncio.to_thread(self.places), media_type="application/octet-stream")

        async def map_videos(_: Request) -> Response:
            tags = self.tags.all()
            return JSONResponse({"ids": ids, "segments": lengths.tolist(), "tags": [tags.get(v, []) for v in ids]})

        async def tag(request: Request) -> Response:
            if not request.headers.get("content-type", "").startswith("application/json"):
                return PlainTextResponse("A tag comes as JSON.", 415)
            try:
                asked = json.loads(await body_of(request, _TAG_BYTES))
                video, label, remove = str(asked["video"]), str(asked["label"]), bool(asked.get("remove"))
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                return PlainTextResponse("A tag is an object with video and label.", 400)
            mine = await asyncio.to_thread(self.tags.change, video, label, remove=remove)
            return JSONResponse({"tags": mine})

        async def embed(request: Request) -> Response:
            body = await body_of(request, MOST_BYTES)
            try:
                found = await asyncio.to_thread(embeddings, library, body, model=self.model, allowed=self.allowed)
            except LVMAEError as error:
                status = 400 if isinstance(error, InputError) else 422
                return JSONResponse({"error": {"message": str(error), "type": "invalid_request_error"}}, status)
            return JSONResponse(found)

        async def models(_: Request) -> Response:
            one = {"id": self.model, "object": "model", "created": 0, "owned_by": "lvmae"}
            return JSONResponse({"object": "list", "data": [one]})

        async def health(_: Request) -> Response:
            return PlainTextResponse("ok")

        async def metrics(_: Request) -> Response:
            return Response(self.measures.text(), media_type="text/plain; version=0.0.4")

        async def manual_(_: Request) -> Response:
            return JSONResponse(manual)

        async def docs(_: Request) -> Response:
            return Response((files("lvmae.serving") / "assets" / "api.html").read_bytes(), media_type="text/html")

        routes: list[tuple[str, Handler]] = [
            ("/", index),
            ("/assets/{name}", asset),
            ("/api/library", about),
            ("/api/videos/{first:place}", videos),
            ("/api/search", search),
            ("/api/moment/{video:place}/{segment:place}", moment),
            ("/api/chapters/{video:place}", chapters),
            ("/api/missing/{video:place}/{segment:place}", missing),
            ("/api/map", map_),
            ("/api/map/videos", map_videos),
            ("/thumbnail/{video:place}/{segment:place}", thumbnail),
            ("/video/{video:place}", play),
            ("/search", search),
            ("/v1/models", models),
            ("/healthz", health),
            ("/metrics", metrics),
            ("/openapi.json", manual_),
            ("/docs", docs),
        ]
        posted: list[tuple[str, Handler]] = [("/api/tags", tag), ("/v1/embeddings", embed), ("/search", search_picture)]
        return Starlette(
            routes=[
                *(Route(path, spoken(handler), methods=["GET"]) for path, handler in routes),
                *(Route(path, spoken(handler), methods=["POST"]) for path, handler in posted),
            ]
        )

    def _vector_of(self, picture: bytes) -> np.ndarray:
        with tempfile.NamedTemporaryFile(suffix=_picture_suffix(picture)) as file:
            file.write(picture)
            file.flush()
            return self.library.vector_of_picture(file.name)

    def _moment(self, video: int, segment: int, text: str, found: list[Moment]) -> dict[str, Any]:
        record = self.store[video]
        unit = l2_normalize(record.embeddings)
        steps = 1.0 - np.einsum("nd,nd->n", unit[1:], unit[:-1])
        scores = unit @ l2_normalize(self.searcher.vector_of(text)) if text else None
        alike = [m for m in found if not (m.index == video and m.first <= segment <= m.last)]
        return {
            "video": record.id,
            "index": video,
            "segment": segment,
            "duration": record.duration,
            "starts": record.starts.round(3).tolist(),
            "ends": record.ends.round(3).tolist(),
            "novelty": [0.0, *steps.round(3).tolist()],
            "scores": None if scores is None else scores.round(3).tolist(),
            "alike": [asdict(m) for m in alike[:_ALIKE]],
            "tags": self.tags.all().get(record.id, []),
            "playable": self.playable(video) is not None,
        }


def _picture_suffix(content: bytes) -> str:
    """The suffix of a picture by its first bytes. Raises InputError for what is none: nothing else is handed to a decoder."""
    for start, suffix in ((b"\x89PNG\r\n", ".png"), (b"\xff\xd8\xff", ".jpg"), (b"GIF8", ".gif"), (b"BM", ".bmp")):
        if content.startswith(start):
            return suffix
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return ".webp"
    raise InputError("the body is not a picture: send a PNG, JPEG, WebP, GIF or BMP")


def application(library: Library, *, allowed: Collection[str] = ()) -> Application:
    """Returns the application of the page and its API, without access control."""
    return Application(library, allowed=allowed)
