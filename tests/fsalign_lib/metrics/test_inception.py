"""FID's network against pytorch-fid's own outputs, and the Frechet distance from streamed moments."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from fsalign_lib.metrics import frechet, inception
from tests import original_inputs as given
from tests.exact import fitted

FIXTURE = Path(__file__).parents[2] / "fixtures" / "inception_original.safetensors"


@pytest.fixture(scope="module")
def original():
    with safe_open(FIXTURE, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()} | file.metadata()  # noqa: SIM118


@pytest.fixture(scope="module")
def state():
    """As the published file: with a classifier, without counters."""
    wanted = inception.InceptionV3().state_dict()
    names = {k: tuple(v.shape) for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
    names |= {"fc.weight": (1008, 2048), "fc.bias": (1008,)}
    return {name: torch.from_numpy(given.inception_weight(name, shape)) for name, shape in names.items()}


@pytest.fixture(scope="module")
def network(state):
    return inception.from_state(state, Path("weights.pth"))


def features(network, original):
    pictures = [
        torch.from_numpy(given.picture(i)).permute(2, 0, 1)[None] / 255 for i in json.loads(original["pictures"])
    ]
    with torch.no_grad():
        return torch.cat([network(picture) for picture in pictures]).numpy()


def test_parameters_are_named_as_in_the_published_file(state, original):
    shapes = json.dumps({name: list(value.shape) for name, value in state.items()}, sort_keys=True)
    assert f"{zlib.crc32(shapes.encode()):08x}" == original["names_and_shapes"]


def test_features_are_those_of_the_original(network, original):
    found = features(network, original)
    assert found.shape == (4, inception.FEATURES)
    np.testing.assert_allclose(found, original["features"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pool", ["average", "max"])
def test_what_is_special_to_fid_matters_here(network, original, pool, monkeypatch):
    """The usual pools give other features: the comparison above sees them."""
    if pool == "average":
        usual = F.avg_pool2d
        monkeypatch.setattr(F, "avg_pool2d", lambda *args, count_include_pad: usual(*args))
    else:
        monkeypatch.setattr(network.Mixed_7c, "pool", "average")
    assert np.abs(features(network, {"pictures": "[15]"}) - original["features"][3]).max() > 0.01


def test_other_weights_are_refused(state):
    del state["Mixed_6a.branch3x3.bn.running_var"]
    try:
        with pytest.raises(ValueError, match=r"w.pth are not this network.* 1 missing \(Mixed_6a.branch3x3.bn.running"):
            inception.from_state(state, Path("w.pth"))
    finally:
        state["Mixed_6a.branch3x3.bn.running_var"] = torch.ones(384)


def test_a_missing_or_another_file_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=r"'fid' needs pt_inception-.*-6726825d.pth, .* there is a network run `curl"
    ):
        inception.load_inception(tmp_path)
    monkeypatch.setenv("FSALIGN_HUB", str(tmp_path))
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / inception.WEIGHTS.name)
    with pytest.raises(ValueError, match="are not this network's: keys .* missing"):
        inception.load_inception()


# moments and the distance


def test_the_distance_is_the_original_formulas(original):
    a, b = original["a"], original["b"]
    assert frechet.gaussian_frechet(fitted(a), fitted(b)) == pytest.approx(original["distance"].item(), rel=1e-9)


def test_streamed_moments_are_those_of_all_at_once(original):
    x = original["features"][:, :40].repeat(5, 0) + np.random.default_rng(0).normal(size=(20, 40))
    moments = frechet.Moments(40)
    for part in np.split(x, [1, 7, 8]):
        moments.add(torch.from_numpy(part))
    found = moments.gaussian()
    assert found.count == 20
    np.testing.assert_allclose(found.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.cov, np.cov(x, rowvar=False), rtol=1e-9, atol=1e-12)
    assert frechet.gaussian_frechet(found, frechet.Gaussian(x.mean(0), np.cov(x.T))) == pytest.approx(0, abs=1e-5)


def test_bad_features_are_told():
    with pytest.raises(ValueError, match=r"shape \(3, 4\): expected \(n, 5\)"):
        frechet.Moments(5).add(np.zeros((3, 4)))
    with pytest.raises(ValueError, match="every value finite"):
        frechet.Moments(2).add(np.array([[0.0, np.nan]]))
    with pytest.raises(ValueError, match="1 sample: a covariance needs 2"):
        moments = frechet.Moments(2)
        moments.add(np.ones((1, 2)))
        moments.gaussian()


def test_statistics_are_kept_in_a_file(tmp_path):
    x = np.random.default_rng(1).normal(size=(30, 6))
    kept = frechet.Gaussian(x.mean(0), np.cov(x.T), 30)
    frechet.save_statistics(tmp_path / "a.safetensors", kept, "net")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    read = frechet.read_statistics(tmp_path / "a.safetensors", "net", 6)
    assert read.count == 30 and np.array_equal(read.mean, kept.mean) and np.array_equal(read.cov, kept.cov)
    np.savez(tmp_path / "b.npz", mu=kept.mean, sigma=kept.cov)
    read = frechet.read_statistics(tmp_path / "b.npz", "net", 6)
    assert read.count is None and frechet.gaussian_frechet(read, kept) == pytest.approx(0, abs=1e-9)


def test_statistics_that_cannot_be_used(tmp_path):
    x = np.random.default_rng(1).normal(size=(30, 6))
    frechet.save_statistics(tmp_path / "a.safetensors", frechet.Gaussian(x.mean(0), np.cov(x.T), 30), "net")
    with pytest.raises(ValueError, match="has features of net: expected other: compute it again"):
        frechet.read_statistics(tmp_path / "a.safetensors", "other", 6)
    with pytest.raises(ValueError, match=r"mean of shape \(6,\) .* expected \(2048,\) and \(2048, 2048\)"):
        frechet.read_statistics(tmp_path / "a.safetensors", "net", 2048)
    with pytest.raises(FileNotFoundError, match="reference .*/none.npz' does not exist"):
        frechet.read_statistics(tmp_path / "none.npz", "net", 6)
    np.savez(tmp_path / "pickled.npz", mu=np.array([object()]), sigma=np.zeros(1))
    np.savez(tmp_path / "others.npz", mean=x)
    (tmp_path / "text.npz").write_text("no statistics")
    (tmp_path / "text.safetensors").write_text("no statistics")
    for name in ("pickled.npz", "others.npz", "text.npz", "text.safetensors"):
        with pytest.raises(ValueError, match=f"{name}' cannot be read .* expected an .npz with mu and sigma"):
            frechet.read_statistics(tmp_path / name, "net", 6)
