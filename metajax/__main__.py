"""`python -m metajax`: learns classes from pictures, and names the classes of others."""

import sys

from metajax.deploy.command import main

if __name__ == "__main__":
    sys.exit(main())
