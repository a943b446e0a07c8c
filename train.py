"""Train a GPT: `python train.py --config configs/demo.yaml --model.n_layer 6`."""

from minigpt import cli


def main(arguments: list[str]) -> None:
    """Parse, then train; nothing heavy is imported before the config is known to be good."""
    config, resume = cli.parse_training(arguments)

    from minigpt.training.run import train

    train(config, resume)


if __name__ == "__main__":
    cli.run(main)
