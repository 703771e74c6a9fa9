"""The time of a container's packets, made to continue where its clock does not, and how long a file lasts.

Enters: an open container. Leaves: packets whose time stamps count on through the file, and its duration. Transport and program
streams (and Ogg) may be several recordings, one after the other, each with a clock of its own: there time continues as in ffmpeg,
by ffmpeg's own rule. In other containers a clock has no reason to go back; where it does, that is the file's failure.

Price: the duration of a file that does not tell it, or whose word is not good (streams, FLV, fragmented MP4), takes reading all
of it without decoding; of Matroska and others the last group of pictures is read.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeAlias, cast

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from lvmae.video.container import opened
from lvmae.video.errors import VideoError
from lvmae.video.picture import decoded

VideoPacket: TypeAlias = "av.Packet[VideoStream]"

TRUNCATED_SECONDS = 1.0
"""A file may end this much before it says it does, or after."""

_JUMP = 10 * av.time_base  # ffmpeg's -dts_delta_threshold, in microseconds
_BACK = av.time_base // 10
_ABSURD = 30 * 3600 * av.time_base  # ffmpeg's -dts_error_threshold
_BACK_SECONDS = 1.0  # of a container that should not go back at all; less is careless rounding


# --- when things are ----------------------------------------------------------------------------------------------------------


def origin_of(container: InputContainer, stream: VideoStream) -> Fraction:
    """Time stamp of the start of the file in seconds: the earliest of its streams, as players have it."""
    assert stream.time_base is not None
    candidates = [stream.start_time * stream.time_base] if stream.start_time is not None else []
    if container.start_time is not None:
        candidates.append(Fraction(container.start_time, av.time_base))
    return min(candidates, default=Fraction(0))


def ticks_at(container: InputContainer, stream: VideoStream, times: np.ndarray) -> np.ndarray:
    """The last tick (N,) int64 of the stream's clock not later than each of `times` (N,), in seconds from the start of the file."""
    assert stream.time_base is not None
    # The origin may be large (a clock that counts since 1970) and is kept out of the floating point numbers.
    whole, rest = divmod(origin_of(container, stream) / stream.time_base, 1)
    # Half a microsecond of room, so that a time computed to lie on a frame's own stamp finds that frame.
    after: np.ndarray = np.floor((times + 5e-7) / float(stream.time_base) + float(rest))
    return after.astype(np.int64) + int(whole)


def seconds_at(container: InputContainer, stream: VideoStream, tick: float | Fraction) -> float:
    """A tick of the stream's clock as seconds from the start of the file."""
    assert stream.time_base is not None
    return float(Fraction(tick) * stream.time_base - origin_of(container, stream))


def frame_ticks(stream: VideoStream) -> Fraction:
    """How long a frame lasts that does not say so, in the stream's time base."""
    assert stream.time_base is not None
    return 1 / ((stream.average_rate or stream.guessed_rate or Fraction(25)) * stream.time_base)


# --- a clock that continues ---------------------------------------------------------------------------------------------------


def restarts(container: InputContainer) -> bool:
    """Whether the format allows its clock to start again, so that time stamps mean nothing until they are put right."""
    return av.format.Flags.ts_discont in av.format.Flags(container.format.flags)


