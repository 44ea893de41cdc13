"""Reading ONNX files of ``gpvit export``.

A file is not trusted: it is read without files that it refers to, and refused if it has
operators other than ONNX's own. The memory that it takes is not limited.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnxruntime
import torch

from ..utils.errors import UserError, preview, reason_of
from .runtime import OnnxClassifier, OnnxDetector, OnnxModel, OnnxSegmentor

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
DOMAINS = {"", "ai.onnx"}  # of ONNX's own operators
KINDS = {"boxes": OnnxDetector, "logits": OnnxSegmentor, "scores": OnnxClassifier}  # first output


def load_onnx(path: Path, device: str | None = None) -> OnnxModel:
    """Load a file that ``gpvit export`` wrote.

    Args:
        path: of the file.
        device: "cpu" or "cuda"; None for a GPU if this ONNX Runtime supports it.

    Raises:
        UserError: it is not such a file, or ONNX Runtime does not support the device.
    """
    available = onnxruntime.get_available_providers()
    if device is None:
        device = "cuda" if PROVIDERS["cuda"] in available else "cpu"
    provider = PROVIDERS.get(device.partition(":")[0], "")
    if provider not in available:
        raise UserError(f"this ONNX Runtime does not run on device {device}; use cpu")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
        domains = sorted(_domains(model) - DOMAINS)
        if domains:
            raise UserError(f"{path} has operators of {preview(domains)}, which are not ONNX's own")
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
            raise UserError(f"{path} refers to other files; export the model again")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors, which are raised, too
        # Otherwise the content might be taken for a file in another format, which was not checked.
        options.add_session_config_entry("session.load_model_format", "ONNX")
        session = onnxruntime.InferenceSession(content, options, providers=[provider])
        metadata = {prop.key: json.loads(prop.value) for prop in model.metadata_props}
        classes = metadata["classes"]
        is_list = isinstance(classes, list) and len(classes) > 0
        if not is_list or not all(isinstance(text, str) for text in [metadata["config"], *classes]):
            raise ValueError("config and classes are not text")
        if not isinstance(metadata["smallest_side"], int):
            raise ValueError("smallest_side is not a number")
        return KINDS[session.get_outputs()[0].name](session, metadata)
    except UserError:
        raise
    except Exception as error:  # the parsers raise exceptions of many types
        raise UserError(
            f"{path} is not a model that gpvit export wrote, or one of an older version: "
            f"{reason_of(error)}"
        ) from None


def _domains(model: onnx.ModelProto) -> set[str]:
    domains = {item.domain for item in model.opset_import}
    return domains | {node.domain for node in _nodes(model)} | {f.domain for f in model.functions}


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Yield all nodes, those of functions and of graphs inside of nodes too."""
    remaining = [model.graph, *model.functions]
    while remaining:
        for node in remaining.pop().node:
            yield node
            for attribute in node.attribute:
                remaining += [attribute.g, *attribute.graphs]


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Yield all constants."""
    graphs = [model.graph]
    for node in _nodes(model):
        for attribute in node.attribute:
            yield attribute.t
            yield from attribute.tensors
            for sparse in [attribute.sparse_tensor, *attribute.sparse_tensors]:
                yield from (sparse.values, sparse.indices)
            graphs += [attribute.g, *attribute.graphs]
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
