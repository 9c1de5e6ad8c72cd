"""A network as a graph of core ATen operations, which is what OpenVINO converts."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from openvino.frontend.pytorch.torchdynamo.export_decompositions import ops_to_not_decompose
from torch import Tensor, fx, nn
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import default_decompositions
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.nn import functional


def trace(network: nn.Module, example: Sequence[Tensor]) -> fx.GraphModule:
    """The network as core ATen operations, for a batch of any size.

    What `torch.export` gives and takes apart after that, but traced once: a third of the time.

    Args:
        network: called with one list of tensors.
        example: such a list, of a batch that is not 1.
    """
    fakes = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)

    def told(number: int, tensor: Tensor) -> Tensor:
        sizes = [DimDynamic.DYNAMIC, *[DimDynamic.STATIC] * (tensor.dim() - 1)]
        context: Any = StatelessSymbolicContext(sizes)
        source = ConstantSource(f"input_{number}")
        return fakes.from_tensor(tensor, symbolic_context=context, source=source)

    def call(*given: Tensor) -> tuple[Tensor]:
        return (network(list(given)),)

    traced = make_fx(functionalize(call), _decompositions(), _allow_non_fake_inputs=True)
    leaves = {name: kept for name, (kept, _) in LEAVES.items()}
    with torch.no_grad(), _layer_norms(network), mock.patch.multiple(functional, **leaves), fakes:
        found: fx.GraphModule = traced(*itertools.starmap(told, enumerate(example)))
    operations = dict(LEAVES.values())
    for node in found.graph.nodes:
        node.target = operations.get(node.target, node.target)
    return found


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Of what is no core operation, but for what OpenVINO has as it is."""
    table: Any = default_decompositions()
    for operation in ops_to_not_decompose():
        table.pop(operation, None)
    return dict(table.items())


def _leaf(name: str, schema: str, shape: Callable[..., Sequence[int]]) -> Any:
    """An operation of torch's under a name of ours, which tracing does not take apart."""
    ours = f"diffusion_policy_ros::{name}"
    torch.library.define(ours, schema)
    torch.library.impl(ours, "CPU", getattr(functional, name))
    torch.library.register_fake(
        ours, lambda given, *more, **_: given.new_empty(shape(given, *more))
    )
    return getattr(torch.ops.diffusion_policy_ros, name).default


# Function of torch's -> what is traced instead of it, and what that becomes in the end. OpenVINO
# has both as they are, and a layer's weight can be told from other factors.
LEAVES = {
    "linear": (
        _leaf(
            "linear",
            "(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor",
            lambda given, weight, *_: (*given.shape[:-1], weight.shape[0]),
        ),
        torch.ops.aten.linear.default,
    ),
    "scaled_dot_product_attention": (
        _leaf(
            "scaled_dot_product_attention",
            "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0,"
            " bool is_causal=False, *, float? scale=None, bool enable_gqa=False) -> Tensor",
            lambda given, key, value, *_: (*given.shape[:-1], value.shape[-1]),
        ),
        torch.ops.aten.scaled_dot_product_attention.default,
    ),
}


@contextmanager
def _layer_norms(network: nn.Module) -> Iterator[None]:
    """Group normalisation as OpenVINO computes it fast: 2026.4 is slow at the operation itself."""
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    for norm in norms:
        norm.forward = functools.partial(_group_norm, norm)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for norm in norms:
            del norm.forward


def _group_norm(norm: nn.GroupNorm, maps: Tensor) -> Tensor:
    rows = maps.reshape(maps.shape[0], norm.num_groups, -1)  # len would be a number, not the size
    rows = functional.layer_norm(rows, rows.shape[2:], eps=norm.eps)
    filters = [1, -1, *[1] * (maps.dim() - 2)]
    return rows.reshape(maps.shape) * norm.weight.view(filters) + norm.bias.view(filters)
