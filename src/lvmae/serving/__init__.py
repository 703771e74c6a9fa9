"""A page on this machine that searches a store by any text, as you type.

Enters: a store whose encoder reads text. Leaves: an HTTP server, until Ctrl-C. Price: the encoder's text side and a search of the
library for each query; a picture is decoded when it is first looked at.

What it guards against. Nothing but the page's own files and JPEGs of segments leaves the process: a picture is asked for by the
numbers of a video and a segment, so no request holds a path. On this machine's own address a request must name that address (a
foreign name pointed at it, DNS rebinding, is refused) and must not come from another site's page; on any other address each
request must bring the token, as the cookie that the printed address sets, or as `Authorization: Bearer`. The page's content
security policy allows its own files alone. There is no encryption: across a network that is not trusted, use an SSH tunnel.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import asdict
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lvmae.errors import InputError, LVMAEError
from lvmae.library import Library, Moment
from lvmae.store import EmbeddingStore, l2_normalize

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_MOMENTS = 24  # shown for a query
_ALIKE = 8  # moments like one that was opened
_GLIMPSES = 12  # shown before anything is asked for
_PICTURE_HEIGHT = 180
_PICTURES_KEPT = 4096  # of about 8 kB
_LONGEST_QUERY = 1000  # characters
_SHORTEST_TOKEN = 12

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_ASSETS = {
    "report.css": ("lvmae.report", "text/css"),
    "serve.css": ("lvmae.serving", "text/css"),
    "serve.js": ("lvmae.serving", "text/javascript"),
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def serve(
    store: str | Path | EmbeddingStore, *, host: str = "127.0.0.1", port: int = 8000, token: str | None = None
) -> None:
    """Serves the page until Ctrl-C, and prints its address.

    Args:
        store: embeddings of an encoder with a text side.
        host: the address to listen at. Any but this machine's own asks for the token.
        port: 0 takes a free one.
        token: what a visitor must know; made up where it is needed and None.

    Raises:
        InputError: no such store, no text side, an address that cannot be listened at, a token that can be guessed, or the extra
            `serve` is missing.
    """
    try:
        import uvicorn
    except ImportError:
        raise InputError("the page needs a web server: pip install 'lvmae[serve]'") from None
    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise InputError(
            f"the token can be guessed: give at least {_SHORTEST_TOKEN} characters, or none to have one made up"
        )
    own = is_loopback(host)
    if token is None and not own:
        token = secrets.token_urlsafe(24)
    library = Library(store)
    library.search("anything", 1)  # loads the encoder and the library now, so that what is wrong is said now
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        app = guarded(application(library), token=token, own_names=own, port=port)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/{f'?token={token}' if token else ''}", flush=True)
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="off", ws="none"
        )
        try:
            uvicorn.Server(settings).run(sockets=[listener])
        except KeyboardInterrupt:
            return  # the way it is meant to end


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host} port {port} ({reason}); choose another `port`, or `host`") from None


def application(library: Library) -> Starlette:
    """The page and what it asks for, without any guard."""
    from starlette.applications import Starlette
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route

    store = library.store
    page = (files("lvmae.serving") / "assets" / "serve.html").read_bytes()
    assets = {name: (files(room) / "assets" / name).read_bytes() for name, (room, _) in _ASSETS.items()}
    # A reader may be shared by threads once its shards are mapped and its columns are read.
    ids, lengths, durations = store.ids, store.lengths, store.durations

    @lru_cache(maxsize=_PICTURES_KEPT)
    def picture(video: int, segment: int) -> bytes | None:
        from lvmae.files.urls import is_remote
        from lvmae.video.decoding import thumbnails

        record = store[video]
        if is_remote(record.source):
            return None  # whoever may see the page must not have this machine ask others for things
        try:
            middle = float(record.starts[segment] + record.ends[segment]) / 2
            return thumbnails(record.source, [middle], _PICTURE_HEIGHT)[0] or None
        except LVMAEError:
            return None  # the video is gone or damaged: the page shows the time in its place

    @lru_cache(maxsize=256)
    def vector(text: str) -> np.ndarray:
        return np.asarray(library.encoder.encode_text([text])[0])

    def text_of(request: Request) -> str:
        return " ".join(request.query_params.get("q", "")[:_LONGEST_QUERY].split())

    def place_of(request: Request) -> tuple[int, int] | None:
        video, segment = int(request.path_params["video"]), int(request.path_params["segment"])
        return (video, segment) if video < len(ids) and segment < lengths[video] else None

    def index(_: Request) -> Response:
        return Response(page, media_type="text/html")

    def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in assets:
            return PlainTextResponse("There is nothing here.", 404)
        return Response(assets[name], media_type=_ASSETS[name][1])

    def about(_: Request) -> Response:
        some = np.unique(np.linspace(0, len(ids) - 1, min(_GLIMPSES, len(ids))).round().astype(int)).tolist()
        return JSONResponse(
            {
                "name": store.path.rstrip("/").rsplit("/", 1)[-1],
                "videos": len(ids),
                "segments": int(lengths.sum()),
                "seconds": float(durations.sum()),
                "encoder": library.encoder.name,
                "glimpses": [_segment(store, video, int(lengths[video]) // 2) for video in some],
            }
        )

    def search(request: Request) -> Response:
        text = text_of(request)
        if not text:
            return JSONResponse({"moments": [], "seconds": 0.0})
        began = time.perf_counter()
        found = library.moments(vector(text), _MOMENTS)
        return JSONResponse({"moments": [asdict(moment) for moment in found], "seconds": time.perf_counter() - began})

    def moment(request: Request) -> Response:
        place = place_of(request)
        if place is None:
            return PlainTextResponse("There is no such segment.", 404)
        video, segment = place
        record, text = store[video], text_of(request)
        unit = l2_normalize(record.embeddings)
        steps = 1.0 - np.einsum("nd,nd->n", unit[1:], unit[:-1])
        alike = [m for m in library.moments(unit[segment], _ALIKE + 1) if not _holds(m, video, segment)]
        return JSONResponse(
            {
                "video": record.id,
                "index": video,
                "segment": segment,
                "duration": record.duration,
                "starts": record.starts.round(3).tolist(),
                "ends": record.ends.round(3).tolist(),
                "novelty": [0.0, *steps.round(3).tolist()],
                "scores": (unit @ l2_normalize(vector(text))).round(3).tolist() if text else None,
                "alike": [asdict(m) for m in alike[:_ALIKE]],
            }
        )

    def thumbnail(request: Request) -> Response:
        place = place_of(request)
        jpeg = picture(*place) if place else None
        if jpeg is None:
            return PlainTextResponse("There is no picture.", 404)
        return Response(jpeg, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    return Starlette(
        routes=[
            Route("/", index),
            Route("/assets/{name}", asset),
            Route("/api/library", about),
            Route("/api/search", search),
            Route("/api/moment/{video:int}/{segment:int}", moment),
            Route("/thumbnail/{video:int}/{segment:int}", thumbnail),
        ]
    )


def _segment(store: EmbeddingStore, video: int, segment: int) -> dict[str, Any]:
    record = store[video]
    start, end = float(record.starts[segment]), float(record.ends[segment])
    return {"video": record.id, "index": video, "segment": segment, "start": start, "end": end}


def _holds(moment: Moment, video: int, segment: int) -> bool:
    return moment.index == video and moment.first <= segment <= moment.last


def guarded(app: Any, *, token: str | None, own_names: bool, port: int) -> Any:
    """An application that answers only whom it may, see the module.

    Args:
        app: what is guarded.
        token: what every request must bring; None asks for none.
        own_names: a request must be addressed to a name of this machine alone.
        port: names the cookie, because a browser shares cookies among the ports of a host.
    """
    from starlette.datastructures import MutableHeaders
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, RedirectResponse

    cookie = f"lvmae-{port}"

    def answer_to(request: Request) -> Response | None:
        """What a request gets instead of the application's answer."""
        if own_names and not is_loopback(_hostname(request.headers.get("host", ""))):
            return PlainTextResponse("This page answers at this machine's own address only.", 421)
        away = request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        if away and request.headers.get("sec-fetch-mode") != "navigate":
            return PlainTextResponse("This page does not answer to other sites.", 403)
        if token is None:
            return None
        asked = request.query_params.get("token")
        if request.scope["path"] == "/" and asked is not None and _same(asked, token):
            # Out of the address bar and the history, into a cookie that no script and no other site's page can use.
            response = RedirectResponse("/", 303)
            response.set_cookie(cookie, token, httponly=True, samesite="lax")
            return response
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        if _same(request.cookies.get(cookie, ""), token) or _same(bearer, token):
            return None
        return PlainTextResponse("Open the address that `lvmae serve` printed: it holds the token.", 401)

    async def guard(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError("only HTTP is served")

        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(_HEADERS)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await (answer_to(Request(scope)) or app)(scope, receive, sending)

    return guard


def _hostname(header: str) -> str:
    """The host of a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.partition(":")[0].lower()


def _same(given: str, token: str) -> bool:
    """Whether they are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())
