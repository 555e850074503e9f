"""What a loss says of its regions: which, with which options, divided by what."""

import pytest
import torch

from d2kd.losses import BinaryClassificationKD, RegionSpec
from d2kd.regions import REGION_REGISTRY


@pytest.fixture(scope="module")
def halves():
    """A function that makes two regions."""

    @REGION_REGISTRY.register()
    def halves(source, teacher, assignment, *, share=(0.5, 0.5)):
        return {name: [x.float() * s for x in assignment.valid] for name, s in zip(("left", "right"), share)}

    yield "halves"
    del REGION_REGISTRY._obj_map["halves"]


def spec(region, normalizer="positives"):
    return RegionSpec.of("Loss", region=region, normalizer=normalizer)


def test_a_plain_name():
    one = spec("gap")
    assert (one.name, one.function, one.member, one.options, one.label) == ("gap", "gap", "", {}, "")
    assert one == spec({"name": "gap"}) and one.label_free and not spec("positives").label_free


def test_regions_of_one_function_and_its_options_are_made_together(halves):
    left, right = (spec({"name": f"halves.{side}", "share": [0.25, 0.75]}) for side in ("left", "right"))
    assert left.function_key == right.function_key == ("halves", ("share", (0.25, 0.75)))
    assert (left.function, left.member, right.member) == ("halves", "left", "right")
    assert spec("halves.left").function_key != left.function_key


@pytest.mark.parametrize(
    "region, message",
    [
        ("halves", "Loss.region is 'halves', expected halves.left or halves.right"),
        ("halves.middle", "Loss.region is 'halves.middle', expected halves.left or halves.right"),
        ({"name": "halves.left.left"}, "Loss.region is 'halves.left.left', expected halves.left or"),
        ("positives.left", r"Loss.region is 'positives.left', expected positives\.$"),
        ("quarters.left", "Loss.region is 'quarters.left', expected one of all_locations, "),
        ({"name": "halves.left", "side": 1}, "Loss.region 'halves' has no option 'side'; it has share"),
    ],
)
def test_a_region_that_is_not_there_is_named(halves, region, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        spec(region)


def test_a_printed_loss_shows_its_region(halves):
    assert "region=halves.left, normalizer=positives" in repr(BinaryClassificationKD(region="halves.left"))


def test_which_dense_output_a_loss_reads():
    assert BinaryClassificationKD(tail=2).source_key == ("student", 0)
    assert BinaryClassificationKD(source="crossed", tail=2).source_key == ("crossed", 2)


class TwoRegions(BinaryClassificationKD):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.regions = tuple(
            RegionSpec.of("TwoRegions", region=x, normalizer="locations", label=x) for x in ("positives", "main")
        )

    def level_loss(self, source, teacher, level, region):
        return region.sum((1, 2, 3, 4))


def test_several_regions_are_several_sums():
    region = [torch.rand(2, 3, 1, 4, 4), torch.rand(2, 3, 1, 2, 2)]
    found = TwoRegions()(None, None, region)
    assert torch.equal(found, torch.stack([x.sum((1, 2, 3, 4)) for x in region]))
    assert "region_positives=positives, normalizer_positives=locations, region_main=main" in repr(TwoRegions())
