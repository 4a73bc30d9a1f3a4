"""Flows of real kernels, hosts and firmware; the scenario library gives them their properties."""
