import json
import logging

import pytest

from sair.logs import configure, get_logger


def test_a_line_is_json_that_names_its_component(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", json=True)
    get_logger("webhook").info("injected", pod="a")
    line = json.loads(capsys.readouterr().err)
    assert (line["component"], line["event"], line["pod"], line["level"]) == ("webhook", "injected", "a", "info")


@pytest.mark.parametrize(
    "event",
    [
        {"api_key": "sk-verysecret123"},
        {"authorization": "Bearer verysecret123"},
        {"url": "redis://:verysecret123@redis:6379/0"},
        {"url": "redis://sair:verysecret123@redis:6379/0"},
        {"problem": "GET failed, header Authorization: Bearer verysecret123"},
        {"problem": "key sk-verysecret123 was refused"},
    ],
)
def test_no_secret_reaches_a_log(event: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", json=True)
    get_logger("controller").warning("problem", **event)
    written = capsys.readouterr().err
    assert "verysecret123" not in written
    assert "[masked]" in written


def test_lines_of_libraries_are_masked_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", json=True)
    logging.getLogger("somebody").warning("connecting to redis://:verysecret123@redis:6379")
    assert "verysecret123" not in capsys.readouterr().err


def test_an_exception_is_written_without_its_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    configure("info", json=True)
    try:
        raise ValueError("redis://:verysecret123@redis")
    except ValueError:
        get_logger("controller").exception("failed")
    written = capsys.readouterr().err
    assert "ValueError" in written
    assert "verysecret123" not in written
