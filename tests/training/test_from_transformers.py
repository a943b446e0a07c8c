"""A run that starts from a folder of transformers': its first loss is theirs, and it resumes to the same bits."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from small_runs import small_text, train_and_die
from test_resume import assert_same_run
from torch import Tensor

from minigpt.cli.parsing import parse_training
from minigpt.config import Config
from minigpt.runs.folder import RunFolder
from minigpt.training.module import TrainingModule
from minigpt.training.run import train

SIZES = {
    "GPT2": {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2},
    "Llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "rms_norm_eps": 1e-5,
    },
}
END = "<|endoftext|>"


def written(folder: Path, family: str) -> Any:
    """A small model of transformers' with random weights, in a folder with a byte-level tokenizer."""
    import tokenizers
    import transformers

    torch.manual_seed(2)
    sizes = SIZES[family] | {"vocab_size": 257, "bos_token_id": 256, "eos_token_id": 256}
    model = getattr(transformers, f"{family}ForCausalLM" if family == "Llama" else f"{family}LMHeadModel")(
        getattr(transformers, f"{family}Config")(**sizes)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {symbol: number for number, symbol in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END}))
    return model.eval()


def going_on(folder: Path, *more: str) -> Config:
    (folder / "text.txt").write_text(small_text())
    settings = ["--trainer.logger=false", "--attention.enabled=false", "--sampling.prompts=[]", "--data.batch_size=4"]
    length = ["--trainer.max_steps=6", "--trainer.val_check_interval=3", "--trainer.enable_progress_bar=false"]
    places = [f"--runs_dir={folder / 'runs'}", "--name=tuned", f"--data.dir={folder / 'data'}"]
    start = ["--from", str(folder / "theirs"), f"--data.source={folder / 'text.txt'}"]
    return parse_training([*start, *settings, *length, *places, *more])[0]


@pytest.mark.parametrize(("family", "more", "rate"), [("GPT2", [], "5e-05"), ("Llama", ["--lora=2"], "0.0005")])
def test_its_first_loss_is_that_of_transformers_and_it_resumes_to_the_same_bits(
    family: str, more: list[str], rate: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = written(tmp_path / "theirs", family)
    config, seen, step = going_on(tmp_path, *more), list[tuple[Tensor, Tensor, Tensor]](), TrainingModule.training_step

    def watched(self: TrainingModule, batch: Any, batch_idx: int) -> Any:
        loss = step(self, batch, batch_idx)
        seen.append((*batch, loss.detach()))
        return loss

    with mock.patch.object(TrainingModule, "training_step", watched):
        straight = train(config)
    tokens, targets, loss = seen[0]
    with torch.no_grad():
        logits = theirs(tokens).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected, atol=1e-4, rtol=0)
    assert f"trained on much more than this text: adamw at {rate}, dropout 0, " in capsys.readouterr().out
    train_and_die(config, 4)
    resumed = RunFolder(tmp_path / "runs" / "tuned-2")
    again, path = parse_training(["--resume", str(resumed.path)])
    train(again, path)
    assert_same_run(straight, resumed)
