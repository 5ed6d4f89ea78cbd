"""Masks against the published hash functions in plain Python integers, and against the statistics of dropout."""

import math

import numpy as np
import pytest
import torch

from model.layers.dropout import SampleDropout, fold_in, keep_mask, mix32

EXTREMES = [0, 1, -1, 2, 12345, 2**31, -(2**31), 2**62 + 3, 2**63 - 1, -(2**63)]


def lowbias32(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % 2**32
    x ^= x >> 15
    x = x * 0x846CA68B % 2**32
    return x ^ x >> 16


def splitmix64_finaliser(x: int) -> int:
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
    return x ^ x >> 31


def folded(seed: int, number: int) -> int:
    return splitmix64_finaliser((seed + number * 0xD1342543DE82EF95) % 2**64)


def test_mix32_is_lowbias32() -> None:
    words = [0, 1, 2, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, *np.random.default_rng(0).integers(2**32, size=2000).tolist()]
    hashed = mix32(torch.from_numpy(np.array(words, np.uint32).view(np.int32)))
    assert hashed.dtype == torch.int32
    assert hashed.numpy().view(np.uint32).tolist() == [lowbias32(word) for word in words]


@pytest.mark.parametrize("number", [0, 1, 2, 31, 10**6])
def test_fold_in_is_splitmix64(number: int) -> None:
    folded_in = fold_in(torch.tensor(EXTREMES), number)
    assert folded_in.dtype == torch.int64
    assert folded_in.numpy().view(np.uint64).tolist() == [folded(seed, number) for seed in EXTREMES]


def test_a_mask_is_a_pure_function_of_seed_place_and_element() -> None:
    rate, place, elements = 0.3, 5, 200
    mask = keep_mask(torch.tensor(EXTREMES), place, elements, rate)
    for row, seed in zip(mask.tolist(), EXTREMES, strict=True):
        key = folded(seed, place) % 2**32
        hashes = [lowbias32(key ^ lowbias32(element)) for element in range(elements)]
        # The hash as a signed number of 32 bits, mapped to [0, 1).
        uniform = [((hash_ + 2**31) % 2**32) / 2**32 for hash_ in hashes]
        assert row == [number >= rate for number in uniform]


def test_the_mask_of_a_sample_is_the_same_in_every_batch() -> None:
    seeds = torch.randint(2**62, (64,), generator=torch.Generator().manual_seed(0))
    layer = SampleDropout(0.4, place=2)
    x = torch.ones(64, 5, 33)
    whole = layer(x, seeds)
    for parts in (1, 3, 7, 64):
        rows = [layer(x[part], seeds[part]) for part in torch.arange(64).tensor_split(parts)]
        assert torch.equal(torch.cat(rows), whole)
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(layer(x, seeds[shuffled]), whole[shuffled])


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.9])
def test_rate_and_scale(rate: float) -> None:
    dropped = SampleDropout(rate, place=0)(torch.full((32, 10_000), 3.0), torch.arange(32))
    share, count = (dropped == 0).float().mean(dim=1), 10_000
    deviation = math.sqrt(rate * (1 - rate) / count)
    assert (share - rate).abs().max() < 4.5 * deviation  # each sample
    assert abs(share.mean().item() - rate) < 4 * deviation / math.sqrt(32)  # all together
    assert torch.allclose(dropped[dropped != 0], torch.tensor(3.0 / (1 - rate)))


def test_masks_of_samples_places_and_elements_are_independent() -> None:
    elements, rate = 20_000, 0.5
    seeds = torch.cat([torch.arange(8), torch.arange(8) * 2**32, torch.tensor([2**63 - 1, -1])])
    masks = torch.cat([keep_mask(seeds, place, elements, rate) for place in range(4)]).numpy()
    correlation = np.corrcoef(masks)
    duplicates = np.argwhere(np.triu(correlation > 0.99, k=1))
    # Seed 0 is listed twice, once in each range.
    assert duplicates.tolist() == [[18 * place, 18 * place + 8] for place in range(4)]
    np.fill_diagonal(correlation, 0)
    for first, second in duplicates:
        correlation[first, second] = correlation[second, first] = 0
    assert np.abs(correlation).max() < 5.5 / math.sqrt(elements)
    for lag in (1, 2, 64, 768, 1024):  # along the features and along the tokens of one sample
        assert abs(np.corrcoef(masks[:, lag:].ravel(), masks[:, :-lag].ravel())[0, 1]) < 5 / math.sqrt(masks.size)


def test_gradient_passes_where_the_value_passed() -> None:
    x = torch.randn(4, 3, 5, dtype=torch.float64, requires_grad=True)
    layer, seeds = SampleDropout(0.4, place=1), torch.arange(4)
    assert torch.autograd.gradcheck(lambda x: layer(x, seeds), x)
    (gradient,) = torch.autograd.grad(layer(x, seeds).sum(), x)
    kept = keep_mask(seeds, 1, 15, 0.4).view(4, 3, 5)
    assert 0 < kept.sum() < kept.numel()
    assert torch.equal(gradient, kept.double() * (1 / (1 - 0.4)))


def test_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(2, 3)
    assert SampleDropout(0.5, place=0).eval()(x, None) is x
    assert SampleDropout(0.0, place=0)(x, None) is x


def test_dtype_is_kept() -> None:
    x = torch.ones(2, 100, dtype=torch.bfloat16)
    assert SampleDropout(0.5, place=0)(x, torch.arange(2)).dtype == torch.bfloat16


def test_misuse_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 0 and less than 1, not 1"):
        SampleDropout(1.0, place=0)
    with pytest.raises(ValueError, match="seed of every sample"):
        SampleDropout(0.5, place=0)(torch.ones(1, 2), None)
