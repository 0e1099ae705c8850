"""The arguments that parts share."""

from __future__ import annotations

import argparse


def parse(description: str | None, **arguments: dict[str, object]) -> argparse.Namespace:
    """Parses `--device` and what else a part takes, by name with the arguments of argparse."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    for name, settings in arguments.items():
        dashes = "" if settings.pop("positional", False) else "-" if len(name) == 1 else "--"
        flag = dashes + name.replace("_", "-") if dashes else name
        parser.add_argument(flag, **settings)  # type: ignore[arg-type]
    return parser.parse_args()
