"""ONNX: the network as a graph that other runtimes execute. Needs requirements-onnx.txt.

    images (batch, 3, S, S) float32, normalised as the file's metadata says  ->  logits (batch, K) float32

Without a head, the output is `features` (batch, D). The batch has any size; the image size is fixed. The graph is built
operator by operator, so that the weights are written one at a time: nothing is traced. Weights of more than `INLINE`
bytes go to a second file beside the graph, because one protobuf message holds at most 2 GiB.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import IO, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper
from torch import Tensor

from model.variants import ViTConfig
from model.weights.export import config_of
from model.weights.weights import (
    Files,
    LazyTensor,
    LazyTensors,
    Preprocessing,
    Weights,
    WeightsError,
    reporting,
    shape_of,
)

INLINE = 1 << 30  # bytes of weights in the graph's own file, at most
OPSET = 20  # the first with Gelu
IR_VERSION = 10  # read by every runtime that knows the opset
POSITIONS = ("embedding.class_token", "embedding.position")
EXTERNAL = ".data"
"""Suffix of the second file's name, after the graph's."""


def read(url: str, files: Files) -> Weights:
    """The weights of a graph that `write` wrote, to compare them. The settings in the metadata say what they mean.

    Raises:
        WeightsError: damaged, or written by another program.
    """
    with reporting(url), files.open_read(url) as file:
        made = onnx.ModelProto.FromString(file.read())
        about = {entry.key: json.loads(entry.value) for entry in made.metadata_props}
    if "settings" not in about or "preprocessing" not in about:
        raise WeightsError(f"{url}: was not written by `python -m model convert`")
    with reporting(url):
        normal = about["preprocessing"]
        normal |= {key: tuple(normal[key]) for key in ("mean", "std")}
        names = about.get("class_names")
        entries = {
            made.name: _entry(made, url, files)
            for made in made.graph.initializer
            if made.name.endswith((".weight", ".bias")) or made.name in POSITIONS
        }
        return Weights(
            about["settings"],
            LazyTensors(entries),
            Preprocessing(**normal),
            None if names is None else tuple(names),
            {"format": "onnx"},
        )


def write(weights: Weights, url: str, files: Files, *, dtype: torch.dtype) -> None:
    """Writes the graph with its weights as float32, and the settings as JSON in the metadata `settings`,
    `preprocessing` and `class_names`.

    Raises:
        WeightsError: another dtype than float32, which runtimes on CPUs lack operators for.
    """
    if dtype != torch.float32:
        raise WeightsError(f"ONNX is written in float32: runtimes on a CPU have no operators for {dtype}")
    config = config_of(weights, url)
    size = 4 * sum(math.prod(shape_of(weights.tensors, name)) for name in weights.tensors)
    if size <= INLINE:
        _save(_Graph(weights, config, None, "").model(), url, files)
        return
    with files.open_write(url + EXTERNAL) as data:
        model = _Graph(weights, config, data, url.rpartition("/")[2] + EXTERNAL).model()
    _save(model, url, files)


def execute(path: str, images: Tensor) -> Tensor:
    """What a local file gives in onnxruntime on the CPU. images: (B, 3, S, S) float32 -> (B, K or D) float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (output,) = session.run(None, {"images": images.numpy()})
    return torch.from_numpy(np.asarray(output))


def _entry(made: Any, url: str, files: Files) -> LazyTensor:
    """A constant of the graph as a parameter; the matrices of dense layers are stored transposed."""
    transposed = made.name.endswith(".weight") and len(made.dims) == 2
    shape = tuple(reversed(made.dims)) if transposed else tuple(made.dims)

    def read_one() -> Tensor:
        data = made.raw_data
        if made.data_location == TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in made.external_data}
            with (
                reporting(url),
                files.open_read(url.rpartition("/")[0] + "/" + os.path.basename(place["location"])) as f,
            ):
                f.seek(int(place["offset"]))
                data = f.read(int(place["length"]))
        with reporting(url):
            array = torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(tuple(made.dims))
        return array.T.contiguous() if transposed else array

    return LazyTensor(shape, torch.float32, read_one)


def _save(model: Any, url: str, files: Files) -> None:
    with files.open_write(url) as file:
        file.write(model.SerializeToString())


