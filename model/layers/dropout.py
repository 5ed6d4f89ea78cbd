"""Dropout whose mask is a pure function of the sample, the place in the network and the element.

`torch.nn.Dropout` draws from one random stream per process, so its masks depend on the batch size, the number of
workers and all earlier draws. Here each sample has a 64-bit seed, and a hash decides whether an element is dropped:

    hash(the sample's seed, the number of the dropout layer, the element's index within the sample)

The mask of a sample is therefore the same in every batch, on every rank, after a restart, and when activation
checkpointing recomputes a block; no random state is saved. A network derives other seeds for each block (`fold_in`) and
numbers the layers within a block, so that all blocks are the same program to a compiler.
"""

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """Zeroes each element with probability `rate` and scales the others by 1 / (1 - rate), while training.

    Args:
        rate: probability of dropping, in [0, 1). At 0, and in evaluation, the layer is the identity.
        place: number of this layer. Layers that receive the same seeds must have different numbers.
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
        """x: (B, ...), floating point. seeds: (B,) int64; may be None if the layer is the identity."""
        if not self.training or self.rate == 0:
            return x
        if seeds is None:
            raise ValueError("dropout in training needs the seed of every sample")
        keep = keep_mask(seeds, self.place, x[0].numel(), self.rate).view(x.shape)
        return torch.where(keep, x * (1 / (1 - self.rate)), 0.0)  # keeps only one byte per element for backward


def keep_mask(seeds: Tensor, place: int, elements: int, rate: float) -> Tensor:
    """(B, elements) bool, each True with probability 1 - rate. seeds: (B,) int64.

    Seed and place give one 32-bit key per sample. The hash of an element is mix32(key XOR mix32(index)), uniform on
    [-2^31, 2^31) as a signed number. The element is kept if its hash is at least the quantile `rate`. Without the inner
    mix32, two samples would get the same hashes in another order.
    """
    key = fold_in(seeds, place).to(torch.int32)
    index = mix32(torch.arange(elements, dtype=torch.int32, device=seeds.device))
    return mix32(key[:, None] ^ index) >= round(rate * 2**32) - 2**31


def fold_in(seeds: Tensor, number: int) -> Tensor:
    """Derives from `seeds` the seeds of part `number`, (B,) int64, statistically independent of those of other parts.

    This is the finaliser of splitmix64 (Steele, Lea and Flood, 2014) on seeds + number * an odd constant. int64 holds
    the same bits as an unsigned word: sums and products wrap in the same way, and `_shift` shifts in zeros.
    """
    x = seeds + _signed(number * 0xD1342543DE82EF95)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def mix32(x: Tensor) -> Tensor:
    """A bijection of 32-bit words in which every input bit flips every output bit with probability near one half.

    This is `lowbias32` (C. Wellons, "Prospecting for Hash Functions", 2018; public domain):
    x ^= x >> 16; x *= 0x7feb352d; x ^= x >> 15; x *= 0x846ca68b; x ^= x >> 16, on unsigned words. int32 holds the
    same bits: products wrap in the same way, a constant above 2^31 is written minus 2^32, and masks clear the sign bits
    that an arithmetic shift inserts.
    """
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * 0x7FEB352D
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * (0x846CA68B - 2**32)
    return x ^ ((x >> 16) & 0xFFFF)


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & (2 ** (64 - bits) - 1)


def _signed(word: int) -> int:
    """The signed number whose 64-bit two's complement equals the lowest 64 bits of `word`."""
    return (word + 2**63) % 2**64 - 2**63
