"""List data sets by name, with where they come from and where they lie, and read each kind.

python -m reproduce.data.prompt_sets                # the table of DATA.md

Nothing is downloaded. A set lies below the data folder, which the environment variable FSALIGN_DATA names (or the
argument `folder`), under the path that its row says, in the format in which it was published.
"""

from __future__ import annotations

import hashlib
import os
import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fsalign_lib.pocket import captions
from reproduce.common.files import writable_folder, write_bytes
from reproduce.data.texts import caption_file, checked, parquet_files, parquet_rows, records, texts

if TYPE_CHECKING:
    from fsalign_lib.models.latent_model import LatentModel

POCKET = ("animals", "train", "test-pickapic", "test-heldout", "concept")
LOOKED_AT = 10_000  # prompts whose tokens are counted, of millions
CAPTIONS = ("prompt", "Prompt", "caption", "text", "TEXT", "txt")  # columns that hold what is wanted


@dataclass(frozen=True)
class DataSet:
    """Describe a published set. `files` are patterns below the data folder, of which the first that matches is read."""

    kind: Literal["prompts", "pairs", "pictures"]
    what: str
    used_by: str
    source: str
    licence: str
    files: tuple[str, ...] = ()
    count: int | None = None  # prompts, as published
    columns: tuple[str, ...] = CAPTIONS
    above: tuple[str, float] | None = None  # a column, and what it has to exceed
    distinct: bool = False  # each prompt once
    draw: int | None = None  # a fixed random part of it (seed 0), in order
    prompts: tuple[str, ...] = ()  # written here: no file is needed


PICKAPIC = "huggingface.co/datasets/yuvalkirstain/pickapic_v2 (404 since April 2025), or ..._v2_no_images for prompts"
PICKAPIC_V1 = "huggingface.co/datasets/yuvalkirstain/pickapic_v1_no_images"
PSO_PROMPTS = (
    "github.com/ZichenMiao/Pairwise_Sample_Optimization, human_preference_tuning/pso_pytorch/assets/"
    "4k_training_prompts.json"
)
PICKAPIC_LICENCE = "not stated where it was published"
COCO = "images.cocodataset.org/annotations/annotations_trainval{}.zip"
COCO_LICENCE = "CC BY 4.0 (captions)"
HPD = "huggingface.co/datasets/zhwang/HPDv2, folder benchmark (a copy: ymhao/HPDv2)"


# DreamBooth's 30 subjects, each with its class.
SUBJECTS = {
    **{name: "dog" for name in ("dog", "dog2", "dog3", "dog5", "dog6", "dog7", "dog8")},
    **{name: "cat" for name in ("cat", "cat2")},
    **{name: "toy" for name in ("duck_toy", "monster_toy", "poop_emoji", "rc_car", "robot_toy")},
    **{name: "stuffed animal" for name in ("bear_plushie", "grey_sloth_plushie", "wolf_plushie")},
    **{name: "sneaker" for name in ("colorful_sneaker", "shiny_sneaker")},
    **{name: "backpack" for name in ("backpack", "backpack_dog")},
    **{name: name for name in ("can", "candle", "clock", "teapot", "vase")},
    **{"berry_bowl": "bowl", "fancy_boot": "boot", "pink_sunglasses": "glasses", "red_cartoon": "cartoon"},
}
SUBJECT = "dog"  # where none is named
SUBJECT_PROMPTS = "dreambooth-prompts-"  # and the name of a subject: a prompt set
LIVE = ("dog", "cat")  # classes of live subjects, whose prompts differ
# What stands before and after a subject's name in DreamBooth's prompts: first and last those of all subjects.
FIRST = (
    *(("", f" {place}") for place in ("in the jungle", "in the snow", "on the beach", "on a cobblestone street")),
    *(("", f" on top of {what}") for what in ("pink fabric", "a wooden floor")),
    *(("", f" with {what} in the background") for what in ("a city", "a mountain", "a blue house")),
    ("", " on top of a purple rug in a forest"),
)
LAST = tuple((f"{what} ", "") for what in ("red", "purple", "shiny", "wet", "cube shaped"))
OF_OBJECTS = (
    *(("", f" with {what} in the background") for what in ("a wheat field", "a tree and autumn leaves")),
    ("", " with the Eiffel Tower in the background"),
    *(("", f" floating {where}") for where in ("on top of water", "in an ocean of milk")),
    *(("", f" on top of {what}") for what in ("green grass with sunflowers around it", "a mirror")),
    *(("", f" on top of {what}") for what in ("the sidewalk in a crowded street", "a dirt road", "a white rug")),
)
OF_LIVE = (
    *(("", f" wearing a {what}") for what in ("red hat", "santa hat", "rainbow scarf", "black top hat and a monocle")),
    *(("", f" in a {what} outfit") for what in ("chef", "firefighter", "police")),
    *(("", f" wearing {what}") for what in ("pink glasses", "a yellow shirt")),
    ("", " in a purple wizard outfit"),
)


