"""Plant the errors of mutants.txt one at a time, and name those that the fast tests do not see.

PYTHONPATH=. python tests/mutation/run.py                      # all, about an hour on one core
PYTHONPATH=. python tests/mutation/run.py --only train_online  # of files whose path holds this

It works on a copy of the project in --work, so the project may change meanwhile. What is done is kept there, and a run
that was stopped goes on; after a change of the tests, give --again, which repeats the survivors, or another folder.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
LOSSES = {loop: f"tests/reproduce/training/test_{loop}_losses.py" for loop in ("online", "offline", "distill")}
LOOPS = {loop: [LOSSES[loop], f"tests/reproduce/test_train_{loop}.py"] for loop in LOSSES}
SETTINGS, RUN = "tests/reproduce/training/test_settings.py", "tests/reproduce/training/test_run.py"
# The fast tests that matter for a file, those that see most first.
TESTS = {
    "reproduce/train_online.py": [*LOOPS["online"], RUN, SETTINGS],
    "reproduce/train_offline.py": [*LOOPS["offline"], RUN, SETTINGS],
    "reproduce/train_distill.py": [*LOOPS["distill"], SETTINGS],
    "reproduce/training/methods.py": [*LOSSES.values(), "tests/reproduce/training/test_methods.py", SETTINGS],
    "reproduce/training/run.py": [LOSSES["offline"], RUN, *LOOPS["online"], *LOOPS["distill"], SETTINGS],
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
    "fsalign_lib/models/student_teacher.py": LOOPS["distill"] + [SETTINGS],
    "reproduce/evaluation/metrics.py": ["tests/reproduce/evaluation/test_units.py", "tests/reproduce/test_evaluate.py"],
}

# Of tests that go through all loops, those of the file's own.
OTHERS = {
    "reproduce/train_online.py": "not offline- and not distill-",
    "reproduce/train_offline.py": "not online- and not distill-",
    "reproduce/train_distill.py": "not online- and not offline-",
}


def read_mutants() -> list[tuple[str, str, str, str]]:
    """Return (file, text before, text after, where it comes from) of each error.

    Raises:
        ValueError: a text that is not in its file exactly once: the code has changed, and the list must follow.
    """
    found, file, group, before = [], "", "", ""
    for line in (Path(__file__).parent / "mutants.txt").read_text().splitlines():
        if line.startswith("== "):
            file = line[3:]
        elif line.startswith("# "):
            group = line[2:]
        elif line.startswith("- "):
            before = line[2:]
            if (ROOT / file).read_text().count(before) != 1:
                raise ValueError(f"{file} does not hold exactly one {before!r}: bring mutants.txt up to date")
        elif line.startswith("+ "):
            found.append((file, before, line[2:], group))
    return found


def name_of(mutant: tuple[str, str, str, str]) -> str:
    """Name an error by its place and text, whatever its number in the list."""
    return hashlib.sha256("\n".join(mutant[:3]).encode()).hexdigest()[:12]


def seen(copy: Path, mutant: tuple[str, str, str, str]) -> bool:
    """Plant an error in the copy, run the tests of its file in a process of their own, and take it out again."""
    file, before, after, _ = mutant
    path = copy / file
    text = path.read_text()
    path.write_text(text.replace(before, after))
    try:
        if process := os.fork():
            return os.waitpid(process, 0)[1] != 0
        import pytest

        os.chdir(copy)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        some = ["-k", OTHERS[file]] if file in OTHERS else []
        os._exit(pytest.main([*TESTS[file], *some, "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]))
    finally:
        path.write_text(text)


def main() -> None:
    """Run what is asked for, and print the survivors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="part of a file's path")
    parser.add_argument("--work", type=Path, default=Path("mutation-work"), help="for the copy and what was found")
    parser.add_argument("--again", action="store_true", help="take a new copy, and repeat what survived")
    parser.add_argument("--in-copy", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    copy, results = args.work.resolve() / "copy", args.work.resolve() / "results.json"
    if not args.in_copy:
        read_mutants()
        if args.again:
            shutil.rmtree(copy, ignore_errors=True)
        if not copy.exists():
            files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True)
            for name in files.stdout.decode().splitlines():
                (copy / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, copy / name)
            subprocess.run([sys.executable, "-m", "compileall", "-q", str(copy)])
        environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"HF_HUB_OFFLINE": "1"}
        again = [sys.executable, str(copy / "tests/mutation/run.py"), *sys.argv[1:], "--in-copy", "--work"]
        raise SystemExit(subprocess.run([*again, str(args.work.resolve())], env=environment).returncode)

    # What the tests import of others is imported once; the project itself is imported by each process anew.
    import accelerate  # noqa: F401
    import diffusers
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import transformers

    _ = diffusers.UNet2DConditionModel, diffusers.AutoencoderKL, diffusers.StableDiffusionXLPipeline
    _ = transformers.CLIPTextModel, transformers.CLIPTokenizer
    done = json.loads(results.read_text()) if results.exists() else {}
    mutants = [mutant for mutant in read_mutants() if args.only in mutant[0]]
    for number, mutant in enumerate(mutants):
        name = name_of(mutant)
        if name not in done or (args.again and not done[name]["seen"]):
            file, before, after, group = mutant
            done[name] = {"file": file, "before": before, "after": after, "group": group, "seen": seen(copy, mutant)}
            results.write_text(json.dumps(done, indent=1))
            print(
                f"{number + 1} of {len(mutants)}", "seen" if done[name]["seen"] else "SURVIVED", file, after, flush=True
            )
    survivors = [done[name_of(mutant)] for mutant in mutants if not done[name_of(mutant)]["seen"]]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} were seen")
    for one in survivors:
        print(f"survived in {one['file']}:\n  - {one['before']}\n  + {one['after']}")


if __name__ == "__main__":
    main()
