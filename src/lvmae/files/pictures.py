"""Pictures by matplotlib that come out the same whatever a user's matplotlibrc says, with plain text in every script."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lvmae.errors import WorkError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

# Fonts for scripts that matplotlib's own does not have; those that are installed are used where a letter needs them.
_SCRIPT_FONTS = (
    "Noto Sans", "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Noto Sans SC", "Noto Sans JP", "Noto Sans KR",
    "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "PingFang SC", "Hiragino Sans", "Noto Sans Arabic", "Noto Naskh Arabic", "Noto Sans Hebrew",
    "Noto Sans Devanagari", "Noto Sans Bengali", "Noto Sans Tamil", "Noto Sans Thai", "Noto Sans Ethiopic", "Unifont",
    "Arial Unicode MS", "Noto Emoji",
)  # fmt: skip


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """matplotlib's own settings within the block, the caller's after it: no LaTeX, and `$` is a dollar."""
    import matplotlib
    from matplotlib import font_manager

    installed = {font.name for font in font_manager.fontManager.ttflist}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "text.usetex": False,
                "text.parse_math": False,
                "axes.formatter.use_mathtext": False,
                "font.family": ["DejaVu Sans", *(name for name in _SCRIPT_FONTS if name in installed)],
                "svg.hashsalt": "lvmae",
            }
        )
        yield


def png_of(figure: Callable[[], Figure], *, dpi: int) -> bytes:
    """A figure as PNG. Raises WorkError, in one sentence, where matplotlib cannot draw it."""
    buffer = io.BytesIO()
    try:
        with drawing():
            figure().savefig(buffer, dpi=dpi, format="png")
    except Exception as error:  # whatever fonts, back ends and matplotlib's plugins raise
        raise WorkError(f"the picture could not be drawn ({_in_a_line(error)})") from error
    return buffer.getvalue()


def save_figure(figure: Callable[[], Figure], *paths: Path, dpi: int, **metadata: Any) -> bool:
    """Draws a figure and writes it in the formats that the paths' suffixes say; False, and one warning, where that fails.

    A picture beside results is never worth the results.
    """
    try:
        with drawing():
            drawn = figure()
            for path in paths:
                # No date: equal results give equal files.
                drawn.savefig(path, dpi=dpi, metadata={"Date": None} if path.suffix == ".svg" else None, **metadata)
    except Exception as error:  # as above
        log.warning("%s could not be drawn (%s); everything else is written.", paths[0], _in_a_line(error))
        return False
    return True


def _in_a_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
