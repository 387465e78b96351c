"""The commands of `clusterucb`; each imports what is slow to import only when it is called."""
