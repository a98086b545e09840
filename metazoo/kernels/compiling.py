"""Marks functions for torch.compile; `metazoo.ops` imports this while Dynamo traces it.

The markers of `torch.compiler` import `torch._dynamo`, which takes longer than `import torch`.
Dynamo runs the imports that it meets in traced code, so the marks are set in time.
"""

from __future__ import annotations

import torch

from . import distance, loading, operators, prototypical, sgd

# Dynamo must not trace into these: under torch.func it differentiates an autograd.Function wrongly
# (torch 2.13).
for function in (distance.distances, prototypical.mean_nll, sgd.updated, sgd.squared):
    torch.compiler.allow_in_graph(function)

# Dynamo of torch 2.11 cannot trace these.
for constant in (loading.covers, operators.has_autocast):
    torch.compiler.assume_constant_result(constant)  # type: ignore[no-untyped-call]
