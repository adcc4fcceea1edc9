"""What wakes the daemon."""
