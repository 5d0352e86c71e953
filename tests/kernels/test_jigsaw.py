"""The jigsaw of tensors: every version against the reference bit for bit, gradients, registration, bad input.

Where there is no GPU the Triton kernel runs in its interpreter (conftest.py).
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

from fastfgssl.kernels import jigsaw
from fastfgssl.kernels.derivatives import is_transformed
from fastfgssl.kernels.jigsaw.reference import jigsaw_reference
from fastfgssl.kernels.jigsaw.triton_kernel import jigsaw_triton
from helpers.further import further
from helpers.gpu import gpu_case

VERSIONS = {"public": jigsaw, "triton": jigsaw_triton, "reference": jigsaw_reference}
FORMATS = [torch.contiguous_format, torch.channels_last]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(params=["cpu", gpu_case("cuda")], scope="module")
def device(request) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(params=["public", "triton"])
def version(request, device):
    if request.param == "triton" and device.type == "cpu" and not INTERPRETED:
        pytest.skip("the Triton kernel runs on the GPU here")
    return VERSIONS[request.param]


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory():
    """Fresh tensors are filled with NaN, or the largest integer: what is not written stays so."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_fresh_memory_is_poisoned():
    assert torch.empty(1000).isnan().all()


def make_case(batch: int, channels: int, height: int, width: int, grid: int, device: torch.device):
    """Random images and a random permutation for each."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, channels, height, width, generator=generator)
    permutation = torch.stack([torch.randperm(grid * grid, generator=generator) for _ in range(batch)])
    return images.to(device), permutation.to(device)


def require_same_bits(version, images: torch.Tensor, permutation: torch.Tensor, grid: int) -> None:
    """The checker: values and memory format."""
    shuffled = version(images, permutation, grid)
    # compared on the CPU, where every dtype can be
    truth = jigsaw_reference(images.cpu(), permutation.cpu(), grid)
    torch.testing.assert_close(shuffled.cpu(), truth, rtol=0, atol=0)
    assert shuffled.stride() == images.stride()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.uint8, torch.uint16])
@pytest.mark.parametrize(
    ("side", "grid"),
    [(33, 11), (63, 9), (96, 32), (96, 1), (64, 64), *further((224, 16), (448, 7))],
)
def test_jigsaw_equals_reference(version, side, grid, dtype, memory_format, device):
    images, permutation = make_case(2, 3, side, side, grid, device)
    images = (images * 50).abs().to(dtype).contiguous(memory_format=memory_format)
    require_same_bits(version, images, permutation, grid)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 4),
    channels=st.integers(1, 5),
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    grid=st.integers(1, 9),
    memory_format=st.sampled_from(FORMATS),
)
def test_jigsaw_equals_reference_for_any_shape(version, device, batch, channels, height, width, grid, memory_format):
    images, permutation = make_case(batch, channels, height * grid, width * grid, grid, device)
    require_same_bits(version, images.contiguous(memory_format=memory_format), permutation, grid)


def test_strided_images_are_taken(device):
    images, permutation = make_case(2, 3, 24, 48, 4, device)
    torch.testing.assert_close(
        jigsaw(images[..., ::2], permutation, 4), jigsaw_reference(images[..., ::2], permutation, 4), rtol=0, atol=0
    )


def _inverse(images, permutation, grid):
    return jigsaw_reference(images, permutation.argsort(dim=1), grid)


def _first_permutation_for_all(images, permutation, grid):
    return jigsaw_reference(images, permutation[:1].expand_as(permutation), grid)


def _columns_first(images, permutation, grid):
    swapped = permutation.view(-1, grid, grid).transpose(1, 2).flatten(1)
    return jigsaw_reference(images, swapped, grid)


def _last_row_forgotten(images, permutation, grid):
    target = torch.empty_like(images)
    target[:, :, :-1] = jigsaw_reference(images, permutation, grid)[:, :, :-1]
    return target


@pytest.mark.parametrize("wrong", [_inverse, _first_permutation_for_all, _columns_first, _last_row_forgotten])
def test_the_checker_rejects_wrong_kernels(wrong, device):
    images, permutation = make_case(3, 3, 24, 24, 4, device)
    with pytest.raises(AssertionError):
        require_same_bits(wrong, images, permutation, 4)


def test_the_gradient_is_the_jigsaw_of_the_inverse_permutation(device):
    images, permutation = make_case(2, 3, 12, 12, 4, device)
    images.requires_grad_()
    inverse = permutation.argsort(dim=1)
    shuffled = jigsaw(images, permutation, 4)
    torch.testing.assert_close(jigsaw(shuffled, inverse, 4), images, rtol=0, atol=0)
    upstream = torch.randn_like(images)
    shuffled.backward(upstream)
    torch.testing.assert_close(images.grad, jigsaw(upstream, inverse, 4), rtol=0, atol=0)
    assert torch.autograd.gradcheck(lambda x: jigsaw(x, permutation, 4), images.detach().double().requires_grad_())


@pytest.mark.parametrize("memory_format", FORMATS)
def test_registration(memory_format, device):
    images, permutation = make_case(2, 3, 12, 12, 4, device)
    images = images.contiguous(memory_format=memory_format).requires_grad_()
    torch.library.opcheck(torch.ops.fastfgssl.jigsaw.default, (images, permutation, 4))


def test_no_graph_break_under_compile(device):
    images, permutation = make_case(2, 3, 12, 12, 4, device)
    images.requires_grad_()
    compiled = torch.compile(lambda x: jigsaw(2 * x, permutation, 4).sin(), backend="aot_eager", fullgraph=True)
    loss = compiled(images).sum()
    (gradient,) = torch.autograd.grad(loss, images)
    expected = jigsaw(2 * images, permutation, 4).sin()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), images)[0])


def test_forward_mode_and_torch_func(device):
    images, permutation = make_case(2, 3, 12, 12, 4, device)
    tangents = images.roll(1)

    def shuffle(x):
        return jigsaw(x, permutation, 4)

    assert torch.equal(torch.func.jvp(shuffle, (images,), (tangents,))[1], shuffle(tangents))
    backward = torch.func.grad(lambda x: (shuffle(x) * tangents).sum())(images)
    assert torch.equal(backward, jigsaw(tangents, permutation.argsort(dim=1), 4))


def test_torch_has_the_private_names_that_tell_of_a_transform():
    """kernels/derivatives.py has no other way; a torch without them has to be met here, not by a wrong derivative."""
    assert torch._C._functorch.maybe_current_level() is None
    assert forward_ad._current_level == -1
    assert not is_transformed()
    with forward_ad.dual_level():
        assert forward_ad._current_level == 0
        assert is_transformed()
    assert torch.func.vmap(lambda x: x * is_transformed())(torch.ones(1)).item() == 1


ORDER = torch.arange(4).expand(2, 4)


@pytest.mark.parametrize("name", ["public", "reference"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(2, 3, 8), ORDER, 2), r"images: must be \[B, C, H, W\], got shape \[2, 3, 8\]"),
        ((torch.zeros(0, 3, 8, 8), ORDER[:0], 2), r"images: must not be empty, got shape \[0, 3, 8, 8\]"),
        ((torch.zeros(2, 3, 9, 8), ORDER, 2), "grid = 2: must divide the images' height 9 and width 8"),
        ((torch.zeros(2, 3, 8, 8), ORDER, 0), "grid = 0: must divide"),
        ((torch.zeros(2, 3, 8, 8), ORDER, 2.0), "grid = 2.0: must be an int, got float"),
        ((torch.zeros(2, 3, 8, 8), ORDER.tolist(), 2), "permutation: must be a tensor, got list"),
        ((torch.zeros(2, 3, 8, 8), ORDER[:1], 2), r"permutation: must be \[2, 4\], got shape \[1, 4\]"),
        ((torch.zeros(2, 3, 8, 8), ORDER.int(), 2), "permutation: must be int64, got torch.int32"),
        ((torch.zeros(2, 3, 8, 8), ORDER.to("meta"), 2), "permutation: must be on cpu like the images, got meta"),
    ],
)
def test_bad_arguments_are_named(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        VERSIONS[name](*arguments)


def test_what_is_no_permutation_is_named_in_debug_mode(monkeypatch):
    images = torch.zeros(2, 3, 8, 8)
    order = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 2]])
    monkeypatch.setenv("FASTFGSSL_DEBUG", "1")
    with pytest.raises(ValueError, match=r"permutation: row 1 is not a permutation of 0\.\.3"):
        jigsaw(images, order, 2)
    assert np.array_equal(jigsaw(images, ORDER, 2), images)
