"""ksmtuned decides when, and how fast, the kernel merges identical memory pages (KSM)."""

__version__ = "0.1.0"
