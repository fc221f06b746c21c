"""One prediction by several processes: each takes every n-th picture, the last to finish writes the common file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from sam3slim.environment import this_process
from sam3slim.errors import UserError
from sam3slim.files import read_json_value
from sam3slim.predict.images import Picture
from sam3slim.predict.writer import FINAL_FILE, LOCK_FILE, PARTS_FILE, SETTINGS_FILE, read_index, stamp, write_final

SHARDS = "shards"


@dataclass(frozen=True)
class Shard:
    """The ``number``-th of ``count`` processes, from 1 on."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def folder(self, out: Path) -> Path:
        """Where its pictures are kept."""
        return out / SHARDS / f"{self.number}-of-{self.count}"

    def of(self, pictures: Sequence[Picture]) -> list[Picture]:
        """Its pictures; they keep their ids."""
        return list(pictures[self.number - 1 :: self.count])

    def all(self) -> list[Shard]:
        """All shards."""
        return [Shard(number, self.count) for number in range(1, self.count + 1)]


def shard_of(text: str | None) -> Shard | None:
    """``2/4``; None: what torchrun or srun says, or the only process.

    Raises:
        UserError: not two numbers, or a shard that there is not.
    """
    if text is None:
        process = this_process()
        return Shard(process.rank + 1, process.world_size) if process.world_size > 1 else None
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(
            f"--shard {text}: expected the process's number from 1 on and how many there are, e.g. 1/2 and 2/2"
        )
    return Shard(int(match[1]), int(match[2]))


def check_out(out: Path, shard: Shard | None) -> None:
    """Refuse a folder with a prediction that was divided otherwise.

    Raises:
        UserError: names the division that the folder has.
    """
    there = sorted(path.name for path in (out / SHARDS).glob("*-of-*"))
    counts = {name.partition("-of-")[2] for name in there}
    if shard is None and there:
        raise UserError(
            f"output folder {out} holds a prediction in {counts.pop()} shards; go on with --shard, or use another --out"
        )
    if shard is not None and counts - {str(shard.count)}:
        other = (counts - {str(shard.count)}).pop()
        raise UserError(
            f"output folder {out} was begun with {other} shards, not {shard.count}; use --shard i/{other}, or another "
            "--out"
        )
    if shard is not None and (out / SETTINGS_FILE).is_file():
        raise UserError(
            f"output folder {out} holds a prediction without shards; leave --shard out, or use another --out"
        )


def merge(
    out: Path, shard: Shard, pictures: Sequence[Picture], categories: Mapping[str, int], settings: Mapping[str, Any]
) -> tuple[int, list[Shard]]:
    """Write the ``detections.json`` of all shards into ``out`` where all have finished.

    Returns:
        Its detections, and the shards that have not finished.

    Raises:
        UserError: a shard was begun with other settings, or no picture could be read.
    """
    with FileLock(out / LOCK_FILE):
        places: dict[str, tuple[Path, int]] = {}
        skipped: dict[str, str] = {}
        waiting: list[Shard] = []
        for other in shard.all():
            folder = other.folder(out)
            ended = _ended(folder, settings, other)
            starts = read_index(folder / PARTS_FILE, repair=False) if ended is not None else {}
            mine = other.of(pictures)
            done = [p for p in mine if str(p.path) in starts and starts[str(p.path)][1] == stamp(p.path)]
            if ended is None or {p.name for p in mine} - {p.name for p in done} - set(ended):
                waiting.append(other)
                continue
            places |= {str(p.path): (folder / PARTS_FILE, starts[str(p.path)][0]) for p in done}
            skipped |= {p.name: ended[p.name] for p in mine if p.name in ended}
        if waiting:
            return 0, waiting
        if not places:
            name, why = next(iter(skipped.items()))
            raise UserError(f"none of the {len(pictures)} images can be read; the first, {name}, {why}")

        def line(picture: Picture) -> dict[str, Any]:
            file, start = places[str(picture.path)]
            with file.open("rb") as reader:
                reader.seek(start)
                read: dict[str, Any] = json.loads(reader.readline())
            return read

        done = [picture for picture in pictures if str(picture.path) in places]
        return write_final(out / FINAL_FILE, done, line, categories, settings, skipped), []


def _ended(folder: Path, settings: Mapping[str, Any], shard: Shard) -> dict[str, str] | None:
    """The pictures that a shard has skipped, and why; None where it has not come to its end.

    Raises:
        UserError: it was begun with other settings.
    """
    final = folder / FINAL_FILE
    if not (folder / SETTINGS_FILE).is_file() or not final.is_file():
        return None
    old = read_json_value(folder / SETTINGS_FILE, "predict this shard again with --overwrite")
    if {key: value for key, value in old.items() if key not in ("schema", "shard")} != {
        key: value for key, value in settings.items() if key not in ("schema", "shard")
    }:
        raise UserError(f"shard {shard} in {folder} was begun with other settings; predict it again with --overwrite")
    with final.open(encoding="utf-8") as file:
        head = file.readline().rstrip().rstrip(",") + "}"
    skipped: dict[str, str] = json.loads(head)["info"]["skipped"]
    return skipped
