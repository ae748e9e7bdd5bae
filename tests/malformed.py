"""Make malformed inputs of every command from a seed: what people bring, and what a disk or an editor does to it.

A case damages one thing that a command reads and leaves the rest as it should be: a text, a picture, a parquet file, a
JSON file, a checkpoint, or a configuration, which is a setting, a variable of the environment, or a model's folder.
A word where a number stands is no case: tyro refuses it, in a box that names the option.
"""

import gzip
import json
import random
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from reproduce import train_distill, train_offline, train_online
from reproduce.harness.command import at_scale
from reproduce.harness.rows import row_seeds, run_path
from reproduce.plan import TABLES
from tests import tiny

KINDS = ("texts", "pictures", "parquet", "JSON", "checkpoints", "configurations")


@dataclass(frozen=True)
class World:
    """Name what is whole: a model, prompts, pictures with captions, pairs, and a finished run of each loop."""

    root: Path
    model: Path
    prompts: Path
    pictures: Path
    pairs: Path

    def run(self, loop: str) -> Path:
        return self.root / f"run-{loop}"


@dataclass
class Case:
    """Hold a call that must be refused."""

    command: str
    kind: str
    what: str
    argv: list[str]
    named: str  # what the line must name: a file, or the value
    environment: dict[str, str] = field(default_factory=dict)


def usual(world: World, loop: str, out: Path) -> dict[str, Any]:
    """Return the options with which a loop runs through."""
    shared = {"--model": world.model, "--out": out, "--save-every": 1}
    if loop == "train_offline":
        return shared | {"--pairs": world.pairs, "--updates": 1, "--batch": 2}
    shared |= {"--prompts": world.prompts}
    if loop == "train_online":
        own = {"--method": "ddpo", "--reward": "jpeg-incompressibility", "--rounds": 1, "--pairs": 2, "--minibatch": 2}
        return shared | own
    own = {"--method": "distar", "--teacher": world.model, "--batch": 2, "--start": None, "--time": 399, "--warmup": 1}
    return shared | own | {"--reward": None, "--reward-scale": 0, "--assistant-updates": 1, "--updates": 1}


LOOPS = {"train_online": train_online, "train_offline": train_offline, "train_distill": train_distill}


