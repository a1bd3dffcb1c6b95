"""The Inception network of published FIDs: Inception v3 as TensorFlow's 2015 graph has it, with its quirks.

Szegedy et al. 2015, "Rethinking the Inception Architecture", with 1008 outputs. Against today's Inception v3, average
pooling leaves its padding out of the mean, and the last block pools with the maximum. The names of modules are those
of the file `pt_inception-2015-12-05-6726825d.pth`, so that it loads key for key; the numbers depend on every detail.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 299
"""Height and width of the input."""

CLASSES = 1008
"""Outputs of the classifier."""

_SPATIAL_CHANNELS = 7  # of sFID: 7 x 17 x 17 = 2023 features, about as many as the 2048 of FID


class InceptionFeatures(NamedTuple):
    """What the network says of pictures.

    Attributes:
        pooled: [N, 2048], mean over positions after the last block: of FID.
        spatial: [N, 2023], the first 7 channels of "mixed_6/conv", 17 x 17: of sFID (Nash et al. 2021).
        probabilities: [N, 1008], softmax of the outputs without their biases: of the inception score as published.
    """

    pooled: Tensor
    spatial: Tensor
    probabilities: Tensor


class InceptionV3(nn.Module):
    """Pictures [N, 3, 299, 299], float32 in [-1, 1], to features; never in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Convolution(32, 32, 3)
        self.Conv2d_2b_3x3 = Convolution(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Convolution(64, 80, 1)
        self.Conv2d_4a_3x3 = Convolution(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = BlockB(288)
        self.Mixed_6b = BlockC(768, 128)
        self.Mixed_6c = BlockC(768, 160)
        self.Mixed_6d = BlockC(768, 160)
        self.Mixed_6e = BlockC(768, 192)
        self.Mixed_7a = BlockD(768)
        self.Mixed_7b = BlockE(1280, mean_pooling=True)
        self.Mixed_7c = BlockE(2048, mean_pooling=False)
        self.fc = nn.Linear(2048, CLASSES)
        self.requires_grad_(False)
        self.eval()

    def forward(self, x: Tensor) -> InceptionFeatures:
        """Return the features of pictures."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [N, 64, 147, 147]
        x = functional.max_pool2d(x, 3, stride=2)  # [N, 64, 73, 73]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))  # [N, 192, 71, 71]
        x = functional.max_pool2d(x, 3, stride=2)  # [N, 192, 35, 35]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))  # [N, 288, 35, 35]
        x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))  # [N, 768, 17, 17]
        spatial = self.Mixed_6d.branch1x1(x)[:, :_SPATIAL_CHANNELS].flatten(1)  # [N, 2023]
        x = self.Mixed_6e(self.Mixed_6d(x))  # [N, 768, 17, 17]
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))  # [N, 2048, 8, 8]
        pooled = x.mean((2, 3))  # [N, 2048]
        probabilities = (pooled @ self.fc.weight.T).softmax(1)  # [N, 1008]
        return InceptionFeatures(pooled, spatial, probabilities)


def resize(pictures: Tensor) -> Tensor:
    """Scale pictures [N, C, H, W] to 299 x 299: bilinear between pixel centres, without a low-pass filter.

    Larger pictures alias. It is what published FIDs of this port do (and Parmar et al. 2022 criticise).
    """
    return functional.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear", align_corners=False, antialias=False)


def mean_pool(x: Tensor) -> Tensor:
    """Return means over 3 x 3 values around each position; at the border, over those inside."""
    return functional.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


class Convolution(nn.Module):
    """Convolution without bias, normalization by stored statistics, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int | tuple[int, int],
        *,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, C, H, W]."""
        return functional.relu(self.bn(self.conv(x)))


def _along(in_channels: int, out_channels: int, *, rows: bool, length: int) -> Convolution:
    """Return a convolution along the columns of a row (1 x length), or along the rows (length x 1)."""
    half = length // 2
    if rows:
        return Convolution(in_channels, out_channels, (length, 1), padding=(half, 0))
    return Convolution(in_channels, out_channels, (1, length), padding=(0, half))


class BlockA(nn.Module):
    """Figure 5 of the source: 5 x 5 and two 3 x 3 beside 1 x 1 and a pool."""

    def __init__(self, channels: int, pool_channels: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 64, 1)
        self.branch5x5_1 = Convolution(channels, 48, 1)
        self.branch5x5_2 = Convolution(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, padding=1)
        self.branch_pool = Convolution(channels, pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, C, 35, 35]."""
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(mean_pool(x)),
        ]
        return torch.cat(branches, 1)


