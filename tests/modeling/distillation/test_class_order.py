"""Which confusions of classes are another order of them."""

import pytest
import torch

from d2kd.modeling.distillation.examination.class_order import find_class_order


def votes(names, counts, num_names=None, right=0.9):
    """Objects of each class, ``right`` of which get the name ``names[class]``; the others are spread over all names."""
    num_names = num_names or len(names)
    table = torch.zeros(len(names), num_names, dtype=torch.float64)
    for row, (name, count) in enumerate(zip(names, counts, strict=True)):
        table[row] += count * (1 - right) / num_names
        table[row, name] += count * right
    return table


@pytest.mark.parametrize("right", [1.0, 0.7])
def test_the_order_is_right(right):
    assert find_class_order(votes([0, 1, 2, 3], [20, 9, 4, 0], right=right), range(4)) is None


@pytest.mark.parametrize("names", [[1, 2, 3, 0], [1, 0, 3, 2], [0, 3, 2, 1], [3, 2, 1, 0]])
def test_another_order(names):
    found = find_class_order(votes(names, [12, 8, 15, 9], right=0.7), range(4))
    assert found == dict(enumerate(names))


def test_every_class_moved_on_by_one_though_most_are_rare():
    """80 classes, of which few objects were seen: those that were seen tell the order of theirs."""
    counts = [1 if i % 3 else 0 for i in range(79)] + [3]
    found = find_class_order(votes([(i + 1) % 80 for i in range(80)], counts, right=1.0), range(80))
    assert all(found[i] == (i + 1) % 80 for i in range(80) if counts[i])


def test_a_class_that_is_taken_for_another_is_a_weakness():
    """The teacher calls trucks cars, and cars too."""
    assert find_class_order(votes([0, 1, 1], [10, 30, 12]), range(3)) is None
    assert find_class_order(votes([0, 0, 0], [10, 30, 12]), range(3)) is None
    assert find_class_order(votes([0, 1, 1], [30, 0, 12]), range(3)) is None  # no cars were seen


def test_few_objects_tell_nothing():
    assert find_class_order(votes([1, 0], [3, 3]), range(2)) is None
    assert find_class_order(torch.zeros(3, 3), range(3)) is None


def test_random_names_are_no_order():
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        names = torch.randint(5, (84,), generator=generator)
        classes = torch.randint(5, (84,), generator=generator)
        table = torch.zeros(5, 5).index_put_((classes, names), torch.ones(84), accumulate=True)
        assert find_class_order(table, range(5)) is None


def test_a_map_to_the_wrong_ones_of_more_classes():
    """Of a teacher's six classes two are mapped, the second to one that is another."""
    assert find_class_order(votes([4, 2], [10, 12], 6), [4, 3]) == {0: 4, 1: 2}


def test_the_class_that_is_left_takes_the_place_that_is_left():
    assert find_class_order(votes([1, 2, 0], [12, 10, 0]), range(3)) == {0: 1, 1: 2, 2: 0}
