"""`python -m pagedvid` is the same as the `pagedvid` command."""

from pagedvid.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
