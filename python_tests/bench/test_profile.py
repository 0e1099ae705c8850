"""What is read of the pages of Nsight Compute."""

from __future__ import annotations

import json
import os
import re
import sys

import pytest

from bench.gpu import parts, profile, record, report

RAW = """"ID","Kernel Name","gpu__time_duration.sum","smsp__inst_executed.sum"
"","","ns","inst"
"0","void scores_kernel<BFloat16, 1>(Heads, float)","29,120","640"
"""

SOURCE = f""""Kernel Name","void scores_kernel<BFloat16, 1>(Heads)"
"#","Address","Source","{profile.SAMPLES}","Instructions Executed"
"1","7f0010","      MOV R1, c[0x0][0x28]","0","8"
"2","7f0020","@P0   BRA 0x7f0010","1,200","8"
"3","7f0030","      HMMA.16816.F32 R4, R8, R9, R4","300","8"
"Kernel Name","void scores_kernel<BFloat16, 1>(Heads)"
"#","Address","Source","{profile.SAMPLES}","Instructions Executed"
"1","7f0010","      MOV R1, c[0x0][0x28]","1","8"
"""


def test_counters_of_ncu():
    (row,) = profile.counters(RAW)
    assert row["kernel"] == "scores_kernel<BFloat16, 1>"
    assert row["gpu__time_duration.sum"] == "29,120" and row["smsp__inst_executed.sum"] == "640"
    assert "29,120" in report.table([{"part": "profile", **row}])


def test_the_instructions_with_most_samples_come_first():
    title, *lines = "\n".join(profile.hottest(SOURCE)).strip().splitlines()
    assert title == "scores_kernel<BFloat16, 1>: 1500 samples at 3 instructions"
    assert [line.split()[0] for line in lines] == ["0x0010", "0x0020", "0x0000"]
    assert lines[0].split()[1:3] == ["1200", "80.0%"] and "@P0   BRA" in lines[0]


NCU = """#!{python}
import pathlib, sys
if "--import" in sys.argv:
    pages = {pages!r}
    print(pages[sys.argv[sys.argv.index("--page") + 1]])
else:
    pathlib.Path(sys.argv[sys.argv.index("--export") + 1]).touch()
"""


@pytest.mark.parametrize("source", [SOURCE, "another form"])
def test_pages_of_ncu_go_to_the_record_and_the_log(source, monkeypatch, tmp_path, capsys):
    pages = {"raw": RAW, "details": "all details", "source": source}
    program = tmp_path / "ncu"
    program.write_text(NCU.format(python=sys.executable, pages=pages))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(record.FOLDER, str(tmp_path))
    monkeypatch.setattr(profile, "REPORT", tmp_path / "report.ncu-rep")
    monkeypatch.setattr(sys, "argv", ["profile"])
    assert profile.main() == 0
    assert [row["kernel"] for row in record.read(tmp_path) if "kernel" in row] == [
        "scores_kernel<BFloat16, 1>"
    ]
    said = capsys.readouterr().out
    assert "all details" in said
    assert "1500 samples" in said if source == SOURCE else "another form" in said


def test_every_hot_kernel_is_profiled():
    limits = json.loads((parts.ROOT / "csrc" / "cuda" / "sass_limits.json").read_text())["limits"]
    left_out = [name for name in limits["sm_90a"] if not re.search(profile.KERNELS, name)]
    assert left_out == ["column_mass_kernel<BFloat16>"]  # for cards without clusters


def test_another_page_of_ncu_is_noticed():
    with pytest.raises(ValueError, match="no kernel"):
        list(profile.hottest("==ERROR== unknown page\n"))
