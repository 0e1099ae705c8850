"""Dense protocols on scenes of garments: a model beside random weights, with RASA and without.

    franca-fast demo --output-dir franca_demo
    python bench/dense_scenes.py franca_demo
    python bench/dense_scenes.py franca_demo --protocols overclustering --set overclustering.ks=11

Writes results/dense_scenes.json and .md, after every evaluation, and dense_scenes.png. The scenes
are `FashionScenes`, made from the bundled images: 200 of training images and 100 of test images, at
their own 112 x 112 pixels. Every protocol of patches that reads sets with masks is run, with its
own settings except for the sizes in pixels, at every nested width. The random weights have the
model's architecture. RASA is fitted to each encoder on the scenes of the training images.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

import franca_fast as ff
from franca_fast.benchmarks import machine
from franca_fast.data import open_segmentation
from franca_fast.errors import InputError
from franca_fast.evaluation.dense.patch_grids import patch_grids
from franca_fast.evaluation.evaluate import evaluate, protocols
from franca_fast.evaluation.pictures import save_png, sheet
from franca_fast.evaluation.protocol import Protocol, Reading
from franca_fast.files import write_json, write_text
from franca_fast.rasa import FitSettings, fit

RESULTS = Path(__file__).parent / "results"
SOURCES = {"train": "FashionScenes:split=TRAIN", "test": "FashionScenes:split=TEST"}
SIDE = 112
# What protocols call the pixels of images, of crops and windows, and of the steps of windows.
SIZES = {"img_size": SIDE, "crop": SIDE, "stride": SIDE // 2}
PICTURED, NEIGHBOURS, TEMPERATURE = 8, 30, 0.02
PALETTE = (
    *((25, 25, 25), (230, 25, 75), (60, 180, 75), (255, 225, 25), (0, 130, 200), (245, 130, 48)),
    *((145, 30, 180), (70, 240, 240), (240, 50, 230), (170, 110, 40), (210, 245, 60)),
)


def able(wanted: list[str] | None) -> dict[str, Protocol]:
    """The protocols of patches that need no other data than train and test sets."""
    known = {
        name: protocol
        for name, protocol in protocols().items()
        if ".dense." in protocol.settings.__module__
        and {role.name for role in protocol.roles if role.required} <= SOURCES.keys()
    }
    for name in wanted or ():
        if name not in known:
            raise InputError(f"protocols: '{name}'; accepted: {', '.join(known)}")
    return {name: known[name] for name in wanted or known}


def settings_of(protocol: Protocol, changed: list[str]) -> dict[str, Any]:
    """Those that differ from the protocol's: sizes, and what was asked for."""
    names = [entry.name for entry in dataclasses.fields(protocol.settings)]
    settings: dict[str, Any] = {name: size for name, size in SIZES.items() if name in names}
    for text in changed:
        name, _, value = text.partition("=")
        owner, _, setting = name.partition(".")
        if owner == protocol.name:
            settings[setting] = value
    return settings


def encoders(name: str) -> Iterator[tuple[str, bool, Any]]:
    """What weights, whether without positions, and the encoder, or why there is none."""
    model = ff.load_model(name)
    torch.manual_seed(0)
    random = type(model)(**model.config).eval()
    scenes = open_segmentation(SOURCES["train"])
    with tempfile.TemporaryDirectory() as folder:
        for i, scene in enumerate(scenes.names):
            scenes.load(i)[0].save(Path(folder, f"{scene}.png"))
        for weights, encoder in (("random", random), (Path(name).name, model)):
            yield weights, False, encoder
            try:
                projector = fit(encoder, folder, FitSettings(img_size=SIDE))
            except InputError as error:  # random weights may tell no positions
                yield weights, True, str(error)
            else:
                yield weights, True, projector.attach(encoder)


def measured(
    protocol: Protocol, encoder: Any, dims: list[int], changed: list[str]
) -> dict[str, Any]:
    """The result of a protocol, or why it cannot be run."""
    needed = {role.name for role in protocol.roles if role.required}
    sources = {name: source for name, source in SOURCES.items() if name in needed}
    try:
        settings = settings_of(protocol, changed)
        return evaluate(protocol.name, encoder, sources, settings, dims=dims).as_dict()
    except InputError as error:
        return {"protocol": protocol.name, "not run": str(error)}


