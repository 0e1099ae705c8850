"""Times kNN at ImageNet's size on a part of the test images, and says what all of them would take.

    python bench/knn.py [--train 1281167] [--test 50000] [--width 768] [--queries 256] [--threads 2]

Features are random, 1,000 classes. The memory has its full size; the time of getting it ready and
the time per test image are measured apart, and the second is multiplied. Peak memory is that of the
process, features included.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from franca_fast.benchmarks import machine  # noqa: E402
from franca_fast.evaluation.image.knn import DEFAULT_KS, knn_predict  # noqa: E402

CLASSES, TEMPERATURE = 1000, 0.07


def seconds_of(train: torch.Tensor, labels: torch.Tensor, queries: torch.Tensor) -> float:
    """Of one call, the memory's preparation included."""
    began = time.perf_counter()
    knn_predict(train, labels, queries, DEFAULT_KS, TEMPERATURE)
    return time.perf_counter() - began


def measured(n_train: int, n_test: int, width: int, n_queries: int) -> dict[str, Any]:
    """Seconds for few queries and for many, and for all test images by the straight line."""
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(n_train, width, generator=generator)
    labels = torch.randint(CLASSES, (n_train,), generator=generator)
    queries = torch.randn(n_queries, width, generator=generator)
    few = max(1, n_queries // 8)
    small, large = (seconds_of(train, labels, queries[:n]) for n in (few, n_queries))
    each = (large - small) / (n_queries - few)
    return {
        "train_images": n_train,
        "width": width,
        "measured": {str(few): round(small, 2), str(n_queries): round(large, 2)},
        "seconds_per_test_image": each,
        "test_images": n_test,
        "estimated_seconds": small + each * (n_test - few),
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=int, default=1281167)
    parser.add_argument("--test", type=int, default=50000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "knn.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    command = " ".join(["python", "bench/knn.py", *sys.argv[1:]])
    report = {
        "machine": {**machine(), "command": command},
        **measured(options.train, options.test, options.width, options.queries),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