def build_world(root: Path) -> World:
    """Make what is whole, and train each loop for one update."""
    world = World(root, tiny.build(root / "model"), root / "prompts.txt", root / "pictures", root / "pairs")
    world.prompts.write_text("\n".join(tiny.PROMPTS))
    for folder in (world.pictures, world.pairs):
        folder.mkdir()
        for number, prompt in enumerate(tiny.PROMPTS):
            tiny.picture(folder / f"{number}.png", number)
            (world.pictures / f"{number}.txt").write_text(prompt)
    pairs = [{"prompt": prompt, "winner": f"{n}.png", "loser": f"{5 - n}.png"} for n, prompt in enumerate(tiny.PROMPTS)]
    (world.pairs / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    for name, loop in LOOPS.items():
        loop.main(arguments(usual(world, name, world.run(name))))
    return world


def arguments(options: dict[str, Any]) -> list[str]:
    """Write options as a command line; a tuple is several values, True a flag."""
    found = []
    for name, value in options.items():
        several = value if isinstance(value, tuple) else () if value is True else (value,)
        found += [*([] if name.startswith("positional") else [name]), *map(str, several)]
    return found


# what is damaged


@dataclass
class Damage:
    """Damage files of one case, in a folder of its own."""

    world: World
    folder: Path
    rng: random.Random

    def write(self, name: str, content: bytes | str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def copied(self, folder: Path, name: str) -> Path:
        return Path(shutil.copytree(folder, self.folder / name))

    def cut(self, path: Path) -> None:
        """Cut a file off, somewhere in its first half."""
        content = path.read_bytes()
        path.write_bytes(content[: self.rng.randrange(len(content) // 2)])

    # A prompts file, and what it does wrong.
    def texts(self) -> tuple[str, Path]:
        word, value = (
            self.rng.choice(["Kätzchen", "chat été", "perro niño"]),
            self.rng.choice(["null", "3", "[1]", "NaN"]),
        )
        line = self.rng.randrange(1, 4)
        above = "".join(f'{{"prompt": "a cat {n}"}}\n' for n in range(line))
        options: dict[str, Callable[[], Path]] = {
            "missing": lambda: self.folder / "missing.txt",
            "a folder": lambda: self.write("folder.txt/a.txt", "a cat").parent,
            "blank": lambda: self.write("blank.txt", " \n" * line),
            "latin-1": lambda: self.write("latin.txt", f"a cat\n{word}\n".encode("latin-1")),
            "utf-16": lambda: self.write("utf16.csv", f"prompt\n{word}\n".encode("utf-16")),
            "json in a text": lambda: self.write("lines.txt", above),
            "no known ending": lambda: self.write(f"p.{self.rng.choice(['yaml', 'XML', 'html', 'md'])}", "a cat\n"),
            "no JSON": lambda: self.write("lines.jsonl", above + '{"prompt": "a c'),
            "no text": lambda: self.write("values.ndjson", above + f'{{"prompt": {value}}}\n'),
            "half a character": lambda: self.write("half.json", r'["a cat", "\ud83d"]'),
            "no list": lambda: self.write("one.json", '{"prompt": "a cat"}'),
            "deep": lambda: self.write("deep.json", "[" * 50_000),
            "no column": lambda: self.write("columns.csv", f"id;prompt\n1;{word}\n"),
            "a comma": lambda: self.write("comma.csv", "id,prompt\n1,a cat, asleep\n"),
            "an open quote": lambda: self.write("quote.csv", 'id,prompt\n1,"a cat\n2,a dog\n'),
            "a carriage return": lambda: self.write("mac.txt", "a cat\ra dog"),
            "half an archive": lambda: self.write("half.tgz", gzip.compress(above.encode())[:-12]),
            "a picture": lambda: self.write("picture.txt", (self.world.pictures / "0.png").read_bytes()),
        }
        what = self.rng.choice(sorted(options))
        return what, options[what]()

    def table(self, name: str, columns: dict[str, Any]) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        parquet.write_table(pyarrow.table(columns), path)
        return path

    # A parquet file of one good row and one bad, or none.
    def parquet(self, name: str, good: dict[str, list]) -> tuple[str, Path]:
        word = "Kätzchen".encode("latin-1")
        ends = pyarrow.py_buffer(struct.pack("<2i", 0, len(word)))
        broken = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, pyarrow.py_buffer(word)])
        text = "caption"
        what = self.rng.choice(["text", "cut", "empty", "no column", "numbers", "lists", "latin-1"])
        if what in ("text", "empty"):
            return what, self.write(name, "a cat\na dog" * (what == "text"))
        if what == "cut":
            path = self.table(name, good)
            self.cut(path)
            return what, path
        bad = {"numbers": [2.5], "lists": [["a cat"]], "latin-1": broken}.get(what)
        rest = {key: value[:1] for key, value in good.items() if key != text}
        return what, self.table(name, rest | ({text: bad} if bad is not None else {"words": ["a cat"]}))

    # One picture of a folder, in place of the first.
    def picture(self, folder: Path, sized: bool = False) -> tuple[str, Path]:
        path, whole = folder / "0.png", (folder / "0.png").read_bytes()
        what = self.rng.choice(
            ["text", "cut", "empty", "noise", "another format", "huge", *(["size"] if sized else [])]
        )
        if what == "cut":
            path.write_bytes(whole[: self.rng.randrange(40, len(whole) - 20)])
        elif what == "size":
            Image.new("RGB", (32, self.rng.choice([16, 31, 33, 64]))).save(path)
        elif what == "another format":
            Image.new("RGB", (32, 32)).save(path, format=self.rng.choice(["GIF", "TIFF", "PPM"]))
        elif what == "huge":  # as its header says
            sides = struct.pack(">II", 60_000, self.rng.randrange(10_000, 60_000))
            path.write_bytes(whole[:16] + sides + whole[24:])
        else:
            path.write_bytes({"text": b"a cat", "empty": b"", "noise": self.rng.randbytes(500)}[what])
        return what, path

    # A JSON file that the project wrote: it is an object, and lacks what it needs.
    def json(self, path: Path, *needed: str) -> str:
        what = self.rng.choice(
            ["cut", "empty", "bytes", "a list", "null", "a number", *(["lacks", "type"] if needed else [])]
        )
        if what == "cut":
            self.cut(path)
        elif what in ("lacks", "type"):
            content, name = json.loads(path.read_text()), self.rng.choice(needed)
            content.pop(name)
            path.write_text(json.dumps(content | ({name: self.rng.choice([None, [[]]])} if what == "type" else {})))
        else:
            texts = {"empty": b"", "bytes": self.rng.randbytes(80), "a list": b"[1]", "null": b"null", "a number": b"7"}
            path.write_bytes(texts[what])
        return what

    # The settings of some work that was begun in this folder.
    def note(self, folder: Path, text: str) -> str:
        folder.mkdir(parents=True)
        (folder / "settings.json").write_text(text)
        return self.json(folder / "settings.json")

    # One of these settings in the place of its own; None for a model: a damaged one. What was done, and what is named.
    def option(self, options: dict, changes: list[tuple]) -> tuple[str, str]:
        option, value = self.rng.choice(changes)
        what, named = f"{option} {value}", str(value)
        if option == "--model":
            what, value, named = self.model()
        options[option] = value
        return what, named

    # A file of tensors that the project wrote.
    def tensors(self, path: Path) -> str:
        what = self.rng.choice(["cut", "empty", "bytes", "others", "shapes", "missing"])
        if what == "cut":
            self.cut(path)
        elif what == "missing":
            path.unlink()
        elif what in ("others", "shapes") and path.suffix == ".safetensors":
            state = load_file(path)
            first = self.rng.choice(sorted(state))
            tensor = state.pop(first)
            save_file(state | ({first: torch.zeros(*tensor.shape, 2)} if what == "shapes" else {}), path)
        elif what in ("others", "shapes"):
            torch.save({"step": 3} if what == "others" else [torch.zeros(3)], path)
        else:
            path.write_bytes(b"" if what == "empty" else self.rng.randbytes(200))
        return what

    # A model's folder in diffusers' layout.
    def model(self) -> tuple[str, Path, str]:
        folder = self.copied(self.world.model, "broken-model")
        part = self.rng.choice(["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
        config = {"tokenizer": "tokenizer.json", "scheduler": "scheduler_config.json"}.get(part, "config.json")
        weights = next((folder / part).glob("*.safetensors"), None)
        what = self.rng.choice(["lacks", "config", *(["weights"] if weights else [])])
        if what == "lacks":
            shutil.rmtree(folder / part)
        elif what == "config":
            what = f"config: {self.json(folder / part / config)}"
        else:
            what = f"weights: {self.tensors(weights)}"
        return f"{part}, {what}", folder, f"broken-model/{part}" if what != "lacks" else "broken-model"


# what each command is called with: (the kinds that it meets, how a case of a kind is made)


def loops(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of a training loop."""
    world, rng = damage.world, damage.rng
    options, environment = usual(world, command, out), {}
    if kind == "texts":
        what, path = damage.texts()
        options["--prompts"], named = path, path.name
    elif kind == "pictures":
        option, whole = ("--pairs", world.pairs) if rng.random() < 0.6 else ("--prior", world.pictures)
        folder = damage.copied(whole, "broken-pictures")
        what, path = damage.picture(folder, sized=True)
        options[option], named = folder, path.name
        options |= {"--method": "dreambooth"} if option == "--prior" else {}
        options |= {"--pairs": world.pictures} if option == "--prior" else {}
    elif kind == "parquet":
        if command == "train_offline":
            image = (world.pictures / "0.png").read_bytes()
            what, path = damage.parquet("packed/a.parquet", {"image": [image], "caption": ["a cat"]})
            options |= {"--pairs": path.parent, "--method": "sft"}
        else:
            what, path = damage.parquet("a.parquet", {"caption": ["a cat", "a dog"]})
            options["--prompts"] = path
        named = path.name
    elif kind == "JSON" and command == "train_offline" and rng.random() < 0.6:
        folder = damage.copied(world.pairs, "broken-pairs")
        row = {"prompt": "a cat", "winner": "0.png", "loser": "1.png"}
        changes = [{"label": rng.choice([0, 0.5, 2, "1", None])}, {"winner": rng.choice([None, 3, "none.png"])}]
        changes += [{"prompt": rng.choice([None, ["a"], float("nan")])}, {"loser": "0.png"}]
        change = rng.choice([*changes, None])
        (folder / "pairs.jsonl").write_text(
            json.dumps(row) + "\n" + ("{" if change is None else json.dumps(row | change))
        )
        options["--pairs"], what, named = folder, f"pairs: {change}", "pairs.jsonl line 2"
    elif kind in ("JSON", "checkpoints"):
        shutil.copytree(world.run(command), out)
        options["--resume"] = True
        checkpoint = next((out / "checkpoints").iterdir())
        if kind == "JSON":
            file = rng.choice(["state.json", "trained.json"])
            needed = ("step", "config", "history") if file == "state.json" else ("model", "fingerprint", "training")
            what = damage.json(checkpoint / file, *needed)
        else:
            file = rng.choice(sorted(p.name for p in checkpoint.iterdir() if p.suffix != ".json"))
            what = damage.tensors(checkpoint / file)
        what, named = f"{file}: {what}", f"{checkpoint.name}/{file}" if what != "others" else checkpoint.name
    else:
        what, named = wrong_setting(damage, command, options, environment)
    return Case(command, kind, what, arguments(options), named, environment)


def wrong_setting(
    damage: Damage, command: str, options: dict[str, Any], environment: dict[str, str]
) -> tuple[str, str]:
    """Change an option of a loop, a variable of the environment, or the model's folder."""
    rng, short = damage.rng, {"train_online": "rounds", "train_offline": "updates", "train_distill": "updates"}[command]
    numbers = {
        "lr": (0, -1e-5, "nan", "inf"),
        "grad_clip": (0, "nan"),
        short: (0, -3),
        "rank": (0,),
        "beta": (-1, "nan"),
    }
    numbers |= {"save_every": (0,), "threads": (0, -1), "micro_batch": (0,)}
    names = {"method": "pso-onlin", "model": "sd-trubo", "kernel": "heun", "scale": "poket", "tracker": "tensorbord"}
    names |= {"reward": "picscore"} if command != "train_offline" else {}
    names |= {"teacher": "sdxl-trubo", "start": "nowhere/run"} if command == "train_distill" else {}
    variables = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_MIXED_PRECISION": "bf16"}
    variables |= {"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}
    match rng.choice(["number", "number", "name", "variable", "model", "model"]):
        case "number":
            name = rng.choice(sorted(numbers))
            value = rng.choice(numbers[name])
            options[f"--{name.replace('_', '-')}"] = value
            return f"{name} = {value}", f"{name} = "
        case "name":
            name = rng.choice(sorted(names))
            options[f"--{name}"] = names[name]
            return f"{name} = {names[name]}", names[name]
        case "variable":
            name = rng.choice(sorted(variables))
            environment[name] = variables[name]
            return f"{name} = {variables[name]}", name
    what, options["--model"], named = damage.model()
    return f"model: {what}", named


def build_pairs(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the pair builder: sampled pairs, or Pick-a-Pic's."""
    world = damage.world
    options = {"--model": world.model, "--prompts": world.prompts, "--out": out, "--count": 2}
    if kind == "texts":
        what, path = damage.texts()
        options["--prompts"], named = path, path.name
    elif kind == "parquet":
        image = (world.pictures / "0.png").read_bytes()
        good = {"caption": ["a cat"], "jpg_0": [image], "jpg_1": [image + b"0"], "label_0": [1.0]}
        while (made := damage.parquet("data/train-0.parquet", good))[0] in ("numbers", "lists"):
            pass  # such rows are counted, and not refused
        what, path = made
        options = {"--from": "pickapic", "--data": path.parent, "--out": out}
        named = path.name
    elif kind == "JSON":
        what, named = damage.note(out / "building", '{"count": 2}'), "settings.json"
    else:
        changes = [("--count", 0), ("--batch", -1), ("--threads", 0), ("--taste", "sweet"), ("--steps", 2000)]
        changes += [("--tie", "nan"), ("--scale", "ful"), ("--from", "pickapick"), ("--model", None)]
        what, named = damage.option(options, changes)
    return Case(command, kind, what, arguments(options), named)


def evaluate(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the evaluation."""
    world, rng = damage.world, damage.rng
    options = {"--model": world.model, "--prompts": world.prompts, "--steps": 2, "--seeds": 2}
    options |= {"--metrics": "sharpness", "--out": out / "scores.json"}
    if kind in ("texts", "parquet"):
        what, path = damage.texts() if kind == "texts" else damage.parquet("a.parquet", {"caption": ["a cat"]})
        options["--prompts"], named = path, path.name
    elif kind == "pictures":
        folder = damage.copied(world.pictures, "broken-pictures")
        what, path = damage.picture(folder)
        options |= {"--metrics": "fid", "--reference": folder}
        named = path.name
    elif kind == "JSON":
        what, named = damage.note(out / "scores.parts", '{"scale": "pocket"}'), "settings.json"
    elif kind == "checkpoints":
        run = damage.copied(world.run("train_online"), "broken-run")
        checkpoint = next((run / "checkpoints").iterdir())
        file = rng.choice(["trained.json", "trained.safetensors", "statistics.npz", "statistics.safetensors"])
        options["--checkpoint"], named = run, file
        if file == "trained.json":
            what = damage.json(checkpoint / file, "model", "fingerprint", "training")
        elif file == "trained.safetensors":
            what = damage.tensors(checkpoint / file)
            named = "checkpoints/000001"
        else:
            statistics = damage.folder / file
            if statistics.suffix == ".npz":
                np.savez(statistics, mu=np.zeros(192), sigma=np.full((192, 192), np.nan))
            else:
                save_file({"mean": torch.zeros(192), "cov": torch.zeros(192, 3)}, statistics)
            what = rng.choice(["values", "cut"])
            if what == "cut":
                damage.cut(statistics)
            options |= {"--metrics": "fid", "--reference": statistics}
            del options["--checkpoint"]
        what = f"{file}: {what}"
    else:
        changes = [("--seeds", 0), ("--batch", 0), ("--threads", -1), ("--metrics", "fd"), ("--kernel", "heun")]
        changes += [("--steps", 0), ("--scale", "ful"), ("--out", out / "scores.html"), ("--model", None)]
        what, named = damage.option(options, changes)
    return Case(command, kind, what, arguments(options), named)


def export(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the export."""
    run = damage.copied(damage.world.run("train_online"), "broken-run")
    options = {"--checkpoint": run, "--out": out}
    checkpoint = next((run / "checkpoints").iterdir())
    if kind == "JSON":
        file = damage.rng.choice(["state.json", "trained.json", "evaluation.json"])
        (run / "evaluation.json").write_text('{"results": []}')
        needed = {"state.json": ("config",), "trained.json": ("model", "fingerprint"), "evaluation.json": ("results",)}
        what = damage.json(run / file if file == "evaluation.json" else checkpoint / file, *needed[file])
        what, named = f"{file}: {what}", file
    elif kind == "checkpoints":
        what, named = damage.tensors(checkpoint / "trained.safetensors"), "checkpoints/000001"
    else:
        what, options["--model"], named = damage.model()
    return Case(command, kind, what, arguments(options), named)


def fid_reference(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the reference of FID."""
    folder = damage.copied(damage.world.pictures, "broken-pictures")
    options = {"positional": folder, "--scale": "pocket", "--out": out / "reference.safetensors"}
    if kind == "pictures":
        what, path = damage.picture(folder)
        named = path.name
    else:
        options |= damage.rng.choice(
            [{"--scale": "poket"}, {"--out": out / "reference.txt"}, {"positional": out / "no"}]
        )
        what, named = f"{options}", next(str(v) for k, v in options.items() if str(v).endswith(("poket", ".txt", "no")))
    return Case(command, kind, what, arguments(options), named)


def plan(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the plan."""
    changes = [("--gpu", "H1000"), ("--count", 0), ("--count", 7), ("--utilisation", 1.5), ("--utilisation", "nan")]
    changes += [
        ("--row", "onlin"),
        ("--recipe", "adapter"),
        ("--set", "online.micro_batch"),
        ("positional", "pso_tabel2"),
    ]
    changes += [("--set", "online.lr=fast"), ("--set", "onlin.lr=1e-5"), ("--set", "lr=-1"), ("--set", "pairs.data=x")]
    option, value = damage.rng.choice(changes)
    return Case(command, kind, f"{option} {value}", arguments({"positional": "pso_table2", option: value}), str(value))


def score_images(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the scores by the rewards' own packages."""
    world = damage.world
    folder = damage.copied(world.pictures, "broken-pictures")
    options = {
        "--images": folder,
        "--prompts": world.prompts,
        "--hub": world.root / "hub",
        "--out": out / "scores.json",
    }
    if kind in ("texts", "parquet"):
        what, path = damage.texts() if kind == "texts" else damage.parquet("a.parquet", {"caption": ["a cat"]})
        options["--prompts"], named = path, path.name
    elif kind == "pictures":
        what, path = damage.picture(folder)
        named = path.name
    else:
        option, value = damage.rng.choice([("--images", world.root / "none"), ("--out", world.prompts / "a.json")])
        options[option], what, named = value, f"{option} {value}", str(value.parent if option == "--out" else value)
    return Case(command, kind, what, arguments(options), named)


def demo(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the demo."""
    options = {"--out": out, "--rounds": 1, "--pairs": 2, "--threads": 1}
    if kind == "JSON":
        shutil.copytree(damage.world.run("train_online"), out / "run")
        file = damage.rng.choice(["demo.json", "run/config.json"])
        (out / "demo.json").write_text('{"config": {"rounds": 1, "pairs": 2, "lr": 1e-5, "seed": 0}}')
        what = damage.json(out / file, *(("config",) if file == "demo.json" else ("method", "lr")))
        return Case(command, kind, f"{file}: {what}", arguments(options), file)
    option, value = damage.rng.choice(
        [("--rounds", 0), ("--pairs", -1), ("--lr", "nan"), ("--lr", "inf"), ("--threads", 0)]
    )
    options[option] = value
    return Case(command, kind, f"{option} {value}", arguments(options), f"{option[2:]} = ")


def table(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of a table's script."""
    rng, options = damage.rng, {"--smoke": True, "--out": out, "--threads": 1}
    trains = any(row.method for row in TABLES[command].rows.values() if not isinstance(row, dict))
    if kind == "JSON":
        options |= {"--table-only": True, "--work": damage.folder / "work"}
        del options["--smoke"]
        about = at_scale(TABLES[command], "pocket")
        name = next(row for row in about.rows if row_seeds(about, row))
        if rng.random() < 0.5:
            path, needed = out / f"{command}.json", ("runs", "prompts")
            content = {"runs": [], "prompts": {}, "table": command}
        else:
            path = run_path(damage.folder / "work", name, row_seeds(about, name)[0])
            needed, content = ("row", "cells", "settings"), {"row": name, "cells": {}, "settings": {"prompts": {}}}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return Case(command, kind, f"{path.name}: {damage.json(path, *needed)}", arguments(options), path.name)
    changes = [("--only", "onlin"), ("--seeds", 99), ("--seeds", -1), ("--threads", 0), ("--recipe", "adapter")]
    changes += [
        ("--set", "lr"),
        ("--set", "nothing.lr=1"),
        ("--models", "tiny"),
        ("--work", damage.world.prompts / "work"),
    ]
    changes += [("--set", "lr=fast"), ("--set", "seed=3")] if trains else []
    option, value = rng.choice(changes)
    options[option] = value
    named = str(value if option != "--work" else damage.world.prompts)
    return Case(command, kind, f"{option} {value}", arguments(options), named)


def ledger(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of the ledger of all tables."""
    if kind == "JSON":
        path = damage.write("results/pso_table2.json", '{"claims": [], "primary": [], "runs": []}')
        what = damage.json(path, "claims", "primary", "runs")
        return Case(command, kind, what, ["--status", "--results", str(path.parent)], path.name)
    option, value = damage.rng.choice([("--jobs", 0), ("--jobs", -1), ("--runs", damage.world.prompts / "runs")])
    return Case(command, kind, f"{option} {value}", arguments({option: value}), str(value))


def benchmark(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of a benchmark."""
    rng, options = damage.rng, {"--out": out / "result.json"}
    if kind == "JSON":  # what an earlier call left
        options["--out"].parent.mkdir(parents=True)
        options["--out"].write_text('{"config": {}, "loops": {}}')
        what, named = damage.json(options["--out"], "config", "loops"), "result.json"
        return Case(command, kind, what, arguments(options), named)
    models = {"step_cost": "--model", "adapter_memory": "--model", "rollout_memory": "--model"}
    changes: list[tuple[str, Any]] = {
        "step_cost": [("--repetitions", 0), ("--pairs", -1), ("--methods", "pso"), ("--threads", 0), ("--steps", -2)],
        "adapter_memory": [("--rank", 0), ("--batches", 0)],
        "rollout_memory": [("--samples", 0), ("--steps", 3), ("--steps", (2, 5000)), ("--threads", -1)],
        "full_size": [("--seconds", 0), ("--budget", "nan"), ("--device", "cpu"), ("--out", damage.world.prompts)],
        "kill_and_resume": [("--kills", 0), ("--updates", -1)],
    }[command]
    if command in models and rng.random() < 0.5:
        what, options[models[command]], named = damage.model()
        return Case(command, kind, f"model: {what}", arguments(options), named)
    option, value = rng.choice(changes)
    options[option] = value
    named = str(value[-1] if isinstance(value, tuple) else value)
    return Case(command, kind, f"{option} {value}", arguments(options), named)


def pocket(command: str, damage: Damage, kind: str, out: Path) -> Case:
    """Make a case of what builds and measures the pocket world."""
    rng = damage.rng
    if command == "fsalign_lib.pocket.one_step":
        run = damage.copied(damage.world.run("train_distill"), "broken-run")
        options = {"--run": run, "--out": out}
        if rng.random() < 0.5:
            (run / "result.json").unlink()
            return Case(command, kind, "no result", arguments(options), "result.json")
        return Case(command, kind, "of another model", arguments(options), "000001")
    changes = {
        "fsalign_lib.pocket.build": [("--stages", "teachr"), ("--seed", -1), ("--out", damage.world.prompts)],
        "fsalign_lib.pocket.report": [("--seeds", 0), ("--seeds", -2), ("--work", damage.world.prompts)],
    }[command]
    option, value = rng.choice(changes)
    options = {"--out": out} if command.endswith("build") else {}
    options |= {option: value} | ({"--work": out / "work"} if option != "--work" else {})
    return Case(command, kind, f"{option} {value}", arguments(options), str(value))


MAKERS: dict[str, tuple[Callable[..., Case], tuple[str, ...]]] = {
    "train_online": (loops, ("texts", "parquet", "JSON", "checkpoints", "configurations")),
    "train_offline": (loops, ("pictures", "parquet", "JSON", "checkpoints", "configurations")),
    "train_distill": (loops, ("texts", "parquet", "JSON", "checkpoints", "configurations")),
    "build_pairs": (build_pairs, ("texts", "parquet", "JSON", "configurations")),
    "evaluate": (evaluate, ("texts", "parquet", "pictures", "JSON", "checkpoints", "configurations")),
    "export": (export, ("JSON", "checkpoints", "configurations")),
    "fid_reference": (fid_reference, ("pictures", "configurations")),
    "score_images": (score_images, ("texts", "parquet", "pictures", "configurations")),
    "plan": (plan, ("configurations",)),
    "demo": (demo, ("JSON", "configurations")),
    "ledger": (ledger, ("JSON", "configurations")),
    **dict.fromkeys(TABLES, (table, ("JSON", "configurations"))),
    **dict.fromkeys(("step_cost", "adapter_memory", "rollout_memory", "full_size"), (benchmark, ("configurations",))),
    "kill_and_resume": (benchmark, ("JSON", "configurations")),
    **dict.fromkeys(
        ("fsalign_lib.pocket.build", "fsalign_lib.pocket.report", "fsalign_lib.pocket.one_step"),
        (pocket, ("configurations",)),
    ),
}


def plans(count: int, seed: int = 0) -> list[tuple[str, str, int]]:
    """List (command, kind, seed) of each case: every kind of every command once, then those that read more."""
    rng, every = random.Random(seed), [(command, kind) for command, (_, kinds) in MAKERS.items() for kind in kinds]
    rich = [(command, kind) for command, kind in every if command not in TABLES and len(MAKERS[command][1]) > 2]
    found = every + [rich[n % len(rich)] for n in range(count - len(every))]
    return [(command, kind, rng.randrange(2**32)) for command, kind in found[:count]]


def make(world: World, folder: Path, command: str, kind: str, seed: int) -> Case:
    """Make a case; what it brings lies in folder/in, and what may be written in folder/out."""
    (folder / "in").mkdir(parents=True)
    return MAKERS[command][0](command, Damage(world, folder / "in", random.Random(seed)), kind, folder / "out")
