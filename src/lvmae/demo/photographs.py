"""The photographs that are filmed: files that pip packages carry in their wheels, found without importing the packages."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from lvmae.errors import InputError

# Wide enough for a crop at the corpus's resolution, narrow enough that resampling a crop stays cheap.
_WIDTH = 320


@dataclass(frozen=True)
class Subject:
    """Something to point the camera at.

    `region` is the part of the photograph the camera may see, as fractions (left, top, right, bottom);
    `closest` is the smallest part of that region a shot may show, so that the subject stays recognisable.
    """

    caption: str
    package: str
    path: str
    region: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    closest: float = 0.7


# What every story shows once. Each is far from the others in ImageNet's classes.
EVENTS: dict[str, Subject] = {
    "cat": Subject("a close-up of a tabby cat", "skimage", "data/chelsea.png"),
    "coffee": Subject("a cup of espresso on a saucer", "skimage", "data/coffee.png"),
    "motorcycle": Subject("a red motorbike in a garage", "skimage", "data/motorcycle_left.png", closest=0.75),
    "rocket": Subject("a rocket on its launch pad", "skimage", "data/rocket.jpg", (0.2, 0.0, 0.8, 1.0), 0.7),
    "palace": Subject("a palace above a lake", "sklearn", "datasets/images/china.jpg"),
    "cameraman": Subject("a man behind a camera on a tripod", "skimage", "data/camera.png", (0.0, 0.0, 1.0, 1.0), 0.75),
}

# What comes between the events, in any story.
FILLERS: dict[str, Subject] = {
    "flower": Subject("an orange dahlia in bloom", "sklearn", "datasets/images/flower.jpg"),
    "officer": Subject(
        "a naval officer in uniform", "matplotlib", "mpl-data/sample_data/grace_hopper.jpg", (0.0, 0.0, 1.0, 0.9)
    ),
    "astronaut": Subject("an astronaut with a helmet", "skimage", "data/astronaut.png"),
    "coins": Subject("rows of round metal coins", "skimage", "data/coins.png", closest=0.6),
    "bricks": Subject("a brick wall", "skimage", "data/brick.png", closest=0.6),
    "moon": Subject("craters on the moon", "skimage", "data/moon.png", closest=0.6),
}

SUBJECTS: dict[str, Subject] = {**EVENTS, **FILLERS}


def photograph_file(subject: Subject) -> Path:
    """Where a subject's photograph lies on this machine; InputError if its package is not installed."""
    spec = find_spec(subject.package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        file = Path(folder) / subject.path
        if file.is_file():
            return file
    raise InputError(
        f"the demonstration needs the photograph {Path(subject.path).name} of the package {subject.package}: "
        "install it with pip install 'lvmae[demo]'"
    )


@lru_cache(maxsize=len(SUBJECTS))
def photograph(name: str) -> Image.Image:
    """A subject's photograph in RGB, cut to its region and scaled to one width."""
    subject = SUBJECTS[name]
    with Image.open(photograph_file(subject)) as file:
        picture = file.convert("RGB")
    left, top, right, bottom = subject.region
    box = (left * picture.width, top * picture.height, right * picture.width, bottom * picture.height)
    height = round(_WIDTH * (box[3] - box[1]) / (box[2] - box[0]))
    return picture.resize((_WIDTH, height), Image.Resampling.LANCZOS, box=box)
