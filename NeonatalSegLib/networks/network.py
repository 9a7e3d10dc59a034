"""The residual 3D U-Net with deep supervision (paper, section 2, "Pipeline Design"), from one settings object.

The settings travel with the weights (``models/bundle.py``), so that a model file says by itself how
to build its network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.tissues import NUMBER_OF_CLASSES

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class NetworkSettings:
    """Everything that is needed to build a network and to feed it.

    Attributes:
        filters: channels per level, from full resolution to the bottleneck; its length is the number of levels.
        spacing_mm: isotropic voxel edge that the network works at.
        patch: voxels (z, y, x) of a training patch; a multiple of 2 ** (levels - 1).
        heads: deep-supervision outputs besides the final one, of the levels just below full resolution.
        in_channels: T1 and T2; an absent one is fed as zeros (modality dropout in training).
        out_channels: the ten classes.
        age_head: also tell the newborn's age from the bottleneck (AgeU-Net).
    """

    filters: tuple[int, ...]
    spacing_mm: float
    patch: tuple[int, int, int]
    heads: int = 2
    in_channels: int = 2
    out_channels: int = NUMBER_OF_CLASSES
    age_head: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "filters", tuple(int(f) for f in self.filters))
        object.__setattr__(self, "patch", tuple(int(p) for p in self.patch))
        if len(self.filters) < 3 or min(self.filters) < 1:
            raise NeonatalSegError(f"A network needs at least 3 levels of filters, got {self.filters}.")
        if not 0 <= self.heads <= len(self.filters) - 2:
            raise NeonatalSegError(f"{self.heads} deep-supervision heads do not fit {len(self.filters)} levels.")
        if len(self.patch) != 3 or any(p < self.stride or p % self.stride for p in self.patch):
            raise NeonatalSegError(f"The patch {self.patch} must be a multiple of {self.stride} voxels on each axis.")
        if not 0.2 <= self.spacing_mm <= 3:
            raise NeonatalSegError(f"A network spacing of {self.spacing_mm} mm is not between 0.2 and 3 mm.")

    @property
    def stride(self) -> int:
        """Full-resolution voxels per bottleneck voxel; input sizes must be multiples of it."""
        return int(2 ** (len(self.filters) - 1))

    def to_json(self) -> dict[str, Any]:
        """For metadata.json; without an age head as before there were any, so that older versions read it."""
        data = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return data if self.age_head else {k: v for k, v in data.items() if k != "age_head"}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> NetworkSettings:
        """The inverse of :meth:`to_json`; NeonatalSegError names a missing or unknown entry."""
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise NeonatalSegError(
                f"Unknown network setting {sorted(unknown)[0]!r}: known are {', '.join(sorted(known))}."
            )
        if missing := {"filters", "spacing_mm", "patch"} - set(data):
            raise NeonatalSegError(f"The network setting {sorted(missing)[0]!r} is missing.")
        return cls(**data)


PRESETS: Mapping[str, NetworkSettings] = {
    # The paper's two sizes: filters min(2 ** (5 + i), 320), 31.4 M parameters for the big one.
    "paper-big": NetworkSettings((32, 64, 128, 256, 320, 320), 0.5, (128, 128, 128), heads=3),
    "paper-small": NetworkSettings((32, 64, 128, 256, 320), 0.6, (96, 96, 96), heads=3),
    # Half the filters, 0.8 mm: a laptop's CPU segments a newborn with it in seconds.
    "laptop": NetworkSettings((16, 32, 64, 128, 256), 0.8, (96, 96, 96), heads=2),
}


def build_network(settings: NetworkSettings) -> nn.Module:
    """MONAI's DynUNet with residual blocks, affine instance norm, 3x3x3 kernels and stride 2 between levels.

    In training mode ``net(x)`` of a (n, in, z, y, x) tensor gives the list of logits [final, head 1, head 2, ...],
    each head at half the resolution of the one before it; in evaluation mode it gives the final logits
    (n, out, z, y, x) alone. With ``settings.age_head`` there is also ``net.forward_with_age(x)``: the same, and the
    ages in weeks (n,).
    """
    from NeonatalSegLib.networks.unet import AgeUNet, ResidualUNet

    levels = len(settings.filters)
    strides = [1] + [2] * (levels - 1)
    return (AgeUNet if settings.age_head else ResidualUNet)(
        spatial_dims=3,
        in_channels=settings.in_channels,
        out_channels=settings.out_channels,
        kernel_size=[3] * levels,
        strides=strides,
        upsample_kernel_size=strides[1:],
        filters=list(settings.filters),
        norm_name=("INSTANCE", {"affine": True}),
        deep_supervision=settings.heads > 0,
        deep_supr_num=max(settings.heads, 1),
        res_block=True,
    )


def parameter_count(network: nn.Module) -> int:
    """Number of trainable numbers in a network."""
    return sum(p.numel() for p in network.parameters())
