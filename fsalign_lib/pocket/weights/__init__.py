"""Keep the pocket world's weights (CC BY-SA 4.0, see README.md beside this file)."""

from pathlib import Path

WEIGHTS = Path(__file__).parent


def require_folder(folder: Path) -> Path:
    """Return the folder of one part.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no weights at {folder}: build them with `python -m fsalign_lib.pocket.build`")
    return Path(folder)
