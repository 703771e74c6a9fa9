"""Shared by the tests of encoders with pretrained weights: no test here may reach for a network."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for processes started here; this one has read it already
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
