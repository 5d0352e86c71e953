"""Objectives held against each other, over seeds: the same archive, graph, backbone, budget and protocol."""
