"""Language models among what is served: kept in the store as versions of their own, opened for a service.

`keep` puts an exported folder's files into the store as blobs and writes a `language` record, named by the digest of
the files, so that the same export is kept once. A service opens the newest of each name, or the folders it is told
(`NAME=FOLDER`, or a folder alone). A folder that is an export, or whose store holds one, is served without a project.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tenon import config as configuration
from tenon import serving
from tenon.config import Config
from tenon.errors import MissingError, UsageError, sentence
from tenon.flow import stateful
from tenon.limits import LanguageLimits
from tenon.serving.lm.bundle import FILES, OPTIONAL, Bundle
from tenon.store import Store

if TYPE_CHECKING:
    from tenon.serving.lm.language import Language

KIND = "language"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """Models to serve without a project, and where: a folder of language models, folders of others."""

    folder: Path
    languages: Sequence[str] = ()
    stateful: Sequence[str] = ()
    host: str = ""
    port: int = 0


def keep(store: Store, folder: Path, *, name: str = "", run: str = "", at: float | None = None) -> dict[str, Any]:
    """Keep an exported language model in the store and return its record; the same files are kept once."""
    bundle = Bundle.open(folder, name=name)
    before = store.get(KIND, bundle.version)
    if before is not None and before["model"] == bundle.name:
        return before
    paths = [folder / file for file in (*FILES, *OPTIONAL) if (folder / file).is_file()]
    files = {path.name: store.blobs.put(path) for path in paths}
    body = {
        "id": bundle.version,
        "model": bundle.name,
        "run": run or str(bundle.about.get("run", "")),
        "files": files,
        "about": dict(bundle.about),
        "size_bytes": sum(path.stat().st_size for path in paths),
        "at": time.time() if at is None else at,
    }
    with store.atomic():
        store.put(KIND, bundle.version, {**body, "number": len(store.find(KIND, model=bundle.name)) + 1})
    return store.get(KIND, bundle.version) or body


def kept(store: Store) -> list[dict[str, Any]]:
    """Return the newest kept language model of each name."""
    newest: dict[str, dict[str, Any]] = {}
    for record in store.find(KIND):
        newest.setdefault(record["model"], record)
    return list(newest.values())


def opened(store: Store | None, wanted: Sequence[str], limits: LanguageLimits) -> list[Language]:
    """Open the language models to serve: those named in `wanted`, and of the store the newest of each other name."""
    records = kept(store) if store is not None else []
    if not (wanted or records):
        return []
    from tenon.serving.lm import open_language

    found = []
    for one in wanted:
        name, _, folder = one.rpartition("=")
        if not folder:
            raise UsageError(sentence("NAME=FOLDER or FOLDER", f"'{one}'", at="--lm"))
        found.append(open_language(folder, name=name, limits=limits, at=_changed(Path(folder))))
    names = {language.name for language in found}
    for record in records:
        if record["model"] not in names:
            assert store is not None
            files = {file: store.blobs.path(digest) for file, digest in record["files"].items()}
            found.append(open_language(files, name=record["model"], limits=limits, at=record["at"]))
    return found


def _changed(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:
        return 0.0


def said(language: Language, url: str) -> list[str]:
    """Say where a language model is served and how to try it."""
    body = f'{{"model": "{language.name}", "prompt": "def ", "max_tokens": 40}}'
    return [
        f"serving {language.name}, version {language.version}, at {url}/v1 for OpenAI clients",
        f"try it:  curl -s {url}/v1/completions -d '{body}'",
    ]


def is_alone(folder: Path) -> bool:
    """Say whether a folder is served without a project: it has none, and is an export or holds language models."""
    if (folder / "project.py").exists():
        return False
    return (folder / "config.json").is_file() or (folder / ".tenon" / "tenon.db").is_file()


def serve(asked: Alone, environ: Mapping[str, str], say: Callable[[str], None]) -> None:
    """Serve models without a project until SIGTERM or Ctrl-C."""
    config = configuration.load(asked.folder, environ)
    if (asked.folder / "config.json").is_file():
        _run([], opened(None, (str(asked.folder), *asked.languages), config.limits.language), config, asked, say)
        return
    if asked.stateful and not (asked.folder / ".tenon" / "tenon.db").is_file():
        _run([], opened(None, asked.languages, config.limits.language), config, asked, say)
        return
    with Store.open(asked.folder, config.store, config.limits.store) as store:
        languages = opened(store, asked.languages, config.limits.language)
        if not (languages or asked.stateful):
            hint = "export one and keep it, or give --lm FOLDER"
            raise MissingError(sentence("a language model kept here", "none", at=str(store.root), hint=hint))
        _run([store], languages, config, asked, say)


def _run(
    stores: Sequence[Store], languages: Sequence[Language], config: Config, asked: Alone, say: Callable[[str], None]
) -> None:
    seams = serving.Seams()
    if stores:
        seams = serving.Seams(record=lambda kind, subject, body: _record(stores[0], kind, subject, body))
    settings = serving.Settings(serve=config.serve, limits=config.limits.serving)
    models = stateful.opened(asked.stateful, config)
    app = serving.build_app([], seams=seams, settings=settings, languages=languages, stateful=models)

    def started(url: str) -> None:
        for language in languages:
            for line in said(language, url):
                say(line)
        for one in models:
            say(f"serving {one.name}, version {one.version}, at {url}/predict/{one.name} for sessions")
        say(f"in a browser: {url}    Ctrl-C ends it")

    serving.run(app, asked.host, asked.port or None, started=started)


def _record(store: Store, kind: str, subject: str, body: Mapping[str, Any]) -> None:
    store.event(kind, subject, body)
