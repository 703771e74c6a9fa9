"""A video file or URL -> its timeline -> frames. The only room that knows PyAV.

    source ──► container ──► clock ───► frame_selection ──► decoding ──► frames
    path, URL  one stream    times      packets to decode   resized,     uint8 RGB
                             continue                       upright      (T, H, W, 3)

`segmentation` and `shots` say where the segments of a timeline lie.
"""

from lvmae.video.decoding import decode_segments
from lvmae.video.errors import VideoError

__all__ = ["VideoError", "decode_segments"]
