"""Find published files: the commit of each, where it lies, and how to get it.

Models and rewards share one layout: <hub>/<owner>/<repository>/<file>, and <hub>/<file> for a plain download. The
environment variable FSALIGN_HUB, or the argument `hub` of `load.load` and `load_reward`, names that folder; without
one, files are downloaded into the caches of huggingface_hub and torch.hub.

What lies in a given folder is trusted. `hf download` notes the commit of each file beside it, and such a note must name
the pinned commit; bytes are not hashed, files of another network show when their keys are checked. A plain download
that is fetched here is held to its SHA-256.
"""

import hashlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import torch
from huggingface_hub import errors

# Where this was written the hub could not be asked. These are the commits that public projects pin, or name in their
# cache paths: several independent ones for each repository, but one for lcm-sdxl (finegrain-ai/refiners) and for DINO.
REVISIONS = {
    "stabilityai/sd-turbo": "b261bac6fd2cf515557d5d0707481eafa0485ec2",
    "stabilityai/sdxl-turbo": "71153311d3dbb46851df1931d3ca6e939de83304",
    "stabilityai/stable-diffusion-xl-base-1.0": "462165984030d82259a11f4367a4eed129e94a7b",
    "madebyollin/sdxl-vae-fp16-fix": "207b116dae70ace3637169f1ddd2434b91b3a8cd",
    "tianweiy/DMD2": "be22767697a1f3ca656b73c776e15fa335c86c6c",
    "latent-consistency/lcm-sdxl": "8b5d1b76b33abc5a5887c3f9ee8bffea2365dfe1",
    "latent-consistency/lcm-lora-sdxl": "a18548dd4956b174ec5b0d78d340c8dae0a129cd",
    "SimianLuo/LCM_Dreamshaper_v7": "a85df6a8bd976cdd08b4fd8f3b73f229c9e54df5",
    "PixArt-alpha/PixArt-XL-2-512x512": "50f702106901db6d0f8b67eb88e814c56ded2692",
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    "yuvalkirstain/PickScore_v1": "a4e4367c6dfa7288a00c550414478f865b875800",
    "xswu/HPSv2": "697403c78157020a1ae59d23f111aa58ced35b0a",
    "zai-org/ImageReward": "5736be03b2652728fb87788c9797b0570450ab72",
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "openai/clip-vit-large-patch14": "32bd64288804d66eefd0ccbe215aa642df71cc41",
    "facebook/dino-vits16": "abe3b354cb6a9b6f146096b14a4a9d7eecbcb4bd",
}
SKIPPED = "*.fp16.*"  # half-precision doubles of files that are read in full


@dataclass(frozen=True)
class Download:
    """Name a file at a plain address."""

    url: str
    sha256: str
    name: str


@dataclass(frozen=True)
class Hub:
    """Find the files of one model or reward.

    Attributes:
        reader: what needs them, for messages: "model 'sd-turbo'".
        folder: in the layout above; None: the caches, filled from the network.
    """

    reader: str
    folder: Path | None

    @classmethod
    def of(cls, reader: str, folder: str | Path | None = None) -> "Hub":
        """Build the hub of the given folder, or of FSALIGN_HUB's, or of none."""
        folder = folder or os.environ.get("FSALIGN_HUB")
        return cls(reader, Path(folder) if folder else None)

    def fetch(self, repository: str, files: Sequence[str], wanted: Sequence[str] = ()) -> Path:
        """Return the folder that holds a repository's files.

        Args:
            files: which must be there, by name.
            wanted: patterns of others, such as "unet/*.safetensors".

        Raises:
            FileNotFoundError: no such repository, a file of it is missing, or the hub cannot be reached; says how to
                get it. ValueError: wrong revision. PermissionError: its owner asks for consent.
        """
        asked, revision = [*files, *wanted], REVISIONS[repository]
        root = self._downloaded(repository, asked) if self.folder is None else self.folder / repository
        how = self.how_to_get(repository, asked)
        if not root.is_dir():
            raise FileNotFoundError(f"{self.reader} needs {repository}, which is not in {self.folder}: {how}")
        for file in files:
            if not (root / file).is_file():
                raise FileNotFoundError(f"{self.reader} needs {file} of {repository}, which is not in {root}: {how}")
        notes = root / ".cache" / "huggingface" / "download"  # written by hf download --local-dir
        for note in sorted(notes.rglob("*.metadata")):
            file = note.relative_to(notes).as_posix().removesuffix(".metadata")
            found = note.read_text().split("\n")[0]
            if found != revision and any(fnmatch(file, pattern) for pattern in asked):
                raise ValueError(f"{self.reader}: {root / file} is of revision {found}, expected {revision}: {how}")
        return root

    def _downloaded(self, repository: str, asked: Sequence[str]) -> Path:
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    repository, revision=REVISIONS[repository], allow_patterns=list(asked), ignore_patterns=[SKIPPED]
                )
            )
        except errors.GatedRepoError:
            raise PermissionError(
                f"{self.reader}: the owner of {repository} asks for consent: give it on "
                f"https://huggingface.co/{repository}, then run `hf auth login`"
            ) from None
        except errors.RevisionNotFoundError:
            raise ValueError(
                f"{self.reader}: {repository} has no revision {REVISIONS[repository]}: its history was rewritten; set "
                "another one in hub.REVISIONS"
            ) from None
        except errors.RepositoryNotFoundError:
            raise FileNotFoundError(
                f"{self.reader}: the hub has no {repository}, or it is private: put a copy into HUB/{repository} and "
                "set FSALIGN_HUB=HUB"
            ) from None
        except (OSError, errors.HTTPError) as error:
            raise FileNotFoundError(
                f"{self.reader} needs {repository}, and the hub cannot be reached ({type(error).__name__}): "
                f"{self.how_to_get(repository, asked)}"
            ) from None

    def how_to_get(self, repository: str, asked: Sequence[str]) -> str:
        """Say which command fetches files or patterns of a repository, and where to put them."""
        if any("*" in file for file in asked):  # hf takes names, or patterns, not both
            chosen = [word for file in asked for word in ("--include", file)] + ["--exclude", SKIPPED]
        else:
            chosen = list(asked)
        target = ["--revision", REVISIONS[repository], "--local-dir", f"{self.folder or 'HUB'}/{repository}"]
        return self._where(shlex.join(["hf", "download", repository, *chosen, *target]))

    def _where(self, command: str) -> str:
        if self.folder is not None:
            return f"where there is a network run `{command}`"
        return f"where there is a network run `{command}`, bring HUB here and set FSALIGN_HUB=HUB"

    def download(self, file: Download) -> Path:
        """Return the path of a plain download.

        Raises:
            FileNotFoundError: it is missing and cannot be fetched. ValueError: what was fetched is another file.
        """
        cache = Path(torch.hub.get_dir()) / "checkpoints"
        path = (self.folder or cache) / file.name
        how = self._where(shlex.join(["curl", "-L", "-o", f"{self.folder or 'HUB'}/{file.name}", file.url]))
        if self.folder is not None:
            if not path.is_file():
                raise FileNotFoundError(f"{self.reader} needs {file.name}, which is not in {self.folder}: {how}")
            return path
        if not path.is_file():
            cache.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(file.url, str(path), progress=False)
            except OSError as error:
                raise FileNotFoundError(
                    f"{self.reader} needs {file.name}, which cannot be fetched ({type(error).__name__}): {how}"
                ) from None
        if hashlib.sha256(path.read_bytes()).hexdigest() != file.sha256:
            raise ValueError(f"{self.reader}: {path} has not the SHA-256 {file.sha256}: delete it, and {how}")
        return path
