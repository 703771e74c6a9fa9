"""The index of a store's shards: it shows whether one is damaged, lost, copied or exchanged.

    index/data-00000003.12-345678-<hash>.<check>.json    shard 3 of `data`: 12 rows, 345,678 bytes, the first half of its SHA-256,
                                                         and a checksum of this file itself
    index/data-00000004.gone.json                        shard 4 was taken out: it is missing on purpose

One small file a shard, for object stores cannot change a part of a file, and two writers would lose each other's entries. Names say
what is needed to notice damage, so that one listing is enough; the content says which videos are concerned.

A shard is written first and its entry next. A shard without an entry is one whose writer was killed in between (the next writer
adds the entry), or one that an older version wrote (`lvmae migrate` adds it): it is read all the same. To exchange a shard, the
new entry comes first and the old one goes last: at every moment one of them fits. So an entry without a shard means a lost shard.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

INDEX = "index"
_NAME = re.compile(r"(data|failures)-(\d{8,})\.(?:(gone)|(\d+)-(\d+)-([0-9a-f]{32})\.([0-9a-f]{8}))\.json")


@dataclass(frozen=True)
class IndexEntry:
    """What the name of one entry says."""

    name: str
    table: str
    number: int
    gone: bool = False
    rows: int = 0
    size: int = 0
    """Bytes of the shard."""
    digest: str = ""
    """The first 32 hex digits of the shard's SHA-256."""
    check: str = ""


@dataclass(frozen=True)
class IndexedRows:
    """What the content of one entry says: the shard's ids, in order, and in `data` the digest of each row's content."""

    ids: list[str] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)


def parse_name(name: str) -> IndexEntry | None:
    """The entry of this name; None if it is no entry's."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    table, number, gone, rows, size, digest, check = match.groups()
    if gone:
        return IndexEntry(name, table, int(number), gone=True)
    return IndexEntry(name, table, int(number), False, int(rows), int(size), digest, check)


def tombstone(table: str, number: int) -> IndexEntry:
    """The entry of a shard that was taken out on purpose."""
    return IndexEntry(f"{table}-{number:08d}.gone.json", table, number, gone=True)


def describe(table: str, number: int, shard: bytes | memoryview, rows: IndexedRows) -> tuple[IndexEntry, bytes]:
    """The entry of a shard, and its content; the same for the same shard, whoever writes it."""
    content = json.dumps({"ids": rows.ids, "digests": rows.digests}, ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )
    digest, check = shard_digest(shard), f"{zlib.crc32(content):08x}"
    name = f"{table}-{number:08d}.{len(rows.ids)}-{len(shard)}-{digest}.{check}.json"
    return IndexEntry(name, table, number, False, len(rows.ids), len(shard), digest, check), content


def read_rows(entry: IndexEntry, content: bytes) -> IndexedRows | None:
    """The content of an entry; None if it is damaged."""
    if entry.gone or f"{zlib.crc32(content):08x}" != entry.check:
        return None
    try:
        values = json.loads(content.decode("utf-8", "surrogatepass"))
        rows = IndexedRows(values["ids"], values["digests"])
    except (ValueError, KeyError, TypeError):
        return None
    return rows if len(rows.ids) == entry.rows else None


def shard_digest(shard: bytes | memoryview) -> str:
    """What an entry says of a shard's bytes."""
    return hashlib.sha256(shard).hexdigest()[:32]


def row_digest(duration: float, *arrays: np.ndarray | None) -> str:
    """Of all that a row says of its video, its id and its source aside, which may differ where the content is the same."""
    digest = hashlib.blake2b(f"{float(duration)!r}".encode(), digest_size=16)
    for values in arrays:
        digest.update(b"\0" if values is None else b"\1")
        if values is not None:
            digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def some(ids: Sequence[str], most: int = 5) -> str:
    """A list of ids for a sentence."""
    shown = ", ".join(ids[:most])
    return f"{shown} and {len(ids) - most} more" if len(ids) > most else shown
