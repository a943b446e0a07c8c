"""`python -m minigpt COMMAND ...`, as `minigpt COMMAND ...`; train.py and sample.py begin here too."""

from minigpt.environment import refuse_missing, without_collecting

try:
    with without_collecting():
        from minigpt.cli.main import main as main  # for train.py and sample.py
except ModuleNotFoundError as error:
    refuse_missing(error)

if __name__ == "__main__":
    main()
