"""The networks themselves: the residual U-Net of the paper and the AgeU-Net, which also tells the newborn's age.

``network.build_network`` makes them from settings; torch and MONAI are imported here, so import this late.
"""

from __future__ import annotations

from typing import Any

import torch
from monai.networks.nets.dynunet import DynUNet, DynUNetSkipLayer
from torch import nn

TERM_WEEKS = 40.0
PAPER_AGE_CHANNELS = 512 / 320  # channels of the age head's convolution for each channel of the bottleneck


class ResidualUNet(DynUNet):
    """DynUNet whose deep-supervision heads stay at their own resolution.

    DynUNet enlarges them to full size; the paper shrinks the labels instead (section 2), which is also cheaper. The
    way down and the way up are two methods here instead of DynUNet's recursion, so that what the bottleneck holds can
    be used by another head without a second pass; the modules and the names of the weights are DynUNet's.
    """

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, list[tuple[DynUNetSkipLayer, torch.Tensor]]]:
        """The way down: bottleneck features (n, filters[-1], z, y, x), and each level with its skip features."""
        skips = []
        layer: Any = self.skip_layers
        while isinstance(layer, DynUNetSkipLayer):
            x = layer.downsample(x)
            skips.append((layer, x))
            layer = layer.next_layer
        return layer(x), skips

    def decode(self, features: torch.Tensor, skips: list[tuple[DynUNetSkipLayer, torch.Tensor]]) -> Any:
        """The way up: in training mode [final logits, head 1, ...], else the final logits."""
        heads: list[torch.Tensor] = []
        for layer, skip in reversed(skips):
            features = layer.upsample(features, skip)
            if self.training and layer.super_head is not None:
                heads.insert(0, layer.super_head(features))
        out = self.output_block(features)
        return [out, *heads] if self.training else out

    def forward(self, x: torch.Tensor) -> Any:
        return self.decode(*self.encode(x))


class AgeHead(nn.Module):
    """Bottleneck features to one age: convolution, mean over space, linear layer.

    The paper's AgeU-Net has a convolution of 512 channels behind a bottleneck of 320; a smaller bottleneck gets as
    many in proportion. With the mean over space any input size fits. The non-linearity before that mean is needed, and
    there is no norm: an instance norm takes just the mean away.

    The linear layer says how many weeks before or after term it is, and starts at zero: the first answer is 40 weeks,
    so that the squared error in weeks is never so large that it upsets the segmentation.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        width = max(1, round(channels * PAPER_AGE_CHANNELS))
        self.conv = nn.Conv3d(channels, width, 3, padding=1)
        self.act = nn.LeakyReLU(0.01)
        self.linear = nn.Linear(width, 1)
        nn.init.kaiming_normal_(self.conv.weight, a=0.01)
        for start in (self.conv.bias, self.linear.weight, self.linear.bias):
            if start is not None:
                nn.init.zeros_(start)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Ages in weeks, (n,) float32, of features (n, channels, z, y, x)."""
        pooled = self.act(self.conv(features)).float().mean((2, 3, 4))
        with torch.autocast(pooled.device.type, enabled=False):  # 16 bits would round the weeks
            return TERM_WEEKS + self.linear(pooled)[:, 0]


class AgeUNet(ResidualUNet):
    """The residual U-Net with an age head on its bottleneck (paper, section 2, "AgeU-Net").

    ``network(x)`` is that of the U-Net and leaves the age out; ``forward_with_age`` gives both in one pass.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.age_head = AgeHead(self.filters[-1])  # after the rest: with one seed, the U-Net's weights are the same

    def forward_with_age(self, x: torch.Tensor) -> tuple[Any, torch.Tensor]:
        """What ``forward`` gives, and the ages in weeks, (n,) float32."""
        features, skips = self.encode(x)
        return self.decode(features, skips), self.age_head(features)
