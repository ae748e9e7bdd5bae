"""A run on disk: resuming to the bit, what it leaves, the time that it took, errors that name a prompt."""

import itertools
import json

import pytest
import torch

from fsalign_lib.models import load as models
from reproduce import train_offline, train_online
from reproduce.common.files import last_checkpoint
from reproduce.training.run import epoch_rows


def weights(setup):
    return torch.cat([p.detach().flatten() for p in setup.run.parameters])


def test_every_prompt_comes_equally_often():
    rows = torch.cat([epoch_rows("prompts", 0, n, total=6, size=4) for n in range(9)])
    assert rows.bincount().tolist() == [6] * 6
    assert not torch.equal(rows[:6], rows[6:12])
    batches = torch.cat([epoch_rows("pairs", 0, n, total=6, size=4) for n in range(9)])
    assert batches.bincount().tolist() == [6] * 6


@pytest.mark.parametrize("training", ["lora", "full"])
@pytest.mark.parametrize("kind", ["online", "offline"])
def test_a_resumed_run_has_the_same_bits(request, kind, training):
    make, loop = request.getfixturevalue(kind), {"online": train_online, "offline": train_offline}[kind]
    settings = {"training": training, "rank": 2, "lr": 1e-3}
    whole = make("whole", **settings)
    records = list(loop.train(whole))

    stopped = make("stopped", **settings)
    done = list(itertools.islice(loop.train(stopped), 3))  # killed after step 3; the last checkpoint is that of step 2
    assert done == records[:3]
    resumed = make("stopped", **settings, resume=True)
    assert resumed.run.start == 2
    list(loop.train(resumed))
    assert torch.equal(weights(resumed), weights(whole))
    assert resumed.run.history == whole.run.history
    assert [p.name for p in (resumed.config.out / "checkpoints").iterdir()] == ["000004"]


def test_a_run_leaves_its_result_and_its_model(online, folder):
    setup = online(tracker="tensorboard", training="lora", rank=2, lr=1e-3)
    train_online.run(setup)
    result = json.loads((setup.config.out / "result.json").read_text())
    assert len(result["history"]) == 4 and result["config"]["lr"] == 1e-3
    about = {"command", "commit", "versions", "device", "wall_seconds", "cpu_seconds", "peak_memory_mb"}
    assert about <= result.keys() and 0 < result["cpu_seconds"]
    assert list(setup.config.out.rglob("events.out.tfevents*"))
    again = models.load(folder)
    again.load_adapter(last_checkpoint(setup.config.out))
    x, cond = torch.randn(1, *again.latent_shape), again.encode_prompts(["a cat"])
    with torch.no_grad():
        assert torch.equal(again.predict_eps(x, 500, cond), setup.model.predict_eps(x, 500, cond))


@pytest.mark.parametrize(
    "before,cpu", [({"wall_seconds": 900.0, "cpu_seconds": 70.0}, 70), ({"wall_seconds": 900.0}, 900)]
)
def test_time_adds_up_over_resumes(online, before, cpu):
    """A state that an older version wrote has no CPU time: its wall time stands in."""
    begun = online(save_every=1)
    next(train_online.train(begun))
    state = last_checkpoint(begun.config.out) / "state.json"
    content = json.loads(state.read_text())
    assert content.keys() >= {"wall_seconds", "cpu_seconds"}
    kept = {k: v for k, v in content.items() if k not in ("wall_seconds", "cpu_seconds")}
    state.write_text(json.dumps(kept | before))
    resumed = online(save_every=1, resume=True)
    next(train_online.train(resumed))
    found = json.loads((last_checkpoint(resumed.config.out) / "state.json").read_text())
    assert 900 <= found["wall_seconds"] < 960 and cpu <= found["cpu_seconds"] < cpu + 30


def test_non_finite_values_name_prompt_and_seed(online, offline):
    def broken(images, prompts):
        return torch.tensor([float("nan") if p == "a dog" else 1.0 for p in prompts])

    with pytest.raises(FloatingPointError, match=r"reward pickscore is not finite for prompt 'a dog' \(seed 7, step"):
        list(train_online.train(online(reward=broken, seed=7, pairs=6)))
    for make, loop in ((online, train_online), (offline, train_offline)):
        setup = make("broken-" + loop.__name__)
        with torch.no_grad():
            setup.run.parameters[0].fill_(float("nan"))
        with pytest.raises(FloatingPointError, match=r"not finite for prompt '.+' \(seed 0, step 0\)"):
            list(loop.train(setup))
