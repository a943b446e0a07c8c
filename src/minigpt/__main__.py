"""`python -m minigpt COMMAND ...`, as `minigpt COMMAND ...`."""

from minigpt.cli.main import main

if __name__ == "__main__":
    main()
