from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from franca_fast.errors import InputError
from franca_fast.evaluation.embeddings import Embeddings
from franca_fast.evaluation.evaluate import evaluate
from franca_fast.evaluation.image.ood import OodSettings, group_of, ood, set_name, vim_dim
from franca_fast.evaluation.image.ood_figures import detection_figures
from franca_fast.evaluation.image.ood_scores import Mahalanobis
from franca_fast.models import build_backbone
from python_tests.evaluation.golden import arrays, values

GOLDEN = {"msp": "MSP", "knn5": "kNN K=5", "knn50": "kNN K=50", "mds": "Mahalanobis"}
FIGURES = {"auroc": "AUROC", "fpr95": "FPR@95", "aupr_out": "AUPR-out", "aupr_in": "AUPR-in"}


def embeddings(features: Tensor, labels: Tensor | None = None) -> Embeddings:
    return Embeddings([str(i) for i in range(len(features))], features, labels)


def golden_sets() -> tuple[Embeddings, Embeddings, dict[str, Embeddings]]:
    given = arrays()
    train = embeddings(given["ood.train_features"], given["ood.train_labels"])
    test = embeddings(given["ood.id_features"], given["ood.id_labels"])
    unknown = {name: embeddings(given[f"ood.{name}_features"]) for name in ("near", "far")}
    return train, test, unknown


def golden_classifier() -> tuple[Tensor, Tensor]:
    return arrays()["ood.weight"], arrays()["ood.bias"]


def test_figures_equal_openoods() -> None:
    settings = OodSettings(ks=(5, 50))
    result = ood(*golden_sets(), settings, classifier=golden_classifier())
    for theirs, ours in GOLDEN.items():
        for group in ("near", "far"):
            golden = values()["ood"][theirs][group]
            for value, figure in FIGURES.items():
                found = result.figures[32][f"{group}: {ours} {figure}"]
                assert found / 100 == pytest.approx(golden[value], abs=1e-4)
    accuracy = result.figures[32]["accuracy on known classes"]
    assert accuracy == pytest.approx(100 * values()["ood"]["msp"]["near"]["id_accuracy"])
    assert result.details["32"]["classifier"] == "given"
    json.dumps(result.as_dict())


def test_openoods_sets_are_averaged_in_their_groups() -> None:
    train, test, unknown = golden_sets()
    near, far = unknown.values()
    named = {
        "ssb_hard": near,
        "NINCO": far,
        "OpenImage-O": embeddings(near.features[:20]),
        "holidays": far,
    }
    result = ood(train, test, named, OodSettings(ks=(5,)))
    assert result.details["groups"] == {"near": ["ssb_hard", "NINCO"], "far": ["OpenImage-O"]}
    row = result.figures[32]
    for kind in ("kNN K=5 AUROC", "ViM FPR@95", "MSP AUPR-in"):
        mean = (row[f"ssb_hard: {kind}"] + row[f"NINCO: {kind}"]) / 2
        assert row[f"mean of near: {kind}"] == pytest.approx(mean)
        assert row[f"mean of far: {kind}"] == row[f"OpenImage-O: {kind}"]
        assert f"mean of holidays: {kind}" not in row
    alone = ood(train, test, {"holidays": far}, OodSettings(ks=(5,))).figures[32]
    assert not [name for name in alone if "mean of" in name]


def test_narrower_widths_are_computed_on_cut_features() -> None:
    train, test, unknown = golden_sets()
    result = ood(train, test, unknown, classifier=golden_classifier(), dims=(8, 32))
    fitted = Mahalanobis(train.features[:, :8], train.labels)
    scores = [fitted(part.features[:, :8]).numpy() for part in (test, unknown["far"])]
    for figure, value in detection_figures(*scores).items():
        assert result.figures[8][f"far: Mahalanobis {figure}"] == pytest.approx(value)
    # A given classifier is one of the full width.
    assert result.details["8"]["classifier"] == "logistic regression on train"
    assert result.details["32"]["classifier"] == "given"


@pytest.mark.parametrize(
    ("width", "asked", "dim"),
    [
        *((32, None, 16), (256, None, 128), (257, None, 256), (1499, None, 256)),
        *((1500, None, 1000), (32, 12, 12), (32, 40, 16), (32, 0, 0)),
    ],
)
def test_dimensions_of_vims_principal_space(width: int, asked: int | None, dim: int) -> None:
    assert vim_dim(width, asked) == dim


