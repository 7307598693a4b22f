"""Fourier transforms over positions: channels that are 0 go, and transforms over channels keep all."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from speedup.testing import KINDS, check_equal, mask_indices, random_masks, randomize

GONE = [1, 4, 6]
SIZE = 6


class Net(nn.Module):
    """A convolution, what is tested, and a layer that reads the channels."""

    def __init__(self, body: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.o = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)
        self.filters = nn.Parameter(torch.randn(SIZE, SIZE // 2 + 1, 8, 2))
        self.mix = nn.Parameter(torch.randn(8, 8, 2, 2, dtype=torch.complex128))
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.o(self.body(self, self.a(x)))
        return result


def global_filter(net: Net, a: Tensor) -> Tensor:
    """As in GFNet: channels last, and a filter for each channel."""
    spectrum = torch.fft.rfft2(a.permute(0, 2, 3, 1), dim=(1, 2), norm="ortho")
    spectrum = spectrum * torch.view_as_complex(net.filters)
    return torch.fft.irfft2(spectrum, s=(SIZE, SIZE), dim=(1, 2), norm="ortho").permute(0, 3, 1, 2)


def operator(net: Net, a: Tensor) -> Tensor:
    """As in a Fourier neural operator: the low frequencies are mixed over channels."""
    spectrum = torch.fft.rfft2(a)
    out = torch.zeros(len(a), net.mix.shape[1], *spectrum.shape[2:], dtype=spectrum.dtype)
    out[:, :, :2, :2] = torch.einsum("bixy,ioxy->boxy", spectrum[:, :, :2, :2], net.mix.to(spectrum.dtype))
    return torch.fft.irfft2(out, s=a.shape[-2:])


BODIES: dict[str, tuple[Callable[[Net, Tensor], Tensor], int]] = {
    "global filter": (global_filter, 5),
    "operator": (operator, 8),  # what is mixed is no constant any more
    "one axis": (lambda n, a: torch.fft.ifft(torch.fft.fft(a)).real, 5),
    "real numbers": (lambda n, a: torch.fft.irfft(torch.fft.rfft(a, dim=2), n=a.shape[2], dim=2), 5),
    "two axes": (lambda n, a: torch.fft.ifft2(torch.fft.fft2(a)).real, 5),
    "named axes": (lambda n, a: torch.fft.ifftn(torch.fft.fftn(a, dim=(-1, 2)), dim=(2, -1)).real, 5),
    "sizes": (lambda n, a: torch.fft.irfftn(torch.fft.rfftn(a, s=a.shape[2:]), s=a.shape[2:]), 5),
    "shifted": (lambda n, a: torch.fft.fftshift(torch.fft.fft2(a), dim=(-2, -1)).abs(), 5),
    "parts": (lambda n, a: torch.view_as_real(torch.fft.fft2(a)).sum(-1), 5),
    "channels": (lambda n, a: torch.fft.fft(torch.fft.fft(a, dim=1), dim=-1).real, 8),
    "all axes": (lambda n, a: torch.fft.fftn(a).real, 8),
}


@pytest.mark.parametrize("name", BODIES)
def test_channels_that_are_zero_go(name: str) -> None:
    body, left = BODIES[name]
    model = randomize(Net(body))
    masks = mask_indices(model, {"a.weight": GONE, "a.bias": GONE})
    result = check_equal(model, torch.randn(2, 3, SIZE, SIZE), masks, [torch.randn(3, 3, SIZE, SIZE)])
    assert result.shape("o.weight")[1] == left
    assert result.shape("a.weight")[0] == (5 if name == "operator" else left)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", BODIES)
def test_all_masks_stay_exact(name: str, kind: str) -> None:
    model = randomize(Net(BODIES[name][0]), 1)
    masks = {k: v for k, v in random_masks(model, 1, kind).items() if k}  # none of complex numbers
    check_equal(model, torch.randn(2, 3, SIZE, SIZE), masks, [torch.randn(3, 3, SIZE, SIZE)])
