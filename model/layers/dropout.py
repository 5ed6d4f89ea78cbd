"""Dropout whose mask is a pure function of the sample, the place in the network and the element.

`torch.nn.Dropout` draws from one stream a process, so its masks change with the batch size, the number of workers and
whatever was drawn before. Here each sample brings a 64-bit seed, and an element is dropped or kept by a hash of

    (the sample's seed, the number of the dropout layer, the element's index within the sample).

The mask of a sample is therefore the same in every batch and on every rank, after a restart, and when activation
checkpointing runs a block a second time: no random state is saved anywhere. A network gives each of its blocks seeds of
their own (`fold_in`) and the layers within a block numbers, so that all blocks are the same program to a compiler.
"""

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate), while training.

    Args:
        rate: probability of dropping, in [0, 1). At 0, and in evaluation, the layer is the identity.
        place: number of this layer, different for every dropout layer that is given the same seeds.
    """

    def __init__(self, rate: float, place: int) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise ValueError(f"dropout rate must be at least 0 and less than 1, not {rate}")
        self.rate = rate
        self.place = place

    def extra_repr(self) -> str:
        return f"rate={self.rate}, place={self.place}"

    def forward(self, x: Tensor, seeds: Tensor | None) -> Tensor:
        """x: (B, ...), floating point. seeds: (B,) int64; unused, and may be None, where the layer is the identity."""
        if not self.training or self.rate == 0:
            return x
        if seeds is None:
            raise ValueError("dropout in training needs the seed of every sample")
        keep = keep_mask(seeds, self.place, x[0].numel(), self.rate).view(x.shape)
        return torch.where(keep, x * (1 / (1 - self.rate)), 0.0)  # `where` keeps one byte an element for backward


def keep_mask(seeds: Tensor, place: int, elements: int, rate: float) -> Tensor:
    """(B, elements) bool, each True with probability 1 - rate. seeds: (B,) int64.

    Seed and place make one 32-bit key a sample. The key XOR the scattered element index is scattered once more; that
    hash is a signed number, uniform on [-2^31, 2^31), and is compared with the point that leaves `rate` of them below.
    Scattering the index first keeps two samples' keys from meeting the same run of words in another order.
    """
    key = fold_in(seeds, place).to(torch.int32)
    index = mix32(torch.arange(elements, dtype=torch.int32, device=seeds.device))
    return mix32(key[:, None] ^ index) >= round(rate * 2**32) - 2**31


def fold_in(seeds: Tensor, number: int) -> Tensor:
    """New seeds for part `number` of whatever `seeds` stand for, (B,) int64: as good as independent of each other.

    The finaliser of splitmix64 (Steele, Lea and Flood, 2014) on seeds + number * an odd constant, in int64, which
    holds the same bits as an unsigned word: sums and products wrap alike, and `_shift` pulls in zeros.
    """
    x = seeds + _signed(number * 0xD1342543DE82EF95)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit moves every output bit with probability near one half.

    This is `lowbias32` (C. Wellons, "Prospecting for Hash Functions", 2018; public domain):
    x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16, on unsigned words. int32 holds the
    same bits: products wrap alike, a constant above 2^31 is written minus 2^32, and the sign bits that an arithmetic
    shift pulls in are masked away.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    """The number whose 64-bit two's complement is the lowest 64 bits of `word`."""
    return (word + 2**63) % 2**64 - 2**63
