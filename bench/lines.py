"""Print lines per room and the modules and functions that are asking to be two, so that growth is seen."""

from __future__ import annotations

import argparse
import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "src" / "tenon"


def main() -> None:
    """Print the meters of the house."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    rooms: Counter[str] = Counter()
    long_modules, long_functions = [], []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        lines = text.count("\n")
        rooms[path.relative_to(PACKAGE).parts[0].removesuffix(".py")] += lines
        if lines > 600:
            long_modules.append(f"{path.relative_to(PACKAGE)} {lines}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > 80:
                    long_functions.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name} {length}")
    print(f"{sum(rooms.values()):,} lines: " + ", ".join(f"{room} {count:,}" for room, count in rooms.most_common()))
    for title, found in (("modules past 600 lines", long_modules), ("functions past 80 lines", long_functions)):
        print(f"{title}: {', '.join(found) or 'none'}")


if __name__ == "__main__":
    main()
