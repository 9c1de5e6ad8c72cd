"""Weights as a processor reads them fast: in larger products, or in 8 bits.

A traced network's convolutions along time become products of gathered taps and their weight: the
same numbers, and for the largest layers quicker, for a chunk has a handful of places. With 8 bits
these products' weights become int8 with a scale for each output: the form in which OpenVINO reads
a quarter of the bytes. Activations, biases and small layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

SMALLEST = 64
"""Layers of fewer inputs or outputs are left alone: they are exact for nothing."""
LARGEST = 1 << 21
"""Convolutions of fewer weights fit into a processor's caches: they are quicker as they are."""
CONVOLUTION, LINEAR = torch.ops.aten.convolution.default, torch.ops.aten.linear.default
MULTIPLY, TO = torch.ops.aten.mul.Tensor, torch.ops.aten._to_copy.default


def unroll(network: fx.GraphModule) -> fx.GraphModule:
    """Make products of its largest convolutions, in place; core ATen operations."""
    for node in list(network.graph.nodes):
        weight = _weight(network, node) if node.target == CONVOLUTION else None
        if weight is not None and weight.numel() >= LARGEST:
            _unroll(network, node, _taps(weight), _whole_weight)
    return _cleaned(network)


def compress(network: fx.GraphModule) -> fx.GraphModule:
    """Replace the weights of its large layers in place; core ATen operations."""
    for node in list(network.graph.nodes):
        weight = _weight(network, node) if node.target in (CONVOLUTION, LINEAR) else None
        if weight is None:
            continue
        if node.target == LINEAR:
            with network.graph.inserting_before(node):
                node.update_arg(1, _small_weight(network, node.name, weight))
        else:
            _unroll(network, node, _taps(weight), _small_weight)
    return _cleaned(network)


def _cleaned(network: fx.GraphModule) -> fx.GraphModule:
    network.graph.eliminate_dead_code()
    network.recompile()
    return network


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) -> int8 (out, in) and scale (out, 1), symmetric."""
    scale = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
    return torch.round(weight / scale).to(torch.int8), scale


def _weight(network: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """A layer's weight, if the layer is one that is compressed."""
    given = node.args[1]
    if not isinstance(given, fx.Node) or given.op != "get_attr":
        return None
    weight = _attribute(network, str(given.target))
    if min(weight.shape[:2]) < SMALLEST:
        return None
    if node.target == LINEAR:
        return weight if weight.dim() == 2 else None
    _, _, _, _, _, dilation, transposed, _, groups = node.args
    plain = not transposed and groups == 1 and dilation == [1]
    return weight if plain and weight.dim() == 3 else None


def _attribute(network: fx.GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    found: Tensor = getattr(network.get_submodule(owner), name)
    return found.detach()


def _small_weight(network: fx.GraphModule, name: str, weight: Tensor) -> fx.Node:
    """Nodes that give the weight back from int8."""
    graph = network.graph
    for part, tensor in zip(("small", "scale"), quantized(weight), strict=True):
        network.register_buffer(f"{name}_{part}", tensor)
    small = graph.get_attr(f"{name}_small")
    wide = graph.call_function(TO, (small,), {"dtype": torch.float32})
    return graph.call_function(MULTIPLY, (wide, graph.get_attr(f"{name}_scale")))


def _whole_weight(network: fx.GraphModule, name: str, weight: Tensor) -> fx.Node:
    network.register_buffer(f"{name}_taps", weight)
    return network.graph.get_attr(f"{name}_taps")


def _taps(weight: Tensor) -> Tensor:
    """A convolution's weight (out, in, k) -> (out, k in)."""
    return weight.transpose(1, 2).reshape(len(weight), -1)


def _unroll(
    network: fx.GraphModule,
    node: fx.Node,
    weight: Tensor,
    write: Callable[[fx.GraphModule, str, Tensor], fx.Node],
) -> None:
    """(B, in, L) -> rows of taps (B, L', k in) -> (B, L', out) -> (B, out, L')."""
    graph, aten = network.graph, torch.ops.aten
    arguments: tuple[Any, ...] = node.args
    sample, plain, bias, (stride,), (padding,) = arguments[:5]
    kernel = _attribute(network, str(plain.target)).shape[2]
    with graph.inserting_before(node):
        written = write(network, node.name, weight)
        rows = graph.call_function(aten.permute.default, (sample, [0, 2, 1]))
        rows = graph.call_function(aten.constant_pad_nd.default, (rows, [0, 0, padding, padding]))
        places = node.meta["val"].shape[2]
        taps = [
            graph.call_function(
                aten.slice.Tensor, (rows, 1, tap, tap + stride * (places - 1) + 1, stride)
            )
            for tap in range(kernel)
        ]
        gathered = graph.call_function(aten.cat.default, (taps, 2))
        product = graph.call_function(LINEAR, (gathered, written, bias))
        answer = graph.call_function(aten.permute.default, (product, [0, 2, 1]))
    node.replace_all_uses_with(answer)
