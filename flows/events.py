"""Events that deployments may start on."""

from prefect.events import emit_event

from clusterucb_core.store import PoolVersion

POOL_UPDATED = "clusterucb.pool.updated"
POOL_RESOURCE = "clusterucb.pool"


def announce_pool(version: PoolVersion) -> None:
    """Emit the event of a new pool version, once: by the call that wrote it."""
    if not version.created:
        return
    emit_event(
        event=POOL_UPDATED,
        resource={"prefect.resource.id": POOL_RESOURCE, "prefect.resource.name": "pool"},
        payload=version.model_dump(mode="json", exclude={"created"}),
    )
