"""What several scripts' flags have in common: checked numbers, the device, the runtime."""

import argparse


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def not_negative(text: str) -> int:
    """A whole number from 0 to 2**32 - 1, as every library's seed allows, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 4294967295")
    return int(text)


def device(text: str) -> str:
    """cpu, or a cuda device that this machine has, for argparse."""
    if text == "cpu":
        return text
    import torch  # only who asks for a GPU pays for the import

    if text.partition(":")[0] != "cuda":
        raise argparse.ArgumentTypeError(f"{text!r} is neither cpu nor cuda")
    if not torch.cuda.is_available():
        raise argparse.ArgumentTypeError("this machine has no CUDA device: use cpu")
    return text


def add_runtime(parser: argparse.ArgumentParser, runtimes: tuple[str, ...]) -> None:
    """--runtime and --device, for the scripts that run the trained model."""
    parser.add_argument(
        "--runtime",
        default="auto",
        choices=runtimes,
        help="auto: torch with CUDA, else ONNX Runtime, in 8 bits where they passed; onnx: in fp32 (default: %(default)s)",
    )
    parser.add_argument("--device", type=device, help="cpu or cuda (default: cuda where there is one)")
