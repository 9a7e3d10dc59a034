"""The six transfer strategies of the paper: which blocks of a network train, found from the network itself.

Paper, section 3: "Fine-tuning only the bottleneck and adjacent layer" (shallow), "the addition of two blocks" (medium),
"four new blocks" (deep); with everything, nothing, and a new network trained from scratch that makes six.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from NeonatalSegLib.errors import NeonatalSegError
from NeonatalSegLib.networks.network import NetworkSettings

if TYPE_CHECKING:
    from torch import nn

STRATEGIES: Mapping[str, str] = {
    "none": "the model as it is",
    "shallow": "the bottleneck and the blocks beside it",
    "medium": "shallow and two blocks more, one on each side",
    "deep": "all blocks but the first, the last up-sampling one and the output",
    "full": "everything",
    "scratch": "a new network, everything, from random weights",
}


@dataclass(frozen=True)
class Selection:
    """What a strategy trains.

    Attributes:
        trained, total: numbers of parameters.
        names: of the trained parameters, as the network names them.
    """

    strategy: str
    trained: int
    total: int
    names: frozenset[str]

    @property
    def percent(self) -> float:
        return 100.0 * self.trained / self.total


def check_strategy(strategy: str) -> None:
    """NeonatalSegError where there is no such strategy."""
    if strategy not in STRATEGIES:
        raise NeonatalSegError(f"There is no strategy {strategy!r}: choose from {', '.join(STRATEGIES)}.")


def trainable_parameters(network: nn.Module, settings: NetworkSettings, strategy: str) -> Selection:
    """Set ``requires_grad`` of every parameter to what the strategy says, and count.

    The blocks are put in the order in which data passes through them; the one with the smallest output is the
    bottleneck, and a block's distance from it decides. The outputs of deep supervision train with every strategy.
    In a network of six levels, as in the paper, deep is four blocks more than medium; in one of five it is two.

    Raises:
        NeonatalSegError: no such strategy.
    """
    check_strategy(strategy)
    order, bottleneck, heads = blocks(network, settings)
    last = len(order) - 1
    reach = {"none": -1, "shallow": 1, "medium": 2}.get(strategy, last)
    chosen = [b for place, b in enumerate(order) if abs(place - bottleneck) <= reach]
    if strategy == "deep":  # not the first block, the last up-sampling one and the output
        chosen = order[1 : last - 1]
    everything = strategy in ("full", "scratch")
    wanted = {id(p) for block in [*chosen, *(heads if reach >= 0 else [])] for p in block.parameters()}
    names = set()
    trained = total = 0
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(everything or id(parameter) in wanted)
        total += parameter.numel()
        if parameter.requires_grad:
            trained += parameter.numel()
            names.add(name)
    return Selection(strategy, trained, total, frozenset(names))


def blocks(network: nn.Module, settings: NetworkSettings) -> tuple[list[nn.Module], int, list[nn.Module]]:
    """The network's blocks in the order in which data passes them, the bottleneck's place, and the supervision heads.

    Found by sending a small zero image through the network and watching its convolution blocks; no attribute names.
    """
    import torch
    from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetResBlock, UnetUpBlock

    kinds = (UnetBasicBlock, UnetOutBlock, UnetResBlock, UnetUpBlock)
    found = [m for m in network.modules() if isinstance(m, kinds)]
    inner = {id(part) for m in found for part in m.modules() if part is not m}
    passed: list[tuple[nn.Module, int]] = []
    hooks = [
        m.register_forward_hook(lambda module, _, out: passed.append((module, out[0, 0].numel())))
        for m in found
        if id(m) not in inner
    ]
    was_training = network.training
    try:
        device = next(network.parameters()).device
        size = (2 * settings.stride,) * 3  # two voxels at the bottleneck: instance norm needs more than one
        with torch.no_grad():
            network.train()(torch.zeros(1, settings.in_channels, *size, device=device))
    finally:
        network.train(was_training)
        for hook in hooks:
            hook.remove()
    outputs = [m for m, _ in passed if isinstance(m, UnetOutBlock)]
    final = max(passed, key=lambda entry: (isinstance(entry[0], UnetOutBlock), entry[1]))[0]
    heads = [m for m in outputs if m is not final]
    order = [m for m, _ in passed if m not in outputs] + [final]
    sizes = {id(m): size for m, size in passed}
    bottleneck = min(range(len(order)), key=lambda place: sizes[id(order[place])])
    return order, bottleneck, heads
