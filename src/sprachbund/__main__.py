"""`python -m sprachbund`."""

from sprachbund.cli import main

if __name__ == "__main__":
    main()