class BlockB(nn.Module):
    """Halves height and width: 35 to 17."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3 = Convolution(channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = Convolution(channels, 64, 1)
        self.branch3x3dbl_2 = Convolution(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Convolution(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, C, 35, 35]."""
        deep = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), deep, functional.max_pool2d(x, 3, stride=2)], 1)


class BlockC(nn.Module):
    """Figure 6 of the source: 7 x 7 as 1 x 7 and 7 x 1."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.branch1x1 = Convolution(channels, 192, 1)
        self.branch7x7_1 = Convolution(channels, inner, 1)
        self.branch7x7_2 = _along(inner, inner, rows=False, length=7)
        self.branch7x7_3 = _along(inner, 192, rows=True, length=7)
        self.branch7x7dbl_1 = Convolution(channels, inner, 1)
        self.branch7x7dbl_2 = _along(inner, inner, rows=True, length=7)
        self.branch7x7dbl_3 = _along(inner, inner, rows=False, length=7)
        self.branch7x7dbl_4 = _along(inner, inner, rows=True, length=7)
        self.branch7x7dbl_5 = _along(inner, 192, rows=False, length=7)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, 768, 17, 17]."""
        deep = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(deep)),
            self.branch_pool(mean_pool(x)),
        ]
        return torch.cat(branches, 1)


class BlockD(nn.Module):
    """Halves height and width: 17 to 8."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = Convolution(channels, 192, 1)
        self.branch3x3_2 = Convolution(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Convolution(channels, 192, 1)
        self.branch7x7x3_2 = _along(192, 192, rows=False, length=7)
        self.branch7x7x3_3 = _along(192, 192, rows=True, length=7)
        self.branch7x7x3_4 = Convolution(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, 768, 17, 17]."""
        deep = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = [
            self.branch3x3_2(self.branch3x3_1(x)),
            self.branch7x7x3_4(deep),
            functional.max_pool2d(x, 3, stride=2),
        ]
        return torch.cat(branches, 1)


class BlockE(nn.Module):
    """Figure 7 of the source: 1 x 3 and 3 x 1 side by side; the last of the network pools with the maximum."""

    def __init__(self, channels: int, *, mean_pooling: bool) -> None:
        super().__init__()
        self.mean_pooling = mean_pooling
        self.branch1x1 = Convolution(channels, 320, 1)
        self.branch3x3_1 = Convolution(channels, 384, 1)
        self.branch3x3_2a = _along(384, 384, rows=False, length=3)
        self.branch3x3_2b = _along(384, 384, rows=True, length=3)
        self.branch3x3dbl_1 = Convolution(channels, 448, 1)
        self.branch3x3dbl_2 = Convolution(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = _along(384, 384, rows=False, length=3)
        self.branch3x3dbl_3b = _along(384, 384, rows=True, length=3)
        self.branch_pool = Convolution(channels, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply it, [N, C, 8, 8]."""
        wide = self.branch3x3_1(x)
        deep = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = mean_pool(x) if self.mean_pooling else functional.max_pool2d(x, 3, stride=1, padding=1)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(wide),
            self.branch3x3_2b(wide),
            self.branch3x3dbl_3a(deep),
            self.branch3x3dbl_3b(deep),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, 1)
