"""The OpenAPI 3.1 description of the server's API."""

from __future__ import annotations

from typing import Any

from lvmae.serving.queries import MOST_TOP


def openapi(version: str, *, model: str, dim: int) -> dict[str, Any]:
    """The document."""

    def parameter(name: str, kind: str, what: str, **more: Any) -> dict[str, Any]:
        return {"name": name, "in": "query", "description": what, "schema": {"type": kind, **more}}

    def answer(what: str, schema: dict[str, Any]) -> dict[str, Any]:
        return {"description": what, "content": {"application/json": {"schema": schema}}}

    wrong = {"description": "What is wrong, in a sentence.", "content": {"text/plain": {}}}
    moment = {
        "type": "object",
        "properties": {
            "video": {"type": "string"},
            "start": {"type": "number", "description": "seconds"},
            "end": {"type": "number", "description": "seconds"},
            "score": {"type": "number", "minimum": -1, "maximum": 1},
            "index": {"type": "integer"},
            "segment": {"type": "integer"},
            "first": {"type": "integer"},
            "last": {"type": "integer"},
        },
    }
    forms = ["json", "csv", "m3u", "edl"]
    search = [
        parameter("q", "string", "What to look for, in words."),
        parameter("minus", "string", "Less what this text means."),
        parameter("video", "string", "With `at`: look for what this video shows, instead of a text."),
        parameter("at", "number", "Seconds."),
        parameter("top", "integer", "How many.", minimum=1, maximum=MOST_TOP, default=24),
        parameter("group", "string", "One hit a video, or all moments.", enum=["moment", "video"], default="moment"),
        parameter("format", "string", "What is answered.", enum=forms, default="json"),
        parameter("folder", "string", "Videos whose id or source lies below this folder."),
        parameter("source", "string", "Videos whose source matches this pattern, with * and ?."),
        parameter("min_seconds", "number", "Videos that last so long at least."),
        parameter("max_seconds", "number", "Videos that last so long at most."),
        parameter("label", "string", "Videos with this tag."),
        parameter("after", "string", "Videos whose file was changed on this day or later (ISO 8601)."),
        parameter("before", "string", "Videos whose file was changed before this day."),
    ]
    embedding = {
        "type": "object",
        "properties": {
            "model": {"type": "string", "default": model},
            "input": {
                "description": "A text, or a list of texts.",
                "oneOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}],
            },
            "messages": {
                "description": "Instead of input: a conversation; a part of type video_url holds a data: URL or lvmae:ID.",
                "type": "array",
                "items": {"type": "object"},
            },
            "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        },
    }
    found = {
        "type": "object",
        "properties": {"moments": {"type": "array", "items": moment}, "seconds": {"type": "number"}},
    }
    vectors = {
        "type": "object",
        "properties": {
            "data": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"index": {"type": "integer"}, "embedding": {"type": "array", "maxItems": dim}},
                },
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "lvmae serve", "version": version, "description": "Search in a library of videos."},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}, {}],
        "paths": {
            "/search": {
                "get": {
                    "summary": "The moments that match best",
                    "parameters": search,
                    "responses": {"200": answer("Best first.", found), "400": wrong},
                },
                "post": {
                    "summary": "The moments most like the picture in the body",
                    "parameters": [one for one in search if one["name"] not in ("q", "minus", "video", "at")],
                    "requestBody": {"required": True, "content": {"image/*": {}}},
                    "responses": {"200": answer("Best first.", found), "400": wrong, "413": wrong},
                },
            },
            "/v1/embeddings": {
                "post": {
                    "summary": "Vectors of texts and videos, as OpenAI's API has it",
                    "requestBody": {"required": True, "content": {"application/json": {"schema": embedding}}},
                    "responses": {"200": answer("A vector an input.", vectors), "400": wrong, "413": wrong},
                }
            },
            "/v1/models": {
                "get": {"summary": "The encoder", "responses": {"200": answer("One model.", {"type": "object"})}}
            },
            "/healthz": {
                "get": {
                    "summary": "Whether the server answers",
                    "security": [{}],
                    "responses": {"200": {"description": "ok"}},
                }
            },
            "/metrics": {"get": {"summary": "Measures for Prometheus", "responses": {"200": {"description": "text"}}}},
        },
    }
