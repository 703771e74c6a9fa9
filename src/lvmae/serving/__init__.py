"""A server on this machine that searches a store by any text: a page, and an API for other programs.

Enters: a store whose encoder reads text. Leaves: an HTTP server, until Ctrl-C. Price: the library's unit vectors in memory
(150 MB for 100,000 segments of width 384); searches that come at the same time share one call of the text encoder and one
product; a picture is decoded when it is first looked at.

What it guards against. Nothing but the page's own files, JPEGs of segments and the store's own video files leaves the
process: they are asked for by the numbers of a video and a segment, so no request holds a path. Whom it answers is in
`guard`, what a visitor may take in `limits`. There is no encryption: across a network that is not trusted, put a proxy in
front of it (docs/serving.md), or use an SSH tunnel.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Collection
from pathlib import Path

from lvmae.errors import InputError
from lvmae.library import Library
from lvmae.serving.guard import guarded, is_loopback
from lvmae.store import EmbeddingStore

__all__ = ["application", "guarded", "is_loopback", "read_token", "serve"]

_SHORTEST_TOKEN = 12
TOKEN_VARIABLE = "LVMAE_TOKEN"  # noqa: S105 (the name of a variable)


def serve(
    store: str | Path | EmbeddingStore,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    token: str | None = None,
    allow_hosts: Collection[str] = (),
) -> None:
    """Serves the page until Ctrl-C, and prints its address.

    Args:
        store: embeddings of an encoder with a text side.
        host: the address to listen at. Any but this machine's own asks for the token.
        port: 0 takes a free one.
        token: what a visitor must know; made up where it is needed and None.
        allow_hosts: hosts that `/v1/embeddings` may fetch videos from.

    Raises:
        InputError: no such store, no text side, an address that cannot be listened at, a token that can be guessed, or the extra
            `serve` is missing.
    """
    try:
        import prometheus_client  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn
    except ImportError:
        raise InputError("the page needs a web server: pip install 'lvmae[serve]'") from None
    from lvmae.serving.application import Application
    from lvmae.serving.limits import LimitedProtocol, connections_that_fit, spare_logs

    if token is not None and len(token) < _SHORTEST_TOKEN:
        raise InputError(
            f"the token can be guessed: give at least {_SHORTEST_TOKEN} characters, or none to have one generated"
        )
    own = is_loopback(host)
    if token is None and not own:
        token = secrets.token_urlsafe(24)
    library = Library(store)
    library.search("anything", 1)  # loads the encoder and the library now, so that what is wrong is said now
    with _listening(host, port) as listener:
        port = listener.getsockname()[1]
        servers: list[uvicorn.Server] = []
        inner = Application(
            library, allowed=allow_hosts, connections=lambda: len(servers[0].server_state.connections) if servers else 0
        )
        app = guarded(inner, token=token, own_names=own, port=port)
        shown = f"[{host}]" if ":" in host else host
        print(f"http://{shown}:{port}/{f'?token={token}' if token else ''}", flush=True)
        LimitedProtocol.most = connections_that_fit()
        settings = uvicorn.Config(
            app,
            http=LimitedProtocol,
            log_level="warning",
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            h11_max_incomplete_event_size=16 << 10,
        )
        servers.append(uvicorn.Server(settings))
        spare_logs()
        try:
            servers[0].run(sockets=[listener])
        except KeyboardInterrupt:
            return  # the way it is meant to end
        finally:
            inner.searcher.close()


def read_token(path: str | os.PathLike[str] | None) -> str | None:
    """Returns the token from a file, or else from the environment; None if there is neither.

    Raises InputError for a file that cannot be read or is empty.
    """
    if path is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(path).read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the token cannot be read from {path}: {getattr(error, 'strerror', None) or error}") from None
    if not token:
        raise InputError(f"{path} holds no token: write one of at least {_SHORTEST_TOKEN} characters into it")
    return token


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port <= 65535:
        raise InputError(f"a port is a number from 0 to 65535, not {port}")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=128)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot listen at {host} port {port} ({reason}); choose another `port`, or `host`") from None


def __getattr__(name: str) -> object:
    if name == "application":
        from lvmae.serving.application import application

        return application
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
