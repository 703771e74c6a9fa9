"""A decoded frame -> the picture that is shown: square pixels, upright, not mirrored, of the size that is wanted.

Enters: a frame of FFmpeg, of any size and pixel format. Leaves: uint8 RGB (H, W, 3). Price: one scaling, by FFmpeg.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.frame import VideoFrame
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream

# --- the shape of a pixel -----------------------------------------------------------------------------------------------------

# These formats have a field for it, which counts for the whole film; in others every sequence of pictures says its own.
_ONE_ASPECT = frozenset({"mov", "matroska", "avi", "asf", "mxf"})


@dataclass
class _Aspect:
    """What the decoder knew when it had read a packet: it travels with the packet to its frame."""

    value: Fraction | None = None


def decoded(stream: VideoStream, packet: av.Packet[VideoStream] | None) -> list[VideoFrame]:
    """The frames that a packet sets free (None: those that are left); `aspect_of` knows each one's pixels."""
    context = stream.codec_context
    if packet is None or not packet.size or not context.copy_opaque:
        return context.decode(packet)
    aspect = _Aspect()
    packet.opaque = aspect
    frames = context.decode(packet)
    aspect.value = context.sample_aspect_ratio
    return frames


def has_one_aspect(stream: VideoStream) -> bool:
    """Whether the format of the file says the shape of a pixel, once for all."""
    return not _ONE_ASPECT.isdisjoint(stream.container.format.name.split(","))


def aspect_of(frame: VideoFrame, stream: VideoStream) -> Fraction | None:
    """A pixel's width over its height, if known."""
    own = frame.opaque
    if isinstance(own, _Aspect) and own.value:
        return own.value
    return stream.sample_aspect_ratio


def displayed_size(frame: VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """Width and height in square pixels, before the picture is turned; `aspect` is a pixel's width over its height, if known."""
    return max(1, round(frame.width * (aspect or 1))), frame.height


# --- upright ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Orientation:
    """How a picture is to be shown: rows and columns exchanged, then turned upside down, then mirrored left to right."""

    transposes: bool = False
    flips: bool = False
    mirrors: bool = False

    def upright(self, picture: np.ndarray) -> np.ndarray:
        """A view (H, W, 3) of a picture as it is shown."""
        if self.transposes:
            picture = picture.swapaxes(0, 1)
        if self.flips:
            picture = picture[::-1]
        return picture[:, ::-1] if self.mirrors else picture


_AS_IT_IS = Orientation()
# By quarter turns, counter-clockwise.
_TURNED = (_AS_IT_IS, Orientation(True, flips=True), Orientation(False, True, True), Orientation(True, mirrors=True))
# PyAV 18 frees the name of a colour profile twice once the side data of a frame were looked at. PNG files have such names, so
# of frames in their formats only the turn is asked for.
_OF_STILLS = ("gray", "ya", "pal", "mono")


def orientation_of(frame: VideoFrame) -> Orientation:
    """What the display matrix asks for, to the nearest quarter of a turn, as ffmpeg and players apply it."""
    if frame.format.is_rgb or frame.format.name.startswith(_OF_STILLS):
        return _TURNED[round(frame.rotation / 90) % 4]
    side_data: Any
    try:
        side_data = frame.side_data
        data = side_data[SideDataType.DISPLAYMATRIX]
    except KeyError:
        return _AS_IT_IS
    except ValueError:  # the frame also has data of a kind that PyAV does not know
        return _TURNED[round(frame.rotation / 90) % 4]
    a, b, _, c, d, *_ = np.frombuffer(bytes(data), np.int32, count=9).tolist()
    # A point (x, y) of the picture is shown at (a x + c y, b x + d y).
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(True, flips=b < 0, mirrors=c < 0)
    return Orientation(False, flips=d < 0, mirrors=a < 0)


# --- pixels -------------------------------------------------------------------------------------------------------------------


_HDR = frozenset({int(ColorTrc.SMPTE2084), int(ColorTrc.ARIB_STD_B67)})  # PQ and HLG
_SDR: dict[str, Any] = {"dst_color_trc": ColorTrc.BT709, "dst_color_primaries": ColorPrimaries.BT709}


class Cropped:
    """Frame -> uint8 RGB (size, size, 3): short side resized, centre cropped, turned upright. One scaler, one thread."""

    def __init__(self, size: int, interpolation: Interpolation = Interpolation.BICUBIC) -> None:
        self.size = size
        self.interpolation = interpolation
        self.scaler = VideoReformatter()

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        scale = self.size / min(width, height)
        return max(self.size, round(width * scale)), max(self.size, round(height * scale))

    def __call__(self, frame: VideoFrame, aspect: Fraction | None) -> np.ndarray:
        orientation = orientation_of(frame)
        width, height = self.target(*displayed_size(frame, aspect), turned=orientation.transposes)
        # Colours of an HDR film are brought to what other films have: BT.709, 203 cd/m2 as white (ITU-R BT.2408).
        colours = _SDR if frame.color_trc in _HDR else {}
        scaled: Any = self.scaler.reformat(
            frame, width, height, "rgb24", interpolation=self.interpolation, threads=1, **colours
        )
        plane = scaled.planes[0]
        rows = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[:height]
        picture = rows[:, : width * 3].reshape(height, width, 3)
        return self.cut(orientation.upright(picture))

    def cut(self, picture: np.ndarray) -> np.ndarray:
        top, left = (picture.shape[0] - self.size) // 2, (picture.shape[1] - self.size) // 2
        return picture[top : top + self.size, left : left + self.size]


class Stretched(Cropped):
    """Frame -> uint8 RGB (size, size, 3): the whole picture, its aspect given up."""

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        return self.size, self.size


FRAMINGS = {"crop": Cropped, "stretch": Stretched}


class Whole(Cropped):
    """Frame -> uint8 RGB (size, W, 3): the whole picture, `size` high once upright."""

    def target(self, width: int, height: int, turned: bool) -> tuple[int, int]:
        scale = self.size / (width if turned else height)
        return max(1, round(width * scale)), max(1, round(height * scale))

    def cut(self, picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(picture)
