"""Read weights from files, without running what is in them, into networks that they must fit to the last key.

diffusers and transformers warn when a file lacks a weight or holds one that the network has no place for, and go on
with random weights. Here that is an error.
"""

import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import diffusers
import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SHOWN = 3  # keys named in a message
BUFFERS = r"(^|\.)position_ids$"  # counters that transformers has saved in some versions and not in others


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors in a safetensors or torch file by name, in mapped memory where the format allows it.

    A training checkpoint holds them under "state_dict", beside numbers and texts.

    Raises:
        ValueError: it is damaged, or holds something else: nothing but tensors is unpickled.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (pickle.UnpicklingError, RuntimeError, EOFError, SafetensorError) as error:
        raise _damaged(path, error) from None
    if isinstance(state, Mapping):
        state = state.get("state_dict", state)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no tensors by name: get the right file")
    return dict(state)


def _damaged(path: Path, error: Exception) -> ValueError:
    why = str(error).strip().split("\n")[0]
    return ValueError(f"{path} cannot be read as tensors alone ({why[:90]}): get it again")


def unreadable(source: Path, error: Exception) -> ValueError:
    """Return the error of a folder in a library's layout, such as a tokenizer's, that the library cannot read."""
    why = " ".join(str(error).split())[:90] or type(error).__name__
    return ValueError(f"{source} cannot be read ({why}): get it again")


def check_keys(
    source: str | Path, missing: Iterable[str] = (), unknown: Iterable[str] = (), reshaped: Iterable[str] = ()
) -> None:
    """Refuse weights that are not a network's.

    Raises:
        ValueError: any key is given; names the first of each kind.
    """
    problems = []
    for what, keys in (("missing", missing), ("unknown", unknown), ("of another shape", reshaped)):
        keys = sorted(keys)
        if keys:
            problems.append(f"{len(keys)} {what} ({', '.join(keys[:SHOWN])}{', ...' if len(keys) > SHOWN else ''})")
    if problems:
        raise ValueError(
            f"the weights in {source} are not this network's: keys {'; '.join(problems)}: get the right file"
        )


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str | Path, assign: bool = False) -> nn.Module:
    """Put every tensor of `state` into `module`, all of whose weights must get one.

    Args:
        source: where they are from, for messages.
        assign: take the tensors themselves, in their precision, for a module on the meta device.

    Raises:
        ValueError: names or shapes do not match.
    """
    here = module.state_dict()
    reshaped = {key for key in here.keys() & state.keys() if here[key].shape != state[key].shape}
    check_keys(source, here.keys() - state.keys(), state.keys() - here.keys(), reshaped)
    module.load_state_dict(state, assign=assign)
    return module


def load_pretrained(kind: type, folder: Path, dtype: torch.dtype, unused: str = "^$") -> nn.Module:
    """Load a network of diffusers or transformers that `save_pretrained` wrote, in evaluation mode.

    Args:
        unused: a pattern of keys that the file may have and the network does not.

    Raises:
        FileNotFoundError: no safetensors in the folder. ValueError: they are damaged, or not the network's.
    """
    files = [path.name for path in folder.glob("*model*.safetensors")]
    if not files:
        raise FileNotFoundError(f"{folder} has no weights in .safetensors files: get the whole of it")
    variant = "fp16" if all(".fp16" in file for file in files) else None
    return _from_pretrained(kind, folder, folder, dtype, unused, variant=variant, local_files_only=True)


def load_converted(kind: type, config, state: Mapping[str, Tensor], source: Path, dtype: torch.dtype) -> nn.Module:
    """Load a network of transformers with the weights of another library's file, in evaluation mode.

    Raises:
        ValueError: the converted weights are not the network's.
    """
    return _from_pretrained(kind, None, source, dtype, "^$", config=config, state_dict=state)


def _from_pretrained(kind: type, folder: Path | None, source: Path, dtype: torch.dtype, unused: str, **given):
    if issubclass(kind, diffusers.ModelMixin):
        given |= {"torch_dtype": dtype, "low_cpu_mem_usage": False}
    else:
        given["dtype"] = dtype
    verbosity = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()  # its report of the keys says the same in a page
    try:
        network, info = kind.from_pretrained(
            folder, output_loading_info=True, ignore_mismatched_sizes=True, use_safetensors=True, **given
        )
    except (SafetensorError, OSError) as error:
        raise _damaged(source, error) from None
    except Exception as error:  # damaged configurations lead the libraries to any
        raise unreadable(source, error) from error
    finally:
        transformers.logging.set_verbosity(verbosity)
    allowed = re.compile(f"{unused}|{BUFFERS}")
    check_keys(
        source,
        info["missing_keys"],
        [key for key in info["unexpected_keys"] if not allowed.search(key)],
        [key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]],
    )
    return network.eval()
