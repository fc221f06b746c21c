"""docs/files.md lists the files that were tried; its tests are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROW = re.compile(r"^\| (\d+) \| .* \| `(\S+\.py)::(test_\w+)` \|$", re.MULTILINE)


def test_files__every_row_has_a_test() -> None:
    kinds, more = (ROW.findall(part) for part in (ROOT / "docs/files.md").read_text().split("## More"))
    assert [int(number) for number, *_ in kinds] == list(range(1, 24))
    assert [int(number) for number, *_ in more] == list(range(1, len(more) + 1))
    assert len(more) >= 40
    for _, file, name in [*kinds, *more]:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
