"""The sentence encoder: what listings and typed words mean, as vectors; run by ONNX Runtime, without torch."""

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from marketplace.files import atomic, reading
from marketplace.files.stages import StageError
from marketplace.models import onnx_session

DESCRIPTION, ONNX, TOKENIZER = "text_encoder.json", "text_encoder.onnx", "tokenizer.json"
FILES = (DESCRIPTION, ONNX, TOKENIZER)  # of NONE the first alone
NONE = "none"
NAME_TOKENS = 64  # word pieces read of a name or of what somebody typed
KEPT_VECTORS = 2_000  # of the last texts, which may be asked about again: 3 MB
TEXT_TOKENS = 128  # of a name with its description: 87% of real ones are shorter, and time grows with them


@dataclass(frozen=True)
class Description:
    """What a reader of the encoder must know; text_encoder.json."""

    name: str  # as train.py --text-encoder was given it; NONE
    digest: str = ""  # sha256 of the weights that it was exported from
    dimension: int = 0  # of its vectors; 0 of NONE
    max_tokens: int = 0  # that it can read
    precision: str = ""  # int8 or fp32
    int8: dict | None = None  # what the check of the 8 bits found: whether they are used, figures, a reason if not

    def save(self, model_dir: Path) -> None:
        atomic.write_json(model_dir / DESCRIPTION, asdict(self))

    @classmethod
    def load(cls, model_dir: Path) -> "Description":
        """Raises StageError when it is missing, damaged, or has other fields than this version's."""
        return reading.read_record(model_dir / DESCRIPTION, cls, "train.py")


class TextEncoder:
    """An encoder ready to run, by any number of threads at once.

    Each text runs by itself: in a batch it would be padded, and quantised by the largest values of its neighbours, so that its
    vector would depend on them.
    """

    def __init__(self, folder: Path, threads: int = 1):
        """folder: of an encoder other than NONE; threads: texts that one encode() works on at a time, each on its own core.

        Raises StageError when a file is missing or damaged.
        """
        import tokenizers

        self.description = Description.load(folder)
        self.dimension = self.description.dimension
        self._session = onnx_session.open_session(folder / ONNX, threads=1)
        path = folder / TOKENIZER
        if not path.is_file():
            raise StageError(f"{path} is missing: run python train.py first")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception:  # tokenizers raises nothing narrower
            raise StageError(f"{path} is damaged: delete it and run python train.py again") from None
        self._threads = threads
        self._encode_one = functools.lru_cache(KEPT_VECTORS)(self._encode_anew)

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> "TextEncoder | None":
        """The encoder of a folder; None where it was trained with none. Raises as the constructor."""
        return None if Description.load(folder).name == NONE else cls(folder, threads)

    def encode(self, texts: Sequence[str], max_tokens: int = NAME_TOKENS) -> np.ndarray:
        """(N, E) float32 unit rows of N texts, a row of zeros for a blank one.

        max_tokens: word pieces, [CLS] and [SEP] among them, after which a text is cut off: NAME_TOKENS or TEXT_TOKENS.
        """
        vectors = np.zeros((len(texts), self.dimension), np.float32)
        rows = [row for row, text in enumerate(texts) if text.strip()]
        most = min(max_tokens, self.description.max_tokens)

        def encode_row(row: int) -> None:
            vectors[row] = self._encode_one(texts[row], most)

        if len(rows) == 1 or self._threads == 1:
            for row in rows:
                encode_row(row)
        else:
            with ThreadPoolExecutor(self._threads) as pool:
                list(pool.map(encode_row, rows))
        return vectors

    def pieces(self, word: str) -> list[str]:
        """The word pieces by which the encoder reads a word; one for a word that it learned whole."""
        return self._tokenizer.encode(word, add_special_tokens=False).tokens

    def _encode_anew(self, text: str, most: int) -> np.ndarray:
        """(E,) unit vector."""
        token_ids = self._tokenizer.encode(text).ids
        if len(token_ids) > most:
            token_ids = [*token_ids[: most - 1], token_ids[-1]]  # the last one marks the end
        (vectors,) = self._session.run(None, {"input_ids": np.array([token_ids], np.int64)})
        if not np.isfinite(vectors).all():
            raise StageError("the text encoder gives values that are not finite: run python train.py again")
        return vectors[0]
