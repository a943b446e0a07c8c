"""What a run prints at its end."""

from minigpt.training.console import _val_losses


def test_the_best_loss_is_said_with_its_step_when_the_last_is_worse() -> None:
    assert _val_losses(4.0, 2.0, 160, 3.0, 80) == (
        "best val/loss 3.0000 = 1.5000 bits per byte at step 80 (saved as the run's model); last 4.0000 at step 160"
    )


def test_one_loss_is_said_when_the_last_is_the_best() -> None:
    assert _val_losses(3.0, 1.5, 80, 3.0, 80) == "val/loss 3.0000 = 1.5000 bits per byte"
