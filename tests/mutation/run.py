"""Plant the errors of mutants.txt one at a time, and name those that the fast tests do not see.

PYTHONPATH=. python tests/mutation/run.py                      # all
PYTHONPATH=. python tests/mutation/run.py --only train_online  # of files whose path holds this

All is imported and collected once. Each error has a process of its own, forked from there, in which the functions that
the error changes get their new code; the tests that matter for its file run until one fails. What is done is kept in
--results, and a run that was stopped goes on. --again repeats the survivors.
"""

import argparse
import functools
import hashlib
import importlib
import inspect
import json
import os
import types
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
LOSSES = {loop: f"tests/reproduce/training/test_{loop}_losses.py" for loop in ("online", "offline", "distill")}
LOOPS = {loop: [LOSSES[loop], f"tests/reproduce/test_train_{loop}.py"] for loop in LOSSES}
SETTINGS, RUN = "tests/reproduce/training/test_settings.py", "tests/reproduce/training/test_run.py"
STOPPED = "tests/reproduce/common/test_interruptions.py"
# The fast tests that matter for a file, those that see most first.
TESTS = {
    "reproduce/train_online.py": [*LOOPS["online"], RUN, SETTINGS],
    "reproduce/train_offline.py": [*LOOPS["offline"], RUN, SETTINGS],
    "reproduce/train_distill.py": [*LOOPS["distill"], SETTINGS],
    "reproduce/training/methods.py": [*LOSSES.values(), "tests/reproduce/training/test_methods.py", SETTINGS],
    "reproduce/training/run.py": [LOSSES["offline"], RUN, *LOOPS["online"], *LOOPS["distill"], SETTINGS, STOPPED],
    "reproduce/training/ema.py": LOOPS["distill"],
    "fsalign_lib/rollout.py": ["tests/fsalign_lib/test_rollout.py", *LOOPS["online"]],
    "fsalign_lib/kernels.py": ["tests/fsalign_lib/test_kernels.py", LOSSES["online"]],
    "fsalign_lib/advantages.py": ["tests/fsalign_lib/test_advantages.py", LOSSES["online"]],
    "fsalign_lib/dense_reward.py": ["tests/fsalign_lib/test_dense_reward.py", LOSSES["online"]],
    "fsalign_lib/losses/preference.py": ["tests/fsalign_lib/losses/test_preference.py", LOSSES["offline"]],
    "fsalign_lib/losses/reward_difference.py": ["tests/fsalign_lib/losses/test_reward_difference.py"],
    "fsalign_lib/losses/policy_gradient.py": ["tests/fsalign_lib/losses/test_policy_gradient.py"],
    "fsalign_lib/losses/distribution_matching.py": ["tests/fsalign_lib/losses/test_distribution_matching.py"],
    "fsalign_lib/models/edm.py": [LOSSES["distill"]],
    "fsalign_lib/models/student_teacher.py": [*LOOPS["distill"], SETTINGS],
    "reproduce/evaluation/metrics.py": ["tests/reproduce/evaluation/test_units.py", "tests/reproduce/test_evaluate.py"],
}


class Mutant(NamedTuple):
    """Hold an error: a text of a file, what is put in its place, where it comes from, which tests may see it first."""

    file: str
    before: str
    after: str
    group: str
    first: str  # part of the tests' names

    @property
    def name(self) -> str:
        """Return a name that does not depend on the number in the list."""
        return hashlib.sha256("\n".join(self[:3]).encode()).hexdigest()[:12]


def read_mutants() -> list[Mutant]:
    """Read mutants.txt.

    Raises:
        ValueError: a text that is not in its file exactly once: the code has changed, and the list must follow.
    """
    found, file, group, first, before = [], "", "", "", ""
    for line in (Path(__file__).parent / "mutants.txt").read_text().splitlines():
        kind, text = line[:2].strip(), line[3:] if line.startswith("== ") else line[2:]
        if kind == "==":
            file, first = text, ""
        elif kind == "#":
            group = text
        elif kind == "?":
            first = text
        elif kind == "-":
            before = text
            if (ROOT / file).read_text().count(before) != 1:
                raise ValueError(f"{file} does not hold exactly one {before!r}: bring mutants.txt up to date")
        elif kind == "+":
            found.append(Mutant(file, before, text, group, first))
    return found


def plain_function(value: object) -> types.FunctionType | None:
    """Return the function within a method, a property or a decorator."""
    if isinstance(value, property):
        value = value.fget
    elif isinstance(value, functools.cached_property):
        value = value.func
    elif isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    value = inspect.unwrap(value) if callable(value) else value
    return value if isinstance(value, types.FunctionType) else None


