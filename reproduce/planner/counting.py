"""Count FLOPs and bytes of code that runs on the meta device: tensors with shapes and no values, on any machine."""

import contextlib
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten
# Their kernels change the layout of what they read and write, on GPUs (cuDNN) and CPUs (oneDNN): while one runs, a copy
# of each of its tensors is counted, which is about the workspace that the CPU's takes.
CONVOLUTIONS = (aten.convolution, aten.convolution_backward)
INDEXING = (aten.index, aten.index_put, aten.index_put_)  # which take indices from the CPU
OPERATIONS: dict = {}  # operation, and what it was given -> what it made, for all networks: they repeat each other's
# What autocast runs in half precision and in float32, of torch's lists for CUDA: those that these networks use.
HALF, SINGLE = ("linear", "conv2d"), ("group_norm", "layer_norm", "softmax")


class Meter(TorchDispatchMode):
    """Follow each storage from its allocation to its release, and count FLOPs by torch's own formulas.

    What autograd keeps, what gradient checkpointing frees and computes again, and what is in use for a moment only, are
    all in the trace. Where a value decides what happens next, all is finite, and the first is the least; indices stay
    on the CPU, where they have values.

    Args:
        known: tensors that were there before, such as weights; they and their views are not counted.
        memory: what earlier calls of networks made, which meters of the same networks may share.

    Attributes:
        now: live bytes. trace: live bytes after each operation. flops: (part, dtype) -> FLOPs. part: the present one.
    """

    def __init__(self, known: Iterable[Tensor] = (), memory: dict | None = None):
        super().__init__()
        self._kept = [tensor.untyped_storage() for tensor in known]  # alive, so that their addresses stay theirs
        self._live = {storage._cdata: (0, 0) for storage in self._kept}  # storage -> its bytes, the operation's number
        self._memory, self._idle = {} if memory is None else memory, False
        self.now, self.part, self.trace, self.flops = 0, "", [], Counter()

    def _hold(self, values: object) -> None:
        for storage in (t.untyped_storage() for t in tensors_in(values) if t.is_meta):
            if storage._cdata not in self._live:
                self._live[storage._cdata] = (storage.nbytes(), len(self.trace))
                self.now += storage.nbytes()
                weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)[0]

    def born(self, tensor: Tensor) -> tuple[int, int]:
        """Return the bytes of a tensor that was made under this meter, and the number of the operation."""
        return self._live[tensor.untyped_storage()._cdata]

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, operation._overloadpacket
        given, device = tensors_in((args, kwargs)), getattr(kwargs.get("device"), "type", None)
        meta = any(t.is_meta for t in given)
        if self._idle or not (meta or device == "meta"):
            return operation(*args, **kwargs)
        if name in (aten._local_scalar_dense, aten.equal):
            return name is aten.equal
        if name is aten._to_copy and device == "cpu":
            return torch.zeros(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        if name is aten._to_copy and not (meta or given[0].is_floating_point()):
            return given[0].clone()
        if name is aten.argmin:
            return torch.zeros(operation(*args, **kwargs).shape, dtype=torch.long)
        if name not in INDEXING and not all(t.is_meta or t.ndim == 0 for t in given) and meta:
            args, kwargs = tree_map(lambda t: t.to("meta") if isinstance(t, Tensor) else t, (args, kwargs))
        return self._again(OPERATIONS, operation, partial(self._run, operation), *args, **kwargs)

    def _run(self, operation, *args, **kwargs):
        out, name = operation(*args, **kwargs), operation._overloadpacket
        self._hold(out)
        self.trace.append(self.now + (size(tensors_in((args, out))) if name in CONVOLUTIONS else 0))
        if (count := flop_registry.get(name)) is not None:
            dtype = str(tensors_in(args)[0].dtype).removeprefix("torch.")
            self.flops[self.part, dtype] += count(*args, **kwargs, out_val=out)
        return out

    def call(self, key: object, function: Callable, *args, **kwargs):
        """Return `function(*args, **kwargs)`, a network's; without gradient a call like an earlier one is not run.

        Args:
            key: tells what the result depends on beside the arguments' shapes.
        """
        if torch.is_grad_enabled():
            return function(*args, **kwargs)
        return self._again(self._memory, key, function, *args, **kwargs)

    # On the meta device most operations are Python, a fifth of a millisecond each, and networks repeat them; an empty
    # tensor takes a hundredth of that.
    def _again(self, memory: dict, key: object, function: Callable, *args, **kwargs):
        """Return what the function makes; where that is known to be new tensors of some shapes, empty ones."""
        key, base, start = (key, _described((args, kwargs))), self.now, len(self.trace)
        if key in memory:
            blank, used, spent = memory[key]
            self._hold(out := self._make(blank))
            self.trace += [base + n for n in used]
            self.flops.update({(self.part, dtype): n for dtype, n in spent.items()})
            return out
        before = Counter(self.flops)
        out = function(*args, **kwargs)
        given, made, blank = tensors_in((args, kwargs)), [t.untyped_storage() for t in tensors_in(out)], _blank(out)
        old, sizes = {t.untyped_storage()._cdata for t in given}, {s._cdata: s.nbytes() for s in made}
        # Not views, neither of what was given nor of each other, with no more memory than the elements take; and not
        # what depends on a mask that has values.
        blanks = [t.untyped_storage().nbytes() for t in tensors_in(self._make(blank))]
        if (
            old.isdisjoint(sizes)
            and [*sizes.values()] == blanks
            and all(t.is_meta or t.dtype.itemsize > 1 for t in given)
        ):
            spent = {dtype: n for (_, dtype), n in (self.flops - before).items()}
            memory[key] = blank, [used - base for used in self.trace[start:]], spent
        return out

    def _make(self, blank: Callable[[], object]) -> object:
        self._idle = True
        out = blank()
        self._idle = False
        return out


def _described(value: object) -> tuple:
    """Return what is hashable, and equal for what an operation on the meta device cannot tell apart."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    if isinstance(value, dict):
        return tuple((name, _described(item)) for name, item in value.items())
    return type(value), value  # 1, 1.0 and True are equal otherwise


def _blank(value: object) -> Callable[[], object]:
    """Return a function that makes such values, tensors without their numbers; it keeps no tensor alive."""
    leaves, spec = tree_flatten(value)
    parts = [(t.shape, t.stride(), t.dtype, t.device) if isinstance(t, Tensor) else (None, t, 0, 0) for t in leaves]

    def make() -> object:
        new = [b if a is None else torch.empty_strided(a, b, dtype=c, device=d) for a, b, c, d in parts]
        return tree_unflatten(new, spec)

    return make


@contextlib.contextmanager
def accelerated(autocast: torch.dtype | None = None, networks: Sequence[nn.Module] = ()) -> Iterator[None]:
    """Compute attention by a GPU's kernels, which keep no attention matrix; and, if asked, networks under autocast.

    On the meta device attention falls back to a matrix product and a softmax, and autocast does nothing. What networks
    compute again in the backward, a part at a time, is cast as it was.
    """
    copies: dict[nn.Parameter, Tensor] = {}  # of weights, until the network's forward is over
    inside = 0  # calls of networks and their parts that are under way

    def enter(change: int) -> None:
        nonlocal inside
        inside += change
        if not inside:
            copies.clear()

    def cast(value: object, dtype: torch.dtype) -> object:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and value.requires_grad:
            return copies[value] if value in copies else copies.setdefault(value, value.to(dtype))
        return value.to(dtype)

    def casting(function: Callable, dtype: torch.dtype) -> Callable:
        def run(*args, **kwargs):
            if inside:
                args, kwargs = tree_map(lambda value: cast(value, dtype), (args, kwargs))
            return function(*args, **kwargs)

        return run

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        return aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)[0]

    changed, hooks = {"scaled_dot_product_attention": attention}, []
    if autocast:
        changed = {"scaled_dot_product_attention": casting(attention, autocast)}
        changed |= {name: casting(getattr(F, name), autocast) for name in HALF}
        changed |= {name: casting(getattr(F, name), torch.float32) for name in SINGLE}
        for part in {part for network in networks for part in network.modules()}:
            hooks.append(part.register_forward_pre_hook(lambda *_: enter(1)))
            # always: computing again ends with an exception, at the last tensor that the backward waits for.
            hooks.append(part.register_forward_hook(lambda *_: enter(-1), always_call=True))
    with mock.patch.multiple(F, **changed):
        yield
    for hook in hooks:
        hook.remove()


def tensors_in(values: object) -> list[Tensor]:
    """Return the tensors of nested tuples, lists and dictionaries; torch's own function takes ten times as long."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, (list, tuple)):
        return []
    return [t for value in values for t in tensors_in(value)]


def size(tensors: Iterable[Tensor]) -> int:
    """Return the bytes of some tensors, each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
