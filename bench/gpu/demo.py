"""Part: `franca-fast demo` on the GPU, as a newcomer runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

from bench.gpu import record
from bench.gpu.folder import TEMPORARY
from bench.gpu.options import parse


def main() -> int:
    """Returns the demo's status."""
    options = parse(__doc__)
    # In the session's folder, where the next session clears what a part left that was killed.
    out = os.environ.get(record.FOLDER)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=out) as folder:
        command = [sys.executable, "-m", "franca_fast", "demo", "--output-dir", f"{folder}/demo"]
        command.append(f"train.device={options.device}")
        if options.device == "cpu":
            command.append("--help")  # on a CPU it takes minutes
        begin = time.monotonic()
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        print(result.stdout, result.stderr)
        seconds = round(time.monotonic() - begin, 1)
        record.add(demo_seconds=seconds, status=result.returncode, said=result.stdout[-1500:])
    return result.returncode


if __name__ == "__main__":
    sys.exit(main())
