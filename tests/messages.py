"""A plugin of pytest: which test brings which message, ``pytest -p tests.messages --messages FILE``.

A message is a finding with a code: of a decision, of a start of ranks, of doctor. The file gets, as JSON, for each code the first one of
each test: ``{code: {node id of the test: {severity, what, origin, remedy, who}}}``. docs/generate.py makes docs/messages.md of it.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any, Callable, Dict

import pytest

from oci_hpc_hooks import model, wireup
from oci_hpc_hooks.cli import doctor
from oci_hpc_hooks.decide import gpus, job

Message = Dict[str, str]
_seen: Dict[str, Dict[str, Message]] = {}
_now = ""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--messages", metavar="FILE", help="write which test brings which message")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--messages"):
        _listen(model.Finding, "__init__", lambda made, *_, **__: dataclasses.asdict(made))
        _listen(doctor.Fault, "__init__", lambda made, *_, **__: dataclasses.asdict(made))
        for decision in (job._Decision, gpus._Decision):
            _listen(decision, "tell", lambda made, *_, **__: made.outcome.findings[-1])
        original = wireup._missing
        wireup._missing = lambda *given: _heard(original(*given))


def _listen(owner: type, name: str, document: Callable[..., Message]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def listening(made: Any, *given: Any, **named: Any) -> None:
        original(made, *given, **named)
        _heard(document(made))

    setattr(owner, name, listening)


def _heard(message: Message) -> Message:
    if _now:
        _seen.setdefault(message["code"], {}).setdefault(_now, {key: str(text) for key, text in message.items() if key != "code"})
    return message


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    global _now
    _now = item.nodeid
    try:
        return (yield)
    finally:
        _now = ""


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--messages")
    if path:
        Path(path).write_text(json.dumps(_seen, indent=1, sort_keys=True) + "\n", encoding="utf-8")
