"""Make everything that the playground loads, from the shipped weights: `make playground`.

python docs/playground/export.py --npm build/playground/npm --out build/playground/site/playground

1. Train the aligned students at small scale by the project's own loops (about eight minutes of one core together). A
   finished run is kept under build/playground/runs, by the weights that it started from and its settings, and is not
   repeated; nor are the 2-D students.
2. Write each network as an ONNX graph in float32 whose weights lie beside it in half precision, as they ship. The two
   base students share one graph. A snapshot of a training run is a LoRA of 0.1 to 0.4 MB, merged in the browser.
3. Train the 2-D students for each beta of a grid.
4. Write the constants of samplers, grammar and tokenizer as one JSON, so that no formula has a number of its own in
   JavaScript.
"""

import argparse
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fsalign_lib.kernels import Kernel, build_kernel
from fsalign_lib.models.latent_model import trained_about
from fsalign_lib.models.load import load
from fsalign_lib.pocket.captions import ANIMALS, COLORS, COUNTS, PLACES, Fact, all_facts, caption, parse, prompts
from fsalign_lib.pocket.judge import normalize
from fsalign_lib.pocket.networks import load_classifier
from fsalign_lib.pocket.weights import WEIGHTS
from fsalign_lib.rewards import load_reward
from fsalign_lib.schedules import NoiseSchedule
from fsalign_lib.toy import CLASS_NAMES, load_student, online_pso, toy_mixture, toy_reward
from reproduce.common.files import digest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RUNS = ROOT / "build/playground/runs"
SNAPSHOTS = 4  # of each run, evenly spaced
VENDOR = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
BASES = {"pocket-turbo": ("base, four steps", 4), "pocket-one-step": ("base, one step", 1)}  # steps
# reward -> the graph that it shares, and its name on the page
JUDGES = (
    ("pickscore", "clip", "PickScore"),
    ("hps", "clip", "HPS"),
    ("clipscore", "clip", "CLIP score"),
    ("imagereward", "ranker", "ImageReward"),
    ("aesthetic", "aesthetic", "Aesthetic"),
)
TOY_STEPS = (1, 2, 3, 4, 5, 8, 16, 40)
TOY_TRAINED_AT = 4
TOY_BETAS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 4.0)


@dataclass(frozen=True)
class Training:
    """Describe the run behind one choice of the page: a loop of the project, and settings in the recipe's place."""

    method: str
    title: str
    model: str
    loop: str
    unit: str  # that the loop counts its training in
    rounds: int
    settings: tuple[str, ...]


def _online(method: str, title: str, lr: str, rounds: int = 24) -> Training:
    """Describe 24 rounds of 16 pairs at four steps of the model's own sampler, with PickScore."""
    few = ("--steps", "4", "--kernel", "None", "--rounds", str(rounds), "--pairs", "16", "--minibatch", "16")
    settings = (*few, "--prompts", "train", "--reward", "pickscore", "--rank", "16", "--lr", lr)
    return Training(method, title, "pocket-turbo", "train_online", "round", rounds, settings)


def _distilled(method: str, title: str, updates: int = 32) -> Training:
    """Describe 32 updates of 8 samples, with the reward and guidance of the method's recipe."""
    few = ("--updates", str(updates), "--batch", "8", "--warmup", "20", "--ema", "0.9")
    settings = (*few, "--rank", "16", "--lr", "1e-3", "--assistant-lr", "1e-3")
    return Training(method, title, "pocket-one-step", "train_distill", "update", updates, settings)


# Learning rates are those of a LoRA in a few updates: larger than the recipes', so that a slider has something to show.
TRAININGS = (
    _online("pso-online", "online PSO", "1e-3"),
    _online("sdpo", "SDPO", "1e-3"),
    _online("ddpo", "DDPO", "2e-3"),
    _distilled("dipp", "DI++"),
    _distilled("distar", "DI*"),
)


