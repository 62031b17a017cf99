"""Write the two towers as ONNX graphs, node by node from the model's weights.

They compute what the features need and no more: the last block works only on the class token, or the end-of-text
token, over the keys and values of all others; the class token is part of the positional embedding, and the attention's
scale part of the queries' weights. `torch.onnx.export` cannot be told that two batches are broadcast against each
other: it ties K images to K masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ..model import CLIP, VisionTransformer
from ..transformer import MLP, Attention, ResidualAttentionBlock

OPSET = 17  # the first with LayerNormalization
IR_VERSION = 8  # what came with it: later ones only keep older runtimes out

Value = str  # of a graph: the name of what a node, an input or a constant gives


class _Graph:
    """Nodes and constants, gathered in the order in which they run."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []

    def constant(self, value: Tensor | Sequence[int]) -> Value:
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else np.array(value, np.int64)
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, kind: str, *inputs: Value, **attributes: Any) -> Value:
        name = f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def linear(self, x: Value, weight: Tensor, bias: Tensor) -> Value:
        return self.add("Add", self.add("MatMul", x, self.constant(weight.T)), self.constant(bias))

    def layer_norm(self, x: Value, norm: nn.LayerNorm) -> Value:
        weight, bias = self.constant(norm.weight), self.constant(norm.bias)
        return self.add("LayerNormalization", x, weight, bias, axis=-1, epsilon=norm.eps)

    def model(self, inputs: dict[str, tuple[int, list[str | int]]], width: int) -> onnx.ModelProto:
        """Make the model: `inputs` have a type and a shape each; the last node's value is the output, (rows, width)."""
        self.nodes[-1].output[0] = "features"
        graph = helper.make_graph(
            self.nodes,
            "alpha_clip",
            [helper.make_tensor_value_info(name, *about) for name, about in inputs.items()],
            [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["rows", width])],
            self.constants,
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="alpha-clip")


