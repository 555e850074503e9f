"""
Composes one image of the ``digits`` dataset: handwritten digits (scikit-learn's ``load_digits``) drawn on crops of the
photographs in scikit-image's wheel. All randomness comes from the generator that a function is given;
:mod:`d2kd.data.digits.dataset` seeds it and writes the files.
"""

import importlib.resources
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

# Photographs only: no drawings, and no pages of text, which may show digits without annotations.
# ``motorcycle_right`` shows the same scene as ``motorcycle_left``. Split by hand so that each split has
# scenes in colour and grey textures.
PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        "astronaut.png",
        "brick.png",
        "cell.png",
        "clock_motion.png",
        "coins.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "retina.jpg",
    ),
    "val": ("chelsea.png", "grass.png", "rocket.jpg"),
    "test": ("camera.png", "coffee.png", "gravel.png"),
}
SAMPLE_SHARE: dict[str, float] = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the samples of each digit

CLASSES: tuple[str, ...] = ("0", "1", "2", "3", "4")  # to detect; the other digits, 5 to 9, are distractors
IMAGE_SIZE = 96  # pixels, width and height
MAX_OBJECTS = 4
OBJECT_SIZE = (20.0, 48.0)  # pixels, side of the square that a sample is scaled to, log-uniform
MAX_CROP = 384.0  # pixels of a photograph shown in one image; more would shrink every texture to a blur
MAX_OVERLAP = 0.25  # of the smaller box
MIN_CONTRAST = 0.35  # mean absolute difference of the colour channels from the background, in [0, 1]
MIN_COVERAGE = 0.2  # a fainter pixel of a glyph is not drawn, so that a box is exactly what was drawn

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, x1 and y1 exclusive


@dataclass(frozen=True)
class Material:
    """
    Attributes:
        samples: (N, 8, 8) float32 in [0, 1], ink of the handwritten digits, in the order of ``load_digits``.
        labels: (N,) int, the digit that each sample shows, 0 to 9.
        photos: RGB photographs by file name.
    """

    samples: np.ndarray
    labels: np.ndarray
    photos: dict[str, Image.Image]


@dataclass(frozen=True)
class Drawn:
    """A digit in the image: the index of its sample in ``load_digits``, and its tight box."""

    sample: int
    box: Box


@dataclass(frozen=True)
class Composition:
    """
    Attributes:
        pixels: (96, 96, 3) uint8, RGB.
        photo: file name of the photograph behind.
        objects: the digits of :data:`CLASSES`, at least one.
        distractor: another digit, or None.
    """

    pixels: np.ndarray
    photo: str
    objects: tuple[Drawn, ...]
    distractor: Drawn | None


