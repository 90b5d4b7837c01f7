"""What is measured: each module makes problems (see ../problem.py) for one command."""
