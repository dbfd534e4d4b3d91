"""The search's command line: `python search.py --help`."""

from search.cli import main

if __name__ == "__main__":
    main()
