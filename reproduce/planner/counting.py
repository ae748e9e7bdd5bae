"""FLOPs and memory of code that runs on the meta device: tensors with shapes and no values, on any machine, in seconds.

`Meter` watches each operation. It adds up the FLOPs by torch's own formulas, and follows the bytes of every storage
from its allocation to its release, so that what autograd keeps, what gradient checkpointing frees and makes again, and
what is in use for a moment only, are all in the trace. The operations of a call do not depend on the batch size, and
each allocates a + b * rows bytes: two calls give the trace, and its peak, at any batch size (`Trace`).

What the meta device would do otherwise than a GPU is set right by `accelerated`.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

ROWS = (2, 4)  # not 1: at batch size 1 some copies are left out
# Their kernels change the layout of what they read and write, on GPUs (cuDNN) and CPUs (oneDNN): while one runs, a copy
# of each of its tensors is counted, which is about the workspace that the CPU's takes.
CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)


class Meter(TorchDispatchMode):
    """Bytes allocated and not yet freed after each operation, and FLOPs by dtype.

    Args:
        known: tensors that were there before, such as weights; they and their views are not counted.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self._kept = [tensor.untyped_storage() for tensor in known]  # alive, so that their addresses stay theirs
        self._known = {storage._cdata for storage in self._kept}
        self._live: dict[int, tuple[int, int]] = {}  # storage -> its bytes, the operation that made it
        self.now, self.trace, self.flops, self.forward = 0, [], {}, 0

    def _hold(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known or key in self._live:
            return
        self._live[key] = (storage.nbytes(), len(self.trace))
        self.now += storage.nbytes()
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._live.pop(key)[0]

    def born(self, tensor: Tensor) -> tuple[int, int]:
        """Bytes of a tensor that was made under this meter, and the number of the operation that made it."""
        return self._live[tensor.untyped_storage()._cdata]

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operation is torch.ops.aten._local_scalar_dense.default:
            return False  # the only value that is asked for here: whether a prompt fills all its tokens
        out = _call(operation, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                self._hold(tensor)
        used = self.now
        if operation._overloadpacket in CONVOLUTIONS:
            used += size(t for t in tree_leaves((args, out)) if isinstance(t, Tensor))
        self.trace.append(used)
        count = flop_registry.get(operation._overloadpacket)
        if count is not None:
            dtype = str(next(a.dtype for a in args if isinstance(a, Tensor))).removeprefix("torch.")
            self.flops[dtype] = self.flops.get(dtype, 0) + count(*args, **kwargs, out_val=out)
        return out


# Operation and what it was given -> what it gave. On the meta device most operations are Python, a fifth of a
# millisecond each, and networks repeat them; an empty tensor takes a hundredth of that.
_known_results: dict[tuple, Callable[[], object]] = {}


def _call(operation, args: tuple, kwargs: dict) -> object:
    """`operation(*args, **kwargs)`; where that would be new tensors of shapes that are known, empty ones."""
    if operation._schema.is_mutable:
        return operation(*args, **kwargs)
    key = (operation, _described(args), _described(tuple(kwargs.items())))
    if key in _known_results:
        return _known_results[key]()
    out = operation(*args, **kwargs)
    again = _maker(out)
    before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    storages = [t.untyped_storage() for t in tree_leaves(out) if isinstance(t, Tensor)]
    new = {storage._cdata for storage in storages} - before
    copies = [t.untyped_storage().nbytes() for t in tree_leaves(again()) if isinstance(t, Tensor)]
    # Not views, neither of what was given nor of each other, and no more memory than the elements take.
    if len(new) == len(storages) and copies == [storage.nbytes() for storage in storages]:
        _known_results[key] = again
    return out


def _described(value: object) -> tuple:
    """Hashable, and equal for what an operation on the meta device cannot tell apart."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (list, tuple)):
        return tuple(map(_described, value))
    return type(value), value  # 1, 1.0 and True are equal otherwise


def _maker(value: object) -> Callable[[], object]:
    """A function that makes such values, tensors without their numbers."""
    if isinstance(value, Tensor):
        shape, stride, about = value.shape, value.stride(), {"dtype": value.dtype, "device": value.device}
        return lambda: torch.empty_strided(shape, stride, **about)
    if isinstance(value, (list, tuple)):
        kind, parts = type(value), [_maker(part) for part in value]  # the function must not keep the tensors alive
        return lambda: kind(part() for part in parts)
    return lambda: value


@contextlib.contextmanager
def accelerated(autocast: torch.dtype | None = None, only: Sequence[nn.Module] = ()) -> Iterator[Callable[[], None]]:
    """Attention by the kernels of a GPU, which keep no attention matrix; and, if asked, autocast to half precision.

    On the meta device attention falls back to a matrix product and a softmax, and autocast does nothing. The functions
    that are run in half precision and in float32 are those of torch's lists for CUDA that these networks use.

    Args:
        only: the networks that autocast is for, as the launcher wraps them; none: all that is called. What they
            compute again in the backward, a part at a time, is cast as it was.

    Yields:
        what to call when the forward is over: until then autocast keeps its copy of each weight.
    """
    copies: dict[nn.Parameter, Tensor] | None = {}
    inside = 0 if only else 1  # calls of `only` and its parts that are under way
    parts = [part for network in only for part in network.modules()]

    def enter(change: int) -> Callable[..., None]:
        def hook(*_) -> None:
            nonlocal inside
            inside += change

        return hook

    def cast(value, dtype: torch.dtype):
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if copies is None or not (isinstance(value, nn.Parameter) and value.requires_grad):
            return value.to(dtype)
        if value not in copies:
            copies[value] = value.to(dtype)
        return copies[value]

    def casting(function: Callable, dtype: torch.dtype) -> Callable:
        def run(*args, **kwargs):
            if not inside:
                return function(*args, **kwargs)
            return function(
                *(cast(value, dtype) for value in args), **{name: cast(value, dtype) for name, value in kwargs.items()}
            )

        return run

    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)[0]

    def forget() -> None:
        nonlocal copies
        copies = None

    changed = {"scaled_dot_product_attention": attention}
    if autocast:
        changed = {"scaled_dot_product_attention": casting(attention, autocast)}
        changed |= {name: casting(getattr(F, name), autocast) for name in ("linear", "conv2d")}
        changed |= {name: casting(getattr(F, name), torch.float32) for name in ("group_norm", "layer_norm", "softmax")}
    before = {name: getattr(F, name) for name in changed}
    hooks = [part.register_forward_pre_hook(enter(1)) for part in parts]
    # always: computing again ends with an exception, at the last tensor that the backward waits for.
    hooks += [part.register_forward_hook(enter(-1), always_call=True) for part in parts]
    try:
        for name, function in changed.items():
            setattr(F, name, function)
        yield forget
    finally:
        for name, function in before.items():
            setattr(F, name, function)
        for hook in hooks:
            hook.remove()


@dataclass(frozen=True)
class Trace:
    """What a call takes at any batch size, from what it took at two."""

    rows: tuple[int, int]
    bytes: tuple[Tensor, Tensor]  # live after each operation, (operations,) each
    flops_per_row: dict[str, float]  # dtype -> FLOPs
    forward: int  # operations of the forward

    def peak(self, rows: int) -> int:
        """The most bytes that the call holds at once, over what was there before."""
        return max(0, int(self._at(rows).max()))

    def kept(self, rows: int) -> int:
        """The bytes that wait for the backward when the forward is over."""
        return int(self._at(rows)[self.forward - 1])

    def _at(self, rows: int) -> Tensor:
        low, high = self.rows
        return self.bytes[0] + (self.bytes[1] - self.bytes[0]) / (high - low) * (rows - low)


def trace(
    call: Callable[[int], object],
    known: Iterable[Tensor],
    autocast: torch.dtype | None = None,
    only: Sequence[nn.Module] = (),
) -> Trace:
    """Meter `call(rows)`, which works on the meta device; `autocast` and `only` are those of `accelerated`."""
    meters = [_meter(call, rows, known, autocast, only) for rows in ROWS]
    return _join(meters, [meter.trace for meter in meters])


def trace_backward(
    loss: Callable[[int], Tensor],
    parameters: list[nn.Parameter],
    known: Iterable[Tensor],
    autocast: torch.dtype | None = None,
    only: Sequence[nn.Module] = (),
) -> tuple[Trace, Trace]:
    """Meter forward and backward of `loss(rows)`: with no gradient there before, and with all of them there (which is
    how later micro-batches find it; the gradients are then part of the trace from its start)."""
    meters, first, later = [], [], []
    for rows in ROWS:
        meter = _meter(loss, rows, known, autocast, only, backward=True)
        meters.append(meter)
        gradients = torch.zeros(len(meter.trace) + 1, dtype=torch.float64)
        for p in parameters:
            size, operation = meter.born(p.grad)
            gradients[operation + 1] += size
            p.grad = None
        bytes_ = torch.tensor(meter.trace, dtype=torch.float64)
        first.append(bytes_)
        # A gradient that is added to another is freed at once; one that is the first of its weight stays.
        later.append(bytes_ - gradients.cumsum(0)[:-1] + gradients.sum())
    return _join(meters, first), _join(meters, later)


def _meter(call, rows: int, known, autocast, only, backward: bool = False) -> Meter:
    meter = Meter(known)
    with accelerated(autocast, only) as forward_is_over, meter:
        out = call(rows)
        forward_is_over()
        meter.forward = len(meter.trace)
        if backward:
            out.backward()
    return meter


def _join(meters: list[Meter], traces: list) -> Trace:
    low, high = (torch.as_tensor(t, dtype=torch.float64) for t in traces)
    if len(low) != len(high):
        raise RuntimeError(f"{len(low)} operations at {ROWS[0]} rows and {len(high)} at {ROWS[1]}: nothing can be said")
    flops = {dtype: count / ROWS[1] for dtype, count in meters[1].flops.items()}
    return Trace(ROWS, (low, high), flops, meters[1].forward)


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of some tensors, each storage once."""
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())