@torch.no_grad()
def image_tower(visual: VisionTransformer) -> onnx.ModelProto:
    """Make the graph from ``image`` (B, 3, n, n) and ``alpha`` (M, 1, n, n), normalised, to ``features``.

    B equals M, or one of them is 1.
    """
    g, n = _Graph(), visual.input_resolution
    # Each convolution sees its own batch, as in the model.
    x = g.add("Add", _patches(g, "image", visual.conv1), _patches(g, "alpha", visual.conv1_alpha))
    width, patches = visual.conv1.out_channels, (n // visual.conv1.kernel_size[0]) ** 2
    x = g.add("Reshape", x, g.constant([0, width, patches]))
    x = g.add("Transpose", x, perm=[0, 2, 1])  # (B, N, width)
    x = g.add("Pad", x, g.constant([0, 1, 0, 0, 0, 0]))  # a row of zeros in front, for the class token
    positions = visual.positional_embedding.clone()
    positions[0] += visual.class_embedding
    x = g.layer_norm(g.add("Add", x, g.constant(positions)), visual.ln_pre)

    def class_token(x: Value) -> Value:
        return g.add("Slice", x, g.constant([0]), g.constant([1]), g.constant([1]))

    x = _blocks(g, visual.transformer.blocks, x, class_token)
    x = g.layer_norm(x, visual.ln_post)
    if visual.proj is not None:
        x = g.add("MatMul", x, g.constant(visual.proj))
    g.add("Squeeze", x, g.constant([1]))
    sizes: dict[str, tuple[int, list[str | int]]] = {
        "image": (TensorProto.FLOAT, ["images", 3, n, n]),
        "alpha": (TensorProto.FLOAT, ["masks", 1, n, n]),
    }
    return g.model(sizes, visual.output_dim if visual.proj is not None else width)


@torch.no_grad()
def text_tower(clip: CLIP) -> onnx.ModelProto:
    """Make the graph from ``text`` (N, L) int32, L at most the context length, to ``features``.

    Tokens after the end of a text are not read.
    """
    g = _Graph()
    length = g.add("Slice", g.add("Shape", "text"), g.constant([1]), g.constant([2]))
    end = g.add("ArgMax", "text", axis=1)  # (N, 1): the end-of-text token has the highest id of all
    x = g.add("Gather", g.constant(clip.token_embedding.weight), "text")  # (N, L, D)
    positions = g.add("Slice", g.constant(clip.positional_embedding), g.constant([0]), length)
    x = g.add("Add", x, positions)
    causal = torch.full((clip.context_length, clip.context_length), -math.inf).triu_(1)
    rows = g.add("Slice", g.constant(causal), g.constant([0]), length, g.constant([1]))  # (context, L)
    mask = g.add("Slice", rows, g.constant([0]), length, g.constant([0]))  # (L, L)
    mask_of_end = g.add("Unsqueeze", g.add("Gather", rows, end), g.constant([1]))  # (N, 1, 1, L)

    def end_of_text(x: Value) -> Value:
        return g.add("Unsqueeze", g.add("GatherND", x, end, batch_dims=1), g.constant([1]))  # (N, 1, D)

    x = _blocks(g, clip.transformer.blocks, x, end_of_text, mask, mask_of_end)
    x = g.add("MatMul", g.layer_norm(x, clip.ln_final), g.constant(clip.text_projection))
    g.add("Squeeze", x, g.constant([1]))
    return g.model({"text": (TensorProto.INT32, ["texts", "length"])}, clip.text_projection.shape[1])


def _patches(g: _Graph, pixels: Value, convolution: nn.Conv2d) -> Value:
    size = list(convolution.kernel_size)
    return g.add("Conv", pixels, g.constant(convolution.weight), kernel_shape=size, strides=size)


def _blocks(
    g: _Graph,
    blocks: Sequence[ResidualAttentionBlock],
    x: Value,
    pick: Callable[[Value], Value],
    mask: Value | None = None,
    mask_of_picked: Value | None = None,
) -> Value:
    """Add all blocks: (N, L, D) -> (N, 1, D), the one row of the last block's output that `pick` takes."""
    *before, last = blocks
    for block in before:
        y = g.layer_norm(x, block.ln_1)
        x = _mlp(g, block, g.add("Add", x, _attention(g, block.attn, y, y, mask)))
    y = g.layer_norm(x, last.ln_1)
    return _mlp(g, last, g.add("Add", pick(x), _attention(g, last.attn, pick(y), y, mask_of_picked)))


def _mlp(g: _Graph, block: ResidualAttentionBlock, x: Value) -> Value:
    mlp: MLP = block.mlp
    y = g.linear(g.layer_norm(x, block.ln_2), mlp.c_fc.weight, mlp.c_fc.bias)
    gate = g.add("Sigmoid", g.add("Mul", y, g.constant(torch.tensor(1.702))))
    return g.add("Add", x, g.linear(g.add("Mul", y, gate), mlp.c_proj.weight, mlp.c_proj.bias))


def _attention(g: _Graph, attention: Attention, queries: Value, x: Value, mask: Value | None) -> Value:
    """Add multi-head attention of (N, Q, D) over (N, L, D). `mask` is added to the logits, (N, heads, Q, L)."""
    assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    scale = attention.head_dim**-0.5

    def heads(x: Value, weight: Tensor, bias: Tensor, order: list[int]) -> Value:
        x = g.add("Reshape", g.linear(x, weight, bias), g.constant([0, 0, attention.num_heads, attention.head_dim]))
        return g.add("Transpose", x, perm=order)

    q = heads(queries, weights[0] * scale, biases[0] * scale, [0, 2, 1, 3])
    k = heads(x, weights[1], biases[1], [0, 2, 3, 1])
    v = heads(x, weights[2], biases[2], [0, 2, 1, 3])
    logits = g.add("MatMul", q, k)
    if mask is not None:
        logits = g.add("Add", logits, mask)
    y = g.add("MatMul", g.add("Softmax", logits, axis=-1), v)
    y = g.add("Reshape", g.add("Transpose", y, perm=[0, 2, 1, 3]), g.constant([0, 0, attention.embed_dim]))
    return g.linear(y, attention.out_proj.weight, attention.out_proj.bias)