class _Graph:
    """The graph under construction: `add` appends an operator and returns the name of its output."""

    def __init__(self, weights: Weights, config: ViTConfig, data: IO[bytes] | None, location: str) -> None:
        self.weights, self.config, self.data, self.location = weights, config, data, location
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.written = 0  # bytes in the second file

    def model(self) -> Any:
        """The whole model as a protobuf message."""
        config, has_head = self.config, "num_classes" in self.weights.settings
        output, width = self._network(has_head)
        side = config.image_size
        shapes = {"images": ["batch", 3, side, side], output: ["batch", width]}
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
        graph = helper.make_graph(self.nodes, "vision_transformer", infos[:1], infos[1:], self.initializers)
        made = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="vit-at-scale"
        )
        about: dict[str, Any] = {"settings": self.weights.settings, "preprocessing": asdict(self.weights.preprocessing)}
        if self.weights.class_names is not None:
            about["class_names"] = self.weights.class_names
        helper.set_model_props(made, {key: json.dumps(value) for key, value in about.items()})
        return made

    def add(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{operator.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def parameter(self, name: str, *, transposed: bool = False) -> str:
        """A parameter of the model as a constant; matrices (out, in) transposed to (in, out) for MatMul."""
        tensor = self.weights.tensors[name].float()
        array = np.ascontiguousarray((tensor.T if transposed else tensor).numpy())
        made = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=array.shape)
        if self.data is None:
            made.raw_data = array.tobytes()
        else:
            made.data_location = TensorProto.EXTERNAL
            place = {"location": self.location, "offset": self.written, "length": array.nbytes}
            for key, value in place.items():
                made.external_data.add(key=key, value=str(value))
            self.data.write(array.data)
            self.written += array.nbytes
        self.initializers.append(made)
        return name

    def numbers(self, values: Sequence[int] | int) -> str:
        """Whole numbers as a constant: a list, or one without dimensions."""
        name = f"numbers_{len(self.initializers)}"
        self.initializers.append(onnx.numpy_helper.from_array(np.asarray(values, np.int64), name))
        return name

    def dense(self, x: str, layer: str) -> str:
        product = self.add("MatMul", x, self.parameter(f"{layer}.weight", transposed=True))
        return self.add("Add", product, self.parameter(f"{layer}.bias"))

    def norm(self, x: str, layer: str) -> str:
        scale, bias = self.parameter(f"{layer}.weight"), self.parameter(f"{layer}.bias")
        return self.add("LayerNormalization", x, scale, bias, axis=-1, epsilon=self.config.norm_eps)

    def _network(self, has_head: bool) -> tuple[str, int]:
        """Name and width of the output."""
        config = self.config
        x = self._embedding()
        for number in range(config.depth):
            block = f"blocks.{number}"
            x = self.add("Add", x, self._attention(self.norm(x, f"{block}.norm1"), f"{block}.attention"))
            hidden = self.dense(self.norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
            hidden = self.add("Gelu", hidden, approximate="tanh" if config.gelu == "tanh" else "none")
            x = self.add("Add", x, self.dense(hidden, f"{block}.mlp.fc2"))
        if config.pool == "token":
            x = self.norm(self.add("Gather", x, self.numbers(0), axis=1), "norm")
        else:
            x = self.add("ReduceMean", self.norm(x, "norm"), self.numbers([1]), keepdims=0)
        if config.representation_size is not None:
            x = self.add("Tanh", self.dense(x, "pre_logits"))
        width = config.representation_size or config.width
        if not has_head:
            return self.add("Identity", x, name="features"), width
        return self.add("Identity", self.dense(x, "head"), name="logits"), config.num_classes

    def _embedding(self) -> str:
        """(batch, 3, S, S) -> (batch, N, D), as `PatchEmbedding`."""
        config, layer = self.config, "embedding.projection"
        kernel, bias = self.parameter(f"{layer}.weight"), self.parameter(f"{layer}.bias")
        patches = [config.patch_size] * 2
        x = self.add("Conv", "images", kernel, bias, kernel_shape=patches, strides=patches)
        x = self.add("Reshape", x, self.numbers([0, config.width, config.grid**2]))
        x = self.add("Transpose", x, perm=[0, 2, 1])
        if config.pool == "token":
            batch = self.add("Shape", "images", start=0, end=1)
            shape = self.add("Concat", batch, self.numbers([1, config.width]), axis=0)
            token = self.add("Expand", self.parameter("embedding.class_token"), shape)
            x = self.add("Concat", token, x, axis=1)
        return self.add("Add", x, self.parameter("embedding.position"))

    def _attention(self, x: str, layer: str) -> str:
        """(batch, N, D) -> (batch, N, D), as `Attention`; H heads of d features."""
        tokens, width, heads = self.config.num_tokens, self.config.width, self.config.heads
        qkv = self.add("Reshape", self.dense(x, f"{layer}.qkv"), self.numbers([0, tokens, 3, heads, width // heads]))
        qkv = self.add("Transpose", qkv, perm=[2, 0, 3, 1, 4])  # (3, batch, H, N, d)
        q, k, v = (self.add("Gather", qkv, self.numbers(third), axis=0) for third in range(3))
        scale = onnx.numpy_helper.from_array(np.float32((width // heads) ** -0.5), f"{layer}.scale")
        self.initializers.append(scale)
        scores = self.add("MatMul", self.add("Mul", q, scale.name), self.add("Transpose", k, perm=[0, 1, 3, 2]))
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), v)
        mixed = self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), self.numbers([0, tokens, width]))
        return self.dense(mixed, f"{layer}.out")