def subject_prompts(subject: str) -> tuple[str, ...]:
    """Return DreamBooth's 25 prompts for one of its subjects, which is called "sks <class>".

    Raises:
        ValueError: no subject of this name.
    """
    if subject not in SUBJECTS:
        raise ValueError(f"unknown subject {subject!r} of DreamBooth: choose from {', '.join(sorted(SUBJECTS))}")
    name = f"sks {SUBJECTS[subject]}"
    own = OF_LIVE if SUBJECTS[subject] in LIVE else OF_OBJECTS
    return tuple(f"a {before}{name}{after}" for before, after in (*FIRST, *own, *LAST))


def _hpd(category: str) -> DataSet:
    return DataSet(
        "prompts",
        f"HPDv2's benchmark prompts, {category}",
        "DI* Table 3",
        HPD,
        "Apache-2.0",
        (f"hpdv2/**/{category}.json",),
        800,
    )


SETS: dict[str, DataSet] = {
    "pickapic-train": DataSet(
        "prompts",
        "the distinct training prompts of Pick-a-Pic v2 (58,960 among the pairs without a tie)",
        "PSO Sec. 3.1",
        PICKAPIC,
        PICKAPIC_LICENCE,
        ("pickapic_v2/**/train-*.parquet", "pickapic_v2/train.txt"),
        distinct=True,
    ),
    "pickapic-4k": DataSet(
        "prompts",
        "the 4,000 of them that the published PSO code trains on; without its file 4,000 drawn at random",
        "online PSO: PSO App. B.1",
        f"{PSO_PROMPTS}; else {PICKAPIC}",
        PICKAPIC_LICENCE,
        ("pso/**/4k_training_prompts.json", "pickapic_v2/**/train-*.parquet", "pickapic_v2/train.txt"),
        4000,
        distinct=True,
        draw=4000,
    ),
    "pickapic-test": DataSet(
        "prompts",
        "Pick-a-Pic's split test_unique: v1's, which the published PSO code reads, or else v2's",
        "PSO Tables 1, 2, 3",
        f"{PICKAPIC_V1}; else {PICKAPIC}",
        PICKAPIC_LICENCE,
        (
            *("pickapic_v1/**/test_unique-*.parquet", "pickapic_v1/test_unique.txt"),
            *("pickapic_v2/**/test_unique-*.parquet", "pickapic_v2/test_unique.txt"),
        ),
        500,
    ),
    "pickapic": DataSet(
        "pairs",
        "Pick-a-Pic v2's pairs: 851,293 without ties (`build_pairs.py --from pickapic`)",
        "offline PSO, Diffusion-DPO: PSO Sec. 3.1",
        PICKAPIC,
        PICKAPIC_LICENCE,
        ("pickapic_v2/**/train-*.parquet",),
    ),
    "parti": DataSet(
        "prompts",
        "PartiPrompts",
        "PSO Tables 1, 2, 3; DI* Tables 1, 2",
        "github.com/google-research/parti, PartiPrompts.tsv",
        "Apache-2.0",
        ("parti/PartiPrompts.tsv",),
        1632,
    ),
    "coco-2014-30k": DataSet(
        "prompts",
        "30,000 COCO captions, one a picture (FID on 30K; DI* names 2017 too, whose validation set is smaller)",
        "DI* Table 1",
        COCO.format(2014),
        COCO_LICENCE,
        ("coco/**/captions_val2014.json",),
        30_000,
        draw=30_000,
    ),
    "coco-2017": DataSet(
        "prompts",
        "COCO's validation captions, one a picture",
        "DI++ Table 1",
        COCO.format(2017),
        COCO_LICENCE,
        ("coco/**/captions_val2017.json",),
        5000,
    ),
    "hpdv2": DataSet(
        "prompts",
        "the four categories below together",
        "DI* Table 3",
        HPD,
        "Apache-2.0",
        ("hpdv2/**/[acp][noah]*.json",),  # not drawbench.json, which lies beside them
        3200,
    ),
    **{f"hpdv2-{category}": _hpd(category) for category in ("anime", "concept-art", "paintings", "photo")},
    "sdpo-animals": DataSet(
        "prompts",
        "the names of 45 animals",
        "SDPO App. A.1",
        "SDPO App. A.1 (DDPO's simple animals)",
        "a list of words",
        count=45,
        prompts=captions.ANIMALS,
    ),
    "sdpo-unseen": DataSet(
        "prompts",
        "colour, count, composition, location: one prompt each (those that the paper prints)",
        "SDPO Sec. 4.2, Table 1",
        "SDPO Sec. 4.2",
        "printed in the paper",
        count=4,
        prompts=("A green colored rabbit", "Four wolves in the park", "A cat and a dog", "A dog on the moon"),
    ),
    "laion-aesthetics": DataSet(
        "prompts",
        "captions of LAION-Aesthetics V2 with a score above 6.25, about 3 million",
        "DI* Sec. 5",
        "laion.ai/blog/laion-aesthetics (DMD2 publishes them as a pickle: turn it into a text file yourself)",
        "CC BY 4.0 (metadata)",
        (
            "laion-aesthetics/**/*.parquet",
            "laion-aesthetics/**/*.jsonl",
            "laion-aesthetics/**/*.csv",
            "laion-aesthetics/**/*.txt",
        ),
        above=("AESTHETIC_SCORE", 6.25),
    ),
    "sam-llava": DataSet(
        "prompts",
        "LLaVA's captions of SAM's pictures, about 10 million",
        "DI++ App. C.1: training",
        "huggingface.co/datasets/PixArt-alpha/SAM-LLaVA-Captions10M, SA1B_caption.tar.gz",
        "OpenRAIL",
        ("sam-llava/**/*.tar.gz", "sam-llava/**/*.parquet", "sam-llava/**/*.jsonl", "sam-llava/**/*.txt"),
    ),
    "sam-llava-5k": DataSet(
        "prompts",
        "5,000 of them (which ones, and how many, the paper compares on is not published)",
        "DI++ Table 1",
        "huggingface.co/datasets/PixArt-alpha/SAM-LLaVA-Captions10M, SA1B_caption.tar.gz",
        "OpenRAIL",
        ("sam-llava/**/*.tar.gz", "sam-llava/**/*.parquet", "sam-llava/**/*.jsonl", "sam-llava/**/*.txt"),
        5000,
        draw=5000,
    ),
    "pokemon": DataSet(
        "pictures",
        "pictures in one style with BLIP captions",
        "PSO Sec. 3.2 (style transfer)",
        "huggingface.co/datasets/lambdalabs/pokemon-blip-captions (taken down): bring a folder of your own",
        "CC BY-NC-SA 4.0 on its card",
        ("pokemon",),
        833,
    ),
    "dreambooth-prompts": DataSet(
        "prompts",
        "DreamBooth's 25 prompts for its subject `dog`; of another of 30, such as `cat2`: `dreambooth-prompts-cat2`",
        "PSO Table 4",
        "github.com/google/dreambooth, dataset/prompts_and_classes.txt",
        "CC BY 4.0",
        count=25,
        prompts=subject_prompts(SUBJECT),
    ),
    "dreambooth": DataSet(
        "pictures",
        "30 subjects of 4 to 6 pictures, a folder each",
        "PSO Sec. 3.3 (concept customization)",
        "github.com/google/dreambooth, folder dataset",
        "CC BY 4.0; of each picture: references_and_licenses.txt",
        ("dreambooth/dataset",),
    ),
}


