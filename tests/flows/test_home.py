"""The settings of services: ours where the user has none."""

import os

import pytest

from flows.home import OWN_LOGGERS, configure_services


@pytest.mark.parametrize("own", [None, "mine"])
def test_prefect_shows_what_our_loggers_say_unless_the_user_names_others(own, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_LOGGING_EXTRA_LOGGERS", raising=False)
    if own is not None:
        monkeypatch.setenv("PREFECT_LOGGING_EXTRA_LOGGERS", own)
    configure_services(tmp_path)
    assert os.environ["PREFECT_LOGGING_EXTRA_LOGGERS"] == (own or ",".join(OWN_LOGGERS))
