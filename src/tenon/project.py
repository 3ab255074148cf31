"""What a user declares: a Project of Models, in a `project.py` that declares and does not orchestrate.

`load(folder)` runs the folder's `project.py` and takes the one `Project` it defines. Order of work follows from the
references between sources, features and models, never from the order of lines. Everything that can be wrong with a
declaration is found here, before any work: unknown sources, a split that is out of order, a trainer nobody knows.
The words a person uses for the model (`Words`) are declared here too, so that reports speak of late flights and not
of the positive class.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tenon.contract.column import Source
from tenon.errors import ConfigError, MissingError, nearest, sentence
from tenon.feature.words import Feature, Label
from tenon.ledger import Budget
from tenon.model.gate import Gate

Named = TypeVar("Named")

TRAINERS = ("constant", "lightgbm", "linear", "logistic")


@dataclass(frozen=True, slots=True)
class Words:
    """How people speak about a model: the question it answers and the nouns for what it answers about."""

    title: str = ""
    question: str = ""
    unit_singular: str = "row"
    unit_plural: str = "rows"
    positive_word: str = "positive"
    owner: str = ""
    value_usd_true_alert: float | None = None  # what one true alert is worth, so that reports can say what it earns


@dataclass(frozen=True, slots=True)
class Model:
    """One model: what it predicts, from which features, how it is trained, and what it must reach.

    `of` is the source whose rows are predicted. `split` is two dates: train is before the first, validation between
    them, test from the second on, by the source's `time`. `train` names a built-in trainer or is a function
    ``train(data, run) -> fitted``. `gate` decides whether a version may become `production`. `threshold` turns a score
    into a decision; by default it is chosen on validation so that as many rows are flagged as are truly positive.
    """

    name: str
    of: Source
    label: Label
    features: tuple[Feature, ...] | list[Feature]
    split: tuple[str, str]
    train: str | Callable[..., Any] = "lightgbm"
    gate: Gate = Gate()
    budget: Budget = Budget()
    seed: int = 0
    threshold: float | None = None
    words: Words = Words()

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", tuple(self.features))
        _check_name("model", self.name)
        place = f"model '{self.name}'"
        if not self.features:
            raise ConfigError(sentence("features to learn from", "none", at=place, hint="name at least one"))
        if not isinstance(self.train, str) and not inspect.isfunction(self.train):
            got, hint = type(self.train).__name__, "write def train(data, run): ... and name it"
            raise ConfigError(sentence("a trainer's name or a function of your own", got, at=place, hint=hint))
        if isinstance(self.train, str) and self.train not in TRAINERS:
            raise ConfigError(sentence("a trainer", f"'{self.train}'", at=place, hint=nearest(self.train, TRAINERS)))
        if not self.of.time:
            raise ConfigError(
                sentence(
                    "a source with a time to split by", f"'{self.of.name}' without one", at=place, hint="set time="
                )
            )
        first, second = (self._date(text, place) for text in self.split)
        if first >= second:
            raise ConfigError(
                sentence("two dates in order", f"{self.split[0]} and {self.split[1]}", at=f"{place}: split")
            )

    @staticmethod
    def _date(text: str, place: str) -> datetime:
        """Read a date or moment; one with a zone becomes UTC, as every time here."""
        try:
            found = datetime.fromisoformat(text)
            return found.astimezone(UTC).replace(tzinfo=None) if found.tzinfo else found
        except (TypeError, ValueError):
            raise ConfigError(sentence("a date such as 2013-09-01", f"'{text}'", at=f"{place}: split")) from None

    @property
    def split_at(self) -> tuple[datetime, datetime]:
        """Return the two moments that divide train, validation and test."""
        first, second = (self._date(text, f"model '{self.name}'") for text in self.split)
        return first, second

    @property
    def trainer_name(self) -> str:
        """Name the trainer as people see it: the built-in's name, or the function's."""
        return self.train if isinstance(self.train, str) else self.train.__name__

    @property
    def trainer_digest(self) -> str:
        """Name what trains, so that an edited function trains anew: the built-in's name or the hash of its source.

        What the function calls is not followed: after editing that, train with `--again`.
        """
        if isinstance(self.train, str):
            return self.train
        return hashlib.sha256(inspect.getsource(self.train).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Project:
    """A named set of models and the sources they need; extra `sources` are read though no model uses them yet."""

    name: str
    models: tuple[Model, ...] | list[Model] = ()
    sources: tuple[Source, ...] | list[Source] = ()
    description: str = ""
    root: Path = field(default=Path(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))
        object.__setattr__(self, "sources", tuple(self.sources))
        for source in self.all_sources:
            _check_name("source", source.name)
        for kind, names in (
            ("model", [model.name for model in self.models]),
            ("source", [source.name for source in self.all_sources]),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ConfigError(
                    sentence(
                        f"{kind} names used once", f"'{twice[0]}' twice", at=f"project '{self.name}'", hint="rename one"
                    )
                )
        known = {source.name for source in self.all_sources}
        named = [
            (feature.of, f"model '{model.name}', feature '{feature.name}'")
            for model in self.models
            for feature in model.features
        ]
        named += [
            (column.of, f"source '{source.name}', column '{column.name}'")
            for source in self.all_sources
            for column in source.columns
        ]
        for name, place in named:
            if name and name not in known:
                hint = f"{nearest(str(name), known)}; a new one goes into Project(sources=[...])"
                raise ConfigError(sentence("a source of this project", f"'{name}'", at=place, hint=hint))

    @property
    def all_sources(self) -> tuple[Source, ...]:
        """Return every source once: those declared here, then those of the models."""
        found: list[Source] = list(self.sources)
        for model in self.models:
            if not any(model.of is source for source in found):
                found.append(model.of)
        return tuple(found)

    def source_map(self) -> Mapping[str, Source]:
        """Return the sources by name."""
        return {source.name: source for source in self.all_sources}

    def source(self, name: str) -> Source:
        """Return the source of that name, or say which there are."""
        return self._named("source", name, {source.name: source for source in self.all_sources})

    def model(self, name: str = "") -> Model:
        """Return the model of that name; without a name, the only one there is."""
        if not name and len(self.models) == 1:
            return self.models[0]
        if not name:
            names = ", ".join(model.name for model in self.models) or "none"
            raise MissingError(
                sentence("the name of one model", "no name", at=f"project '{self.name}'", hint=f"there is {names}")
            )
        return self._named("model", name, {model.name: model for model in self.models})

    def _named(self, kind: str, name: str, things: Mapping[str, Named]) -> Named:
        if name not in things:
            raise MissingError(sentence(f"a {kind} of project '{self.name}'", f"'{name}'", hint=nearest(name, things)))
        return things[name]

    def to_dict(self) -> dict[str, Any]:
        """Return the declaration's names and words as plain data, as kept in the `project` record."""
        return {
            "name": self.name,
            "description": self.description,
            "sources": [source.name for source in self.all_sources],
            "models": [
                {
                    "name": model.name,
                    "of": model.of.name,
                    "label": model.label.sql,
                    "split": list(model.split),
                    "trainer": model.trainer_name,
                    "title": model.words.title,
                    "question": model.words.question,
                    "unit_singular": model.words.unit_singular,
                    "unit_plural": model.words.unit_plural,
                    "positive_word": model.words.positive_word,
                    "owner": model.words.owner,
                    "value_usd_true_alert": model.words.value_usd_true_alert,
                    "budget": model.budget.to_dict(),
                    "gate": model.gate.to_dict(),
                }
                for model in self.models
            ],
        }


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that cannot be part of an address or of a file's name."""
    if not name.strip() or name.startswith(".") or any(char in "/\\" or not char.isprintable() for char in name):
        raise ConfigError(sentence(f"a {kind} name without slashes or control characters", repr(name)))


