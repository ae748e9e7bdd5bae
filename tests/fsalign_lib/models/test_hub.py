"""Where published files come from: one folder for models and rewards, and one line for each thing that goes wrong."""

import shlex
import shutil
from urllib.error import URLError

import httpx2
import huggingface_hub
import pytest
import torch
from huggingface_hub import errors
from huggingface_hub.cli import hf

from fsalign_lib import twins
from fsalign_lib.models import hub, presets
from fsalign_lib.models import load as models
from fsalign_lib.models.hub import REVISIONS, Hub
from fsalign_lib.models.presets import DMD2, FP16_VAE, PRESETS, SDXL
from fsalign_lib.rewards import full, load_reward
from fsalign_lib.rewards.dino import DINO
from tests.published import NAMES, WEIGHTS

# What is loaded, and the first repository that it asks for.
FIRST = {
    "sd-turbo": "stabilityai/sd-turbo",
    "sdxl-lcm": SDXL,
    "pixart-alpha": "PixArt-alpha/PixArt-XL-2-512x512",
    "pickscore": full.PICKSCORE_V1,
    "clipscore": full.CLIP_H,
    "hps": full.CLIP_H,
    "imagereward": full.IMAGE_REWARD_V1,
    "aesthetic": full.CLIP_L,
}


def load(name, folder=None):
    return models.load(name, hub=folder) if name in PRESETS else load_reward(name, scale="full", hub=folder)


def told(kind, name, folder=None):
    with pytest.raises(kind) as caught:
        load(name, folder)
    message = str(caught.value)
    assert "\n" not in message and f"{'model' if name in PRESETS else 'reward'} {name!r}" in message
    return message


def command(message):
    """What the message says to run."""
    return shlex.split(message.split("run `")[1].split("`")[0])


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in FIRST:
        twins.save_twin(name, folder) if name in PRESETS else twins.save_reward_twin(name, folder)
    twins.save_twin("sdxl-dmd2", folder)
    return folder