def plant(mutant: Mutant) -> bool:
    """Give this process's functions, and its tables of functions and numbers, what the file with the error has.

    Returns:
        whether anything was changed.
    """
    module = importlib.import_module(mutant.file.removesuffix(".py").replace("/", "."))
    source = (ROOT / mutant.file).read_text().replace(mutant.before, mutant.after)
    wrong = dict(module.__dict__)
    exec(compile(source, module.__file__, "exec"), wrong)
    changed = False

    def replace(old: object, new: object) -> None:
        nonlocal changed
        old, new = plain_function(old), plain_function(new)
        if old and new and old.__module__ == module.__name__ and old.__code__ != new.__code__:
            old.__code__, changed = new.__code__, True

    for name, old in vars(module).items():
        new = wrong[name]
        if inspect.isclass(old) and old.__module__ == module.__name__:
            for part, value in vars(old).items():
                replace(value, vars(new).get(part))
        elif isinstance(old, dict) and name.isupper():
            different = repr(old) != repr(new) or any(map(differ, old.values(), new.values()))
            changed = changed or different
            old.update(new)
        else:
            replace(old, new)
    return changed


def differ(old: object, new: object) -> bool:
    """Tell whether two functions, or records of functions, have other code."""
    pairs = zip(vars(old).values(), vars(new).values(), strict=True) if hasattr(old, "loop") else [(old, new)]
    both = [(plain_function(a), plain_function(b)) for a, b in pairs]
    return any(a and b and a.__code__ != b.__code__ for a, b in both)


class Planter:
    """Run the tests of each error in a process of its own, in place of pytest's loop over all."""

    def __init__(self, mutants: list[Mutant], done: dict[str, dict], results: Path):
        self.mutants, self.done, self.results = mutants, done, results

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for number, mutant in enumerate(self.mutants):
            status = self.forked(session, mutant)
            if status == 3:
                raise RuntimeError(f"{mutant.file}: {mutant.after!r} changes nothing that can be planted")
            self.done[mutant.name] = mutant._asdict() | {"seen": status != 0}
            self.results.write_text(json.dumps(self.done, indent=1))
            told = "seen" if status else "SURVIVED"
            os.write(2, f"{number + 1} of {len(self.mutants)} {told} {mutant.file} {mutant.after}\n".encode())
        return True

    def forked(self, session: pytest.Session, mutant: Mutant) -> int:
        """Return 1 if a test sees the error, 0 if none does, 3 if it could not be planted."""
        if process := os.fork():
            return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        try:
            if not plant(mutant):
                os._exit(3)
        except Exception:  # the project would not be imported with it
            os._exit(1)
        files = TESTS[mutant.file]
        items = [item for item in session.items if str(item.path.relative_to(ROOT)) in files]
        other = {"reproduce/train_online.py": "online", "reproduce/train_offline.py": "offline"}.get(mutant.file)
        other = other or ("distill" if mutant.file == "reproduce/train_distill.py" else None)
        if other:  # of tests that go through all loops, those of the file's own
            items = [i for i in items if SETTINGS not in i.nodeid or f"[{other}" in i.nodeid]
        # Sorted so that what a module shares is made once; the tests that are named first come first.
        items.sort(key=lambda i: (not (mutant.first and mutant.first in i.name), files.index(i.nodeid.split("::")[0])))
        for place, item in enumerate(items):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=(items + [None])[place + 1])
            if session.testsfailed:
                os._exit(1)
        os._exit(0)


def main() -> None:
    """Run what is asked for, and print the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a file's path")
    parser.add_argument("--results", type=Path, default=Path("mutation-results.json"), help="what was found")
    parser.add_argument("--again", action="store_true", help="repeat what survived")
    args = parser.parse_args()
    os.chdir(ROOT) if args.results.is_absolute() else None
    done = json.loads(args.results.read_text()) if args.results.exists() else {}
    asked = [mutant for mutant in read_mutants() if args.only in mutant.file]
    todo = [m for m in asked if m.name not in done or (args.again and not done[m.name]["seen"])]
    if todo:
        files = list(dict.fromkeys(file for mutant in todo for file in TESTS[mutant.file]))
        options = ["-q", "-m", "not slow", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        pytest.main([*options, *(str(ROOT / file) for file in files)], plugins=[Planter(todo, done, args.results)])
    known = [done[mutant.name] for mutant in asked if mutant.name in done]
    survivors = [one for one in known if not one["seen"]]
    print(f"{len(known) - len(survivors)} of {len(known)} were seen; {len(asked) - len(known)} are to do")
    for one in survivors:
        print(f"survived in {one['file']}:\n  - {one['before']}\n  + {one['after']}")


if __name__ == "__main__":
    main()
