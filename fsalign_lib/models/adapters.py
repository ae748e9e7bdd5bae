"""Put several adapters on one frozen network, of which a call uses one, or none.

peft freezes the adapters that it switches off, and a weight that is frozen at the backward gets no gradient, without a
word: a network that is called as three models before one backward would lose what the first call has to learn. And
checkpointed activations are computed again in the backward, when another adapter may be on. Both are settled here.
"""

import contextlib
import warnings
from collections.abc import Iterator

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Adapters:
    """Keep low-rank adapters of a network, by name.

    Attributes:
        active: the one in use; None for the network as it was loaded.
    """

    def __init__(self, network: nn.Module):
        self.network = network
        self.active: str | None = None
        self._layers: list[BaseTunerLayer] = []
        self._parameters: list[nn.Parameter] = []

    def add(self, name: str, config: LoraConfig, seed: int) -> None:
        """Add an adapter in float32, drawn from a seed of its own, and make it the active one."""
        with torch.random.fork_rng(), self._same_trained(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several are what is wanted
            torch.manual_seed(seed)
            inject_adapter_in_model(config, self.network, name)  # diffusers' add_adapter is not there for PixArt
        self._layers = [m for m in self.network.modules() if isinstance(m, BaseTunerLayer)]
        for p in self.weights(name).values():
            p.data = p.data.float()
        self._parameters += self.weights(name).values()
        self._switch(name)

    def weights(self, name: str) -> dict[str, nn.Parameter]:
        """Return the parameters of one adapter, by their names in the network."""
        return {n: p for n, p in self.network.named_parameters() if n.endswith(f".{name}.weight") and "lora_" in n}

    @contextlib.contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Use that adapter within the block. Frozen weights stay frozen, trained ones stay trained."""
        before = self.active
        if name == before:
            yield
            return
        self._switch(name)
        try:
            yield
        finally:
            self._switch(before)

    def _switch(self, name: str | None) -> None:
        with self._same_trained():
            for layer in self._layers:
                if name is not None:
                    layer.set_adapter(name)
                layer.enable_adapters(name is not None)
        self.active = name

    @contextlib.contextmanager
    def _same_trained(self) -> Iterator[None]:
        trained = [p.requires_grad for p in self._parameters]
        yield
        for p, requires_grad in zip(self._parameters, trained, strict=True):
            p.requires_grad_(requires_grad)

    def checkpoint(self, module: nn.Module, *args) -> Tensor:
        """Checkpoint gradients so that the second forward uses the adapter of the first."""
        name = self.active

        def forward(*args):
            with self.using(name):
                return module(*args)

        return checkpoint(forward, *args, use_reentrant=False)
