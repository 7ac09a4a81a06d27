"""Networks as ONNX: written as torch exports them, and opened in ONNX Runtime on a CPU."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from marketplace.files.stages import StageError

if TYPE_CHECKING:
    import onnxruntime
    import torch


def save(program: "torch.onnx.ONNXProgram", path: Path) -> None:
    """Write what torch.onnx.export() made."""
    import onnx

    model = program.model_proto
    # The exporter notes its stack traces, which differ between runs and name the machine's folders.
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    onnx.save(model, path)


def open_session(path: Path, threads: int | None = None) -> "onnxruntime.InferenceSession":
    """threads: of one run; default OMP_NUM_THREADS, else all cores. Raises StageError when the file is missing or damaged."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument, InvalidGraph, InvalidProtobuf

    if not path.is_file():
        raise StageError(f"{path} is missing: run python train.py first")
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not hold the cores
    options.intra_op_num_threads = threads or _omp_threads()
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (Fail, InvalidArgument, InvalidGraph, InvalidProtobuf):
        raise StageError(f"{path} is damaged: delete it and run python train.py again") from None


def _omp_threads() -> int:
    """OMP_NUM_THREADS (its outermost level, of "4,2"), which ONNX Runtime itself does not read; 0, all cores, without one."""
    outermost = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(outermost) if outermost.isdecimal() else 0
