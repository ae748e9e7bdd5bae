"""Write a pair folder part by part, so that a build that was stopped goes on where it stopped."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fsalign_lib.json_files import read_json
from reproduce.common.cli import refusals
from reproduce.common.files import remove_parts, write_json, write_text


class PairFolder:
    """Note each part of a pair folder in `building/` once its pictures are there.

    Raises:
        ValueError: the folder holds pairs already, or parts that were made with other settings.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        self.out, self.folder = out, out / "building"
        self.settings = json.loads(json.dumps(settings, default=str))
        refuse_finished(out)
        note = self.folder / "settings.json"
        before = read_json(note) if note.exists() else self.settings
        other = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if other:
            raise ValueError(
                f"{out} holds pairs begun with other settings ({', '.join(other)}): remove it, or choose another --out"
            )

    def begin(self) -> None:
        """Make the folder, and note the settings."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "settings.json", self.settings)

    def path(self, number: int) -> Path:
        """Return where the note of a part lies."""
        return self.folder / f"{number:09d}.json"

    def done(self, number: int) -> bool:
        """Tell whether a part is whole."""
        return self.path(number).exists()

    def write(self, number: int, rows: list[dict], counts: dict[str, int]) -> None:
        """Note a part: its lines of pairs.jsonl, and what was counted."""
        write_text(self.path(number), json.dumps({"rows": rows, "counts": counts}))

    def counts(self, number: int) -> dict[str, int]:
        """Return what was counted in a part."""
        return self.part(number)["counts"]

    def part(self, number: int) -> dict[str, Any]:
        """Read the note of a part."""
        with refusals():  # of one that was damaged since
            return read_json(self.path(number), rows=list, counts=dict)

    def finish(self, numbers: Iterable[int], about: Any, limit: int | None = None) -> None:
        """Write about.json, `about(counts)`, and last pairs.jsonl: the parts' rows in order, at most `limit`."""
        counts, written = Counter(), 0
        lines = self.out / f".pairs.jsonl.{os.getpid()}"
        with lines.open("w", encoding="utf-8") as file:
            for number in numbers:
                part = self.part(number)
                rows = part["rows"][: None if limit is None else limit - written]
                file.writelines(json.dumps(row) + "\n" for row in rows)
                written += len(rows)
                counts.update(part["counts"])
        write_json(self.out / "about.json", about({**counts, "pairs": written}))
        os.replace(lines, self.out / "pairs.jsonl")
        remove_parts(self.folder)


def refuse_finished(out: Path) -> None:
    """Raise a ValueError for a folder that holds pairs already."""
    if (out / "pairs.jsonl").exists():
        raise ValueError(f"{out} holds pairs already: choose another --out")
