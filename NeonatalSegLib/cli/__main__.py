"""``python -m NeonatalSegLib.cli``: the command neonatalseg where it is not on the path."""

from NeonatalSegLib.cli.app import main

if __name__ == "__main__":
    main()