def train(training: Training, fingerprint: str) -> Path:
    """Train one student, unless a finished run of its settings from these weights is there; return the run's folder.

    Raises:
        subprocess.CalledProcessError: the training failed; it has said why.
    """
    out = RUNS / f"{training.method}-{digest([fingerprint, training.settings])}"
    if (out / "result.json").exists():
        return out
    command = [sys.executable, str(ROOT / f"reproduce/{training.loop}.py"), "--method", training.method]
    command += ["--out", str(out), "--training", "lora", "--threads", "1", *training.settings]
    every = str(training.rounds // SNAPSHOTS)
    subprocess.run([*command, "--snapshot-every", every, "--save-every", every, "--resume"], check=True, cwd=ROOT)
    return out


class Decoder(torch.nn.Module):
    """Decode a latent (1, 4, 16, 16) to a picture (1, 3, 64, 64) in [0, 1], as `LatentModel.decode`."""

    def __init__(self, vae):
        super().__init__()
        self.vae = vae

    def forward(self, latent: Tensor) -> Tensor:
        picture = self.vae.decode(latent / self.vae.config.scaling_factor, return_dict=False)[0]
        return (picture / 2 + 0.5).clamp(0, 1)


class Denoiser(torch.nn.Module):
    """Predict the noise in x (1, 4, 16, 16) at the time t (1,), for a condition (1, 16, 64)."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return self.unet(x, t, cond, return_dict=False)[0]


class Text(torch.nn.Module):
    """Encode tokens (1, 16) to a condition (1, 16, 64)."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, ids: Tensor) -> Tensor:
        return self.encoder(ids)[0]


class Clip(torch.nn.Module):
    """Score a picture (1, 3, 64, 64) for tokens (1, 16) by a cosine, as `CLIPReward`."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def forward(self, picture: Tensor, ids: Tensor) -> Tensor:
        model = self.reward.model
        text = model.text_projection(model.text_model(input_ids=ids).pooler_output)
        return (self.reward.image_embeddings(picture) * torch.nn.functional.normalize(text, dim=-1)).sum(-1)


class Ranker(torch.nn.Module):
    """Score a picture for tokens as `ImageReward`."""

    def __init__(self, reward):
        super().__init__()
        self.reward = reward

    def forward(self, picture: Tensor, ids: Tensor) -> Tensor:
        return (self.reward.match(picture, ids[:, None])[:, 0] - self.reward.mean) / self.reward.std


class Animals(torch.nn.Module):
    """Return the probability of each of the 45 animals, (1, 45), in a picture."""

    def __init__(self, classifier):
        super().__init__()
        self.classifier = classifier

    def forward(self, picture: Tensor) -> Tensor:
        return self.classifier(normalize(picture)).logits.softmax(1)


def write_network(network: torch.nn.Module, inputs: dict[str, Tensor], out: Path, name: str) -> dict:
    """Write a network as `name.onnx`, which computes in float32, and its weights in half precision as `name.bin`.

    The graph refers to one external file in which the weights stand one after the other in float32. The browser makes
    that file from `name.bin`, weight by weight, and can put another network's weights, or a LoRA's, in their place.

    Returns:
        {"graph", "weights": the two files, "layout": {weight: [its place, its size]}, in numbers}.
    """
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.eval(), tuple(inputs.values()), input_names=list(inputs), output_names=["out"], opset_version=18,
            dynamo=True, optimize=False, verbose=False, external_data=False,
        )  # fmt: skip
    model = program.model_proto
    del model.graph.value_info[:], model.metadata_props[:]
    for node in model.graph.node:  # where in the Python sources each came from: nine tenths of the file
        del node.metadata_props[:]
        node.doc_string = ""
    parameters, layout, place = dict(network.named_parameters()), {}, 0
    for tensor in model.graph.initializer:
        if tensor.name not in parameters:  # a constant, or a buffer: it stays in the graph
            continue
        count = parameters[tensor.name].numel()
        layout[tensor.name] = [place, count]
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, value in {"location": "weights", "offset": 4 * place, "length": 4 * count}.items():
            tensor.external_data.add(key=key, value=str(value))
        place += count
    (out / f"{name}.onnx").write_bytes(model.SerializeToString())
    write_weights(network, layout, out / f"{name}.bin")
    return {"graph": f"{name}.onnx", "weights": f"{name}.bin", "layout": layout}


def write_weights(network: torch.nn.Module, layout: dict, path: Path) -> None:
    """Write the weights of a network for a graph of that layout, in half precision."""
    parameters = dict(network.named_parameters())
    path.write_bytes(torch.cat([parameters[name].detach().flatten() for name in layout]).half().numpy().tobytes())


def write_lora(folder: Path, layout: dict, path: Path) -> dict:
    """Write the matrices of a snapshot's LoRA in half precision; return where each stands."""
    tensors, about = load_file(folder / "trained.safetensors"), trained_about(folder)
    layers, place, values = [], 0, []
    for name in tensors:
        if ".lora_A." not in name:
            continue
        a, b = tensors[name], tensors[name.replace(".lora_A.", ".lora_B.")]  # (r, inputs), (outputs, r)
        weight = f"unet.{name.split('.lora_A.')[0]}.weight".replace(".base_layer", "")
        if layout[weight][1] != len(b) * a.shape[1]:
            raise ValueError(f"{folder}: the LoRA of {weight} is not of this network")
        sizes = {"rank": len(a), "inputs": a.shape[1], "outputs": len(b)}
        layers.append({"weight": weight, "a": place, "b": place + a.numel(), **sizes})
        place += a.numel() + b.numel()
        values += [a.flatten(), b.flatten()]
    path.write_bytes(torch.cat(values).half().numpy().tobytes())
    return {"scale": about["alpha"] / about["rank"], "layers": layers}


def sampler(kernel: Kernel, shape: tuple[int, ...]) -> dict:
    """Return the numbers of a sampler: of each step its time, the weights of its mean, its std, and x0 from eps."""
    one, schedule = torch.ones(1, dtype=torch.float64), kernel.schedule
    steps = []
    for n, t in enumerate(kernel.timesteps.tolist()):
        alpha_bar = float(schedule.alpha_bar[t])
        mean = {"a": float(kernel.x_weight[n]), "b": float(kernel.x0_weight[n]), "s": float(kernel.stds[n])}
        levels = {"signal": alpha_bar**0.5, "noise": (1 - alpha_bar) ** 0.5}
        steps.append({"t": t, "input": float(kernel.model_input(one, n)), **mean, **levels})
    return {"latent": list(shape), "initial": float(kernel.initial(one)), "steps": steps}


def grammar() -> dict:
    """Return the words of the grammar, and what it answers to a prompt that is not its own."""
    animals = {animal: caption(Fact(animal, count=2)).removeprefix(f"{COUNTS[2]} ") for animal in ANIMALS}
    try:
        parse("{prompt}")
    except ValueError as error:
        message = str(error).replace("'{prompt}'", "{prompt}")
    words = {"animals": animals, "colors": COLORS, "counts": COUNTS, "places": PLACES}
    return words | {"message": message, "examples": prompts("test-heldout")[:24]}


def words(tokenizer) -> dict:
    """Return the token of each word of the grammar.

    Raises:
        ValueError: a word is not one token.
    """
    found = {}
    for word in sorted({word for fact in all_facts() for word in caption(fact).split()}):
        begin, *token, end = tokenizer(word).input_ids
        if len(token) != 1:
            raise ValueError(f"the word {word!r} has {len(token)} tokens: expected one")
        found[word] = token[0]
    return {"words": found, "begin": begin, "end": end, "length": tokenizer.model_max_length}


# ---- the 2-D world ----


def toy_constants() -> dict:
    """Return what the 2-D world computes with in the browser: mixture, reward, samplers, and the student's shapes."""
    mixture, reward, schedule = toy_mixture(), toy_reward(), NoiseSchedule.scaled_linear()
    kernels = ("renoise", "euler-ancestral")
    samplers = {k: {n: sampler(build_kernel(k, schedule, n), (2,)) for n in TOY_STEPS} for k in kernels}
    fields = {name: getattr(mixture, name).tolist() for name in ("weights", "means", "covs", "labels")}
    return {
        "mixture": fields,
        "reward": {"linear": reward.linear.tolist(), "quadratic": reward.quadratic.tolist()},
        "classes": CLASS_NAMES,
        "samplers": samplers,
        "betas": TOY_BETAS,
        "trained_at": TOY_TRAINED_AT,
        "shapes": {name: list(value.shape) for name, value in load_student().state_dict().items()},
    }


def flat(student) -> Tensor:
    """Return all weights of a 2-D student, one after the other."""
    return torch.cat([value.flatten() for value in student.state_dict().values()])


def write_toy_students(out: Path) -> None:
    """Train the 2-D student by online PSO at each beta, as notebook 05 does, and write its weights.

    Trained ones are kept, by the weights that they started from and their settings.
    """
    kernel = build_kernel("renoise", NoiseSchedule.scaled_linear(), TOY_TRAINED_AT)
    base = flat(load_student())
    (out / "toy-base.bin").write_bytes(base.half().numpy().tobytes())
    settings = {"rounds": 150, "pairs": 128, "learning_rate": 5e-4, "hold_last_step": True}
    about = digest([base.tolist(), TOY_TRAINED_AT, TOY_BETAS, settings])
    for labels in ("bradley-terry", "hard"):
        kept = RUNS / f"toy-{labels}-{about}.bin"
        if not kept.exists():
            trained = []
            for beta in TOY_BETAS:
                student, generator = load_student(), torch.Generator().manual_seed(0)
                for _ in online_pso(
                    student, kernel, toy_reward(), beta, generator=generator, labels=labels, **settings
                ):
                    pass
                trained.append(flat(student))
            RUNS.mkdir(parents=True, exist_ok=True)
            part = kept.with_suffix(".part")  # a stopped call leaves no half of a file
            part.write_bytes(torch.cat(trained).half().numpy().tobytes())
            part.rename(kept)
        shutil.copy(kept, out / f"toy-{labels}.bin")


# ---- all of it ----


def constants() -> dict:
    """Return the constants that need no network: samplers, grammar, tokenizer, 2-D world."""
    models = {}
    for name, (title, steps) in BASES.items():
        model = load(name)
        models[name] = {"title": title, "sampler": sampler(model.sampler(steps), model.latent_shape), "snapshots": []}
    tokenizer = words(model.text.tokenizer)
    return {"grammar": grammar(), "tokenizer": tokenizer, "models": models, "toy": toy_constants()}


def write_pictures(out: Path, found: dict) -> None:
    """Write the networks of the pictures' world and the trained snapshots, and add to `found` where they are."""
    ids, latent, picture = torch.zeros(1, 16, dtype=torch.long), torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, 64, 64)
    bases = {name: load(name) for name in BASES}
    turbo = bases["pocket-turbo"]
    cond = turbo.encode_prompts(["a cat"])
    inputs = {"x": latent, "t": torch.tensor([999]), "cond": cond}
    networks = {
        "text": write_network(Text(turbo.text.encoder), {"ids": ids}, out, "text"),
        "denoiser": write_network(Denoiser(turbo.unet), inputs, out, "denoiser"),
        "decoder": write_network(Decoder(turbo.vae), {"latent": latent}, out, "decoder"),
    }
    layout = networks["denoiser"]["layout"]
    for name, model in bases.items():
        found["models"][name]["weights"] = f"{name}.bin"
        write_weights(Denoiser(model.unet), layout, out / f"{name}.bin")
    (out / networks["denoiser"].pop("weights")).unlink()  # they are pocket-turbo.bin

    for training in TRAININGS:
        run = train(training, bases[training.model].fingerprint)
        base = found["models"][training.model]
        snapshots = sorted((run / "snapshots").iterdir())
        about = {"title": training.title, "base": training.model, "unit": training.unit, "of": training.rounds}
        about["reward"] = json.loads((run / "config.json").read_text())["reward"]
        about["snapshots"] = []
        for folder in snapshots:
            file = f"{training.method}-{folder.name}.bin"
            about["lora"] = write_lora(folder, layout, out / file)
            about["snapshots"].append({"file": file, "step": int(folder.name)})
        found["models"][training.method] = base | about
    order = {base: i for i, base in enumerate(BASES)}  # a base student, then those that were aligned from it
    models = found["models"].items()
    found["models"] = dict(sorted(models, key=lambda item: order[item[1].get("base", item[0])]))

    both, judges = {"picture": picture, "ids": ids}, []
    for name, kind, title in JUDGES:
        reward = load_reward(name)
        network = {"clip": Clip, "ranker": Ranker, "aesthetic": torch.nn.Sequential}[kind](reward)
        reads = kind != "aesthetic"
        if kind in networks:  # another judge of the same shape
            write_weights(network, networks[kind]["layout"], out / f"{name}.bin")
        else:
            networks[kind] = write_network(network, both if reads else {"picture": picture}, out, kind)
            (out / f"{kind}.bin").rename(out / f"{name}.bin")
        about = {"network": kind, "weights": f"{name}.bin", "reads": reads, "digits": 3 if kind == "clip" else 2}
        judges.append({"name": name, "title": title} | about)
    classifier = Animals(load_classifier(WEIGHTS, "classifier"))
    networks["classifier"] = write_network(classifier, {"picture": picture}, out, "classifier")
    found["networks"] = networks
    found["judges"] = judges