def test_the_classifier_is_a_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test, unknown = golden_sets()
    assert train.labels is not None and test.labels is not None
    settings = OodSettings(classifier_c=0.1, classifier_tol=1e-9)
    result = ood(train, test, unknown, settings)
    model = LogisticRegression(C=0.1, max_iter=1000, tol=1e-9)
    model.fit(train.features.double().numpy(), train.labels.numpy())
    known, others = (
        model.predict_proba(part.features.double().numpy()).max(1)
        for part in (test, unknown["far"])
    )
    for figure, value in detection_figures(known, others).items():
        assert result.figures[32][f"far: MSP {figure}"] == pytest.approx(value, abs=1e-6)
    right = 100 * (model.predict(test.features.double().numpy()) == test.labels.numpy()).mean()
    assert result.figures[32]["accuracy on known classes"] == pytest.approx(right)
    assert result.details["32"]["fits of it that did not converge"] == 0
    hurried = ood(train, test, unknown, OodSettings(classifier_max_iter=1))
    assert hurried.details["32"]["fits of it that did not converge"] == 1


def test_two_classes_have_the_probabilities_of_one_logit() -> None:
    from sklearn.linear_model import LogisticRegression

    train, test, unknown = golden_sets()
    assert train.labels is not None and test.labels is not None
    two = [embeddings(part.features, part.labels // 3) for part in (train, test)]
    result = ood(*two, unknown, OodSettings(classifier_tol=1e-9))
    model = LogisticRegression(max_iter=1000, tol=1e-9)
    model.fit(train.features.double().numpy(), train.labels.numpy() // 3)
    known, others = (
        model.predict_proba(part.features.double().numpy()).max(1)
        for part in (test, unknown["far"])
    )
    expected = detection_figures(known, others)["AUROC"]
    assert result.figures[32]["far: MSP AUROC"] == pytest.approx(expected)


def test_order_of_files_and_names_of_classes_change_nothing() -> None:
    train, test, unknown = golden_sets()
    assert train.labels is not None and test.labels is not None
    settings = OodSettings(ks=(5,), classifier_tol=1e-9)
    expected = ood(train, test, unknown, settings).figures[32]
    generator = torch.Generator().manual_seed(0)
    order, classes = torch.randperm(200, generator=generator), torch.tensor([4, 0, 5, 2, 1, 3])
    changed = ood(
        embeddings(train.features[order], classes[train.labels[order]]),
        embeddings(test.features.flip(0), classes[test.labels.flip(0)]),
        {name: embeddings(part.features.flip(0)) for name, part in unknown.items()},
        settings,
    )
    assert changed.figures[32] == pytest.approx(expected, abs=1e-9)


def test_test_images_need_no_labels() -> None:
    train, test, unknown = golden_sets()
    row = ood(train, embeddings(test.features), unknown, OodSettings(ks=(500,))).figures[32]
    assert "accuracy on known classes" not in row
    with_labels = ood(train, test, unknown, OodSettings(ks=(500,)))
    assert row.items() <= with_labels.figures[32].items()
    assert with_labels.details["K that is above the number of train images"] == [500]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.update(unknown={}), "ood: no set of unknown images"),
        (lambda d: d.update(train=embeddings(torch.ones(2, 32))), "train: images without a label"),
        (lambda d: d.update(unknown={"x": embeddings(torch.ones(2, 5))}), "x: width 5"),
        (lambda d: d.update(unknown={"x": embeddings(torch.ones(0, 32))}), "x: no images"),
        (
            lambda d: d.update(unknown={"x": embeddings(torch.full((1, 32), math.nan))}),
            "x: features that are not all finite",
        ),
        (
            lambda d: d.update(test=embeddings(torch.ones(1, 32), torch.tensor([9]))),
            "test: images of '9', which train lacks",
        ),
        (
            lambda d: d.update(classifier=(torch.ones(5, 32), torch.ones(5))),
            r"classifier: weight \(5, 32\); accepted: \[6, 32\]",
        ),
        (lambda d: d.update(dims=(33,)), "dims: "),
    ],
)
def test_wrong_input_is_named(change: Any, complaint: str) -> None:
    arguments: dict[str, Any] = dict(zip(("train", "test", "unknown"), golden_sets(), strict=True))
    change(arguments)
    with pytest.raises(InputError, match=complaint):
        ood(**arguments)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"ks": ()}, "ks"),
        ({"ks": (0,)}, "ks"),
        ({"vim_dim": -1}, "vim_dim"),
        ({"classifier_c": 0.0}, "classifier_c"),
        ({"classifier_tol": 0.0}, "classifier_tol"),
        ({"classifier_tol": float("inf")}, "classifier_tol"),
        ({"classifier_max_iter": 0}, "classifier_max_iter"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError, match=f"^{complaint}: "):
        OodSettings(**settings)


