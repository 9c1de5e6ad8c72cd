"""A network in two stages: what does not depend on the noisy sample, and the rest.

Every denoising step looks at another sample, but the observation stays and the steps to be visited
are known. What a denoiser computes of those alone (the embedded step, FiLM's scales and biases,
keys and values of the condition's tokens) can be computed for all steps of a chunk at once. Which
operations these are is read off the traced network, so that a new denoiser needs nothing for it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, fx

SIZE = torch.ops.aten.sym_size.int
VIEW, CAT, SLICE = (
    torch.ops.aten.view.default,
    torch.ops.aten.cat.default,
    torch.ops.aten.slice.Tensor,
)


class Stages(NamedTuple):
    """The two halves of a network.

    Attributes:
        early: (timestep (N,), condition's parts (N, ...)) -> known (N, F).
        late: (sample (B, H, A), known (B, F)) -> what the network says, (B, H, A).
    """

    early: fx.GraphModule
    late: fx.GraphModule


def split(network: fx.GraphModule) -> Stages:
    """Cut a traced network in two.

    Args:
        network: (timestep, condition's parts, sample) -> (prediction,), traced with a batch of any
            size, core ATen operations.
    """
    for node in list(network.graph.nodes):
        if node.op == "call_module":  # torch.export's check of its inputs
            network.graph.erase_node(node)
    kinds = _kinds(network.graph)
    border = _border(network.graph, kinds)
    early, late = _early(network.graph, kinds, border), _late(network.graph, kinds, border)
    return Stages(fx.GraphModule(network, early), fx.GraphModule(network, late))


def _sample(graph: fx.Graph) -> fx.Node:
    found: fx.Node = [node for node in graph.nodes if node.op == "placeholder"][-1]
    return found


def _kinds(graph: fx.Graph) -> dict[fx.Node, str]:
    """Whether a node is early, late, a constant, or a size, which both halves compute."""
    sample, kinds = _sample(graph), dict[fx.Node, str]()
    for node in graph.nodes:
        before = {kinds[given] for given in node.all_input_nodes}
        if node.op == "placeholder":
            kinds[node] = "late" if node is sample else "early"
        elif node.op == "output":
            kinds[node] = "late"
        elif isinstance(node.meta.get("val"), int | torch.SymInt):
            kinds[node] = "size"
        else:
            kinds[node] = next((kind for kind in ("late", "early") if kind in before), "constant")
    return kinds


def _border(graph: fx.Graph, kinds: dict[fx.Node, str]) -> list[fx.Node]:
    """The early nodes that late ones use; where one cannot be handed over, it becomes late."""
    while True:
        border = [
            node
            for node in graph.nodes
            if kinds[node] == "early" and any(kinds[user] == "late" for user in node.users)
        ]
        unfit = [node for node in border if not _is_row(node)]
        if not unfit:
            return border
        for node in unfit:
            if node.op == "placeholder":
                raise NotImplementedError(f"a network that uses its {node.name} as it is")
            kinds[node] = "late"


def _is_row(node: fx.Node) -> bool:
    """Whether it is float32 (B, ...) with known sizes, so that it is a part of a row (B, F)."""
    value = node.meta.get("val")
    return (
        isinstance(value, Tensor)
        and value.dtype == torch.float32
        and isinstance(value.shape[0], torch.SymInt)
        and all(isinstance(size, int) for size in value.shape[1:])
    )


def _width(node: fx.Node) -> int:
    return math.prod(node.meta["val"].shape[1:])


def _early(graph: fx.Graph, kinds: dict[fx.Node, str], border: list[fx.Node]) -> fx.Graph:
    half, made = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in graph.nodes:
        if kinds[node] != "late":
            made[node] = _copied(half, node, made)
    rows = [half.call_function(VIEW, (made[node], [-1, _width(node)])) for node in border]
    half.output((half.call_function(CAT, (rows, 1)),))
    half.eliminate_dead_code()
    return half


def _late(graph: fx.Graph, kinds: dict[fx.Node, str], border: list[fx.Node]) -> fx.Graph:
    half, sample = fx.Graph(), _sample(graph)
    made = {sample: half.node_copy(sample)}
    known, at = half.placeholder("known"), 0
    known.meta["val"] = torch.empty(1, sum(map(_width, border)))
    for node in border:
        row = half.call_function(SLICE, (known, 1, at, at + _width(node)))
        made[node] = half.call_function(VIEW, (row, [-1, *node.meta["val"].shape[1:]]))
        at += _width(node)
    for node in graph.nodes:
        if node not in made and kinds[node] != "early":
            made[node] = _copied(half, node, made)
    half.eliminate_dead_code()
    return half


def _copied(half: fx.Graph, node: fx.Node, made: dict[fx.Node, fx.Node]) -> fx.Node:
    if node.target == SIZE:  # of the batch, which all inputs have: nothing else is unknown
        given = next(before for before in half.nodes if before.op == "placeholder")
        return half.call_function(SIZE, (given, 0))
    return half.node_copy(node, made.__getitem__)
