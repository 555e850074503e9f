"""A random share of a dataset, and its rest."""

import pytest

from d2kd.data import subset

DATASET = [{"file_name": f"{number}.jpg"} for number in range(20)]


def numbers(items):
    return [DATASET.index(item) for item in items]


class TestSubset:
    def test_share_and_rest_are_the_whole_in_its_order(self):
        share, rest = (numbers(subset(DATASET, share=0.33, seed=4, rest=rest)) for rest in (False, True))
        assert len(share) == 7 and sorted(share) == share and sorted(rest) == rest
        assert sorted(share + rest) == list(range(20))

    def test_the_choice_is_the_same_everywhere(self):
        assert numbers(subset(DATASET, share=0.2)) == [1, 8, 18, 19]

    def test_a_smaller_share_is_part_of_a_larger_one(self):
        small, large = (set(numbers(subset(DATASET, share=share, seed=1))) for share in (0.2, 0.5))
        assert small < large

    def test_another_seed_is_another_choice(self):
        assert subset(DATASET, share=0.5, seed=0) != subset(DATASET, share=0.5, seed=1)

    def test_the_whole(self):
        assert subset(DATASET, share=1) == DATASET

    @pytest.mark.parametrize("share", [0, -0.1, 1.01, float("nan"), 33])
    def test_a_share_outside_its_range_is_refused(self, share):
        with pytest.raises(ValueError, match=r"share=.*: expected a number over 0 and at most 1\.$"):
            subset(DATASET, share=share)

    @pytest.mark.parametrize("options", [{"share": 0.01}, {"share": 1, "rest": True}])
    def test_nothing_left_is_refused(self, options):
        with pytest.raises(ValueError, match="of 20 images leaves none"):
            subset(DATASET, **options)


@pytest.mark.parametrize("share", ["0.3", None, float("nan")])
def test_a_share_that_is_no_number(share):
    with pytest.raises(ValueError, match="expected a number over 0 and at most 1"):
        subset([{}] * 10, share)
