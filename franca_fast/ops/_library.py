"""Where the operators become PyTorch's: `torch.ops.franca_fast`.

On small inputs PyTorch's dispatcher takes longer than the kernels: it would call Python twice for
each operator and sort its lists of tensors into trees. So where ordinary CPU tensors meet nobody
who listens to the dispatcher, operators are called directly, with the same results.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from franca_fast.backends.contracts import Scores

_library = torch.library.Library("franca_fast", "DEF")


def define(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    *,
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., None] | None = None,
) -> Any:
    """Defines `franca_fast::<schema>` and returns the callable operator.

    Args:
        schema: Name, arguments and results in PyTorch's schema language.
        implementation: Runs on plain tensors of any device.
        fake: Gives outputs of the right shape and dtype without computing.
        backward: Autograd formula, which cannot be differentiated again (that is an error and not
            a wrong result); without it the results carry no gradient. It cannot go by
            `ctx.needs_input_grad`, whose entries depend on how the operator is called.
        setup_context: Saves what `backward` needs.
    """
    name = schema.split("(")[0]
    _library.define(schema)
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(f"franca_fast::{name}", fake, lib=_library)
    formula = None
    if backward is not None and setup_context is not None:
        formula = _once(name, backward)
        torch.library.register_autograd(
            f"franca_fast::{name}", formula, setup_context=setup_context, lib=_library
        )
    operator = getattr(torch.ops.franca_fast, name).default
    results = schema.split("->")[1].strip()
    # The dispatcher counts the changes of what an operator writes to, and takes lists in results.
    if "!" in schema or ("[" in results and results != "Tensor[]"):
        return operator

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling():
            return operator(*arguments)
        if forward_ad._current_level >= 0:
            _refuse_tangents(name, arguments)
        tensors = _ordinary(arguments)
        if tensors is None:
            return operator(*arguments)
        if not torch.is_grad_enabled() or not any(t.requires_grad for t in tensors):
            return implementation(*arguments)
        if formula is None:
            return operator(*arguments)
        return _Direct.apply((implementation, setup_context, formula), arguments, *tensors)

    return call


def transforming() -> bool:
    """Whether more is asked of operators than values and gradients, which only PyTorch's can do.

    That is a program of PyTorch's operators (tracing, exporting, compiling), a transform of
    `torch.func`, or forward-mode derivatives.
    """
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or forward_ad._current_level >= 0
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _refuse_tangents(name: str, arguments: Sequence[Any]) -> None:
    # PyTorch would drop them without a word.
    for argument in arguments:
        for t in _tensors_in(argument):
            if forward_ad.unpack_dual(t).tangent is not None:
                raise RuntimeError(f"franca_fast.ops: {name} has no forward-mode derivative")


# Everything else that the dispatcher may be asked to do, it does for keys that are included only
# while somebody asks: functorch's transforms, modes, tracing.
_KEYS = torch._C.DispatchKey
_ORDINARY_KEYS = (
    torch._C.DispatchKeySet(_KEYS.BackendSelect) | torch._C.DispatchKeySet(_KEYS.ADInplaceOrView)
).raw_repr()


def _ordinary(arguments: Sequence[Any]) -> list[Tensor] | None:
    """All tensors, in order, if the dispatcher would do nothing but call the implementation."""
    if (
        torch._C._dispatch_tls_local_include_set().raw_repr() & ~_ORDINARY_KEYS
        or torch._C._len_torch_function_stack()
        or torch.autograd._profiler_enabled()
    ):
        return None
    tensors: list[Tensor] = []
    for argument in arguments:
        if type(argument) not in _SCALARS:
            tensors += _tensors_in(argument)
    for t in tensors:
        if type(t) not in _ORDINARY_TYPES or not t.is_cpu or t.is_neg():
            return None
    return tensors


def _tensors_in(argument: Any) -> Sequence[Tensor]:
    if isinstance(argument, Tensor):
        return (argument,)
    listed = isinstance(argument, (list, tuple)) and argument and isinstance(argument[0], Tensor)
    return argument if listed else ()


_SCALARS = (float, int, bool, type(None))
_ORDINARY_TYPES = (Tensor, torch.nn.Parameter)


class _Direct(torch.autograd.Function):
    """An operator and its formula, as `torch.library.register_autograd` would have them called."""

    @staticmethod
    def forward(ctx: Any, functions: Any, arguments: Sequence[Any], *tensors: Tensor) -> Any:
        implementation, setup_context, formula = functions
        results = implementation(*arguments)
        setup_context(ctx, arguments, results)
        listed = isinstance(results, list)
        ctx.direct = formula, listed, [len(_tensors_in(argument)) for argument in arguments]
        return tuple(results) if listed else results

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        formula, listed, sizes = ctx.direct
        results = formula(ctx, list(gradients)) if listed else formula(ctx, *gradients)
        flat: list[Tensor | None] = []
        for size, result in zip(sizes, results, strict=True):
            if size:
                flat += result if isinstance(result, (list, tuple)) else [result] * size
        return None, None, *flat


def packed(scores: Scores) -> list[Tensor]:
    """Scores in one list, of which the dispatcher is faster than of three."""
    return [*scores.values, *scores.prototypes, *scores.scales]


def unpacked(tensors: Sequence[Tensor], n_heads: int) -> Scores:
    """Inverse of `packed`."""
    n = n_heads
    if len(tensors) == n:
        return Scores(tensors)
    return Scores(tensors[:n], tensors[n : 2 * n], tensors[2 * n :])


def _once(name: str, backward: Callable[..., Any]) -> Callable[..., Any]:
    """The formula, with gradients of which a gradient is an error.

    Without this, PyTorch takes a gradient's gradient to be zero where the formula calls operators
    that have none.
    """
    message = f"franca_fast.ops: the gradient of {name} cannot be differentiated again".encode()

    def guarded(ctx: Any, *gradients: Any) -> Any:
        with torch.no_grad():
            results = backward(ctx, *gradients)
        if not torch.is_grad_enabled():
            return results
        # What the results depend on, or PyTorch would leave them out where it asks for the gradient
        # of certain tensors alone.
        given = [t for x in (*gradients, *ctx.saved_tensors) for t in _tensors_in(x)]
        return _refusing(results, message, [t for t in given if t.requires_grad])

    return guarded


def _refusing(results: Any, message: bytes, given: Sequence[Tensor]) -> Any:
    if isinstance(results, (list, tuple)):
        return type(results)(_refusing(result, message, given) for result in results)
    if results is None:
        return None
    refused = torch._C._functions.DelayedError(message, 1 + len(given))
    found = refused(results.detach().requires_grad_(), *given)
    return found[0] if given else found
