"""What a benchmark ran on, for the line above its table."""

import os
import platform
import subprocess
from pathlib import Path

import torch


def heading() -> str:
    """Commit, processor, threads and version of torch."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    threads = f"{torch.get_num_threads()} threads of {os.cpu_count()}"
    return f"commit {commit}; {_processor()}, {threads}; torch {torch.__version__}\n"


def _processor() -> str:
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