@pytest.mark.parametrize("name", FIRST)
def test_no_network(name, monkeypatch, tmp_path):
    """The tests run offline: the real error of the library, not a made one."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    message = told(FileNotFoundError, name)
    repository = FIRST[name]
    assert f"needs {repository}, and the hub cannot be reached" in message
    words = command(message)
    assert words[:3] == ["hf", "download", repository]
    assert words[-4:] == ["--revision", REVISIONS[repository], "--local-dir", f"HUB/{repository}"]
    assert message.endswith("bring HUB here and set FSALIGN_HUB=HUB")


@pytest.mark.parametrize("name", FIRST)
def test_what_is_not_in_a_local_hub(name, tmp_path):
    message, repository = told(FileNotFoundError, name, tmp_path), FIRST[name]
    assert f"needs {repository}, which is not in {tmp_path}: " in message
    assert command(message)[-1] == str(tmp_path / repository)


def test_a_connection_that_breaks(monkeypatch):
    def breaks(*_, **__):
        raise httpx2.ReadTimeout("several\nlines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaks)
    for name in ("sd-turbo", "pickscore"):
        assert "the hub cannot be reached (ReadTimeout)" in told(FileNotFoundError, name)


@pytest.mark.parametrize("name", ["sd-turbo", "hps"])
@pytest.mark.parametrize(
    "error,kind,expected",
    [
        (errors.RevisionNotFoundError, ValueError, "{} has no revision {}"),
        (errors.GatedRepoError, PermissionError, "the owner of {} asks for consent: give it on https://hugging"),
        (errors.RepositoryNotFoundError, FileNotFoundError, "the hub has no {}, or it is private"),
        (errors.HfHubHTTPError, FileNotFoundError, "needs {}, and the hub cannot be reached"),
    ],
)
def test_what_the_hub_refuses(name, error, kind, expected, monkeypatch):
    def refuse(*_, **__):
        response = httpx2.Response(404, request=httpx2.Request("GET", "https://huggingface.co"))
        raise error("several\nlines", response=response)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    repository = FIRST[name]
    assert expected.format(repository, REVISIONS[repository]) in told(kind, name)


@pytest.mark.parametrize(
    "name,lost",
    [
        ("sdxl-dmd2", PRESETS["sdxl-dmd2"].network),
        ("sdxl-lcm", f"{PRESETS['sdxl-lcm'].network}/config.json"),
        ("sdxl-lcm", f"{FP16_VAE}/diffusion_pytorch_model.safetensors"),
        *((name, path) for name, path in WEIGHTS.items() if name in FIRST),
        ("pickscore", f"{full.CLIP_H}/merges.txt"),
        ("imagereward", f"{full.BERT}/vocab.txt"),
    ],
)
def test_a_file_that_is_not_there(name, lost, filled, tmp_path):
    shutil.move(filled / lost, tmp_path / "elsewhere")
    message = told(FileNotFoundError, name, filled)
    shutil.move(tmp_path / "elsewhere", filled / lost)
    repository, file = presets.split(lost) if lost.count("/") > 1 else ("", lost)
    place = filled / repository
    assert f"needs {f'{file} of {repository}' if repository else file}, which is not in {place}: where" in message
    assert str(place) in " ".join(command(message))


@pytest.mark.parametrize("name", ["sd-turbo", "sdxl-dmd2", "pickscore", "imagereward"])
def test_a_folder_of_another_revision(name, filled):
    """As `hf download --local-dir` leaves it."""
    repository, file = FIRST.get(name, DMD2), "model.safetensors"
    file = {"sd-turbo": "unet/config.json", "sdxl-dmd2": PRESETS["sdxl-dmd2"].network.split("/")[2]}.get(name, file)
    file = "ImageReward.pt" if name == "imagereward" else file
    notes = filled / repository / ".cache" / "huggingface" / "download"
    note, other = notes / f"{file}.metadata", notes / "elsewhere.bin.metadata"
    for path in (note, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{'0' * 40}\netag\n0.0\n")
    message = told(ValueError, name, filled)
    assert f"{filled / repository / file} is of revision {'0' * 40}, expected {REVISIONS[repository]}: " in message
    assert command(message)[-1] == str(filled / repository)
    note.write_text(f"{REVISIONS[repository]}\netag\n0.0\n")
    load(name, filled)  # a file that is not read may be of any revision
    shutil.rmtree(filled / repository / ".cache")


def test_the_folder_is_named_by_argument_or_variable(filled, monkeypatch):
    monkeypatch.setenv("FSALIGN_HUB", str(filled))
    picture = torch.rand(1, 3, 50, 60)
    from_folder = load_reward("pickscore", scale="full", hub=filled)(picture, ["a cat"])
    assert torch.equal(load_reward("pickscore", scale="full")(picture, ["a cat"]), from_folder)
    assert Hub.of("x").folder == filled and Hub.of("x", "elsewhere").folder.name == "elsewhere"
    monkeypatch.setenv("FSALIGN_HUB", "")
    assert Hub.of("x").folder is None


def test_the_hubs_cache_is_read(monkeypatch, tmp_path, filled):
    for repository in (full.PICKSCORE_V1, full.CLIP_H):
        snapshot = tmp_path / f"models--{repository.replace('/', '--')}" / "snapshots" / REVISIONS[repository]
        shutil.copytree(filled / repository, snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    from_folder, picture = load_reward("pickscore", scale="full", hub=filled), torch.rand(1, 3, 50, 60)
    assert load_reward("pickscore", scale="full")(picture, ["a cat"]) == from_folder(picture, ["a cat"])
    (snapshot / "merges.txt").unlink()
    assert "needs merges.txt of laion/CLIP-ViT-H-14" in told(FileNotFoundError, "pickscore")


def test_downloads_ask_for_the_pinned_revision_and_the_files_that_are_read(filled, monkeypatch):
    asked = {}

    def serve(repository, revision, allow_patterns, ignore_patterns):
        assert ignore_patterns == ["*.fp16.*"]
        asked[repository] = (revision, allow_patterns)
        return str(filled / repository)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    assert models.load("sdxl-dmd2").sampler(4).num_steps == 4
    assert {name: revision for name, (revision, _) in asked.items()} == {
        repository: REVISIONS[repository] for repository in (SDXL, FP16_VAE, DMD2)
    }
    assert asked[DMD2][1] == ["dmd2_sdxl_4step_unet_fp16.bin"]
    assert "*.json" in asked[SDXL][1] and "text_encoder_2/*.safetensors" in asked[SDXL][1]
    assert not {"unet/*.safetensors", "vae/*.safetensors", "*.safetensors"} & set(asked[SDXL][1])


def test_the_commands_do_what_the_code_does(filled, monkeypatch, tmp_path):
    """hf's own reading of the printed command, against what is asked of huggingface_hub without a local hub."""
    direct, printed = {}, {}

    def serve(repository, **asked):
        direct[repository] = asked
        return str(filled / repository)

    def download(repo_id, filename=None, **asked):
        printed[repo_id] = {"allow_patterns": [filename], "ignore_patterns": None} | asked
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", serve)
    monkeypatch.setattr("huggingface_hub.cli.download.snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.cli.download.hf_hub_download", download)
    for name in ("sd-turbo", "sdxl-dmd2", "hps", "imagereward"):
        load(name)
    elsewhere = Hub("test", tmp_path)
    for repository, asked in direct.items():
        run = shlex.split(elsewhere.how_to_get(repository, asked["allow_patterns"]).split("`")[1])
        hf.app(run[1:], standalone_mode=False)
        same = printed[repository]
        assert same["allow_patterns"] == asked["allow_patterns"] and same["revision"] == asked["revision"]
        assert same["local_dir"] == str(tmp_path / repository)
        if any("*" in pattern for pattern in asked["allow_patterns"]):
            assert same["ignore_patterns"] == asked["ignore_patterns"]


