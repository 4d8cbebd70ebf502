"""What a benchmark ran on, for the line above its table, and ways that take turns."""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def heading() -> str:
    """Commit, processor, threads and version of torch."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    ).stdout.strip()
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    return f"commit {commit}; {_processor()}, {threads}; torch {torch.__version__}\n"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next(
        (line.split(": ")[1] for line in lines if line.startswith("model name")),
        platform.processor(),
    )


def in_turns(
    ways: Mapping[str, Callable[[], Any]], *, repeats: int = 3
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Seconds of each way, each time, and what it gave at last; none is favoured by a machine that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    results = {}
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            results[name] = way()
            seconds[name].append(time.perf_counter() - started)
    return seconds, results
