"""Selects the packets that must be decoded for a few frames of a file.

Enters: a path or URL, and ascending times. Leaves: for each time the frame that a player shows then, the last whose presentation
time is not later, counted from the start of the file (the earliest of its streams); before the first frame, the first. Price:
0.6-0.9 of decoding what lies between the first and the last of them; memory for two groups of pictures of packets.

The fast path decides packet by packet, from time stamps alone, before anything is decoded:
- frames nobody refers to are skipped unless wanted (`skip_frame` of FFmpeg's decoders);
- of a group of pictures, nothing is decoded after its last wanted frame if the next group can be entered without it;
- where nothing is wanted for `SEEK_SECONDS`, a file with an index is not even read: the key frame before the next time is sought.
So a part of a file costs what the part costs, wherever it lies. Where a file does not keep to the rules (missing or repeated time
stamps, damage), the fast path stops, first its seeks, then all of it, and what is still owed is decoded in full.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction

import av
import numpy as np
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lvmae.video.clock import (
    TRUNCATED_SECONDS,
    VideoPacket,
    every_frame,
    frame_ticks,
    origin_of,
    packets,
    seconds_at,
    ticks_at,
)
from lvmae.video.container import opened
from lvmae.video.errors import VideoError
from lvmae.video.picture import aspect_of, decoded

SEEK_SECONDS = 15.0
"""A gap between two times that is sought over instead of read through."""

# Decoders of FFmpeg that honour `skip_frame` packet by packet; others read it once, at opening, and would lose wanted frames.
_SKIPPING_DECODERS = frozenset({"h264", "hevc", "mpeg2video", "mpeg4"})
# Containers whose index leads to key frames with the very time stamps that reading through gives.
_SEEKING_FORMATS = frozenset({"mov", "matroska"})
_GOP_BYTES = 64 << 20  # packets of one group of pictures that are held before the fast path gives up


class _CannotSkip(Exception):
    """The file does not keep to what the fast path needs."""


def pick(
    path: str | os.PathLike[str], times: np.ndarray, *, end: float, skip: bool = True, threads: int = 1
) -> Iterator[tuple[VideoFrame, Fraction | None]]:
    """Yields for each of `times` (N,) seconds, which ascend, its frame and pixel aspect. A frame wanted twice is one object.

    `skip=False` decodes everything. A file that is over clearly before `end` seconds is truncated: VideoError, after what is there.
    """
    done = 0
    seeks = reads = skip
    while True:
        with opened(path, threads) as (container, stream):
            ticks = ticks_at(container, stream, times)
            fast = _FastPath(container, stream, ticks[done:], end, seeks=seeks)
            try:
                for frame in fast.frames() if reads else _everything(container, stream, ticks[done:], end):
                    yield frame, aspect_of(frame, stream)
                    done += 1
            except _CannotSkip:
                # What failed after a seek may go well without one; what failed without would fail again.
                seeks, reads = False, fast.sought
                continue
            return


def frames_between(
    path: str | os.PathLike[str], begin: float, end: float
) -> Iterator[tuple[float, VideoFrame, Fraction | None]]:
    """Every frame that appears in [begin, end) seconds: when it does, the frame, and its pixel aspect."""
    with opened(path) as (container, stream):
        assert stream.time_base is not None
        if begin > SEEK_SECONDS and not _SEEKING_FORMATS.isdisjoint(container.format.name.split(",")):
            with contextlib.suppress(av.error.FFmpegError):
                container.seek(int(ticks_at(container, stream, np.array([begin]))[0]), stream=stream)
        for now, frame in _timed(container, stream):
            moment = seconds_at(container, stream, now)
            if moment >= end:
                return
            if moment >= begin:
                yield moment, frame, aspect_of(frame, stream)


def _timed(container: InputContainer, stream: VideoStream) -> Iterator[tuple[int, VideoFrame]]:
    """Every frame with the tick at which it appears; one that does not say follows the one before."""
    assert stream.time_base is not None
    step = frame_ticks(stream)
    due = origin_of(container, stream) / stream.time_base
    stamped = False
    for frame in every_frame(container, stream):
        stamp = frame.pts if frame.pts is not None or stamped else frame.dts
        stamped = stamped or frame.pts is not None
        now = Fraction(stamp) if stamp is not None else due
        due = now + (frame.duration or step)
        yield round(now), frame


def _everything(container: InputContainer, stream: VideoStream, ticks: np.ndarray, end: float) -> Iterator[VideoFrame]:
    """Yields the frame of each tick (ascending), decoding everything; damaged packets cost the frames they held."""
    held: VideoFrame | None = None
    place, now = 0, 0
    for now, frame in _timed(container, stream):
        while place < len(ticks) and ticks[place] < now:
            yield held if held is not None else frame
            place += 1
        held = frame
        if place == len(ticks):
            return
    if held is None:
        raise VideoError("no frame could be decoded")
    over = now + (held.duration or round(frame_ticks(stream)))
    while place < len(ticks) and ticks[place] < over:
        yield held
        place += 1
    truncated = _truncation(seconds_at(container, stream, over), end)
    if truncated is not None:
        raise truncated
    for _ in ticks[place:]:
        yield held


def _truncation(seen: float, declared: float) -> VideoError | None:
    """What is wrong with a file whose frames end after `seen` seconds, if anything is."""
    if seen + TRUNCATED_SECONDS >= declared:
        return None
    return VideoError(f"truncated: it says it lasts {declared:.1f} s, and ends after {max(seen, 0.0):.1f} s")


# --- the fast path ----------------------------------------------------------------------------------------------------------


class _FastPath:
    """The frame of each tick (ascending), with as little decoded as is exact; _CannotSkip where that is not known to be."""

    def __init__(
        self, container: InputContainer, stream: VideoStream, ticks: np.ndarray, end: float, *, seeks: bool
    ) -> None:
        assert stream.time_base is not None
        self.container, self.stream, self.context = container, stream, stream.codec_context
        self.ticks, self.end = ticks, end
        self.seeks = seeks and not _SEEKING_FORMATS.isdisjoint(container.format.name.split(","))
        self.far = round(SEEK_SECONDS / stream.time_base)
        self.may_skip = self.context.codec.name in _SKIPPING_DECODERS
        self.sought = False
        self.truncated: VideoError | None = None
        self.place = 0  # the first tick that no frame was found for
        # (time stamp, how many ticks ask for it), in order of presentation, as frames come out.
        self.due: deque[tuple[int, int]] = deque()

    def frames(self) -> Iterator[VideoFrame]:
        """Yields the frames; VideoError, after what is there, if the file ends before `end`."""
        position = self.stream.start_time or 0
        try:
            while True:
                stop = yield from self._run(position, sought=self._sought_over(position))
                yield from self._out(decoded(self.stream, None))
                if stop is None:
                    break
                position = stop
        except (av.error.FFmpegError, ValueError) as error:
            raise _CannotSkip from error
        if self.due or (self.place < len(self.ticks) and self.truncated is None):
            raise _CannotSkip
        if self.truncated is not None:
            raise self.truncated

    def _is_far(self, position: int) -> bool:
        return self.seeks and self.place < len(self.ticks) and bool(self.ticks[self.place] - position > self.far)

    def _sought_over(self, position: int) -> bool:
        """Seeks to the key frame before the next tick, if that is far from `position`."""
        if not self._is_far(position):
            return False
        self.sought = True
        self.container.seek(int(self.ticks[self.place]), stream=self.stream)  # empties the decoder, too
        return True

    def _run(self, position: int, *, sought: bool) -> Generator[VideoFrame, None, int | None]:
        """Decodes from the container's position; returns where it stopped to seek, or None at the end."""
        entered = not sought  # whether the decoder has seen what the next group leans on
        for group, following in _groups(self.container, self.stream):
            if sought and (max(group.key, group.first) > self.ticks[self.place] or group.entry is _Entry.NEVER):
                raise _CannotSkip
            if sought and group.key < position:
                self.seeks = False  # the index leads back: read on from here
            sought = False
            asked = self._asked(group, following, entered)
            if following is not None and following.leans(self.ticks[self.place :]):
                needed = len(group.packets)
            else:
                needed = max((i + 1 for i, p in enumerate(group.packets) if p.pts in asked), default=0)
            for packet in group.packets[:needed]:
                if self.may_skip:
                    self.context.skip_frame = "DEFAULT" if packet.pts in asked else "NONREF"
                yield from self._out(decoded(self.stream, packet))
            entered = needed == len(group.packets)
            if following is None or self.place == len(self.ticks):
                break
            if self._is_far(following.key):
                return following.key
            if not entered and following.entry is _Entry.AFRESH:
                yield from self._out(decoded(self.stream, None))
                self.context.flush_buffers()
        return None

    def _asked(self, group: _Group, following: _Group | None, entered: bool) -> set[int]:
        """The time stamps that are wanted of a group; they are due from now on."""
        until = len(self.ticks)
        if following is not None:
            until = int(np.searchsorted(self.ticks, following.first))
        else:
            shown = [p for p in group.packets if not p.is_discard] or group.packets
            over = max(_stamp(p) + (p.duration or frame_ticks(self.stream)) for p in shown)
            self.truncated = _truncation(seconds_at(self.container, self.stream, over), self.end)
            if self.truncated is not None:
                until = int(np.searchsorted(self.ticks, float(over)))
        until = max(until, self.place)
        stamps = group.stamps if entered or group.entry is _Entry.ANYTIME else group.stamps[group.stamps >= group.key]
        if not len(stamps) or until == self.place:
            return set()
        at = np.maximum(np.searchsorted(stamps, self.ticks[self.place : until], side="right") - 1, 0)
        wanted, counts = np.unique(stamps[at], return_counts=True)
        if not group.twice.isdisjoint(wanted.tolist()):
            raise _CannotSkip
        self.due.extend(zip(wanted.tolist(), counts.tolist(), strict=True))
        self.place = until
        return set(wanted.tolist())

    def _out(self, frames: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
        for frame in frames:
            if frame.pts is None or frame.is_corrupt or (self.due and frame.pts > self.due[0][0]):
                raise _CannotSkip
            if self.due and frame.pts == self.due[0][0]:
                for _ in range(self.due.popleft()[1]):
                    yield frame


# --- groups of pictures -----------------------------------------------------------------------------------------------------


class _Entry(Enum):
    """How decoding may begin with a key frame."""

    ANYTIME = "a decoder takes it as a new start, whatever it saw before"
    AFRESH = "exact from the key frame's time on, with an emptied decoder"
    NEVER = "what follows may lean on what was before"


@dataclass
class _Group:
    """Packets in decoding order, from a key frame to before the next one, and the time stamps of what they show."""

    packets: list[VideoPacket]
    entry: _Entry
    key: int
    stamps: np.ndarray  # ascending
    twice: frozenset[int]  # those that several packets have; which is shown is known once they are decoded

    @property
    def first(self) -> int:
        return int(self.stamps[0]) if len(self.stamps) else self.key

    def leans(self, ticks: np.ndarray) -> bool:
        """Whether what these ticks ask of the group can only be decoded after the whole group before it."""
        if self.entry is _Entry.ANYTIME or not len(ticks):
            return False
        return self.entry is _Entry.NEVER or bool(ticks[0] < self.key)


def _groups(container: InputContainer, stream: VideoStream) -> Iterator[tuple[_Group, _Group | None]]:
    """Each group of pictures with the one after it (None at the end); _CannotSkip where they overlap in time."""
    before: _Group | None = None
    gop: list[VideoPacket] = []
    size = 0

    def close(gop: list[VideoPacket]) -> _Group:
        shown = np.array([_stamp(p) for p in gop if not p.is_discard], np.int64)
        stamps, counts = np.unique(shown, return_counts=True)
        group = _Group(gop, _entry(gop[0], stream), _stamp(gop[0]), stamps, frozenset(stamps[counts > 1].tolist()))
        if before is not None and len(stamps) and len(before.stamps) and stamps[0] <= before.stamps[-1]:
            raise _CannotSkip
        return group

    for packet in packets(container, stream):
        if packet.size == 0:
            continue
        if packet.pts is None or packet.is_corrupt or not (gop or packet.is_keyframe):
            raise _CannotSkip
        if packet.is_keyframe and gop:
            group = close(gop)
            if before is not None and not len(group.stamps):
                before.packets.extend(
                    gop
                )  # an edit list leaves all of it out; the next one may lean on it nevertheless
            else:
                if before is not None:
                    yield before, group
                before = group
            gop, size = [], 0
        gop.append(packet)
        size += packet.size
        if size > _GOP_BYTES:
            raise _CannotSkip
    if gop:
        group = close(gop)
        if before is not None:
            yield before, group
        before = group
    if before is not None:
        yield before, None


def _stamp(packet: VideoPacket) -> int:
    if packet.pts is None:
        raise _CannotSkip
    return packet.pts


def _entry(packet: VideoPacket, stream: VideoStream) -> _Entry:
    """What the bitstream says of a key frame: a container's flag is not enough where it marks points of gradual recovery, too."""
    name = stream.codec_context.name
    if name not in ("h264", "hevc"):
        return _Entry.ANYTIME if name in _RESETTING_CODECS else _Entry.AFRESH
    for unit in _units(packet, stream):
        if name == "hevc":
            kind = unit[0] >> 1 & 0x3F
            if kind in range(16, 22):  # clean random access (21) may have pictures that lean back; the others have none
                return _Entry.AFRESH if kind == 21 else _Entry.ANYTIME
            if kind < 32:
                return _Entry.NEVER
        else:
            kind = unit[0] & 0x1F
            if kind == 5:
                return _Entry.ANYTIME
            if kind == 6 and _recovers_at_once(bytes(unit)):
                return _Entry.AFRESH
            if kind in range(1, 5):
                return _Entry.NEVER
    return _Entry.NEVER


# A key frame of these leaves nothing of what was before. MPEG's and its kin's may be followed by pictures that lean back.
_RESETTING_CODECS = frozenset(
    {"vp8", "vp9", "av1", "libdav1d", "mjpeg", "prores", "ffv1", "huffyuv", "png", "rawvideo", "dnxhd"}
)


def _units(packet: VideoPacket, stream: VideoStream) -> Iterator[bytes | memoryview]:
    """The NAL units of a packet (H.264 and H.265, Annex B; ISO/IEC 14496-15 where the stream has its configuration record)."""
    record = stream.codec_context.extradata or b""
    if record[:1] == b"\x01":
        width = (record[4] if stream.codec_context.name == "h264" else record[21]) % 4 + 1
        view = memoryview(packet)
        place = 0
        while place + width < len(view):
            size = int.from_bytes(view[place : place + width], "big")
            place += width
            if size:
                yield view[place : place + size]
            place += size
        return
    data = bytes(packet)
    place = data.find(b"\0\0\1")
    while 0 <= place < len(data) - 3:
        following = data.find(b"\0\0\1", place + 3)
        yield data[place + 3 : following if following > 0 else len(data)]
        place = following


def _recovers_at_once(unit: bytes) -> bool:
    """Whether an SEI unit holds a recovery point that is exact from its own picture on (H.264, D.1.8)."""
    unit = unit.replace(b"\0\0\3", b"\0\0")
    place = 1
    while place + 2 < len(unit):
        kind = size = 0
        while place < len(unit) and unit[place] == 0xFF:
            kind, place = kind + 255, place + 1
        kind, place = kind + unit[place], place + 1
        while place < len(unit) and unit[place] == 0xFF:
            size, place = size + 255, place + 1
        if place >= len(unit):
            return False
        size, place = size + unit[place], place + 1
        if kind == 6 and place < len(unit):
            # A frame count of 0, in exponential Golomb code the bit 1, and then exact_match_flag.
            return unit[place] & 0xC0 == 0xC0
        place += size
    return False
