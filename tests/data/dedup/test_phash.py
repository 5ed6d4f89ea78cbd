import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.dedup import phash
from data.dedup.phash import RADIUS_LIMIT, VIEWS, HashTable
from data.errors import BadSample


def brute_force(hashes: np.ndarray, queries: np.ndarray, radius: int) -> list[tuple[int, int]]:
    return [
        (query, number)
        for query, a in enumerate(queries.tolist())
        for number, b in enumerate(hashes.tolist())
        if (a ^ b).bit_count() <= radius
    ]


def pairs(table: HashTable, queries: np.ndarray, radius: int) -> list[tuple[int, int]]:
    query, number = table.near(queries, radius)
    return list(zip(query.tolist(), number.tolist(), strict=True))


def with_flipped_bits(hashes: np.ndarray, random: np.random.Generator, count: int) -> np.ndarray:
    flips = [sum(1 << int(bit) for bit in random.choice(64, count, replace=False)) for _ in hashes]
    return hashes ^ np.array(flips, np.uint64)


@given(seed=st.integers(0, 2**32), radius=st.integers(0, RADIUS_LIMIT), n=st.integers(0, 40), m=st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_the_table_finds_what_brute_force_finds(seed, radius, n, m):
    """Hashes close to a few centres, so that there are distances on both sides of every radius."""
    random = np.random.default_rng(seed)
    centres = random.integers(0, 2**64, 3, np.uint64)

    def crowd(count: int) -> np.ndarray:
        picked = centres[random.integers(0, 3, count)]
        return np.array(
            [with_flipped_bits(one[None], random, int(random.integers(0, 9)))[0] for one in picked], np.uint64
        )

    hashes, queries = crowd(n), crowd(m)
    assert pairs(HashTable(hashes), queries, radius) == brute_force(hashes, queries, radius)


@pytest.mark.parametrize("count", range(RADIUS_LIMIT + 2))
def test_the_edge_of_the_radius_is_exact(count):
    """Every pattern of flipped bits at the limit is found, and none beyond."""
    random = np.random.default_rng(count)
    hashes = random.integers(0, 2**64, 500, np.uint64)
    found = pairs(HashTable(hashes), with_flipped_bits(hashes, random, count), RADIUS_LIMIT)
    assert found == ([(n, n) for n in range(500)] if count <= RADIUS_LIMIT else [])


def test_crowded_hashes_are_looked_up_in_pieces(monkeypatch):
    hashes = np.arange(40, dtype=np.uint64)
    whole = pairs(HashTable(hashes), hashes, 3)
    monkeypatch.setattr(phash, "CANDIDATES", 100)
    assert pairs(HashTable(hashes), hashes, 3) == whole == brute_force(hashes, hashes, 3)


def test_a_radius_for_which_the_search_is_not_exact_is_refused():
    with pytest.raises(ValueError, match="exact up to 11"):
        HashTable(np.zeros(1, np.uint64)).near(np.zeros(1, np.uint64), RADIUS_LIMIT + 1)


def test_the_hash_is_the_librarys(photos):
    for photo in photos:
        picture = Image.fromarray(photo).convert("L")
        bits = imagehash.phash(picture).hash.ravel()
        assert phash.hash_bits(picture) == sum(1 << (63 - place) for place in np.flatnonzero(bits).tolist())


def test_views_are_the_whole_the_middle_and_the_corners():
    pixels = np.arange(100 * 200, dtype=np.int32).reshape(100, 200) % 251
    picture = Image.fromarray(pixels.astype(np.uint8))
    shown = [np.asarray(phash.view(picture, number)) for number in range(len(VIEWS))]
    expected = [np.s_[:, :], np.s_[5:95, 10:190]]
    expected += [
        np.s_[rows, columns] for rows in (slice(0, 95), slice(5, 100)) for columns in (slice(0, 190), slice(10, 200))
    ]
    assert len(shown) == len(expected)
    for got, where in zip(shown, expected, strict=True):
        assert np.array_equal(got, pixels[where])


def test_a_jpeg_is_hashed_at_a_reduced_scale_to_about_the_same(photos, encode):
    for photo in photos:
        encoded = encode(photo, "JPEG", quality=90)
        reduced = phash.grey_picture(encoded)
        assert reduced.size == (-(-640 // 4), -(-427 // 4))
        whole = Image.fromarray(photo).convert("L")
        assert (phash.hash_bits(reduced) ^ phash.hash_bits(whole)).bit_count() <= 4


@pytest.mark.parametrize("value", [0, 128, 255])
def test_a_blank_picture_is_told(encode, value):
    noise = np.random.default_rng(0).integers(-2, 3, (90, 90, 3))
    blank = np.clip(np.full((90, 90, 3), value) + noise, 0, 255).astype(np.uint8)
    assert phash.grey_picture(encode(blank, "JPEG")) is None


def test_an_image_that_cannot_be_decoded_is_a_bad_sample(encode, photos):
    with pytest.raises(BadSample, match="undecodable image"):
        phash.grey_picture(encode(photos[0], "JPEG")[:5000])