def data_folder(folder: Path | str | None = None) -> Path | None:
    """Return the folder that is given, or that FSALIGN_DATA names."""
    folder = folder or os.environ.get("FSALIGN_DATA")
    return Path(folder) if folder else None


def find(name: str, folder: Path | str | None = None) -> list[Path]:
    """Find the files (or the folder) of a set, in order of name.

    Raises:
        ValueError: no set of this name, or no data folder. FileNotFoundError: nothing lies where it should.
    """
    if name not in SETS:
        raise ValueError(f"unknown data set {name!r}: choose from {', '.join(SETS)}")
    known, root = SETS[name], data_folder(folder)
    wanted = " or ".join(known.files)
    if root is None:
        raise ValueError(
            f"data set {name!r} needs files: set FSALIGN_DATA to a folder with {wanted}, from {known.source}"
        )
    for pattern in known.files:
        found = sorted(path for path in root.glob(pattern) if not path.name.startswith("."))
        if found:
            return found
    raise FileNotFoundError(f"data set {name!r} is not in {root}: expected {wanted} there, from {known.source}")


def read_prompts(
    name: str,
    folder: Path | str | None = None,
    count: int | None = None,
    seed: int | None = None,
    once: bool = False,
) -> list[str]:
    """Read a prompt set by name (of SETS or the pocket world), or a file of prompts, always in the same order.

    A warning says what a file repeats.

    Args:
        name: a file is read as its name ends: .txt (a prompt a line), .tsv, .csv, .jsonl, ... (see `data/texts.py`).
        folder: the data folder; FSALIGN_DATA if None.
        count: how many prompts to return: the first ones, or, with a seed, a random part in the order of the whole.
        once: leave out what is repeated, of published sets too.

    Raises:
        ValueError: an unknown name; a file that is empty, damaged, or has no column of prompts; fewer than `count`.
        FileNotFoundError: no such file; the message says where a published set comes from and where it goes.
    """
    if count is not None and count < 1:
        raise ValueError(f"count = {count}: expected 1 or more prompts")
    found: Iterator[str]
    is_file = False
    if name == "concept":
        from fsalign_lib.pocket import concept

        found = iter(concept.contexts())
    elif name in POCKET:
        found = iter(captions.prompts(name))
    elif name.startswith(SUBJECT_PROMPTS):
        found = iter(subject_prompts(name.removeprefix(SUBJECT_PROMPTS)))
    elif name in SETS:
        found = published(name, folder)
    elif not Path(name).suffix and not Path(name).exists():
        raise ValueError(f"unknown prompt set {name!r}; choose one of {', '.join((*POCKET, *SETS))}")
    else:
        found, is_file = texts(Path(name), CAPTIONS), True
    prompts = some(found, count, seed)
    if not prompts:
        raise ValueError(f"prompts file {name!r} is empty: write a prompt a line")
    if count is not None and len(prompts) < count:
        raise ValueError(f"{name} has {len(prompts)} prompts, and {count} are asked for: ask for fewer")
    if once or is_file:
        distinct = list(dict.fromkeys(prompts))
        if len(distinct) < len(prompts):
            repeated = Counter(prompts).most_common(1)[0][0]
            done = "each is taken once" if once else "each counts as often as it stands there"
            told = f"{len(prompts) - len(distinct)} of its {len(prompts)} prompts, such as {repeated!r}"
            warnings.warn(f"{name} repeats {told}: {done}", stacklevel=2)
    return distinct if once else prompts


