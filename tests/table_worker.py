"""A table's script in processes of its own, for tests/reproduce/harness/test_tables_under_processes.py."""

import contextlib
import importlib
import io

from reproduce.harness import rows, snapshots  # noqa: F401 what a script imports when it runs something
from reproduce.harness.command import command
from reproduce.harness.declare import SMOKE


def table(name: str, argv: list[str]) -> None:
    """Run reproduce/<name>.py at full scale on small random twins, without its progress bars."""
    script = importlib.import_module(f"reproduce.{name}")
    # One row at a time in one process, too: the last bit of what is computed of a row depends on those beside it.
    for method in SMOKE.settings.keys() - {"pairs", "targets"}:
        SMOKE.settings[method] |= {"micro_batch": 1} | (
            {"rollout_batch": 1} if "rounds" in SMOKE.settings[method] else {}
        )
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            command(script.TABLE, None, ["--scale", "full", "--models", "tiny", "--threads", "1", *argv])
    except SystemExit as end:
        print(said.getvalue()[-500:] if end.code else "")
        raise
