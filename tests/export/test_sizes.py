from __future__ import annotations

import pytest

from sam3slim.errors import UserError
from sam3slim.export.sizes import parse_bytes, parse_milliseconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("500MB", 500_000_000), ("1.5GiB", 1_610_612_736), ("400 kB", 400_000), ("2gb", 2_000_000_000),
        ("1200", 1200), ("7B", 7), ("10 KiB", 10_240), ("0.5MiB", 524_288), ("1e3 kB", 1_000_000),
        (" 3TB ", 3 * 10**12),
    ],
)  # fmt: skip
def test_parse_bytes__as_people_write_them(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_parse_bytes__a_number() -> None:
    assert parse_bytes(12) == 12


@pytest.mark.parametrize("text", ["", "MB", "500XB", "1,5GB", "-3MB", "5 0MB", "1.2.3GB", "500 MBs", "nan", "infMB"])
def test_parse_bytes__not_a_size(text: str) -> None:
    with pytest.raises(
        UserError, match=r"expected a number and B, kB, MB, GB, KiB, MiB or GiB, e\.g\. 500MB or 1\.5GiB"
    ):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["0", "0MB", "0.1B", -5])
def test_parse_bytes__nothing(text: str) -> None:
    with pytest.raises(UserError, match="expected at least one byte"):
        parse_bytes(text)


@pytest.mark.parametrize(("text", "found"), [("120ms", 120.0), ("0.5s", 500.0), ("80", 80.0), (" 1.5 MS", 1.5)])
def test_parse_milliseconds__times(text: str, found: float) -> None:
    assert parse_milliseconds(text) == found


@pytest.mark.parametrize("text", ["fast", "0ms", "-3ms", "1m", ""])
def test_parse_milliseconds__no_times(text: str) -> None:
    with pytest.raises(UserError, match=r"expected a time such as 120ms or 0\.5s"):
        parse_milliseconds(text)
