"""Bring Pick-a-Pic v2 from its parquet files into a pair folder: row group by row group, without ties.

The columns are those of the published files: caption, jpg_0, jpg_1 (a picture's bytes) and label_0 (1: the first
picture won, 0: the second, 0.5: a tie). A picture that comes in several pairs is kept once, under the hash of its
bytes, and the bytes are kept as they are. Rows that cannot be used are counted: ties; without a label; unreadable,
which are those with a caption that is no text or a picture that cannot be decoded.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from reproduce.common.cli import positive
from reproduce.common.files import claim, digest, plain, release, writable_folder, write_bytes
from reproduce.common.provenance import Clock, provenance
from reproduce.data.pair_folder import PairFolder
from reproduce.data.pictures import whole_picture
from reproduce.data.prompt_sets import PICKAPIC, data_folder
from reproduce.data.texts import column, not_utf8, open_parquet, parquet_batches

COLUMNS = ("caption", "jpg_0", "jpg_1", "label_0")
LEFT_OUT = ("ties", "unlabelled", "unreadable")
GROUPS = 100_000  # more row groups than a file has


@dataclass(kw_only=True)
class PickapicConfig:
    """Bring Pick-a-Pic's pairs into a pair folder."""

    data: Path | None = None
    """Folder with the parquet files, at any depth; None: FSALIGN_DATA."""
    out: Path = Path("reproduce/runs/pickapic")
    split: str = "train"
    """Files <split>-*.parquet."""
    count: int | None = None
    """Pairs wanted, the first ones; None: all."""


@dataclass
class Import:
    """Hold everything an import needs, checked: the row groups by number."""

    config: PickapicConfig
    groups: dict[int, tuple[Path, int]]
    folder: PairFolder


def prepare(config: PickapicConfig) -> Import:
    """Find the files and look at their columns.

    Raises:
        FileNotFoundError: no such files. ValueError: no data folder, a file without the columns, pairs made already.
    """
    if config.count is not None:
        positive(config, "count")
    root = data_folder(config.data)
    if root is None:
        raise ValueError("name the folder of Pick-a-Pic's parquet files with --data, or set FSALIGN_DATA")
    files = sorted(root.rglob(f"{config.split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"no {config.split}-*.parquet in {root}: put Pick-a-Pic's files there, from {PICKAPIC}")
    groups, about = {}, []
    for number, path in enumerate(files):
        with open_parquet(path) as file:
            for name in COLUMNS:
                column(path, file.schema_arrow.names, (name,))
            groups |= {number * GROUPS + group: (path, group) for group in range(file.num_row_groups)}
            # The footer has each column's size and range: another file under the same name has another.
            try:
                footer = digest(file.metadata.to_dict())
            except UnicodeDecodeError:  # the ranges of texts stand there
                raise not_utf8(path) from None
            about.append([str(path.relative_to(root)), path.stat().st_size, footer])
    folder = PairFolder(config.out, {"split": config.split, "files": about})
    writable_folder(config.out)
    claim(config.out)
    return Import(config, groups, folder)


def build(job: Import) -> None:
    """Write the pictures, about.json, and last pairs.jsonl."""
    c, clock, there, used = job.config, Clock(), 0, []
    job.folder.begin()
    with tqdm(job.groups.items(), desc="row groups") as bar:
        for number, (path, group) in bar:
            if not job.folder.done(number):
                rows, counts = [], dict.fromkeys(LEFT_OUT, 0)
                for row in _rows(path, group):
                    pair = _pair(c.out, row)
                    if isinstance(pair, str):
                        counts[pair] += 1
                    else:
                        rows.append(pair)
                job.folder.write(number, rows, counts | {"rows": len(rows)})
            there += job.folder.counts(number)["rows"]
            used.append(number)
            if c.count is not None and there >= c.count:
                break

    def about(counts: dict[str, int]) -> dict[str, Any]:
        kept = {key: counts[key] for key in ("pairs", *LEFT_OUT)}
        return {"config": plain(c), **kept, **provenance(clock)}

    job.folder.finish(used, about, c.count)
    release(c.out)


def _rows(path: Path, group: int) -> Iterator[dict[str, Any]]:
    with open_parquet(path) as file:
        for batch in parquet_batches(file, path, 64, row_groups=[group], columns=list(COLUMNS)):
            yield from batch


def _pair(out: Path, row: dict[str, Any]) -> dict | str:
    """Return a line of pairs.jsonl, or why there is none (see LEFT_OUT)."""
    if row["label_0"] not in (0, 0.5, 1):
        return "unlabelled"
    if row["label_0"] == 0.5 or row["jpg_0"] == row["jpg_1"]:
        return "ties"
    both = row["jpg_0"], row["jpg_1"]
    if not isinstance(row["caption"], str) or not all(isinstance(c, bytes) and whole_picture(c) for c in both):
        return "unreadable"
    first, second = (_keep(out, content) for content in both)
    winner, loser = (first, second) if row["label_0"] == 1 else (second, first)
    return {"prompt": row["caption"], "winner": winner, "loser": loser, "label": 1}


def _keep(out: Path, content: bytes) -> str:
    """Write a picture unless it is there; its name in the folder."""
    digest = hashlib.blake2b(content, digest_size=12).hexdigest()
    name = f"pictures/{digest[:2]}/{digest}.jpg"
    path = out / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)
    return name