def sizes(out: Path, found: dict) -> dict:
    """Return how many bytes a draw fetches: for every draw, for the judges, and for each base student's weights."""
    networks = found["networks"]

    def size(*names: str) -> int:
        return sum((out / name).stat().st_size for name in names)

    drawing = [f"data/{networks[name]['graph']}" for name in ("text", "denoiser", "decoder")]
    drawing += [f"data/{networks[name]['weights']}" for name in ("text", "decoder")]
    judging = {networks[judge["network"]]["graph"] for judge in found["judges"]} | {networks["classifier"]["graph"]}
    judging |= {judge["weights"] for judge in found["judges"]} | {networks["classifier"]["weights"]}
    return {
        "drawing": size(*drawing, *(f"vendor/{name}" for name in VENDOR)),
        "judges": size(*(f"data/{name}" for name in judging)),
        "models": {name: size(f"data/{found['models'][name]['weights']}") for name in BASES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the page")
    parser.add_argument("--npm", type=Path, required=True, help="folder in which `npm ci` put node_modules")
    c = parser.parse_args()
    torch.set_num_threads(1)
    shutil.rmtree(c.out / "data", ignore_errors=True)
    for folder in ("data", "vendor"):
        (c.out / folder).mkdir(parents=True, exist_ok=True)
    for path in HERE.iterdir():
        if path.suffix in (".html", ".css", ".mjs"):
            shutil.copy(path, c.out)
    for name in VENDOR:
        shutil.copy(c.npm / "node_modules/onnxruntime-web/dist" / name, c.out / "vendor")
    found = constants()
    write_toy_students(c.out / "data")
    write_pictures(c.out / "data", found)
    found["sizes"] = sizes(c.out, found)
    (c.out / "data/constants.json").write_text(json.dumps(found))
    size = sum(path.stat().st_size for path in c.out.rglob("*") if path.is_file())
    print(f"wrote {c.out}: {size / 2**20:.1f} MB")


if __name__ == "__main__":
    main()
