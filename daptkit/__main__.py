"""``python -m daptkit``."""

from daptkit.cli.main import main

if __name__ == "__main__":
    main()
