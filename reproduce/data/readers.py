"""Read rows of published file formats one after the other, with errors that name file and row."""

import csv
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 1024  # rows of a parquet file at a time, where they hold text alone
csv.field_size_limit(2**24)


def texts(path: Path, columns: Sequence[str], above: tuple[str, float] | None = None) -> Iterator[str]:
    """Yield the texts of a file, stripped, without empty ones.

    Args:
        columns: names that the column may have.
        above: a column and what it has to exceed, where the file has it.

    Raises:
        ValueError: not text, damaged, or without such a column (the message names those it has).
        FileNotFoundError, PermissionError: it cannot be opened.
    """
    if path.name.endswith(".parquet"):
        found = (row["text"] for row in parquet_rows(path, (), columns, above))
    else:
        found = (_text(path, row, columns) for row in records(path) if _passes(row, above))
    for text in found:
        if text is not None and str(text).strip():
            yield str(text).strip()


def _text(path: Path, row: Any, columns: Sequence[str]) -> Any:
    return row[column(path, row, columns)] if isinstance(row, dict) else row


def _passes(row: Any, above: tuple[str, float] | None) -> bool:
    return above is None or not isinstance(row, dict) or above[0] not in row or float(row[above[0]]) > above[1]


def column(path: Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the first of the wanted columns that is there."""
    for name in wanted:
        if name in found:
            return name
    raise ValueError(f"{path} has no column {' or '.join(wanted)}: it has {', '.join(map(str, found)) or 'none'}")


def records(path: Path) -> Iterator[Any]:
    """Yield the rows of a .tsv, .csv or .jsonl file as dicts, of a .json list as they are; the lines of other files.

    COCO's captions (a .json with "annotations") give each picture's first, by the pictures' ids. A .tar.gz gives the
    text of each file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts file {str(path)!r} does not exist: give a text file with a prompt a line")
    readers = {".tsv": _table, ".csv": _table, ".jsonl": _json_lines, ".json": _json, ".gz": _archive}
    try:
        yield from readers.get(path.suffix, _lines)(path)
    except UnicodeDecodeError:
        raise ValueError(
            f"prompts file {str(path)!r} is not UTF-8 text: give a text file with a prompt a line"
        ) from None
    except (json.JSONDecodeError, csv.Error, tarfile.TarError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as {path.suffix} ({error}): get it again") from None
    except OSError as error:
        why = error.strerror or error
        raise PermissionError(f"prompts file {str(path)!r} cannot be read ({why}): give another one") from None


def _lines(path: Path) -> Iterator[str]:
    yield from path.read_text(encoding="utf-8").splitlines()


def _table(path: Path) -> Iterator[dict[str, str]]:
    # PartiPrompts has quotation marks in its prompts, and none around them.
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if path.suffix == ".tsv" else {}
    with path.open(encoding="utf-8-sig", newline="") as file:
        yield from csv.DictReader(file, **style)


def _json_lines(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError:
                    raise ValueError(f"{path} line {number} is not JSON: restore it or drop the line") from None


def _json(path: Path) -> Iterator[Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(content, dict) and "annotations" in content:
        first: dict[int, dict] = {}
        for row in sorted(content["annotations"], key=lambda row: (row["image_id"], row["id"])):
            first.setdefault(row["image_id"], row)
        content = list(first.values())
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a JSON list, or COCO's captions")
    yield from content


def _archive(path: Path) -> Iterator[str]:
    with tarfile.open(path, "r|gz") as archive:  # in one pass: ten million captions are not unpacked
        for member in archive:
            if member.isfile():
                yield archive.extractfile(member).read().decode()


def parquet_files(folder: Path) -> list[Path]:
    """List the parquet files in a folder and below, in order."""
    return sorted(folder.rglob("*.parquet"))


def open_parquet(path: Path):
    """Open a parquet file, to be read row group by row group."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise ValueError(f"{path} needs pyarrow: install it with pip install 'fsalign[data]'") from None
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    try:
        return parquet.ParquetFile(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a parquet file ({str(error).splitlines()[0]}): get it again") from None


def parquet_rows(
    path: Path, needed: Sequence[str], text: Sequence[str], above: tuple[str, float] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield rows with the needed columns, and one of the text columns under the name "text"."""
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        read = {name: column(path, names, (name,)) for name in needed} | {"text": column(path, names, text)}
        extra = [above[0]] if above and above[0] in names else []
        for batch in file.iter_batches(64 if needed else BATCH, columns=[*read.values(), *extra]):
            for row in batch.to_pylist():
                if _passes(row, above):
                    yield {name: row[there] for name, there in read.items()}
