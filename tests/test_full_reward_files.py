"""Files of the full-size rewards that are missing, wrong or dangerous: one line says what to do."""

import contextlib
import os
import shutil
from urllib.error import URLError

import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file

import published
from fsalign_lib.rewards import full, load_reward
from fsalign_lib.rewards.checkpoints import read_checkpoint
from published import NAMES, place


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = published.build(tmp_path_factory.mktemp("weights"))
    with published.known(root / full.AESTHETIC_V2.name):
        yield root


@pytest.mark.parametrize("name", NAMES)
def test_no_network_names_what_to_download(name, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    told = r"is not in the cache and the hub cannot be reached.*`hf download \S+ .* --revision [0-9a-f]{40} --local-dir"
    with pytest.raises(FileNotFoundError, match=told):
        load_reward(name, scale="full")
    with pytest.raises(FileNotFoundError, match="has no .*where there is a network run `hf download"):
        load_reward(name, tmp_path, scale="full")


def test_the_hubs_cache_is_read(monkeypatch, tmp_path, folder):
    for source in (full.PICKSCORE_V1, full.WORDS_H):
        snapshot = tmp_path / f"models--{source.repo.replace('/', '--')}" / "snapshots" / source.revision
        shutil.copytree(place(folder, source), snapshot, dirs_exist_ok=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    from_folder, picture = load_reward("pickscore", folder, scale="full"), torch.rand(1, 3, 50, 60)
    assert load_reward("pickscore", scale="full")(picture, ["a cat"]) == from_folder(picture, ["a cat"])


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (errors.RevisionNotFoundError, ValueError, "yuvalkirstain/PickScore_v1 has no revision a4e4367c"),
        (errors.GatedRepoError, FileNotFoundError, "is gone, private or gated"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "is gone, private or gated"),
        (errors.RemoteEntryNotFoundError, FileNotFoundError, "lacks one of"),
    ],
)
def test_what_the_hub_refuses(error, kind, told, monkeypatch):
    def refuse(*_, **__):
        raise error("no", response=httpx.Response(404, request=httpx.Request("GET", "https://example.org")))

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    with pytest.raises(kind, match=told):
        load_reward("pickscore", scale="full")


@pytest.fixture
def stack():
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def copy(folder, tmp_path):
    """Files to be replaced: hard links, so that they are deleted before they are written."""
    return shutil.copytree(folder, tmp_path / "copy", copy_function=os.link)


def test_wrong_revision(copy):
    note = place(copy, full.PICKSCORE_V1) / ".cache" / "huggingface" / "download" / "model.safetensors.metadata"
    note.parent.mkdir(parents=True)
    note.write_text(f"{full.PICKSCORE_V1.revision}\netag\n0\n")
    load_reward("pickscore", copy, scale="full")
    note.write_text(f"{'0' * 40}\netag\n0\n")
    with pytest.raises(ValueError, match=f"is of revision 0{{40}}, expected {full.PICKSCORE_V1.revision}"):
        load_reward("pickscore", copy, scale="full")


@pytest.mark.parametrize(
    ("name", "source", "key", "told"),
    [
        ("pickscore", full.PICKSCORE_V1, "text_model.final_layer_norm.bias", "text_model.final_layer_norm.bias"),
        ("clipscore", full.CLIP_H, "visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("hps", full.HPS_V2_0, "transformer.resblocks.1.ln_1.bias", "text_model.encoder.layers.1.layer_norm1.bias"),
        ("imagereward", full.IMAGE_REWARD_V1, "mlp.layers.7.weight", "mlp.7.weight"),
        ("aesthetic", full.CLIP_L, "vision_model.pre_layrnorm.bias", "vision_model.pre_layrnorm.bias"),
        ("aesthetic", None, "layers.6.weight", "6.weight"),
    ],
)
def test_keys_that_do_not_match_are_named(name, source, key, told, copy, stack):
    if source is None:
        path = copy / full.AESTHETIC_V2.name
    else:
        path = place(copy, source) / next(f for f in source.files if not f.endswith("json"))
    state = read_checkpoint(path)
    tensors = state.get("state_dict", state)

    def save():
        path.unlink()
        save_file(state, path, metadata={"format": "pt"}) if path.suffix == ".safetensors" else torch.save(state, path)
        if source is None:
            stack.enter_context(published.known(path))

    taken = tensors.pop(key)
    save()
    with pytest.raises(ValueError, match=rf"holds other weights than the model has: 1 missing \({told}\)"):
        load_reward(name, copy, scale="full")
    tensors[key], tensors["vision_model.surplus"] = taken, torch.zeros(1)
    save()
    with pytest.raises(ValueError, match=r"1 unexpected \(vision_model\.surplus\)"):
        load_reward(name, copy, scale="full")
    del tensors["vision_model.surplus"]
    tensors[key] = torch.zeros(3, 5)
    save()
    with pytest.raises(ValueError, match=rf"1 mismatched \({told}\)"):
        load_reward(name, copy, scale="full")


class Surprise:
    def __reduce__(self):
        return print, ("code in a checkpoint has run",)


def test_checkpoints_do_not_run_code(copy, capsys):
    path = place(copy, full.HPS_V2_0) / full.HPS_V2_0.files[0]
    path.unlink()
    torch.save({"state_dict": {}, "surprise": Surprise()}, path)
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        load_reward("hps", copy, scale="full")
    assert "has run" not in capsys.readouterr().out
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="is not a checkpoint of tensors alone"):
        load_reward("hps", copy, scale="full")


def test_the_aesthetic_mlp_is_known_by_its_bytes(copy, monkeypatch, tmp_path):
    path = copy / full.AESTHETIC_V2.name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content + b"x")
    with pytest.raises(ValueError, match="is not the file that is meant"):
        load_reward("aesthetic", copy, scale="full")
    path.unlink()
    with pytest.raises(FileNotFoundError, match="where there is a network run `curl -L -o .*6934dd81792f086e"):
        load_reward("aesthetic", copy, scale="full")

    def unreachable(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    with pytest.raises(FileNotFoundError, match="cannot be fetched .*no route"):
        full.AESTHETIC_V2.fetch(None)


def test_unknown_names():
    with pytest.raises(ValueError, match="unknown scale 'fulll': choose from pocket, full"):
        load_reward("pickscore", scale="fulll")
    with pytest.raises(ValueError, match="unknown reward 'hps-3'; choose one of pickscore, clipscore, hps, hps-2.1"):
        load_reward("hps-3", scale="full")


def test_every_source_is_pinned():
    sources = [value for value in vars(full).values() if isinstance(value, full.Source)]
    assert len(sources) == 9
    for source in sources:
        assert len(source.revision) == 40 and set(source.revision) <= set("0123456789abcdef")
