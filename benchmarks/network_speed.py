"""Seconds of a forward pass with mixture of attention heads and with plain heads, in one run.

    python benchmarks/network_speed.py [--sizes 96 128] [--preset paper] [--runs 5] [--device cpu]

Each network differs in one setting.  They take turns, so that drifts of the machine's speed affect
all; the ratio is computed per turn, and its median is printed.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from typing import Any

import torch

from napari_shmoareg.model import SHMoAReg, SHMoARegConfig

PLAIN = "plain attention (MHA)"
VARIANTS: dict[str, dict[str, Any]] = {
    "SHMoAReg": {},
    PLAIN: {"attention": "mha"},
    "plain heads (no SHMoE)": {"shmoe_strides": ()},
    "neither": {"attention": "mha", "shmoe_strides": ()},
    "SHMoAReg, diffeomorphic": {"diffeomorphic": True},
}


def seconds(network: SHMoAReg, moving: torch.Tensor, fixed: torch.Tensor) -> float:
    """Time one forward pass, with the device synchronised before and after."""
    wait = torch.cuda.synchronize if moving.is_cuda else lambda: None
    wait()
    began = time.perf_counter()
    with torch.inference_mode():
        network(moving, fixed)
    wait()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[96, 128])
    parser.add_argument("--preset", default="paper")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=list(VARIANTS),
        default=list(VARIANTS),
        help="networks to compare",
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    networks = {
        name: (
            SHMoAReg(SHMoARegConfig.preset(arguments.preset, **changes)).eval().to(arguments.device)
        )
        for name, changes in VARIANTS.items()
        if name in (*arguments.only, PLAIN)
    }
    print(
        f"preset {arguments.preset}, {arguments.device}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}\n"
    )
    print("| size | network | parameters | median s | fastest s | ratio to plain attention |")
    print("| --- | --- | --- | --- | --- | --- |")
    for size in arguments.sizes:
        moving, fixed = torch.rand(2, 1, 1, size, size, size, device=arguments.device)
        times: dict[str, list[float]] = {name: [] for name in networks}
        for network in networks.values():
            seconds(network, moving, fixed)
        for _ in range(arguments.runs):
            for name, network in networks.items():
                times[name].append(seconds(network, moving, fixed))
        plain = times[PLAIN]
        for name, network in networks.items():
            ratio = statistics.median(a / b for a, b in zip(times[name], plain, strict=True))
            count = sum(p.numel() for p in network.parameters())
            row = f"{statistics.median(times[name]):.2f} | {min(times[name]):.2f} | {ratio:.2f}"
            print(f"| {size} | {name} | {count:,} | {row} |", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory of the process {peak:.1f} GiB")


if __name__ == "__main__":
    main()