def packets(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    """The stream's packets, in the file's order, as `container.demux` gives them, with time stamps that continue.

    Raises VideoError if the clock goes back in a container that has one clock.
    """
    if not restarts(container):
        yield from _forward(container, stream)
        return
    # ffmpeg plays the sound too, and whichever of the two jumps first moves both.
    sound = container.streams.best("audio", related=stream)
    played: list[VideoStream | AudioStream] = [stream]
    if isinstance(sound, AudioStream) and sound.time_base:
        sound.discard = av.stream.Discard.default
        played.append(sound)
    clock = _Clock()
    for packet in container.demux(*played):
        clock.put_right(packet)
        if packet.stream_index == stream.index:
            yield cast(VideoPacket, packet)


@dataclass
class _Playing:
    """Where one stream is, in microseconds of the time that continues."""

    now: int
    then: int  # when its next packet is due


class _Clock:
    """Puts time stamps right as `ffmpeg` does (fftools/ffmpeg_demux.c, ts_discontinuity_detect)."""

    def __init__(self) -> None:
        self.offset = 0  # microseconds that are added
        self.last: int | None = None  # of whichever stream
        self.streams: dict[int, _Playing] = {}

    def put_right(self, packet: av.Packet[Any]) -> None:
        if packet.size == 0:
            return
        base = packet.time_base * av.time_base
        self._move(packet, round(self.offset / base))
        playing = self.streams.get(packet.stream_index)
        if packet.dts is not None:
            now = round(packet.dts * base)
            jump = 0
            if playing is not None:
                jump = now - playing.then
                if abs(jump) <= _JUMP and now + _BACK >= playing.now:
                    jump = 0
            elif self.last is not None and abs(now - self.last) > _JUMP:
                jump = now - self.last
            if jump:
                self.offset -= jump
                self._move(packet, -round(jump / base))
                now -= jump
            self.last = now
            # FFmpeg tells when a picture is shown from when the next is decoded, and that may lie after the jump.
            if packet.pts is not None and not 0 <= packet.pts - packet.dts <= _JUMP / base:
                packet.pts = None
        elif playing is not None:
            now = playing.then
        elif packet.pts is not None:
            now = round(packet.pts * base)
        else:
            return
        self.streams[packet.stream_index] = _Playing(now, now + round(self._duration(packet) * base))

    @staticmethod
    def _move(packet: av.Packet[Any], ticks: int) -> None:
        if packet.pts is not None:
            packet.pts += ticks
        if packet.dts is not None:
            packet.dts += ticks

    @staticmethod
    def _duration(packet: av.Packet[Any]) -> Fraction:
        if packet.duration:
            return Fraction(packet.duration)
        return frame_ticks(packet.stream) if isinstance(packet.stream, VideoStream) else Fraction(0)


def _forward(container: InputContainer, stream: VideoStream) -> Iterator[VideoPacket]:
    assert stream.time_base is not None
    latest: int | None = None
    room, absurd = _BACK_SECONDS / stream.time_base, Fraction(_ABSURD, av.time_base) / stream.time_base
    for packet in container.demux(stream):
        if packet.pts is not None and not packet.is_discard:
            if latest is not None and abs(packet.pts - latest) > absurd:
                packet.pts = packet.dts = None  # as ffmpeg: a stamp that far off says nothing
            elif latest is not None and packet.is_keyframe and packet.pts + room < latest:
                there, back = (seconds_at(container, stream, stamp) for stamp in (latest, packet.pts))
                raise VideoError(
                    f"its clock goes back from {there:.1f} s to {back:.1f} s, as in recordings that were joined without "
                    "being put together; join them with ffmpeg's concat demuxer, or embed each by itself"
                )
            else:
                latest = packet.pts if latest is None else max(latest, packet.pts)
        yield packet


def every_frame(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Every frame that can be decoded, in order of presentation; VideoError if most of the packets are damaged."""
    damaged = 0
    for read, packet in enumerate(_readable(packets(container, stream)), 1):
        try:
            yield from decoded(stream, packet)
        except av.error.FFmpegError as error:
            if error.errno == errno.EINVAL:
                raise VideoError("its pictures are damaged, or too large to decode") from None
            damaged += 1
            if damaged > 100 and damaged > read / 2:
                raise VideoError(f"too damaged: {damaged} of {read} packets cannot be decoded") from None


def _readable(demuxed: Iterator[VideoPacket]) -> Iterator[VideoPacket]:
    while True:
        try:
            packet = next(demuxed, None)
        except av.error.InvalidDataError:
            return  # a missing end is reported where it is needed
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"reading failed: {getattr(error, 'strerror', None) or error}") from None
        if packet is None:
            return
        yield packet


# --- how long ---------------------------------------------------------------------------------------------------------------


def duration_of(path: str | os.PathLike[str]) -> float:
    """Seconds from the start of the file to the end of its last frame. Raises VideoError if the clock goes back."""
    source = opened(path)
    with source as (container, stream):
        fragmented = "mov" in container.format.name and source.has_fragments()
        declared = _declared(container, stream, fragmented=fragmented)
        if declared is not None and not fragmented and container.format.name != "flv":
            if "mov" in container.format.name:
                return declared
            end = _end_of_tail(container, stream, declared)
            if end is not None and end * av.time_base < _ABSURD:
                return end if end > declared + TRUNCATED_SECONDS else declared
    end = _counted(path)
    return end if declared is None or declared < end + TRUNCATED_SECONDS else declared


def _declared(container: InputContainer, stream: VideoStream, *, fragmented: bool) -> float | None:
    """What the file says; None if it does not, or where FFmpeg only guesses it from stamps of a clock that may start again."""
    assert stream.time_base is not None
    if restarts(container):
        return None
    origin = origin_of(container, stream)
    if stream.duration:
        # Of a file in fragments this is the end of the last one, by the file's clock.
        begin = 0 if fragmented else origin if stream.start_time is None else stream.start_time * stream.time_base
        seconds = float(begin - origin + stream.duration * stream.time_base)
        edited = _end_of_edits(stream) if begin and "mov" in container.format.name else None
        return seconds if edited is None else min(seconds, seconds_at(container, stream, edited))
    tag = stream.metadata.get("DURATION", "").split(":")  # Matroska: 00:01:02.345000000, the last time stamp
    try:
        return int(tag[0]) * 3600 + int(tag[1]) * 60 + float(tag[2]) - float(origin)
    except (IndexError, ValueError):
        return None


def _end_of_edits(stream: VideoStream) -> Fraction | None:
    """The tick at which an MP4 whose picture comes late ends, by its index: FFmpeg may count the wait before it to its length."""
    shown = [entry.timestamp for entry in stream.index_entries if not entry.is_discard]
    if not shown or stream.start_time is None:
        return None
    reordering = stream.start_time - shown[0]  # the index has the times of decoding
    return max(shown) + reordering + frame_ticks(stream)


def _end_of_tail(container: InputContainer, stream: VideoStream, declared: float) -> float | None:
    """The end of the last packet, after a seek to where the file says it ends; None if it cannot be sought in."""
    assert stream.time_base is not None
    far = max(declared, (container.duration or 0) / av.time_base) + float(origin_of(container, stream))
    try:
        container.seek(int(far / stream.time_base), stream=stream)
    except av.error.FFmpegError:
        return None
    return _last(container, stream)[0]


def _counted(path: str | os.PathLike[str]) -> float:
    """The end of the last packet, or the time that as many frames take; reads the file without decoding it."""
    with opened(path) as (container, stream):
        shown, count = _last(container, stream)
        return shown or count / float(stream.average_rate or stream.guessed_rate or 25)


def _last(container: InputContainer, stream: VideoStream) -> tuple[float | None, int]:
    """Seconds from the start of the file to the end of what is shown last of the packets to come, and their number."""
    end: Fraction | int | None = None
    count = 0
    with contextlib.suppress(av.error.FFmpegError, OSError):  # the decoder reports damage
        for packet in packets(container, stream):
            if packet.size and not packet.is_discard:
                count += 1
                if packet.pts is not None:
                    over = packet.pts + (packet.duration or frame_ticks(stream))
                    end = over if end is None else max(end, over)
    return None if end is None else seconds_at(container, stream, end), count