def published(name: str, folder: Path | str | None) -> Iterator[str]:
    """Read the prompts of one of SETS, or the captions of a set of pictures."""
    known = SETS[name]
    if known.kind == "pairs":
        raise ValueError(f"{name!r} is a set of pairs: its prompts are 'pickapic-train'; choose one of {prompt_sets()}")
    if known.kind == "pictures":
        whole = read_captions(find(name, folder)[0])
    elif known.prompts:
        whole = list(known.prompts)
    else:
        lines = (line for path in find(name, folder) for line in texts(path, known.columns, known.above))
        if known.draw is None and known.count is None:  # millions: never all at once
            yield from dict.fromkeys(lines) if known.distinct else lines
            return
        whole = some(dict.fromkeys(lines) if known.distinct else lines, known.draw, 0)
    if known.count and len(whole) != known.count:
        warnings.warn(f"{name} has {len(whole)} prompts here and {known.count} as published", stacklevel=2)
    yield from whole


def warn_of_cut(model: LatentModel, prompts: Sequence[str]) -> None:
    """Say how many prompts are longer than the model's text encoder takes, of the first LOOKED_AT."""
    from fsalign_lib.models.conditioning import too_long

    some = prompts[:LOOKED_AT]
    cut, limit = too_long(model.text, some)
    if cut:
        told = f"{len(cut)} of {len(some)} prompts are longer than the {limit} tokens that {model.name} reads"
        warnings.warn(f"{told}, and cut off there: {cut[0]!r}", stacklevel=2)


def prompt_sets() -> str:
    return ", ".join((*POCKET, *(name for name, known in SETS.items() if known.kind == "prompts")))


def some(prompts: Iterator[str], count: int | None, seed: int | None) -> list[str]:
    """Take `count` prompts in their order: the first, or those that a seed draws. It holds no more than it returns."""
    if count is None:
        return list(prompts)
    if seed is None:
        return list(islice(prompts, count))
    rng = random.Random(seed)
    drawn = nsmallest(count, ((rng.random(), place, prompt) for place, prompt in enumerate(prompts)))
    return [prompt for _, prompt in sorted((place, prompt) for _, place, prompt in drawn)]


