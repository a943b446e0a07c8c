"""`python -m minigpt.inspection RUN`: a trained model -> its attention page, and a table of what each head does.

With `--report`: what a run left -> one HTML file.
"""

from minigpt.cli import parsing
from minigpt.files import shown


def main(arguments: list[str]) -> None:
    """Parse, look, write the page, print the table; nothing heavy is imported before the arguments are known good."""
    config = parsing.parse_inspecting(arguments)
    if config.report:
        from minigpt.pages.report import report_run

        print(shown(report_run(config)))
        return
    text = config.text if config.file is None else parsing.read_text(config.file, "--file")

    from minigpt.pages.model_report import write_inspection

    print(shown(write_inspection(config, text)))


if __name__ == "__main__":
    parsing.run(main)