def test_without_scikit_learn_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(InputError, match=r"needs scikit-learn.*\[eval\]"):
        ood(*golden_sets())


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("OpenOOD:root=/a/b:list=test_ssb_hard.txt", "ssb_hard"),
        ("OpenOOD:list=val_openimage_o.txt:root=/a", "openimage_o"),
        ("OpenOOD:root=/a:list=cifar10/test_svhn.txt", "svhn"),
        ("/data/iNaturalist/", "iNaturalist"),
        (Path("/data/test_photos"), "test_photos"),
        ("places.tar.gz", "places"),
    ],
)
def test_names_of_sets(source: str | Path, name: str) -> None:
    assert set_name(source) == name


def test_groups_are_openoods() -> None:
    groups = {"near": ("ssb_hard", "SSB-hard", "ninco"), "far": ("inaturalist", "Textures")}
    for group, names in groups.items():
        assert [group_of(name) for name in names] == [group] * len(names)
    assert group_of("places") is None


def images(folder: Path, names: list[str], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = torch.randint(256, (28, 28, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / name)


def openood_root(folder: Path) -> Path:
    """Data as OpenOOD's download lays them out."""
    sets = {"inaturalist": "images_largescale", "texture": "images_classic"}
    (folder / "benchmark_imglist" / "imagenet").mkdir(parents=True)
    for seed, (name, below) in enumerate(sets.items()):
        paths = [f"{name}/images/{i}.png" for i in range(6)]
        images(folder / below, paths, seed)
        lines = "".join(f"{path} -1\n" for path in paths)
        list_name = "textures" if name == "texture" else name
        (folder / "benchmark_imglist" / "imagenet" / f"test_{list_name}.txt").write_text(lines)
    return folder


def test_the_protocol_reads_openoods_lists_and_plain_folders(tmp_path: Path) -> None:
    root = openood_root(tmp_path / "data")
    images(tmp_path / "holidays", [f"{i}.png" for i in range(5)], 7)
    lists = [f"OpenOOD:root={root}:list=test_{n}.txt" for n in ("inaturalist", "textures")]
    data = {
        "train": "FashionMNIST:split=TEST",
        "test": "FashionMNIST:split=TEST",
        "ood": [*lists, str(tmp_path / "holidays")],
    }
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
    settings = {"ks": "1,10", "classifier_max_iter": "2"}
    result = evaluate("ood", model, data, settings, dims=(16,))
    counts = {role: facts["images"] for role, facts in result.data.items()}
    sets = {"inaturalist": 6, "textures": 6, "holidays": 5}
    assert counts == {"train": 1000, "test": 1000, **sets}
    assert result.details["groups"] == {"far": ["inaturalist", "textures"]}
    # Noise is easily told from garments.
    assert result.figures[16]["mean of far: kNN K=10 AUROC"] > 95
    assert result.details["16"]["dimensions of ViM's principal space"] == 8


def test_a_set_whose_name_is_taken_has_its_path(tmp_path: Path) -> None:
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
    for folder in ("a/photos", "b/photos", "a/train"):
        images(tmp_path / folder, ["0.png"], 0)
    known = dict.fromkeys(("train", "test"), "FashionMNIST:split=TEST")
    given = [str(tmp_path / name) for name in ("a/photos", "b/photos", "a/train")]
    result = evaluate("ood", model, {**known, "ood": given}, {"classifier_max_iter": "1"})
    assert list(result.data) == ["train", "test", "photos", *given[1:]]
    with pytest.raises(InputError, match=r"ood: '.*photos' twice"):
        evaluate("ood", model, {**known, "ood": [given[0], given[0], given[0]]})
    with pytest.raises(InputError, match="absent"):
        evaluate("ood", model, {**known, "ood": [str(tmp_path / "absent")]})


def test_train_images_without_labels_are_refused_before_any_is_read(tmp_path: Path) -> None:
    images(tmp_path / "plain", ["0.png"], 0)
    model = build_backbone("vit_nano", depth=1, patch_size=7, img_size=28)
    data = dict.fromkeys(("train", "test", "ood"), str(tmp_path / "plain"))
    with pytest.raises(InputError, match="train: images without a label"):
        evaluate("ood", model, data)
