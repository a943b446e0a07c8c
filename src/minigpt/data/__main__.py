"""`python -m minigpt.data prepare|peek --data.source FILES`: text -> a folder of tokens, and a look at it."""

from minigpt.cli import parsing
from minigpt.files import shown


def main(arguments: list[str]) -> None:
    """Parse, prepare, and say what there is; nothing heavy is imported before the config is known to be good."""
    command, config = parsing.parse_data(arguments)

    from minigpt.data.prepare import open_data
    from minigpt.data.sources.stdin import keep_stdin

    data = open_data(keep_stdin(config.data))
    if config.data.streaming:
        print("the beginning of the stream:")
    if command == "peek":
        from minigpt.data.peek import peek  # needs torch, which takes seconds to import

        print(shown(peek(data, config)))
        return
    print(shown(f"train  {data.train}\nval    {data.val}\n-> {data.folder}"))


if __name__ == "__main__":
    parsing.run(main)
