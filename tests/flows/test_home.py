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


def test_a_prefect_server_that_is_away_is_asked_for_a_minute_and_one_that_hangs_no_longer_than_said(
    tmp_path, monkeypatch
):
    names = ("PREFECT_API_REQUEST_TIMEOUT", "PREFECT_CLIENT_MAX_RETRIES")
    for name in names:
        monkeypatch.setenv(name, "")  # what the test sets is undone at its end
        monkeypatch.delenv(name)
    configure_services(tmp_path)
    timeout, retries = (int(os.environ[name]) for name in names)
    # Prefect doubles its pauses from two seconds on
    assert sum(2**attempt for attempt in range(1, retries + 1)) == 62
    assert timeout == 20
