"""The ledger runs every table, goes on after one that stopped, and says what is missing."""

import json
from pathlib import Path

import pytest

from reproduce import ledger
from reproduce.harness.claims import PAPERS


def test_every_table_has_a_place():
    assert sorted(name for names in ledger.LANES.values() for name in names) == sorted(PAPERS)


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """Three tables that only say that they ran; the second one stops with an error."""
    for name, code in (("one", 0), ("two", 3), ("three", 0)):
        (tmp_path / f"{name}.py").write_text(f"import sys; print('{name}', sys.argv[1:]); sys.exit({code})")
    monkeypatch.setattr(ledger, "REPRODUCE", tmp_path)
    monkeypatch.setattr(ledger, "LANES", {"a": ("one", "two", "three")})
    return ledger.LedgerConfig(jobs=1, runs=tmp_path / "runs", results=tmp_path / "results")


def test_a_lane_goes_on_after_a_table_that_stopped(scripts):
    assert ledger.run(scripts) == ["two"]
    for name in ("one", "two", "three"):
        told = ledger.log_of(scripts, name).read_text()
        assert told.startswith(f"{name} ['--threads', '1', '--work'")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "LANES", {"PSO": ("pso_table4",)})
    config = ledger.LedgerConfig(runs=tmp_path / "runs", results=tmp_path)
    folder = tmp_path / "runs" / "pso_table4"
    folder.mkdir(parents=True)
    nothing = ledger.text(config)
    (folder / "base.json").write_text(json.dumps({}))
    some = ledger.text(config)

    def missing(text):
        return int(text.splitlines()[-1].split()[2])

    assert "no result; missing: base" in nothing and missing(nothing) == missing(some) + 1
    assert "base" not in some.splitlines()[0].partition("missing")[2]


@pytest.mark.slow
def test_committed_results_are_summed_up():
    told = ledger.text(ledger.LedgerConfig(runs=Path("nowhere")))
    line = next(line for line in told.splitlines() if line.startswith("pso_table1"))
    assert "0 of" in line and "core h" in line and "reproduced" in line
