"""Where the pocket world's weights lie (CC BY-SA 4.0, see README.md beside this file)."""

from pathlib import Path

WEIGHTS = Path(__file__).parent
