"""The flow run that is under way in this process, and the server that it has."""

from prefect.context import FlowRunContext


def flow_run_here() -> FlowRunContext:
    """Return the context of the flow run whose tasks are mapped here."""
    context = FlowRunContext.get()
    assert context is not None, "a flow run maps tasks"
    return context


def server_address() -> str:
    """Return the address of the flow run's server, which may be one that the run started for itself."""
    return str(flow_run_here().client.api_url).rstrip("/")
