"""Runs the search on the command line's flags."""

from .driver import main

if __name__ == "__main__":
    main()
