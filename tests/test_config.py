"""tenon.toml and the environment: one precedence, unknown keys refused with a suggestion, secrets never kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenon.config import Config, load
from tenon.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    (folder / "tenon.toml").write_text(text, "utf-8")
    return folder


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert load(tmp_path, {}) == Config()


def test_the_environment_beats_the_file_and_the_file_beats_the_defaults(tmp_path: Path) -> None:
    root = write(tmp_path, "[prices]\nusd_per_core_hour = 1\nusd_per_kwh = 2.5\n")
    config = load(root, {"TENON_PRICES__USD_PER_KWH": "3"})
    assert (config.prices.usd_per_core_hour, config.prices.usd_per_kwh) == (1.0, 3.0)
    assert config.prices.usd_per_gpu_hour == Config().prices.usd_per_gpu_hour


def test_bounds_are_set_through_the_same_file(tmp_path: Path) -> None:
    config = load(write(tmp_path, "[limits.serving]\nbatch_rows = 8\n"), {})
    assert config.limits.serving.batch_rows == 8


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[price]\n", "expected a key tenon knows, got 'price' - at {file}; did you mean 'prices'?"),
        ("[serve]\nprot = 1\n", "got 'prot' - at {file}: serve; did you mean 'port'?"),
        ("[serve]\nport = 'http'\n", "expected a whole number, got 'http' - at {file}: serve: port"),
        ("[serve]\nport = true\n", "expected a whole number, got True - at {file}: serve: port"),
        ("serve = 3\n", "expected a table, got 3 - at {file}: serve"),
        ("[serve\n", "expected TOML, got "),
    ],
)
def test_a_wrong_file_is_refused_in_words(tmp_path: Path, text: str, words: str) -> None:
    root = write(tmp_path, text)
    with pytest.raises(ConfigError) as refused:
        load(root, {})
    assert words.format(file=root / "tenon.toml") in str(refused.value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TENON_SERVE__PROT", "1", "'prot' - at environment variable TENON_SERVE__PROT; did you mean 'port'?"),
        ("TENON_SERVE__PORT", "http", "expected a whole number, got 'http' - at environment variable"),
        ("TENON_SERVE__PORT__X", "1", "expected a section, got the value 'port'"),
    ],
)
def test_a_wrong_environment_variable_is_refused_in_words(tmp_path: Path, name: str, value: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, {name: value})
    assert words in str(refused.value)


def test_the_kept_configuration_holds_no_secret(tmp_path: Path) -> None:
    root = write(tmp_path, "[store]\ncatalog = 'postgresql://me:hush@host/db'\n[serve]\ntoken = 'hush'\n")
    kept = load(root, {}).to_dict()
    assert "hush" not in str(kept)
    assert kept["serve"]["token"] == "set"
