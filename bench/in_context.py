"""In-context segmentation at the size of PASCAL VOC, on features made from a seed: time and memory.

    python -m bench.in_context                        # writes results/in_context.json and .md
    python -m bench.in_context --plan                 # only says what it would take
    python -m bench.in_context --interrupt-after 120  # kills the process once, and goes on

The whole protocol runs, as users run it: 10,582 images of 518 pixels are the memory, 1,369 patches
of 768 numbers each, against the patches of --query-images. Only the encoder is none: it makes the
features of the image that it sees from the image's number. Augmentation is on and changes nothing,
since features of images that are not augmented would be kept on the disk.

Each run is a process of its own, whose peak memory is that of everything in it. The estimate for
all 1,449 images of VOC's val takes the search's time per pair of patches; what the images and
features take besides comes once for each group of queries.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from bench.turns import peak_bytes
from franca_fast.benchmarks.measure import machine
from franca_fast.data.segmented_images import SegmentedImages
from franca_fast.data.settings import CropSettings
from franca_fast.evaluation.dense.in_context import InContextSettings, in_context
from franca_fast.evaluation.dense.memory import progress as search_progress
from franca_fast.evaluation.dense.memory.search import Neighbours, bytes_per_query
from franca_fast.evaluation.dense.memory.voting import fixed_bytes, query_groups
from franca_fast.evaluation.protocol import Reading
from franca_fast.files import write_json, write_text

RESULTS = Path(__file__).parent / "results" / "in_context.json"
TRAINAUG, VAL, CLASSES, PATCH = 10_582, 1_449, 21, 14  # PASCAL VOC 2012, ViT/14
LIMIT_GB = 8.0  # what the process is to stay below


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=TRAINAUG, help="of the memory")
    parser.add_argument("--query-images", type=int, default=1)
    parser.add_argument("--size", type=int, default=518, help="of images, pixels")
    parser.add_argument("--width", type=int, default=768, help="of the features")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--memory-gb", type=float, default=7.0, help="that the search may take")
    parser.add_argument("--interrupt-after", type=float, metavar="SECONDS")
    parser.add_argument("--save-every", type=float, default=60.0, metavar="SECONDS")
    parser.add_argument("--plan", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        print(json.dumps(measure(args)))
        return
    planned = plan(args)
    if args.plan:
        print(json.dumps(planned, indent=2))
        return
    done = runs(args)
    command = " ".join(["python -m bench.in_context", *sys.argv[1:]])
    kept = {
        "command": command,
        "machine": machine(),
        "plan": planned,
        "runs": done,
        "estimate": estimate(args, done[-1], planned),
    }
    write_json(args.output, kept)
    write_text(args.output.with_suffix(".md"), report(kept))
    print(report(kept))


def plan(args: argparse.Namespace) -> dict[str, Any]:
    """Sizes, and how the images of val would be grouped."""
    patches = (args.size // PATCH) ** 2
    k = InContextSettings().k
    per_image = patches * bytes_per_query(args.width, k)
    fixed = fixed_bytes(args.width, patches, args.images, args.batch_size)
    groups = query_groups(VAL, per_image, fixed, args.memory_gb)
    return {
        "images": args.images,
        "query_images": args.query_images,
        "patches": patches,
        "width": args.width,
        "k": k,
        "batch_size": args.batch_size,
        "memory_gb": args.memory_gb,
        "memory_patches": args.images * patches,
        "memory_as_float32_gb": round(4e-9 * args.images * patches * args.width, 2),
        "bytes_of_a_query_image": per_image,
        "bytes_besides": fixed,
        "groups_of_val": [len(rows) for rows in groups],
    }


def runs(args: argparse.Namespace) -> list[dict[str, Any]]:
    """What each process measured; the one that is killed, if any, first."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "bench.in_context", "--folder", folder, *sys.argv[1:]]
        done = list[dict[str, Any]]()
        if args.interrupt_after is not None:
            done.append(interrupted(command, Path(folder), args.interrupt_after))
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return [*done, json.loads(answer.splitlines()[-1])]


