"""Losses of two processes, two images each, against one process with the four."""

import pytest
import torch

from tests.helpers import join_two, make_batch, run_step
from tests.modeling.detectors.helpers import LOSSES, build_given, random_maps
from tests.processes import on_two_ranks

NAMES = ("GFL", "ATSS", "DistributionATSS")
OBJECTS = (0, 0, 5, 1)  # none at all on the first rank


def step(name, images=slice(None)):
    maps = [[x[images].clone().requires_grad_() for x in level] for level in random_maps(name, num_images=4)]
    batch = make_batch([(48, 64)] * 4, objects=OBJECTS)[images]
    losses = run_step(build_given(name, maps), batch)
    values = {key: value.item() for key, value in losses.items()}
    grads = torch.autograd.grad(sum(losses.values()), [x for level in maps for x in level])
    return values, list(grads)


def worker(rank, folder):
    torch.set_num_threads(1)
    join_two(rank, f"{folder}/store")
    torch.save({name: step(name, slice(2 * rank, 2 * rank + 2)) for name in NAMES}, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    on_two_ranks(worker, str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("name", NAMES)
def test_the_mean_over_ranks_is_the_loss_of_the_whole_batch(ranks, name):
    """As DistributedDataParallel averages: with normalisers of one rank's own it would not be."""
    values, grads = step(name)
    assert list(values) == LOSSES[name]
    per_rank = [rank[name] for rank in ranks]
    for key, value in values.items():
        found = [rank[0][key] for rank in per_rank]
        assert found[0] != found[1]
        assert sum(found) / 2 == pytest.approx(value, rel=1e-5), key
    for grad, first, second in zip(grads, per_rank[0][1], per_rank[1][1], strict=True):
        found = torch.cat([first, second]) / 2
        torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-6 * grad.abs().max().item())
