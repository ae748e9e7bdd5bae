"""Files of the full-size rewards: which, at which revision, and what to do where there is no network.

Revisions are commits of the repositories, so they name the same bytes for ever. The one file that is not on the hub is
held to its SHA-256.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import huggingface_hub
import torch
from huggingface_hub import errors


@dataclass(frozen=True)
class Source:
    """Files of one repository on huggingface.co at one commit."""

    repo: str
    revision: str
    files: tuple[str, ...]

    def fetch(self, folder: Path | None) -> Path:
        """The folder that holds the files: in the hub's cache, or `folder`/<owner>--<name> where a folder is given.

        Raises:
            FileNotFoundError: a file is missing and cannot be fetched; the message has the command that fetches it.
            ValueError: the repository has no such commit, or the folder was filled from another one.
        """
        place = Path(folder or "WEIGHTS") / self.repo.replace("/", "--")
        command = f"hf download {self.repo} {' '.join(self.files)} --revision {self.revision} --local-dir {place}"
        if folder is not None:
            missing = [name for name in self.files if not (place / name).is_file()]
            if missing:
                raise FileNotFoundError(f"{place} has no {missing[0]}: where there is a network run `{command}`")
            self._check_revision(place, command)
            return place
        try:
            found = [huggingface_hub.hf_hub_download(self.repo, f, revision=self.revision) for f in self.files]
        except errors.LocalEntryNotFoundError:
            raise FileNotFoundError(
                f"{self.repo} at {self.revision} is not in the cache and the hub cannot be reached: where there is a "
                f"network run `{command}`, bring WEIGHTS here and pass it as the folder"
            ) from None
        except errors.RevisionNotFoundError:
            raise ValueError(f"{self.repo} has no revision {self.revision}: its history was rewritten") from None
        except errors.RepositoryNotFoundError:
            raise FileNotFoundError(
                f"{self.repo} is gone, private or gated: accept its terms on its page, then run `hf auth login`"
            ) from None
        except errors.EntryNotFoundError as error:
            raise FileNotFoundError(f"{self.repo} at {self.revision} lacks one of {self.files}: {error}") from None
        return Path(found[0]).parent

    def _check_revision(self, place: Path, command: str) -> None:
        """`hf download --local-dir` leaves the commit of each file beside it; files that came otherwise are trusted."""
        for name in self.files:
            note = place / ".cache" / "huggingface" / "download" / f"{name}.metadata"
            revision = note.read_text().split("\n")[0] if note.is_file() else self.revision
            if revision != self.revision:
                raise ValueError(
                    f"{place / name} is of revision {revision}, expected {self.revision}: where there is a network run "
                    f"`{command}`"
                )


@dataclass(frozen=True)
class Download:
    """A file at a plain address, held to its SHA-256."""

    url: str
    sha256: str
    name: str

    def fetch(self, folder: Path | None) -> Path:
        """The file: in torch.hub's cache, or in `folder` where one is given.

        Raises:
            FileNotFoundError: it is missing and cannot be fetched. ValueError: it is another file.
        """
        path = (Path(torch.hub.get_dir()) / "checkpoints" if folder is None else Path(folder)) / self.name
        command = f"curl -L -o '{path}' '{self.url}'"
        if not path.is_file():
            if folder is not None:
                raise FileNotFoundError(f"{path} is missing: where there is a network run `{command}`")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                torch.hub.download_url_to_file(self.url, str(path), progress=False)
            except (URLError, OSError) as error:
                raise FileNotFoundError(
                    f"{path} is missing and cannot be fetched ({error}): where there is a network run `{command}`"
                ) from None
        if hashlib.sha256(path.read_bytes()).hexdigest() != self.sha256:
            raise ValueError(f"{path} is not the file that is meant (SHA-256 {self.sha256}): delete it, `{command}`")
        return path


def require_folder(folder: Path) -> Path:
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"no reward weights at {folder}; build them with `python -m fsalign_lib.pocket.build`")
    return Path(folder)
