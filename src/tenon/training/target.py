"""What is run on several processes: a script, or a function that is given the ranks; the same for every launcher.

    tenon train train.py --nproc 2 -- --lr 0.1           the script, with its arguments, in each process
    tenon train train.py:fit --nproc 2 -- steps=500      the function `fit(ranks, steps=500)`, in each process
    tenon train shop.late:fit --nproc 2                  the same, of an importable module

A function takes the `Ranks` first, and what is given as `name=value` by name: JSON where it is JSON, else text. Only
names and plain data are sent to other processes and machines; the code must be there.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import runpy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenon.errors import MissingError, UsageError, nearest, sentence
from tenon.training.watchdog import FOLDER

RESERVED = "reserved-"  # and the rank: what a process reserved on its GPU at most


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A script (`function` is empty) or a function, with what it is given."""

    place: str  # a file, or the name of a module
    function: str = ""
    given: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str, given: Sequence[str] = ()) -> Target:
        """Read `script.py`, `script.py:function` or `module:function`; UsageError for anything else."""
        place, _, function = text.rpartition(":") if ":" in text else (text, "", "")
        script = place.endswith(".py")
        if not place or (not script and not function) or (function and not function.isidentifier()):
            raise UsageError(sentence("script.py, script.py:function or module:function", f"'{text}'"))
        if script and not Path(place).is_file():
            raise MissingError(sentence("a script", f"no file '{place}'", hint="name one that is there"))
        return cls(place=str(Path(place).resolve()) if script else place, function=function, given=tuple(given))

    @property
    def command(self) -> list[str]:
        """Return the command that runs it in a process."""
        return self.noting if self.function else [sys.executable, self.place, *self.given]

    @property
    def noting(self) -> list[str]:
        """Return the command that runs it and also notes, at its end, what was reserved on the GPU (`noted`)."""
        place = f"{self.place}:{self.function}" if self.function else self.place
        return [sys.executable, "-m", "tenon.training.target", place, *self.given]

    def named(self) -> dict[str, Any]:
        """Return what a function is given by name; UsageError for a word that is no `name=value`."""
        found = {}
        for word in self.given:
            name, equals, value = word.partition("=")
            if not equals or not name.isidentifier():
                raise UsageError(sentence("name=value for a function", f"'{word}'", at=self.function))
            try:
                found[name] = json.loads(value)
            except ValueError:
                found[name] = value
        return found

    def call(self, environ: Mapping[str, str]) -> None:
        """Run it in this process, as one of the ranks that `environ` or an open process group tells of."""
        if not self.function:
            sys.argv = [self.place, *self.given]
            sys.path.insert(0, str(Path(self.place).parent))  # as Python does for a script
            runpy.run_path(self.place, run_name="__main__")
            return
        from tenon.training.ranks import Ranks

        function, given = self._found(), self.named()
        with Ranks.of(environ) as ranks:
            function(ranks, **given)

    def _found(self) -> Callable[..., Any]:
        path = Path(self.place)
        if self.place.endswith(".py"):
            sys.path.insert(0, str(path.parent))
            spec = importlib.util.spec_from_file_location(path.stem, path)
            assert spec is not None and spec.loader is not None, self.place
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(self.place)
        found = getattr(module, self.function, None)
        if not callable(found):
            known = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            hint = nearest(self.function, known)
            raise MissingError(sentence(f"a function '{self.function}'", "none", at=self.place, hint=hint))
        return found  # type: ignore[no-any-return]


def noted(folder: Path) -> int:
    """Return the most bytes that a process of the attempt in `folder` reserved on its GPU; 0 when none says so."""
    return max((int(one.read_text("utf-8")) for one in folder.glob(f"{RESERVED}*")), default=0)


def _note(environ: Mapping[str, str]) -> None:
    if "torch" not in sys.modules or FOLDER not in environ:
        return
    from tenon.training.memory import reserved

    if measured := reserved():
        Path(environ[FOLDER], f"{RESERVED}{environ.get('RANK', '0')}").write_text(str(measured), "utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(Path.cwd()))
    try:
        Target.of(sys.argv[1], sys.argv[2:]).call(os.environ)
    finally:
        _note(os.environ)