def interrupted(command: list[str], folder: Path, seconds: float) -> dict[str, Any]:
    """Kills a run when the time has passed and something has been saved."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        while child.poll() is None:
            saved = list(folder.glob("progress/[!.]*.safetensors"))
            if saved and time.perf_counter() - start >= seconds:
                child.send_signal(signal.SIGKILL)
                break
            time.sleep(0.02)
    taken = round(time.perf_counter() - start, 2)
    if child.returncode != -signal.SIGKILL:
        raise SystemExit("--interrupt-after: it ended before; accepted: fewer seconds")
    return {"killed_after_seconds": taken, "bytes_saved": saved[0].stat().st_size}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The protocol in this process."""
    search_progress.SECONDS_BETWEEN_SAVES = args.save_every
    timed = {"seconds": 0.0, "pairs": 0}
    add = Neighbours.add

    def timed_add(self: Neighbours, memory: Tensor, numbers: Tensor) -> None:
        start = time.perf_counter()
        add(self, memory, numbers)
        timed["seconds"] += time.perf_counter() - start
        timed["pairs"] += len(memory) * len(self.queries)

    before = peak_bytes()
    start = time.perf_counter()
    Neighbours.add = timed_add  # type: ignore[method-assign]
    try:
        result = in_context(
            NumberedEncoder(args.width),
            NumberedImages(args.images, 0, args.size),
            NumberedImages(args.query_images, args.images, args.size),
            InContextSettings(
                img_size=args.size,
                crop_scale=(1.0, 1.0),  # of square images: they stay as they are
                jitter_probability=0.0,
                seeds=(0,),
                memory_gb=args.memory_gb,
            ),
            reading=Reading(batch_size=args.batch_size, features_cache=args.folder),
        )
    finally:
        Neighbours.add = add  # type: ignore[method-assign]
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "search_seconds": round(timed["seconds"], 3),
        "pairs": timed["pairs"],
        "pairs_of_all": args.images * args.query_images * ((args.size // PATCH) ** 2) ** 2,
        "peak_bytes": peak_bytes(),
        "peak_bytes_before": before,
        "below_the_limit": peak_bytes() < LIMIT_GB * 1e9,
        "groups": result.details["groups_of_queries"],
        "figures": result.figures[args.width],
    }


class NumberedImages(SegmentedImages):
    """Images that show nothing but their number; the left half is one class, the right another.

    Args:
        n: how many.
        first: the number of the first.
        size: pixels along a side.
    """

    def __init__(self, n: int, first: int, size: int) -> None:
        self.names = [f"{first + i:06d}" for i in range(n)]
        self.class_names = [str(c) for c in range(CLASSES)]
        self.ignore = 255
        self._first, self._size = first, size

    def __repr__(self) -> str:
        return f"numbered images of {self._size} pixels"

    def fingerprint(self) -> str:
        """The numbers and the size."""
        return "\n".join([repr(self), *self.names])

    def load(self, i: int) -> tuple[Image.Image, Any]:
        """See `SegmentedImages.load`."""
        number, size = self._first + i, self._size
        mask = np.full((size, size), classes_of(number)[0], np.int64)
        mask[:, size // PATCH // 2 * PATCH :] = classes_of(number)[1]
        return Image.new("RGB", (size, size), (*divmod(number, 256), 0)), mask


def classes_of(number: int) -> tuple[int, int]:
    """The classes of an image's left and right half."""
    left, right = np.random.default_rng(number).integers(CLASSES, size=2).tolist()
    return left, right


class NumberedEncoder(nn.Module):
    """Makes the patch features of an image from its number: noise around a vector of the class.

    Args:
        width: of the features.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        vectors = torch.randn(CLASSES, width, generator=torch.Generator().manual_seed(0))
        self.register_buffer("vectors", vectors)
        self.patch_size = PATCH

    def forward_features(self, images: Tensor) -> dict[str, Tensor]:
        """Tokens as DINOv2's networks give them."""
        mean, std = (torch.tensor(v)[:2] for v in (CropSettings.mean, CropSettings.std))
        levels = (255 * (images[:, :2, 0, 0] * std + mean)).round().long()
        cells = images.shape[-1] // PATCH
        tokens = torch.empty(len(images), cells, cells, self.vectors.shape[1])
        for image, number in zip(tokens, (256 * levels[:, 0] + levels[:, 1]).tolist(), strict=True):
            image.normal_(generator=torch.Generator().manual_seed(number))
            left, right = classes_of(number)
            image[:, : cells // 2] += 0.3 * self.vectors[left]
            image[:, cells // 2 :] += 0.3 * self.vectors[right]
        return {"x_norm_patchtokens": tokens.flatten(1, 2)}


def estimate(
    args: argparse.Namespace, run: dict[str, Any], planned: dict[str, Any]
) -> dict[str, Any]:
    """What all images of val would take, by what the last run did in its time."""
    per_pair = run["search_seconds"] / run["pairs"]
    search = per_pair * VAL * args.images * planned["patches"] ** 2
    # After an interruption the run had only a part of the memory to make.
    others = (run["seconds"] - run["search_seconds"]) * run["pairs_of_all"] / run["pairs"]
    return {
        "pairs_per_second": round(1 / per_pair),
        "gflops": round(2e-9 * args.width / per_pair, 1),
        "search_hours_of_val": round(search / 3600, 2),
        "making_hours_of_val": round(others * len(planned["groups_of_val"]) / 3600, 2),
    }


def report(kept: dict[str, Any]) -> str:
    """The figures, for a reader."""
    m, sizes, run, all_of_val = (kept[name] for name in ("machine", "plan", "runs", "estimate"))
    *killed, run = run
    lines = [
        "# In-context segmentation",
        "",
        "What was measured, and how, is said in `bench/in_context.py`.",
        "",
        f"`{kept['command']}`: {sizes['images']} images x {sizes['patches']} patches x "
        f"{sizes['width']} numbers ({sizes['memory_as_float32_gb']} GB if it were held) against "
        f"{sizes['query_images']} x {sizes['patches']} patches, k = {sizes['k']}; {m['cpu']}, "
        f"{m['cores']} cores, {m['threads']} threads, torch {m['torch']}, load "
        f"{m['load_average'][0]:.1f}.",
        "",
        "| | |",
        "| --- | ---: |",
        f"| peak memory of the process | {run['peak_bytes'] / 1e9:.2f} GB |",
        f"| of it before the protocol began | {run['peak_bytes_before'] / 1e9:.2f} GB |",
        f"| search | {run['search_seconds']:.1f} s |",
        f"| images and features besides | {run['seconds'] - run['search_seconds']:.1f} s |",
        f"| pairs of patches | {run['pairs']:.3g} of {run['pairs_of_all']:.3g} |",
        f"| pairs per second | {all_of_val['pairs_per_second']:.3g} "
        f"({all_of_val['gflops']} GFLOP/s) |",
        f"| mIoU | {run['figures']['mIoU']:.2f} |",
        f"| estimate for the {VAL} images of val: search | {all_of_val['search_hours_of_val']} h |",
        f"| the same: images and features, {len(sizes['groups_of_val'])} times | "
        f"{all_of_val['making_hours_of_val']} h |",
    ]
    for one in killed:
        lines += [
            "",
            f"Before, the same search was killed after {one['killed_after_seconds']} s, when "
            f"{one['bytes_saved'] / 1e6:.1f} MB had been saved; the run above went on from there.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
