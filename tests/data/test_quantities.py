import pytest

from data.quantities import rate, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (5, "5 B"),
        (999, "999 B"),
        (999.6, "1 kB"),
        (1000, "1 kB"),
        (173_882.1, "174 kB"),
        (99_960, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (1_234_567_890, "1.23 GB"),
        (3e15, "3 PB"),
        (5e22, "50000 EB"),
    ],
)
def test_a_size_has_three_digits(count: float, text: str) -> None:
    assert size(count) == text


def test_rates() -> None:
    assert rate(173_882.1, "bytes") == "174 kB/s"
    assert rate(1234.5, "images") == "1,234.5 images/s"
    assert rate(0.04321, "images") == "0.0432 images/s"
    assert rate(3, "shards") == "3 shards/s"
