"""The one door to the kernel: the only code that touches proc and sysfs, all below one root."""