def load(folder: Path) -> Project:
    """Run `folder`/project.py and return the Project it defines, with `root` set; faults name file and line.

    The file runs as Python with the user's rights: open only projects you trust, as with any script.
    """
    file = folder.resolve() / "project.py"
    if not file.is_file():
        raise MissingError(
            sentence(
                "a project.py", "none", at=str(folder), hint="name a project's folder, or make one with `tenon init`"
            )
        )
    name = f"tenon_project_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None, file
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # functions defined there are named by module when they are recorded
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))  # as for any script: its own modules lie beside it
    try:
        spec.loader.exec_module(module)
    except ConfigError as error:
        raise ConfigError(f"{error} ({file}:{_line(error, file)})") from error
    except (Exception, SystemExit) as error:  # the edge to the user's own code: say where it broke
        got = f"{type(error).__name__}: {error}"
        raise ConfigError(sentence("a project.py that runs", got, at=f"{file}:{_line(error, file)}")) from error
    found = [value for value in vars(module).values() if isinstance(value, Project)]
    if len(found) != 1:
        raise ConfigError(
            sentence(
                "one Project",
                f"{len(found)}",
                at=str(file),
                hint='end the file with: project = Project("name", models=[...])',
            )
        )
    (project,) = found
    object.__setattr__(project, "root", folder.resolve())
    return project


def _line(error: BaseException, file: Path) -> int:
    """Find the last line of the user's file on the way to the error; a file that does not parse says its own."""
    if isinstance(error, SyntaxError) and error.filename == str(file):
        return error.lineno or 0
    lines = [frame.lineno or 0 for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    return lines[-1] if lines else 0
