"""`python -m weightformer`: the command line."""

from weightformer.cli import main

if __name__ == "__main__":
    main()
