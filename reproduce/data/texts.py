"""Read texts one after the other from published file formats; refuse what is no text with file, place and value.

| the name ends in | what it holds |
| --- | --- |
| .csv, .tsv | a table with a header; a .tsv has no quotation marks around its fields |
| .jsonl, .ndjson | a JSON value a line: a text, or an object with the text in it |
| .json | a list of such values, or COCO's captions |
| .parquet | a table |
| .tar.gz, .tgz | a text a file |
| anything else | a text a line |

Capitals in the ending do not matter. Texts are UTF-8, with or without a byte order mark. A line ends at \\n, or \\r\\n,
and at no other character. Blank lines and empty texts are left out.
"""

import csv
import json
import tarfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

BATCH = 1024  # rows of a parquet file at a time, where they hold text alone
UTF8 = "utf-8-sig"  # with or without a byte order mark
OTHERS = (".yaml", ".yml", ".xml", ".html", ".htm", ".toml", ".md", ".rtf")  # text, but not a prompt a line
csv.field_size_limit(2**24)


def texts(path: Path, columns: Sequence[str], above: tuple[str, float] | None = None) -> Iterator[str]:
    """Yield the texts of a file, stripped, without empty ones.

    Args:
        columns: names that the column may have.
        above: a column and what it has to exceed, where the file has it.

    Raises:
        ValueError: not text, damaged, without such a column (the message names those it has), or a value in it that is
            no text. A null of a .parquet is a missing value, left out with a warning.
        FileNotFoundError, PermissionError: it cannot be opened.
    """
    missing = 0
    if path.suffix.lower() == ".parquet":
        for where, row in parquet_rows(path, (), columns, above):
            missing += row["text"] is None
            if row["text"] is not None and (text := checked(where, row["text"])):
                yield text
    else:
        for where, row in records(path):
            if passes(where, row, above):
                if text := checked(where, row[column(where, row, columns)] if isinstance(row, dict) else row):
                    yield text
    if missing:
        warnings.warn(f"{path}: rows without a text are left out: {missing}", stacklevel=2)


def checked(where: str, value: Any) -> str:
    """Return a text stripped of blanks and of a byte order mark.

    Raises:
        ValueError: it is no text; the message begins with `where`.
    """
    if not isinstance(value, str):
        raise ValueError(f"{where}: expected a text, found {_short(value)}: write the text or drop the row")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can write half a character
        raise ValueError(f"{where}: {_short(value)} is not a whole text: write it anew or drop the row") from None
    return value.strip().removeprefix("\ufeff").strip()


def _short(value: Any) -> str:
    told = ascii(value)
    return f"{told[:60]}{'...' * (len(told) > 60)} ({type(value).__name__})"


def caption_file(picture: Path) -> str:
    """Return the text of NAME.txt beside NAME.png, "" if there is none.

    Raises:
        ValueError: it is not UTF-8.
    """
    for path in (picture.with_suffix(".txt"), picture.with_suffix(".TXT")):
        if path.is_file():
            try:
                return checked(str(path), path.read_text(encoding=UTF8))
            except UnicodeDecodeError as error:
                raise _not_utf8(path, error) from None
    return ""


def _not_utf8(path: Path, error: UnicodeDecodeError) -> ValueError:
    byte = f"byte {error.object[error.start]:#04x}"
    return ValueError(f"{path} is not UTF-8 text ({byte}): save it as UTF-8, or give another file")


def passes(where: str, row: Any, above: tuple[str, float] | None) -> bool:
    """Say whether a row's number exceeds what it has to; a row without the number passes, one with null does not."""
    if above is None or not isinstance(row, dict) or above[0] not in row:
        return True
    value = row[above[0]]
    try:
        return value is not None and float(value) > above[1]
    except (TypeError, ValueError):
        raise ValueError(f"{where}: {above[0]} is {_short(value)}: expected a number") from None


