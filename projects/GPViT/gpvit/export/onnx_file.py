"""Reading ONNX files of ``gpvit export``.

A file is not trusted: it is read without files that it refers to, and refused if it has
operators other than ONNX's own. The memory that it takes is not limited.
"""

import json
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import torch

from ..utils.errors import UserError, preview, reason_of
from ..utils.text import one_line
from .runtime import OnnxClassifier, OnnxDetector, OnnxModel, OnnxSegmentor

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
DOMAINS = {"", "ai.onnx"}  # of ONNX's own operators
METADATA = ("classes", "config", "palette", "smallest_side")
KINDS = {"boxes": OnnxDetector, "logits": OnnxSegmentor, "scores": OnnxClassifier}  # first output


def load_onnx(path: Path, device: str | None = None) -> OnnxModel:
    """Load a file that ``gpvit export`` wrote.

    Args:
        path: of the file.
        device: "cpu", "cuda" or "cuda:1"; None for a GPU if this ONNX Runtime runs on it.

    Raises:
        UserError: it is not such a file, or ONNX Runtime does not run on the device.
    """
    try:
        wanted = torch.device(device or ("cuda" if _has_cuda() else "cpu"))
    except RuntimeError:
        raise UserError(f"{one_line(device)} is not a device; use cpu or cuda") from None
    if wanted.type != "cpu" and not (wanted.type == "cuda" and _has_cuda()):
        raise UserError(f"this ONNX Runtime does not run on device {wanted}; use cpu")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    try:
        model = onnx.load_model_from_string(content)
        _require_harmless(model, path)
        session = _start_session(content, wanted)
        # Without a driver or a library, ONNX Runtime uses the CPU.
        if device and wanted.type == "cuda" and CUDA not in session.get_providers():
            raise UserError(f"this ONNX Runtime cannot use device {wanted}; use cpu")
        if [value.name for value in session.get_inputs()] != ["images"]:
            raise ValueError("its input is not images")
        texts = {prop.key: prop.value for prop in model.metadata_props}  # other tools add some
        metadata = {key: json.loads(texts[key]) for key in METADATA}
        classes = metadata["classes"]
        is_list = isinstance(classes, list) and len(classes) > 0
        if not is_list or not all(isinstance(text, str) for text in [metadata["config"], *classes]):
            raise ValueError("config and classes are not text")
        if type(metadata["smallest_side"]) is not int:
            raise ValueError("smallest_side is not a number")
        return KINDS[session.get_outputs()[0].name](session, metadata)
    except UserError:
        raise
    except Exception as error:  # the parsers raise exceptions of many types
        raise UserError(
            f"{path} is not a model that gpvit export wrote, one of an older version, or damaged "
            f"({reason_of(error)}); export it again"
        ) from None


def _require_harmless(model: onnx.ModelProto, path: Path) -> None:
    """Raise a UserError if a model refers to other files or has operators other than ONNX's own."""
    # The main graph, and graphs inside of its nodes. An attribute has an empty graph by default.
    graphs = [model.graph]
    domains, tensors = set(), []
    for graph in graphs:  # grows
        sparse_tensors = list(graph.sparse_initializer)
        tensors += graph.initializer
        for node in graph.node:
            domains.add(node.domain)
            for attribute in node.attribute:
                graphs += [attribute.g] if attribute.HasField("g") else []
                graphs += attribute.graphs
                tensors += [attribute.t, *attribute.tensors]
                sparse_tensors += [attribute.sparse_tensor, *attribute.sparse_tensors]
        for sparse in sparse_tensors:
            tensors += [sparse.values, sparse.indices]
    others = sorted(domains - DOMAINS)
    if others or model.functions:
        raise UserError(
            f"{path} has operators other than ONNX's own: {preview(others) or 'functions'}; export "
            "the model again"
        )
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise UserError(f"{path} refers to other files; export the model again")


def _has_cuda() -> bool:
    return CUDA in onnxruntime.get_available_providers()


def _start_session(content: bytes, device: torch.device) -> onnxruntime.InferenceSession:
    providers: list[Any] = [CPU]  # runs what the GPU has no operator for
    if device.type == "cuda":
        # Results in TF32 would differ from those of PyTorch.
        providers.insert(0, (CUDA, {"device_id": device.index or 0, "use_tf32": 0}))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors, which are raised, too
    # Otherwise the content might be taken for a file in another format, which was not checked.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    return onnxruntime.InferenceSession(content, options, providers=providers)
