"""Photographs that come with scikit-learn, for the self-tests of encoders."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lvmae.errors import InputError


def photograph(name: str, size: int) -> np.ndarray:
    """Returns one of scikit-learn's photographs, short side resized (bicubic) and centre-cropped: uint8 (size, size, 3).

    Raises InputError if scikit-learn is missing.
    """
    from PIL import Image, ImageOps

    spec = find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise InputError("scikit-learn is not installed: pip install lvmae.")
    with Image.open(Path(spec.origin).parent / "datasets" / "images" / name) as picture:
        return np.array(ImageOps.fit(picture.convert("RGB"), (size, size), Image.Resampling.BICUBIC))