def column(where: str | Path, found: Sequence[str], wanted: Sequence[str]) -> str:
    """Return the first of the wanted columns that is there."""
    for name in wanted:
        if name in found:
            return name
    raise ValueError(f"{where} has no column {' or '.join(wanted)}: it has {', '.join(map(str, found)) or 'none'}")


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield each row of a file that is no .parquet with its place, "<file> line 3", as it stands there.

    COCO's captions (a .json with "annotations") give each picture's first, by the pictures' ids.
    """
    if not path.is_file():
        raise FileNotFoundError(f"prompts file {str(path)!r} does not exist: give a text file with a prompt a line")
    suffix = path.suffix.lower()
    readers = {".csv": _table, ".tsv": _table, ".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json}
    readers |= {".gz": _archive, ".tgz": _archive}
    if suffix in OTHERS:
        raise ValueError(f"prompts file {str(path)!r} is not read as {suffix}: give a .txt with a prompt a line")
    try:
        yield from readers.get(suffix, _lines)(path)
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error) from None
    except (csv.Error, tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read as {suffix} ({error}): get it again") from None
    except OSError as error:
        why = error.strerror or error
        raise PermissionError(f"prompts file {str(path)!r} cannot be read ({why}): give another one") from None


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    with path.open(encoding=UTF8, newline="\n") as file:
        for number, line in enumerate(file, 1):
            where, line = f"{path} line {number}", line.strip()
            if "\r" in line:
                raise ValueError(f"{where} has a carriage return within: end lines with \\n")
            if line[:1] in ("{", "[") and isinstance(_parsed(line), (dict, list)):
                raise ValueError(f"{where} is JSON: let the file's name end in .jsonl, or .json for one list")
            yield where, line


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _table(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    # PartiPrompts has quotation marks in its prompts, and none around them.
    tabs = path.suffix.lower() == ".tsv"
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    with path.open(encoding=UTF8, newline="") as file:
        reader = csv.DictReader(file, **style)
        try:
            for row in reader:
                where = f"{path} line {reader.line_num}"
                if None in row:  # a comma within a text, which would be cut there
                    count, names = len(row) - 1 + len(row[None]), len(reader.fieldnames)
                    raise ValueError(
                        f"{where} has {count} fields under {names} names: put quotation marks around texts"
                    )
                yield where, row
        except csv.Error as error:
            raise csv.Error(f"the row from line {reader.line_num + 1} on: {error}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open(encoding=UTF8, newline="\n") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    raise ValueError(f"{path} line {number} is not JSON: restore it or drop the line") from None
                yield f"{path} line {number}", row


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = path.read_text(encoding=UTF8)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as .json ({error}): get it again") from None
    if isinstance(content, dict) and "annotations" in content:
        first: dict[int, dict] = {}
        try:
            for row in sorted(content["annotations"], key=lambda row: (row["image_id"], row["id"])):
                first.setdefault(row["image_id"], row)
        except (KeyError, TypeError):
            raise ValueError(f"{path}: expected COCO's annotations, with image_id, id and caption") from None
        content = list(first.values())
    if not isinstance(content, list):
        raise ValueError(f"{path}: expected a JSON list, or COCO's captions")
    yield from ((f"{path} item {number}", row) for number, row in enumerate(content, 1))


def _archive(path: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(path, "r|gz") as archive:  # in one pass: ten million captions are not unpacked
        for member in archive:
            if member.isfile() and not Path(member.name).name.startswith("."):
                yield f"{path} file {member.name}", archive.extractfile(member).read().decode(UTF8)


def parquet_files(folder: Path) -> list[Path]:
    """List the parquet files in a folder and below, in order."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() == ".parquet" and not p.name.startswith("."))


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
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file ({_first_line(error)}): get it again") from None


def parquet_rows(
    path: Path, needed: Sequence[str], text: Sequence[str], above: tuple[str, float] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield rows with the needed columns, and one of the text columns under the name "text", each with its place.

    A value is as it stands there: a text may be a number, or None.
    """
    with open_parquet(path) as file:
        names = file.schema_arrow.names
        read = {name: column(path, names, (name,)) for name in needed} | {"text": column(path, names, text)}
        extra = [above[0]] if above and above[0] in names else []
        batches = parquet_batches(file, path, 64 if needed else BATCH, columns=[*read.values(), *extra])
        for number, row in enumerate((row for batch in batches for row in batch), 1):
            where = f"{path} row {number}"
            if passes(where, row, above):
                yield where, {name: row[there] for name, there in read.items()}


def parquet_batches(file, path: Path, size: int, **which) -> Iterator[list[dict[str, Any]]]:
    """Yield the rows of an open parquet file, `size` at a time; `which` goes to `iter_batches`.

    Raises:
        ValueError: it is damaged, or holds a text that is not UTF-8.
    """
    import pyarrow

    try:
        for batch in file.iter_batches(size, **which):
            yield batch.to_pylist()
    except UnicodeDecodeError:
        raise not_utf8(path) from None
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} is damaged ({_first_line(error)}): get it again") from None


def not_utf8(path: Path) -> ValueError:
    """Return the error of a parquet file with a text in another encoding."""
    return ValueError(f"{path} holds a text that is not UTF-8: write it again")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
