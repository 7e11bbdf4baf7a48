"""`python -m pagedvid` is the same as the `pagedvid` command."""

from pagedvid.cli.main import command

if __name__ == "__main__":
    command()
