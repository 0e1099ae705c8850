"""How fast images become crops, against webdataset's plain pipeline.

python -m bench.data                   # writes bench/results/data.json and data.md

Both read the same shards with the same number of worker processes and cut the same crops (two of
224 and eight of 96 pixels, bicubic, with flips) with Pillow:

- webdataset: its usual chain: read, shuffle, decode whole images, cut, stack;
- crops: this package up to the same point, crops as bytes;
- in workers, on device: the whole augmentation, with colours, blur and normalisation applied by the
  workers, or by the main process on the training device.
"""

from __future__ import annotations

import argparse
import io
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image

from franca_fast.data import CropSettings, MaskSettings, build_train_loader, pack_shards
from franca_fast.data.crops import crop_regions
from franca_fast.files import write_json, write_text

RESULTS = Path(__file__).parent / "results"
CROPS = CropSettings()
# Of ImageNet's usual size, of LAION's larger images, and without a fast way to decode at less.
KINDS = {"jpeg 500 x 375": (500, 375, "JPEG"), "jpeg 1600 x 1200": (1600, 1200, "JPEG")}
KINDS["png 1600 x 1200"] = (1600, 1200, "PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batches", type=int, default=4, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=2, help="the best counts")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument(
        "--num-workers",
        type=int,
        default=0,
        help="0 measures processor time of one process, which other programs hardly disturb; "
        "more measure the wall clock",
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=RESULTS / "data.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    measured = dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as folder:
        for kind, photo in KINDS.items():
            shards = _make_shards(Path(folder) / kind.replace(" ", "_"), *photo)
            ways: dict[str, Callable[[], Iterator[Any]]] = {
                "webdataset": partial(_webdataset, shards, args),
                "crops": partial(_franca, shards, args, args.device, True),
                "in workers": partial(_franca, shards, args, None, False),
                "on device": partial(_franca, shards, args, args.device, False),
            }
            best: dict[str, float] = dict.fromkeys(ways, 0.0)
            for _ in range(args.repeats):  # in turn, so that a busy machine is so for all
                for name, way in ways.items():
                    best[name] = max(best[name], _rate(way(), args))
            measured[kind] = {name: round(rate, 1) for name, rate in best.items()}
            print(kind, measured[kind], flush=True)
    result = {
        "command": f"python -m bench.data --batches {args.batches} --repeats {args.repeats}"
        f" --batch-size {args.batch_size}"
        + (f" --num-workers {args.num_workers}" if args.num_workers else ""),
        "load": round(os.getloadavg()[0], 1),
        "images_per_second": measured,
        "batch_size": args.batch_size,
        "num_workers": args.num_workers,
        "device": args.device,
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "webdataset": webdataset.__version__,
            "pillow": Image.__version__,
        },
    }
    write_json(args.output, result)
    write_text(args.output.with_suffix(".md"), _report(result))


def _rate(batches: Iterator[Any], args: argparse.Namespace) -> float:
    """Images per second, after the workers have started and filled their queues."""
    for _ in range(max(1, 2 * args.num_workers)):
        next(batches)
    clock = time.perf_counter if args.num_workers or args.device != "cpu" else time.process_time
    start = clock()
    for _ in range(args.batches):
        next(batches)
    if args.device != "cpu":
        torch.cuda.synchronize()
    passed = clock() - start
    batches.close()  # type: ignore[attr-defined]
    return args.batches * args.batch_size / passed


def _franca(shards: str, args: argparse.Namespace, device: str | None, bare: bool) -> Iterator[Any]:
    loader = build_train_loader(
        shards,
        batch_size=args.batch_size,
        crops=CROPS,
        masking=MaskSettings(),
        patch_size=4,
        num_workers=args.num_workers,
        device=device,
    )
    try:
        if bare:
            loader._start()
            assert loader._batches is not None
            while True:
                yield next(loader._batches)
        while True:
            yield next(loader)
    finally:
        loader.close()


def _webdataset(shards: str, args: argparse.Namespace) -> Iterator[Any]:
    dataset = (
        webdataset.WebDataset(shards, resampled=True, shardshuffle=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;png")
        .map(_cut)
        .batched(args.batch_size, collation_fn=_stack)
    )
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=args.num_workers)
    try:
        yield from loader
    finally:
        del loader


def _cut(sample: tuple[Image.Image]) -> list[np.ndarray]:
    [image] = sample
    number = np.random.randint(1 << 30, size=1)
    [boxes], [flips] = crop_regions(CROPS, 0, number, [image.size])
    sizes = [CROPS.global_crops_size] * 2 + [CROPS.local_crops_size] * CROPS.local_crops_number
    crops = []
    for size, box, flip in zip(sizes, boxes.tolist(), flips.tolist(), strict=True):
        crop = image.resize((size, size), Image.Resampling.BICUBIC, box=tuple(box))
        if flip:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        crops.append(np.asarray(crop))
    return crops


def _stack(samples: list[list[np.ndarray]]) -> tuple[torch.Tensor, torch.Tensor]:
    columns = list(zip(*samples, strict=True))
    halves = (columns[:2], columns[2:])
    parts = [np.stack([crop for column in half for crop in column]) for half in halves]
    return torch.from_numpy(parts[0]), torch.from_numpy(parts[1])


def _make_shards(folder: Path, width: int, height: int, format: str) -> str:
    """Two shards of 16 photographs in all: smooth shapes with the noise of a camera."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir(parents=True)
    for i in range(16):
        coarse = rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8)
        smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, np.int16) + rng.integers(-12, 13, (height, width, 3))
        image, file = Image.fromarray(noisy.clip(0, 255).astype(np.uint8)), io.BytesIO()
        image.save(file, format, quality=90, compress_level=3)
        extension = "jpg" if format == "JPEG" else "png"
        (folder / "photos" / f"{i:03d}.{extension}").write_bytes(file.getvalue())
    pack_shards(folder / "photos", folder / "shards", max_count=8)
    return str(folder / "shards" / "shard-{000000..000001}.tar")


def _report(result: dict[str, Any]) -> str:
    columns = ["webdataset", "crops", "in workers", "on device"]
    workers = result["num_workers"]
    how = f"with {workers} worker processes" if workers else "of one core's time"
    lines = [
        "# From shards to crops",
        "",
        f"Images per second {how}, batches of "
        f"{result['batch_size']}; {result['cpu']}, {result['cores']} cores, training device "
        f"{result['device']}, load {result['load']}. `{result['command']}`; what the columns are "
        "is said in `bench/data.py`.",
        "",
        "| images | " + " | ".join(columns) + " | crops / webdataset |",
        "|---|" + "---:|" * (len(columns) + 1),
    ]
    for kind, rates in result["images_per_second"].items():
        cells = [f"{rates[name]:.1f}" for name in columns]
        ratio = rates["crops"] / rates["webdataset"]
        lines.append(f"| {kind} | " + " | ".join(cells) + f" | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if "model name" in line), "")


if __name__ == "__main__":
    main()