def read_pictures(folder: Path | str, prompt: str | None = None, spare: Path | None = None) -> list[tuple[Path, str]]:
    """List the pictures of a folder with their captions, in order of name.

    A caption comes from metadata.jsonl ({"file_name": ..., "text": ...} a line), or from NAME.txt beside NAME.png, or
    is `prompt` for all, as for a handful of pictures of one subject (DreamBooth). Of a folder with parquet files
    (columns image and text, as datasets on the hub have them) the pictures are written into its subfolder pictures/,
    each under a hash of its bytes.

    Args:
        spare: whose subfolder pictures/ they are written into where the folder cannot be written to.

    Raises:
        FileNotFoundError: no such folder, no picture in it, or one of metadata.jsonl is missing.
        ValueError: a picture that cannot be read, or that has no caption; nothing was written then.
        PermissionError: pictures cannot be unpacked.
    """
    from reproduce.data.pictures import SUFFIXES, list_pictures, picture_size

    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: name one with pictures and their captions")
    packed = is_packed(folder)
    if packed:
        rows = _unpacked(folder, prompt, spare)
    elif (folder / "metadata.jsonl").is_file():
        rows = _listed(folder, prompt)
    else:
        rows = [(path, caption_file(path) if prompt is None else prompt) for path in list_pictures(folder)]
    if not rows:
        raise FileNotFoundError(f"no picture in {folder}: expected {', '.join(SUFFIXES)}, or parquet files")
    for path, caption in rows:
        if not packed:
            picture_size(path)
        if not caption:
            raise ValueError(
                f"{path} has no caption: give a prompt for all, or write it into {folder / 'metadata.jsonl'} "
                f"or {path.with_suffix('.txt').name}"
            )
    return rows


def is_packed(folder: Path) -> bool:
    """Say whether a folder's pictures lie in parquet files."""
    return not (folder / "metadata.jsonl").is_file() and bool(parquet_files(folder))


def read_captions(folder: Path) -> list[str]:
    """List the captions that `read_pictures` gives, and unpack no picture."""
    if is_packed(folder):
        return [text for path in parquet_files(folder) for text in texts(path, CAPTIONS)]
    return [caption for _, caption in read_pictures(folder)]


def _listed(folder: Path, prompt: str | None) -> list[tuple[Path, str]]:
    rows = []
    for where, row in records(folder / "metadata.jsonl"):
        if not isinstance(row, dict) or "file_name" not in row:
            raise ValueError(f'{where}: expected {{"file_name": ..., "text": ...}}')
        path = folder / checked(where, row["file_name"])
        if not path.is_file():
            raise FileNotFoundError(f"{where}: picture {row['file_name']!r} is missing: restore it or drop the line")
        captions = (row[column] for column in CAPTIONS if row.get(column))
        rows.append((path, prompt if prompt is not None else checked(where, next(captions, ""))))
    return rows


def _unpacked(folder: Path, prompt: str | None, spare: Path | None) -> list[tuple[Path, str]]:
    """Write the pictures of a folder's parquet files that are not there yet; all are looked at before the first."""
    from reproduce.data.pictures import picture_size

    home = folder if os.access(folder, os.W_OK) or spare is None else spare
    rows, new = [], set()
    for where, path, content, caption in _packed(folder, home / "pictures"):
        if not path.exists():
            picture_size(Path(where), content)
            new.add(path)
        rows.append((path, prompt if prompt is not None else checked(where, caption)))
        if not rows[-1][1]:
            raise ValueError(f"{where} has no caption: give a prompt for all, or write it there")
    if new:
        writable_folder(home / "pictures")
        for _, path, content, _ in _packed(folder, home / "pictures"):
            if path in new and not path.exists():
                write_bytes(path, content)
    return rows


def _packed(folder: Path, out: Path) -> Iterator[tuple[str, Path, bytes, Any]]:
    """Yield each picture's place in the parquet files, where it is unpacked to, its bytes, and its caption."""
    for file in parquet_files(folder):
        for where, row in parquet_rows(file, ("image",), CAPTIONS):
            content = row["image"].get("bytes") if isinstance(row["image"], dict) else row["image"]
            if not isinstance(content, bytes):
                raise ValueError(f"{where}: column image holds no picture's bytes: write them there, or drop the row")
            name = hashlib.blake2b(content, digest_size=12).hexdigest()
            yield where, out / f"{name}.img", content, row["text"]  # PIL goes by the content


def table() -> str:
    """Write the table of DATA.md."""
    lines = ["| name | what | used by | how many | where to get it | where it goes | licence |", "| --- " * 7 + "|"]
    for name in SETS:
        known = SETS[name]
        places = " or ".join(f"`{place}`" for place in known.files) or "no file needed"
        count = f"{known.count:,}" if known.count else "see left"
        cells = (f"`{name}`", known.what, known.used_by, count, known.source, places, known.licence)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
