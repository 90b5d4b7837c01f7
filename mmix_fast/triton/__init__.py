"""The Triton backend. dispatch.py imports its modules at first use, since they import triton."""
