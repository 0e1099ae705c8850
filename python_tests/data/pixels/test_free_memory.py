from __future__ import annotations

from pathlib import Path

import pytest

from franca_fast.data.pixels import free_memory as module
from franca_fast.data.pixels.free_memory import free_memory


@pytest.mark.parametrize(
    ("meminfo", "limit", "expected"),
    [
        ("MemFree: 1 kB\nMemAvailable:   5 kB\n", None, 5 * 1024),
        ("MemAvailable: 5 kB\n", "max", 5 * 1024),
        ("MemAvailable: 5 kB\n", "4000", 4000 - 1500 + 500),
        ("MemAvailable: 5 kB\n", "900", 0),
        (None, "4000", 3000),
        (None, None, None),
        ("nonsense", "nonsense", None),
    ],
)
def test_what_is_free_is_the_least_that_is_known(
    meminfo: str | None,
    limit: str | None,
    expected: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if meminfo is not None:
        (tmp_path / "meminfo").write_text(meminfo)
    if limit is not None:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1500")
        (tmp_path / "memory.stat").write_text("anon 1000\ninactive_file 500\n")
    monkeypatch.setattr(module, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module, "_CGROUP", tmp_path)
    assert free_memory() == expected
