"""`python -m epollkit.cli`, for where the script is not on PATH."""
import sys

from epollkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
