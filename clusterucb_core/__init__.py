"""ClusterUCB: choose what to fine-tune on by gradient influence under a fixed gradient budget."""
