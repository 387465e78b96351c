"""One Prefect server for all tests of a process that need one."""

import pytest


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """A Prefect server on loopback with files of its own; its settings hold until the session ends."""
    import prefect.settings as names
    from prefect.testing.utilities import prefect_test_harness

    home = tmp_path_factory.mktemp("prefect")
    changed = {
        names.PREFECT_HOME: home,
        names.PREFECT_LOCAL_STORAGE_PATH: home / "results",
        names.PREFECT_LOGGING_LEVEL: "ERROR",
        names.PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    with names.temporary_settings(changed), prefect_test_harness(server_startup_timeout=120):
        yield
