"""Prompts are encoded once, to files that another prompt, encoder or precision does not find."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from fsalign_lib.models.load import load
from fsalign_lib.twins.models import save_twin
from reproduce.data import encoded_prompts
from reproduce.data.encoded_prompts import FOLDER, StoredText, store_prompts
from tests import tiny

PROMPTS = ["a cat", "a red dog", "a dog on the moon", "a cat", "two cats"]  # one of them twice
TWINS = ("sd-turbo", "sdxl-turbo", "pixart-alpha")  # ClipText, TwoClipText, T5Text


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    for name in TWINS:
        save_twin(name, folder)
    return folder


def parts(cond):
    return [cond] if isinstance(cond, torch.Tensor) else [cond.text, *cond.extra.values()]


def calls_of(model):
    """Count forwards of the text encoders."""
    calls = []
    for encoder in model.text.modules:
        encoder.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_read_is_what_the_encoders_gave(name, dtype, hub, tmp_path, monkeypatch):
    monkeypatch.setattr(encoded_prompts, "SHARD", 2)  # so that a batch reads several files
    model, other = (load(name, dtype, hub=hub) for _ in range(2))
    with torch.no_grad():
        expected, null = other.text.encode(PROMPTS[:1] + PROMPTS[1:3]), other.null(2)
    store_prompts([model], PROMPTS, tmp_path)
    found = model.text.encode(PROMPTS[:3])
    for a, b in zip(parts(found) + parts(model.null(2)), parts(expected) + parts(null), strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6 if dtype == torch.float32 else 0.05)
    x = torch.randn(3, *model.latent_shape)
    assert model.predict_eps(x, 500, model.encode_prompts(PROMPTS[:3])).isfinite().all()
    (folder,) = (tmp_path / FOLDER).iterdir()
    assert sorted(p.name for p in folder.iterdir()) == ["000000.safetensors", "000001.safetensors", "about.json"]
    with safe_open(folder / "000000.safetensors", "pt") as file:
        assert file.get_tensor("text").dtype == dtype, "kept in half precision where it was loaded so"


def test_encoders_run_once_and_are_dropped(hub, tmp_path):
    first = load("sd-turbo", hub=hub)
    calls, encoder = calls_of(first), first.text.encoder
    store_prompts([first], PROMPTS, tmp_path)
    done = len(calls)
    first.encode_prompts(PROMPTS)
    first.forget_prompts()
    first.encode_prompts(PROMPTS[2:])
    first.null(3)
    assert len(calls) == done and first.text.modules == ()
    assert {p.device.type for p in encoder.parameters()} == {"meta"}, "no memory is held"
    with pytest.raises(ValueError, match="'a fox' was not encoded before the text encoders were dropped"):
        first.encode_prompts(["a fox"])
    with pytest.raises(ValueError, match="the text encoders were dropped: load the model anew"):
        first.save_pretrained(tmp_path)
    first.to("cpu")

    again = load("sd-turbo", hub=hub)
    calls = calls_of(again)
    store_prompts([again], PROMPTS, tmp_path)
    assert torch.equal(again.encode_prompts(PROMPTS), first.encode_prompts(PROMPTS))
    assert len(calls) == 1, "no prompt alone, which has no file"


def test_kept_encoders_serve_other_prompts(hub, tmp_path):
    model, other = load("sd-turbo", hub=hub), load("sd-turbo", hub=hub)
    store_prompts([model], PROMPTS, tmp_path, keep=True)
    assert isinstance(model.text, StoredText)
    assert torch.equal(model.encode_prompts(["a fox"]), other.encode_prompts(["a fox"]))


def test_another_prompt_encoder_or_precision_is_encoded_anew(hub, folder, tmp_path):
    def stored(model, prompts=PROMPTS):
        before = set((tmp_path / FOLDER).glob("*"))
        store_prompts([model], prompts, tmp_path)
        return len(set((tmp_path / FOLDER).glob("*")) - before)

    assert stored(load(folder)) == 1
    assert stored(load(folder)) == 0
    assert stored(load(folder), PROMPTS[:-1] + ["three cats"]) == 1
    assert stored(load(folder), PROMPTS[::-1]) == 1, "rows are in another order"
    assert stored(load(folder, torch.bfloat16)) == 1
    changed = load(folder)
    with torch.no_grad():
        next(iter(changed.text.encoder.parameters())).flatten()[0] += 1
    assert stored(changed) == 1
    abouts = [json.loads(path.read_text()) for path in (tmp_path / FOLDER).glob("*/about.json")]
    assert all(about["prompts"] == 4 and len(about["prompts' sha256"]) == 64 for about in abouts)


def test_models_share_what_is_stored_and_small_disks_keep_the_encoders(folder, tmp_path, monkeypatch):
    student, teacher = load(folder), load(folder)
    store_prompts([student, teacher], PROMPTS, tmp_path, draws=3)  # fewer than there are
    assert student.text.modules and not (tmp_path / FOLDER).exists()
    monkeypatch.setattr(encoded_prompts.shutil, "disk_usage", lambda _: SimpleNamespace(free=3000))
    store_prompts([student, teacher], PROMPTS, tmp_path)
    assert student.text.modules
    monkeypatch.undo()
    store_prompts([student, teacher], PROMPTS, tmp_path)
    assert student.text is teacher.text and student.text.modules == ()


def test_a_run_at_full_scale_stores_its_prompts_and_one_at_pocket_scale_does_not(online, tmp_path):
    for scale in ("pocket", "full"):
        setup = online(out=f"{scale}/run", scale=scale, rounds=1)
        assert isinstance(setup.model.text, StoredText) == (scale == "full")
        assert (tmp_path / scale / FOLDER).exists() == (scale == "full")
        assert len(setup.cond) == len(tiny.PROMPTS)
