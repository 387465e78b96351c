"""The demo: a generated pool with planted dirt, a target, and a tiny model trained on the fly."""

from clusterucb_core.demo.families import FAMILIES, TARGET_FAMILY, family_of
from clusterucb_core.demo.folder import DemoFiles, write_demo

__all__ = ["FAMILIES", "TARGET_FAMILY", "DemoFiles", "family_of", "write_demo"]