def load_material() -> Material:
    """
    Read the digits and photographs of the installed scikit-learn and scikit-image. Nothing is downloaded.

    Raises:
        ImportError: one of them is missing, or this scikit-image does not bundle a photograph that is needed.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 - optional, like scikit-image

        folder = importlib.resources.files("skimage") / "data"
    except ModuleNotFoundError as error:
        raise ImportError(
            "The digits dataset is made from scikit-learn and scikit-image, but "
            f"{error.name} is not installed. Install both with `pip install scikit-learn scikit-image`; they "
            "are d2kd's extra [demo], so `pip install -e '.[demo]'` in a clone of d2kd does the same."
        ) from error
    digits = load_digits()
    photos = {}
    for name in sorted(name for names in PHOTOS.values() for name in names):
        try:
            with (folder / name).open("rb") as f:
                photos[name] = Image.open(f).convert("RGB")
        except FileNotFoundError as error:
            raise ImportError(
                f"The installed scikit-image does not bundle the photograph {name}, which the digits dataset "
                "needs. Install one that does: `pip install 'scikit-image>=0.20'`."
            ) from error
    return Material(samples=(digits.images / 16.0).astype(np.float32), labels=digits.target, photos=photos)


def split_samples(labels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """
    Distribute the samples of each digit over train, val and test. The data do not name the writers, so one person's
    handwriting can be in several splits; one sample never is.

    Args:
        labels: (N,) digit of each sample.
    Returns:
        Sorted indices into ``labels`` by split, disjoint, together all of them.
    """
    rng = np.random.default_rng(seed)
    pools: dict[str, list[int]] = {split: [] for split in SAMPLE_SHARE}
    for label in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == label))
        ends = np.round(np.cumsum(list(SAMPLE_SHARE.values())) * len(order)).astype(int)
        for split, part in zip(SAMPLE_SHARE, np.split(order, ends[:-1]), strict=True):
            pools[split].extend(part.tolist())
    return {split: np.sort(pool) for split, pool in pools.items()}


def background(photo: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """A random square of the photograph, flipped and turned at random: (96, 96, 3) float32 in [0, 1]."""
    side = math.exp(rng.uniform(math.log(IMAGE_SIZE), math.log(min(MAX_CROP, *photo.size))))
    x, y = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    crop = photo.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    pixels = np.rot90(np.asarray(crop, dtype=np.float32) / 255.0, k=int(rng.integers(4)))
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return pixels.copy()


def glyph(sample: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """
    Enlarge and distort one sample at random.

    Args:
        sample: (8, 8) float32 in [0, 1].
    Returns:
        (h, w) float32 coverage, either 0 or in [0.2, 1], cropped so that every border has a covered pixel.
    """
    size = math.exp(rng.uniform(*np.log(OBJECT_SIZE)))
    angle, shear = math.radians(rng.uniform(-12, 12)), rng.uniform(-0.2, 0.2)
    stretch = math.exp(rng.uniform(-0.25, 0.25) / 2)  # width / height changes by exp(+-0.25)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    forward = size / 8 * turn @ np.array([[1, shear], [0, 1]]) @ np.diag([stretch, 1 / stretch])
    ink = np.pad(sample, 2)  # room for the interpolation to fade out
    canvas = math.ceil(2 * size)
    inverse = np.linalg.inv(forward)
    offset = ink.shape[0] / 2 - inverse @ np.full(2, canvas / 2)  # centre onto centre
    coefficients = (*inverse[0], offset[0], *inverse[1], offset[1])
    drawn = Image.fromarray(ink).transform(
        (canvas, canvas), Image.Transform.AFFINE, coefficients, resample=Image.Resampling.BICUBIC
    )
    # The samples are block counts of a bitmap; a steeper interpolation makes the edges of strokes sharp again.
    coverage = np.clip((np.asarray(drawn) - 0.25) / 0.4, 0, 1)
    coverage[coverage < MIN_COVERAGE] = 0
    rows, columns = np.flatnonzero(coverage.any(axis=1)), np.flatnonzero(coverage.any(axis=0))
    return coverage[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def overlap(a: Box, b: Box) -> float:
    """Intersection of two boxes as a share of the smaller one."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0) * max(height, 0) / smaller


def place(shape: tuple[int, int], taken: list[Box], rng: np.random.Generator) -> Box | None:
    """A random box of (height, width) that leaves the others visible; None if 20 tries find none."""
    height, width = shape
    for _ in range(20):
        x, y = int(rng.integers(IMAGE_SIZE - width + 1)), int(rng.integers(IMAGE_SIZE - height + 1))
        box = (x, y, x + width, y + height)
        if all(overlap(box, other) <= MAX_OVERLAP for other in taken):
            return box
    return None


def draw(pixels: np.ndarray, coverage: np.ndarray, box: Box, rng: np.random.Generator) -> None:
    """Paint a glyph into ``pixels`` (H, W, 3), in place, in one random colour that contrasts with them."""
    behind = pixels[box[1] : box[3], box[0] : box[2]]
    mean = behind[coverage > 0].mean(axis=0)
    colours = rng.random((64, 3), dtype=np.float32)
    colours[-1] = mean < 0.5  # black or white in each channel: always has the contrast
    colour = colours[np.argmax(np.abs(colours - mean).mean(axis=1) >= MIN_CONTRAST)]
    weight = coverage[..., None] * np.float32(rng.uniform(0.8, 1.0))
    behind += weight * (colour - behind)


def compose(material: Material, photos: tuple[str, ...], pool: np.ndarray, rng: np.random.Generator) -> Composition:
    """
    Make one image: 1 to 4 digits to detect and, in half of the images, a distractor. A digit without room is left
    out.

    Args:
        photos: names of the photographs to choose from.
        pool: indices of the samples to choose from.
    """
    photo = str(rng.choice(photos))
    pixels = background(material.photos[photo], rng)
    taken: list[Box] = []

    def add(candidates: np.ndarray) -> Drawn | None:
        sample = int(rng.choice(candidates))
        coverage = glyph(material.samples[sample], rng)
        box = place(coverage.shape, taken, rng)
        if box is None:
            return None
        draw(pixels, coverage, box, rng)
        taken.append(box)
        return Drawn(sample, box)

    wanted = material.labels[pool] < len(CLASSES)
    objects = [add(pool[wanted]) for _ in range(rng.integers(1, MAX_OBJECTS + 1))]
    distractor = add(pool[~wanted]) if rng.random() < 0.5 else None
    pixels += rng.normal(0, 0.02, pixels.shape)
    return Composition(
        pixels=(np.clip(pixels, 0, 1) * 255).round().astype(np.uint8),
        photo=photo,
        objects=tuple(drawn for drawn in objects if drawn is not None),
        distractor=distractor,
    )
