from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from franca_fast.data import PackSettings
from franca_fast.data.pack_plan import PackPlan
from franca_fast.errors import InputError
from python_tests.data.files import png, tar_bytes, write_folder


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "a.tar"}, "pattern: a.tar"),
        ({"pattern": "../%d.tar"}, "pattern"),
        ({"pattern": "%d%d.tar"}, "pattern"),
        ({"pattern": "%s.tar"}, "pattern"),
        ({"pattern": ""}, "pattern"),
        ({"max_size": 0}, "max_size: 0"),
        ({"max_count": 1.5}, "max_count: 1.5"),
        ({"max_side": -1}, "max_side: -1"),
        ({"quality": 101}, "quality: 101"),
        ({"seed": "x"}, "seed: 'x'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PackSettings(**settings)


def test_every_image_is_in_one_shard(tmp_path: Path) -> None:
    plan = PackPlan(write_folder(tmp_path, ["a", "b"], 7), PackSettings(max_count=4))
    names = [ref.name for shard in range(len(plan)) for ref, _ in plan.samples(shard)]
    assert sorted(names) == [f"{c}/{i}.png" for c in "ab" for i in range(7)]
    assert [plan.length(shard) for shard in range(len(plan))] == [4, 4, 4, 2]


def test_classes_are_numbered_over_all_sources(tmp_path: Path) -> None:
    write_folder(tmp_path / "one", ["cat", "dog"], 1)
    members = [("x.png", png(0)), ("x.cls", b"bird"), ("y.png", png(1)), ("y.cls", b"dog")]
    (tmp_path / "two.tar").write_bytes(tar_bytes([*members, ("z.png", png(2))]))
    plan = PackPlan([tmp_path / "one", tmp_path / "two.tar"], PackSettings(seed=None))
    assert plan.class_names == ["bird", "cat", "dog"]
    assert [label for _, label in plan.samples(0)] == [1, 2, 0, 2, -1]
