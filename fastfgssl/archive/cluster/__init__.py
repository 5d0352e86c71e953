"""Work of `prepare` on the nodes of a cluster."""