def test_every_source_is_pinned():
    named = {
        presets.split(source)[0]
        for preset in PRESETS.values()
        for source in (preset.pipeline, preset.network, preset.vae, preset.lora)
        if isinstance(source, str)
    }
    named |= {full.CLIP_H, full.PICKSCORE_V1, full.HPS_V2, full.IMAGE_REWARD_V1, full.BERT, full.CLIP_L, DINO}
    assert named == REVISIONS.keys()
    assert all(len(commit) == 40 and set(commit) <= set("0123456789abcdef") for commit in REVISIONS.values())


def test_a_plain_download_is_known_by_its_bytes(monkeypatch, tmp_path, filled):
    content = (filled / full.AESTHETIC_V2.name).read_bytes()

    def fetch(url, path, progress):
        assert url == full.AESTHETIC_V2.url
        with open(path, "wb") as file:
            file.write(content)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(
        ValueError, match=r"reward 'x': \S+linearMSE.pth has not the SHA-256 21dd590f.*delete it.*`curl"
    ):
        Hub("reward 'x'", None).download(full.AESTHETIC_V2)
    right = hub.hashlib.sha256(content).hexdigest()
    path = Hub("x", None).download(hub.Download(full.AESTHETIC_V2.url, right, full.AESTHETIC_V2.name))
    assert path == tmp_path / "checkpoints" / full.AESTHETIC_V2.name and path.read_bytes() == content

    def unreachable(*_, **__):
        raise URLError("no route")

    path.unlink()
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(FileNotFoundError, match=r"cannot be fetched \(URLError\).*`curl -L -o .*set FSALIGN_HUB=HUB"):
        Hub("x", None).download(full.AESTHETIC_V2)


def test_names_of_rewards():
    with pytest.raises(ValueError, match="unknown scale 'fulll': choose from pocket, full"):
        load_reward("pickscore", scale="fulll")
    with pytest.raises(ValueError, match="unknown reward 'hps-3'; choose one of pickscore, clipscore, hps, hps-2.1"):
        load_reward("hps-3", scale="full")
    assert set(NAMES) == set(WEIGHTS)
