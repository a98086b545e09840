"""Functions of a batch of examples as graphs, without what does not depend on the examples.

A head fits itself to its support set whenever it classifies. Its recording holds the result as
constants, and only the operations on the queries.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakIdKeyDictionary


@torch.no_grad()
def recorded(function: Callable[[Tensor], Tensor], x: Tensor) -> fx.GraphModule:
    """Return the operations of a function on a batch x (N, *) as a module for any batch.

    N is at least 3. The function is recorded for two sizes: a number that differs is taken to grow
    linearly with the size. Decisions by the values of x are those for this x. Raises RuntimeError
    if the function does other operations for another size.
    """
    small, large = _record(function, x[:2].clone()), _record(function, x[:3].clone())
    small.graph.output(small.result)
    large.graph.output(large.result)
    _generalize(small.graph, large.graph)
    return fx.GraphModule(small.root, small.graph)


def _record(function: Callable[[Tensor], Tensor], x: Tensor) -> _Recorder:
    recorder = _Recorder(x)
    # Attention as products and a softmax, which every runtime has.
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), recorder:
        result = function(x)
    recorder.result = recorder.nodes[result]
    return recorder


class _Recorder(TorchDispatchMode):
    """Records the operations that depend on a tensor; the results of others become constants."""

    result: fx.Node

    def __init__(self, x: Tensor):
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self.nodes: Any = WeakIdKeyDictionary()
        self._kept: list[Tensor] = []  # a tensor that is freed would lose its node
        self._remember(x, self.graph.placeholder("x"))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if any(isinstance(a, Tensor) and a in self.nodes for a in tree_leaves((args, kwargs))):
            node = self.graph.call_function(
                _REPLACED.get(func, func),
                tree_map(self._node, tuple(args)),
                tree_map(self._node, kwargs),
            )
            if isinstance(result, Tensor):
                self._remember(result, node)
            elif isinstance(result, tuple | list):
                for i, each in enumerate(result):
                    self._remember(each, self.graph.call_function(operator.getitem, (node, i)))
        return result

    def _remember(self, value: Any, node: fx.Node) -> None:
        if isinstance(value, Tensor):
            self.nodes[value] = node
            self._kept.append(value)

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value not in self.nodes:
            name = f"constant{len(self._kept)}"
            self.root.register_buffer(name, value.detach().clone())
            self._remember(value, self.graph.get_attr(name))
        return self.nodes[value]


def _generalize(small: fx.Graph, large: fx.Graph) -> None:
    """Replace the numbers that differ between recordings of 2 and of 3 examples, in the first."""
    if [node.target for node in small.nodes] != [node.target for node in large.nodes]:
        raise RuntimeError("its operations depend on the number of examples")
    x = next(iter(small.nodes))
    with small.inserting_after(x):
        size = small.call_function(torch.ops.aten.sym_size.int, (x, 0))
    for ours, theirs in zip([n for n in small.nodes if n is not size], large.nodes):
        with small.inserting_before(ours):
            ours.args = _merged(small, size, ours.args, theirs.args)
            ours.kwargs = _merged(small, size, ours.kwargs, theirs.kwargs)


def _merged(graph: fx.Graph, size: fx.Node, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, dict):
        return {key: _merged(graph, size, ours[key], theirs[key]) for key in ours}
    if isinstance(ours, tuple | list):
        return type(ours)([_merged(graph, size, a, b) for a, b in zip(ours, theirs, strict=True)])
    if isinstance(ours, fx.Node) or ours == theirs:
        return ours
    if not (type(ours) is type(theirs) is int):
        raise RuntimeError(f"{ours!r} depends on the number of examples")
    slope = theirs - ours
    times = graph.call_function(operator.mul, (size, slope))
    return graph.call_function(operator.add, (times, ours - 2 * slope))


def _cdist(x: Tensor, y: Tensor, p: float, mode: int | None) -> Tensor:
    """Return distances; ONNX has no operator for torch.cdist."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, dim=-1)


def _whole(x: Tensor, size: int, dim: int = 0) -> tuple[Tensor]:
    """Return a batch as its only part: it is divided to save memory, and not because it must be."""
    return (x,)


_REPLACED = {
    torch.ops.aten._cdist_forward.default: _cdist,
    torch.ops.aten.split.Tensor: _whole,
}