def predictions(encoder: Any) -> list[Tensor]:
    """Classes of the pixels of the first test scenes, by the training scenes' patches.

    Each patch takes the labels of its 30 nearest patches, weighted by softmax(cosine / 0.02); they
    are upsampled bilinearly.
    """
    train, test = (open_segmentation(source) for source in SOURCES.values())
    n_classes, reading = train.n_classes, Reading(batch_size=20)
    keys, values = list[Tensor](), list[Tensor]()
    for batch in patch_grids(encoder, train, SIDE, reading):
        shares = F.one_hot(torch.stack(batch.masks), n_classes).permute(0, 3, 1, 2).float()
        shares = F.adaptive_avg_pool2d(shares, batch.grids.shape[1:3])
        values.append(shares.permute(0, 2, 3, 1).reshape(-1, n_classes))
        keys.append(F.normalize(batch.grids.reshape(-1, batch.grids.shape[-1]), dim=1).cpu())
    memory, labels = torch.cat(keys), torch.cat(values)
    maps = list[Tensor]()
    for batch in patch_grids(encoder, test, SIDE, Reading(batch_size=PICTURED)):
        for grid in F.normalize(batch.grids, dim=3).cpu():
            near = (grid.reshape(-1, grid.shape[-1]) @ memory.T).topk(NEIGHBOURS)
            weights = (near.values / TEMPERATURE).softmax(1)
            soft = (weights[..., None] * labels[near.indices]).sum(1)
            soft = soft.T.reshape(1, n_classes, *grid.shape[:2])
            maps.append(F.interpolate(soft, size=(SIDE, SIDE), mode="bilinear")[0].argmax(0))
        return maps
    raise AssertionError("there are test scenes")


def coloured(classes: Tensor) -> Image.Image:
    """Classes of pixels as colours."""
    return Image.fromarray(torch.tensor(PALETTE, dtype=torch.uint8)[classes].numpy())


def summary(report: dict[str, Any]) -> str:
    """One table: a line for each figure of each encoder, a column for each width."""
    dims = report["dimensions"]
    rows = [["protocol", "figure", "weights", "RASA", *map(str, dims), "s"]]
    rows.append(["---"] * 4 + ["---:"] * (len(dims) + 1))
    remarks = list[str]()
    ran = [line for line in report["results"] if "figures" in line]
    for line in report["results"]:
        if "not run" in line:
            remark = f"`{line['protocol']}` was not run: {line['not run']}."
            remarks += [remark] if remark not in remarks else []
    for protocol in dict.fromkeys(line["protocol"] for line in ran):
        of_it = [line for line in ran if line["protocol"] == protocol]
        for figure in of_it[0]["figures"][str(dims[0])]:
            for line in of_it:
                cells = [_cell(line, str(m), figure) for m in dims]
                rasa = "yes" if line["rasa"] else "no"
                rows.append(
                    [protocol, figure, line["weights"], rasa, *cells, f"{line['seconds']:.0f}"]
                )
    settings = {
        line["protocol"]: ", ".join(
            f"{name} {value}"
            for name, value in line["settings_that_differ_from_the_protocol"].items()
        )
        for line in ran
    }
    return "\n".join(
        [
            f"`{report['command']}`",
            "",
            "Per cent, on scenes of bundled garments, by number of feature dimensions; +- is the "
            "standard error over seeds.",
            "",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
            *(
                f"Changed settings of `{name}`: {text or 'none'}."
                for name, text in settings.items()
            ),
            *remarks,
            "",
        ]
    )


def _cell(line: dict[str, Any], width: str, figure: str) -> str:
    value = line["figures"][width].get(figure)
    error = line["standard_errors"].get(width, {}).get(figure)
    if value is None:
        return "-"
    return f"{value:.1f}" if error is None else f"{value:.1f} +- {error:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run's folder, such as that of a demo, or a model's name")
    parser.add_argument("--protocols", nargs="+", help="those to run; all that can by default")
    parser.add_argument("--set", action="append", default=[], metavar="PROTOCOL.NAME=VALUE")
    parser.add_argument("--dims", type=int, nargs="+", help="d/16, d/8, d/4, d/2, d by default")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    chosen = able(args.protocols)
    words = [Path(word).name if word == args.model else word for word in sys.argv[1:]]
    report: dict[str, Any] = {
        "machine": machine(),
        "command": " ".join(["python", "bench/dense_scenes.py", *words]),
        "results": [],
    }
    truth = open_segmentation(SOURCES["test"])
    scenes = [truth.load(i) for i in range(PICTURED)]
    rows = {
        "image": [image for image, _ in scenes],
        "truth": [coloured(torch.from_numpy(mask)) for _, mask in scenes],
    }
    for weights, rasa, encoder in encoders(args.model):
        if isinstance(encoder, str):
            report["results"].append({"protocol": f"RASA of {weights}", "not run": encoder})
            continue
        dims = args.dims or list(ff.models.default_nesting_dims(encoder.embed_dim))
        report["dimensions"] = dims
        for protocol in chosen.values():
            start = time.perf_counter()
            line = {"weights": weights, "rasa": rasa}
            line |= measured(protocol, encoder, dims, args.set)
            report["results"].append(line)
            print(weights, rasa, protocol.name, f"{time.perf_counter() - start:.0f} s", flush=True)
            write_json(args.out / "dense_scenes.json", report)
            write_text(args.out / "dense_scenes.md", summary(report))
        rows[f"{weights}{' with RASA' if rasa else ''}"] = list(map(coloured, predictions(encoder)))
    title = "Classes of test scenes by the nearest patches of training scenes"
    save_png(sheet(rows, title, cell=1.0), args.out / "dense_scenes.png")
    print(summary(report))


if __name__ == "__main__":
    main()
