"""How one image of the digits dataset is composed."""

import numpy as np
import pytest

from d2kd.data.digits import composition


@pytest.fixture(scope="module")
def material() -> composition.Material:
    return composition.load_material()


def test_pools_are_disjoint_and_complete(material):
    pools = composition.split_samples(material.labels, seed=0)
    together = np.concatenate(list(pools.values()))
    assert sorted(together) == list(range(len(material.labels)))
    for split, share in composition.SAMPLE_SHARE.items():
        counts = np.bincount(material.labels[pools[split]], minlength=10)
        np.testing.assert_allclose(counts, share * np.bincount(material.labels), atol=1)


def test_no_photo_is_in_two_splits():
    names = [name for names in composition.PHOTOS.values() for name in names]
    assert len(names) == len(set(names))


def test_a_box_is_exactly_what_was_drawn(material):
    rng = np.random.default_rng(0)
    for sample in range(50):
        coverage = composition.glyph(material.samples[sample], rng)
        box = composition.place(coverage.shape, [], rng)
        pixels = np.full((96, 96, 3), rng.random(), dtype=np.float32)
        before = pixels.copy()
        composition.draw(pixels, coverage, box, rng)
        ys, xs = np.nonzero((pixels != before).any(axis=2))
        assert box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_boxes_of_whole_images_are_tight(material, monkeypatch):
    grey = np.full((96, 96, 3), 0.5, dtype=np.float32)
    monkeypatch.setattr(composition, "background", lambda photo, rng: grey.copy())
    pool = composition.split_samples(material.labels, seed=0)["train"]
    seen = 0
    for i in range(40):
        rng = np.random.default_rng(i)
        image = composition.compose(material, composition.PHOTOS["train"], pool, rng)
        if len(image.objects) == 1 and image.distractor is None:
            ys, xs = np.nonzero(np.abs(image.pixels / 255.0 - 0.5).max(axis=2) > 0.12)
            visible = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            np.testing.assert_allclose(image.objects[0].box, visible, atol=2)
            seen += 1
    assert seen >= 3


@pytest.mark.parametrize("behind", [0.0, 0.5, 1.0])
def test_every_digit_stands_out(material, behind):
    rng = np.random.default_rng(0)
    for sample in range(30):
        coverage = composition.glyph(material.samples[sample], rng)
        pixels = np.full((*coverage.shape, 3), behind, dtype=np.float32)
        composition.draw(pixels, coverage, (0, 0, coverage.shape[1], coverage.shape[0]), rng)
        drawn = np.abs(pixels - behind).mean(axis=2)[coverage == coverage.max()]
        assert drawn.min() >= 0.8 * 0.35 * coverage.max() - 1e-6


def test_objects_leave_each_other_visible(material):
    pool = composition.split_samples(material.labels, seed=0)["train"]
    for i in range(60):
        rng = np.random.default_rng(i)
        image = composition.compose(material, composition.PHOTOS["train"], pool, rng)
        boxes = [drawn.box for drawn in (*image.objects, image.distractor) if drawn is not None]
        for k, box in enumerate(boxes):
            for other in boxes[:k]:
                assert composition.overlap(box, other) <= 0.25


def test_overlap():
    assert composition.overlap((0, 0, 10, 10), (5, 5, 9, 9)) == 1.0
    assert composition.overlap((0, 0, 10, 10), (9, 0, 19, 10)) == pytest.approx(0.1)
    assert composition.overlap((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0


def test_no_place_is_said():
    rng = np.random.default_rng(0)
    assert composition.place((20, 20), [(0, 0, 96, 96)], rng) is None
