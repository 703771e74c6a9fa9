"""Access control: which requests the server answers, and what a browser may do with the answers.

On this machine's own address a request must name that address (a foreign name pointed at it, DNS rebinding, is refused) and
must not come from another site's page; on any other address each request must bring the token, as the cookie that the printed
address sets, or as `Authorization: Bearer`. `/healthz` alone needs no token: it says nothing. The page's content security
policy allows its own files alone.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def guarded(app: Any, *, token: str | None, own_names: bool, port: int) -> Any:
    """Wraps an application in access control; see the module.

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
        if away and (request.method != "GET" or request.headers.get("sec-fetch-mode") != "navigate"):
            return PlainTextResponse("This page does not answer to other sites.", 403)
        if token is None or request.scope["path"] == "/healthz":
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
                headers.update(HEADERS)
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
