"""Flags that several commands share: the same word for the same thing everywhere."""

import argparse


def device_flags(parser: argparse.ArgumentParser) -> None:
    """Where it computes, and in what precision."""
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, mps")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        help="precision (default: float32; with a preset, the fastest that the device computes in)",
    )
