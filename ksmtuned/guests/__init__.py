"""The virtual machines on this host."""
