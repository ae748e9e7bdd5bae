"""Read JSON objects that the project wrote, and refuse damaged ones by name."""

import json
from pathlib import Path
from typing import Any

Kinds = type | tuple[type, ...]
NUMBER, OPTIONAL = (int, float), type(None)


def read_json(path: Path, **expected: Kinds) -> dict[str, Any]:
    """Read an object from a file.

    Args:
        expected: what it must have: name -> the type of its value.

    Raises:
        ValueError: it is damaged, or not such an object. FileNotFoundError: no such file.
    """
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): restore it, or remove it") from None
    return check_object(path, found, **expected)


def check_object(where: Path | str, found: Any, **expected: Kinds) -> dict[str, Any]:
    """Return what was read at some place if it is an object with these names and types of values.

    Raises:
        ValueError: it is not; the place is named, and the first name that is missing or holds another type.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where} is damaged: expected a JSON object, found {found!r:.40}: restore it, or remove it")
    for name, kind in expected.items():
        if name not in found:
            raise ValueError(f"{where} is damaged: it has no {name!r}: restore it, or remove it")
        if not isinstance(found[name], kind):
            raise ValueError(f"{where} is damaged: {name!r} is {found[name]!r:.40}: restore it, or remove it")
    return found


def check_objects(where: Path | str, found: list, **expected: Kinds) -> None:
    """Raise a ValueError unless each of a list is an object with these names and types of values."""
    for number, one in enumerate(found, 1):
        check_object(f"{where}, number {number}", one, **expected)
