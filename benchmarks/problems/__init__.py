"""What is measured. Each module makes lists of problems (../problem.py)."""
