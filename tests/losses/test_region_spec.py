"""A loss's parts: which region, which of its areas, divided by what."""

import pytest
import torch

from d2kd.losses import BinaryClassificationKD, Part
from d2kd.regions import REGION_REGISTRY


@pytest.fixture(scope="module")
def halves():
    """A region of two areas."""

    @REGION_REGISTRY.register()
    def halves(source, teacher, assignment, *, share=(0.5, 0.5)):
        return {name: [x.float() * s for x in assignment.valid] for name, s in zip(("left", "right"), share)}

    yield "halves"
    del REGION_REGISTRY._obj_map["halves"]


def part(region, normalizer="positives"):
    return Part.of("Loss", region=region, normalizer=normalizer)


def test_an_area_is_part_of_a_term_and_not_of_what_is_shared(halves):
    left, right = (part({"name": halves, "area": area, "share": [0.25, 0.75]}) for area in ("left", "right"))
    assert left.region_key == right.region_key == (halves, ("share", (0.25, 0.75)))
    assert (left.area, right.area) == ("left", "right")
    assert part({"name": halves, "area": "left"}).region_key != left.region_key


@pytest.mark.parametrize(
    "region, message",
    [
        ("halves", "Loss.region.area is None, but 'halves' has left, right"),
        ({"name": "halves", "area": "middle"}, "Loss.region.area is 'middle', but 'halves' has left, right"),
        ({"name": "positives", "area": "left"}, "Loss.region.area is 'left', but 'positives' has no areas"),
    ],
)
def test_an_area_that_is_not_there_is_named(halves, region, message):
    with pytest.raises(ValueError, match=message):
        part(region)


def test_a_printed_loss_shows_its_area(halves):
    loss = BinaryClassificationKD(region={"name": halves, "area": "left"})
    assert "region=halves, area=left, normalizer=positives" in repr(loss)


class TwoParts(BinaryClassificationKD):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.parts = tuple(Part.of("TwoParts", region=x, normalizer="locations", name=x) for x in ("positives", "main"))

    def level_loss(self, source, teacher, level, region):
        return region.sum((1, 2, 3, 4))


def test_several_terms_are_several_sums():
    region = [torch.rand(2, 3, 1, 4, 4), torch.rand(2, 3, 1, 2, 2)]
    found = TwoParts()(None, None, region)
    assert torch.equal(found, torch.stack([x.sum((1, 2, 3, 4)) for x in region]))
    assert "region_positives=positives, normalizer_positives=locations, region_main=main" in repr(TwoParts())
