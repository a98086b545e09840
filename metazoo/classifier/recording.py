"""Functions of one example as graphs, without what does not depend on the example.

A head fits itself to its support set whenever it classifies. Its recording holds the result as
constants, and only the operations on the query.
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
def recorded(function: Callable[[Tensor], Tensor], example: Tensor) -> fx.GraphModule:
    """Return the operations of a function on one example as a module.

    Decisions by the example's values are those for this example. `torch.vmap` makes the module one
    for many examples.
    """
    recorder = _Recorder(example)
    attention = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)
    with attention, recorder:
        result = function(example)
    recorder.graph.output(recorder.nodes[result])
    return fx.GraphModule(recorder.root, recorder.graph)


class _Recorder(TorchDispatchMode):
    """Records the operations that depend on a tensor; the results of others become constants."""

    def __init__(self, example: Tensor):
        super().__init__()
        self.graph, self.root = fx.Graph(), nn.Module()
        self.nodes: Any = WeakIdKeyDictionary()
        self.nodes[example] = self.graph.placeholder("x")
        self._kept = [example]  # a tensor that is freed would lose its node
        self._constants = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if any(isinstance(a, Tensor) and a in self.nodes for a in tree_leaves((args, kwargs))):
            target = _DECOMPOSED.get(func, func)
            node = self.graph.call_function(
                target, tree_map(self._node, tuple(args)), tree_map(self._node, kwargs)
            )
            if isinstance(result, Tensor):
                self._remember(result, node)
            else:
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
            name = f"constant{self._constants}"
            self._constants += 1
            self.root.register_buffer(name, value.detach().clone())
            self._remember(value, self.graph.get_attr(name))
        return self.nodes[value]


def _cdist(x: Tensor, y: Tensor, p: float, mode: int | None) -> Tensor:
    """Return distances; ONNX has no operator for torch.cdist."""
    return torch.linalg.vector_norm(x.unsqueeze(-2) - y.unsqueeze(-3), p, dim=-1)


_DECOMPOSED = {torch.ops.aten._cdist_forward.default: _cdist}
