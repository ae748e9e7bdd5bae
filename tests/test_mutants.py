"""The list of planted errors follows the code: each text that it replaces stands once in its file."""

from tests.mutation.run import TESTS, read_mutants


def test_every_planted_error_has_a_place_and_tests():
    mutants = read_mutants()  # raises for a text that is not there exactly once
    assert len(mutants) >= 179 and len({mutant.name for mutant in mutants}) == len(mutants)
    assert {mutant.file for mutant in mutants} <= TESTS.keys()
