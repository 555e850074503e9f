"""What the kernels over feature maps share: blocks of channels, and each channel's statistics."""

import pytest
import torch

from d2kd.losses import align_statistics, channel_wise_kd, standardized_difference
from d2kd.losses.channels import center, center_again, channel_blocks, first_values, take
from tests.losses.fake_outputs import random_maps

OVER = (0, 2, 3)
KERNELS = {
    "standardized_difference": standardized_difference,
    "align_statistics": align_statistics,
    "channel_wise_kd": lambda s, t: channel_wise_kd(s, t, temperature=2.0, reduction="sum"),
}


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def cropped(x):
    return torch.nn.functional.pad(x, (0, 2, 0, 3), value=7.0)[..., : x.shape[2], : x.shape[3]]


def transposed(x):
    return x.mT.contiguous().mT


LAYOUTS = pytest.mark.parametrize("layout", [channels_last, cropped, transposed])


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (100, 90), (1000, 600)])
def test_blocks_cover_each_channel_once(size):
    maps = torch.zeros(2, 50, 1, 1).expand(2, 50, *size), torch.zeros(1, 50, 1, 1)
    channels = torch.arange(50)
    assert torch.equal(torch.cat([channels[block] for block in channel_blocks(*maps)]), channels)


def test_a_large_map_has_several_blocks_and_an_empty_one_none():
    large, small = (torch.empty(2, 50, *size, device="meta") for size in ((600, 800), (4, 4)))
    assert len(channel_blocks(small)) == 1 and len(channel_blocks(large)) == len(channel_blocks(small, large)) > 1
    assert len(channel_blocks(channels_last(large), large)) > 1 and len(channel_blocks(channels_last(large))) == 1
    assert channel_blocks(large[:0]) == channel_blocks(large[..., :0]) == []


@LAYOUTS
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_memory_layout_does_not_matter(kernel, layout):
    student, teacher = random_maps(2, 3, 4, 5), random_maps(2, 3, 4, 5, seed=1)
    results = []
    for ours, theirs in ((student, teacher), (layout(student), teacher), (student, layout(teacher))):
        result = kernel(ours.requires_grad_(), theirs)
        results.append((result, *torch.autograd.grad(result.square().sum(), ours)))
    for other in results[1:]:
        for actual, expected in zip(other, results[0], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("theirs", [torch.clone, channels_last])
def test_a_map_of_several_blocks_equals_its_parts(kernel, theirs):
    student, teacher = (random_maps(2, 8, 300, 400, seed=seed, dtype=torch.float32) for seed in (0, 1))
    student, teacher = student.requires_grad_(), theirs(teacher)
    count = len(channel_blocks(student, teacher))
    assert count > 1
    result = kernel(student, teacher)
    (grad,) = torch.autograd.grad(result.sum(), student)
    parts = [kernel(s, t) for s, t in zip(student.split(1, 1), teacher.split(1, 1), strict=True)]
    expected = torch.cat(parts, 1) if result.shape == student.shape else torch.stack(parts).mean(0)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)
    (expected_grad,) = torch.autograd.grad(expected.sum(), student)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5 * expected_grad.abs().max().item())


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_a_graph_that_is_retained_gives_the_same_gradient_again(kernel):
    student, teacher = random_maps(2, 3, 4, 5).requires_grad_(), random_maps(2, 3, 4, 5, seed=1)
    result = kernel(student, teacher)
    cotangent = random_maps(1, *result.shape, seed=2)[0]
    first, second = (torch.autograd.grad(result, student, cotangent, retain_graph=True)[0] for _ in range(2))
    (tripled,) = torch.autograd.grad(result, student, 3 * cotangent)
    assert first.any() and torch.equal(first, second)
    torch.testing.assert_close(tripled, 3 * first)


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("shape", [(0, 3, 2, 2), (2, 3, 0, 2), (2, 3, 2, 0)])
def test_no_image_and_no_cell_give_an_empty_gradient(kernel, shape):
    student, teacher = random_maps(*shape).requires_grad_(), random_maps(*shape)
    kernel(student, teacher).sum().backward()
    assert student.grad.shape == shape


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("offset", [0.0, 1.0, -300.0])
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1.0, 1e4])
def test_statistics_are_those_of_the_values_given(scale, offset, correction):
    """Of the float32 numbers that the sum has been rounded to: no digit is lost to the mean."""
    features = random_maps(2, 4, 30, 50, dtype=torch.float32) * scale + offset
    centered, offset, std = center(features, correction)
    mean = first_values(features) + offset
    exact = features.double()
    exact_mean = exact.mean(OVER, keepdim=True)
    exact_std = exact.std(OVER, correction=correction, keepdim=True)
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1e-6, atol=1e-6 * scale)
    torch.testing.assert_close(std.double(), exact_std, rtol=1e-6, atol=0)
    torch.testing.assert_close(centered.double(), exact - exact_mean, rtol=0, atol=1e-6 * exact_std.max().item())
    assert torch.equal(center_again(features, offset), centered)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.0, 0.1, 12345.678])
def test_a_constant_channel_is_centered_to_the_last_bit(value, dtype):
    features = torch.full((2, 3, 40, 50), value, dtype=dtype)
    assert not any(x.any() for x in center(features))


@LAYOUTS
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_block_is_taken_in_a_dtype(layout, dtype):
    features = random_maps(2, 5, 3, 4)
    block = take(layout(features), slice(1, 4), dtype)
    assert block.stride(1) > block.stride(3) and torch.equal(block, features[:, 1:4].to(dtype))
    assert torch.equal(take(layout(features), slice(None), dtype), features.to(dtype))
