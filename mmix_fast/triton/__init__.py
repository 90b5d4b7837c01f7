"""The Triton backend. dispatch.py imports its modules at their first use: they import triton."""
