"""The config: every bad setting is refused by name when it is built, and a config survives being written down."""

import ast
import copy
import dataclasses
import inspect
import json
import re
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from scripts import ROOT

from minigpt import config
from minigpt.cli import parsing
from minigpt.config import (
    AttentionConfig,
    AttributeConfig,
    CircuitsConfig,
    CompareConfig,
    Config,
    DataConfig,
    DoctorConfig,
    ExportConfig,
    GenerationConfig,
    GPTConfig,
    ImportConfig,
    InspectConfig,
    LensConfig,
    LiveConfig,
    OptimizerConfig,
    PatchConfig,
    ProofConfig,
    ReportConfig,
    SampleConfig,
    SamplingConfig,
    ShareConfig,
    StudyConfig,
    TrainerConfig,
)
from minigpt.config.checks import Section
from minigpt.errors import UserError

SECTIONS: list[type] = [
    Config,
    DoctorConfig,
    GPTConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    ShareConfig,
    StudyConfig,
    DataConfig,
    OptimizerConfig,
    GenerationConfig,
    SamplingConfig,
    AttentionConfig,
    TrainerConfig,
    SampleConfig,
    CompareConfig,
    ProofConfig,
    ReportConfig,
    LiveConfig,
    LensConfig,
    AttributeConfig,
    PatchConfig,
    CircuitsConfig,
]
NAN, INF = float("nan"), float("inf")

REFUSED: list[tuple[type, dict[str, Any], str]] = [
    *((GPTConfig, {name: 0}, f"model.{name}=0: must be at least 1") for name in ("vocab_size", "context_length")),
    *((GPTConfig, {name: -3}, f"model.{name}=-3: must be at least 1") for name in ("n_layer", "n_head", "n_kv_head")),
    *((GPTConfig, {name: 0}, f"model.{name}=0: must be at least 1") for name in ("n_embd", "head_dim", "mlp_hidden")),
    (GPTConfig, {"n_embd": 10, "n_head": 3}, "model.n_embd=10 is not divisible by model.n_head=3"),
    (GPTConfig, {"n_head": 4, "n_kv_head": 3}, "model.n_kv_head=3 does not divide model.n_head=4"),
    (GPTConfig, {"n_head": 4, "n_kv_head": 8}, "model.n_kv_head=8 does not divide model.n_head=4"),
    (GPTConfig, {"n_embd": 12, "n_head": 4}, "the head width 3 must be even"),
    (GPTConfig, {"head_dim": 5}, "the head width 5 must be even"),
    (GPTConfig, {"rotary_base": 0.5}, "model.rotary_base=0.5: must be at least 1"),
    (
        GPTConfig,
        {"rotary_fraction": 0.1},
        "model.rotary_fraction=0.1: of 48 channels it rotates 4.8; an even number is needed",
    ),
    (GPTConfig, {"position": "none", "rotary_fraction": 0.5}, "model.rotary_fraction=0.5: only model.position=rotary"),
    (GPTConfig, {"rotary_scaling": {"rope_type": "ntk"}}, "rope_type must be linear, llama3, yarn"),
    (GPTConfig, {"rotary_scaling": {"rope_type": "llama3", "factor": 2}}, "llama3 needs high_freq_factor, low_freq"),
    (GPTConfig, {"rotary_scaling": {"rope_type": "linear", "factor": INF}}, "factor must be a positive number"),
    (GPTConfig, {"rotary_scaling": {"rope_type": "linear", "factor": 2, "x": 1}}, "linear does not know x"),
    (GPTConfig, {"qk_norm": False, "qk_norm_per_head": False}, "model.qk_norm_per_head=false: says how model.qk_norm"),
    (GPTConfig, {"rotary_base": INF}, "model.rotary_base=inf: must be a finite number"),
    (GPTConfig, {"dropout": -0.1}, "model.dropout=-0.1: must be at least 0 and below 1"),
    (GPTConfig, {"dropout": 1.0}, "model.dropout=1.0: must be at least 0 and below 1"),
    (GPTConfig, {"dropout": NAN}, "model.dropout=nan: must be a finite number"),
    *(
        (GPTConfig, {name: value} | more, f"model.{name}={value}: must be above 0")
        for name, more in (
            ("softmax_temperature", {}),
            ("hopfield_beta", {"similarity": "hopfield"}),
            ("logit_softcap", {}),
        )
        for value in (0.0, -1.0)
    ),
    (GPTConfig, {"similarity": "hopfield", "hopfield_steps": 0}, "model.hopfield_steps=0: must be at least 1"),
    (GPTConfig, {"hopfield_beta": 2.0}, "model.hopfield_beta=2.0: only similarity hopfield uses it, not scaled_dot"),
    (GPTConfig, {"hopfield_steps": 3}, "model.hopfield_steps=3: only similarity hopfield uses it, not scaled_dot"),
    (GPTConfig, {"hard_choice": "sampled"}, "model.hard_choice=sampled: only similarity hard uses it, not scaled_dot"),
    (GPTConfig, {"similarity": "linear", "softmax_temperature": 2.0}, "model.softmax_temperature=2.0: only similarity"),
    (GPTConfig, {"window": 0}, "model.window=0: a window is at least 1 token"),
    (GPTConfig, {"window": [8, -1]}, "model.window=-1: a window is at least 1 token"),
    (GPTConfig, {"window": []}, "model.window=[]: a pattern has 1 to 4 entries"),
    (GPTConfig, {"window": [8] * 5}, "a pattern has 1 to 4 entries, for 4 layers"),
    (GPTConfig, {"end_of_text": -1}, "model.end_of_text=-1: must be at least 0"),
    (GPTConfig, {"vocab_size": 10, "end_of_text": 10}, "model.end_of_text=10: the vocabulary has 10 tokens"),
    (GPTConfig, {"similarity": "symmetric", "n_kv_head": 2}, "model.n_kv_head=2: with similarity=symmetric"),
    (GPTConfig, {"similarity": "uniform"}, "model.position=rotary rotates queries and keys, and similarity=uniform"),
    (GPTConfig, {"similarity": "hard", "dropout": 0.1}, "model.dropout=0.1: similarity=hard puts all weight on one"),
    (GPTConfig, {"similarity": "linear", "dropout": 0.1}, "model.dropout=0.1: similarity=linear never forms"),
    *(
        (
            GPTConfig,
            {"similarity": name, "position": "none", "logit_softcap": 5.0},
            f"model.logit_softcap=5.0: similarity={name}",
        )
        for name in ("uniform", "linear", "gaussian")
    ),
    (
        GPTConfig,
        {"similarity": "linear", "position": "alibi"},
        "model.position=alibi: similarity=linear has no softmax",
    ),
    (CompareConfig, {"recipes": []}, "recipes: name at least one"),
    (CompareConfig, {"recipes": ["a"], "seeds": []}, "seeds=[]: give at least one"),
    (CompareConfig, {"recipes": ["a"], "seeds": [1, 1]}, "seeds=[1, 1]: each seed once"),
    (CompareConfig, {"recipes": ["a"], "seeds": [-1]}, "seeds=-1: must lie between 0"),
    (CompareConfig, {"recipes": ["a"], "jobs": 0}, "jobs=0: must be at least 1"),
    (CompareConfig, {"recipes": ["a"], "max_steps": 0}, "max_steps=0: must be at least 1"),
    (CompareConfig, {"recipes": ["a"], "out": ""}, "out is empty"),
    (DataConfig, {"source": ""}, "data.source is empty"),
    (DataConfig, {"source": []}, "data.source is empty"),
    (DataConfig, {"source": ["a.txt", ""]}, "data.source is empty"),
    (DataConfig, {"dir": ""}, "data.dir is empty"),
    *(
        (DataConfig, {"encoding": x}, f"data.encoding={x}: no encoding that P")
        for x in ("utf-9", "hex", "idna", "a\0b", "")
    ),
    *((DataConfig, {"delimiter": x}, f"data.delimiter={x!r}: give one char") for x in ("", ";;", "\n", '"', "\\n")),
    (DataConfig, {"streaming": True, "encoding_errors": "skip"}, "data.encoding_errors=skip: not with data.streaming"),
    (DataConfig, {"batch_size": 0}, "data.batch_size=0: must be at least 1"),
    (DataConfig, {"max_documents": 0}, "data.max_documents=0: must be at least 1"),
    (DataConfig, {"num_workers": -1}, "data.num_workers=-1: must be at least 0"),
    *((DataConfig, {"val_fraction": x}, f"data.val_fraction={x}: must lie between 0 and 1") for x in (0.0, 1.0, -1, 5)),
    (DataConfig, {"val_fraction": NAN}, "data.val_fraction=nan: must be a finite number"),
    *((DataConfig, {"tokenizer": name}, f"data.tokenizer={name}: use bytes") for name in ("", "gpt4", "bpe", "bpe:x")),
    *((DataConfig, {"tokenizer": f"bpe:{n}"}, f"data.tokenizer=bpe:{n}: a byte-level") for n in (0, 257, 1_000_001)),
    *((OptimizerConfig, {"learning_rate": x}, f"optimizer.learning_rate={x}: must be above 0") for x in (0.0, -1e-3)),
    *((OptimizerConfig, {"learning_rate": x}, f"optimizer.learning_rate={x}: must be a finite") for x in (NAN, INF)),
    (OptimizerConfig, {"warmup_steps": -1}, "optimizer.warmup_steps=-1: must be at least 0"),
    (OptimizerConfig, {"weight_decay": -0.1}, "optimizer.weight_decay=-0.1: must be at least 0"),
    (OptimizerConfig, {"weight_decay": NAN}, "optimizer.weight_decay=nan: must be a finite number"),
    (OptimizerConfig, {"final_lr_fraction": -0.1}, "optimizer.final_lr_fraction=-0.1: must be at least 0"),
    (OptimizerConfig, {"final_lr_fraction": 1.1}, "optimizer.final_lr_fraction=1.1: must be at most 1"),
    *(
        (OptimizerConfig, {name: 1.0}, f"optimizer.{name}=1.0: must be at least 0 and below 1")
        for name in ("beta1", "beta2")
    ),
    *((OptimizerConfig, {name: NAN}, f"optimizer.{name}=nan: must be a finite number") for name in ("beta1", "beta2")),
    *(
        (OptimizerConfig, {"schedule": "wsd", "decay_fraction": x}, f"optimizer.decay_fraction={x}: must be above 0")
        for x in (0.0, -0.1, 1.1)
    ),
    (OptimizerConfig, {"decay_fraction": 0.2}, "optimizer.decay_fraction=0.2: only schedule wsd uses it, not linear"),
    *(
        (
            Config,
            {"optimizer": OptimizerConfig(name="muon"), "trainer": TrainerConfig(strategy=strategy)},
            "optimizer.name=muon: needs whole matrices on each device, and trainer.strategy=",
        )
        for strategy in ("fsdp", "deepspeed_stage_2", {"class_path": "lightning.pytorch.strategies.FSDPStrategy"})
    ),
    (SamplingConfig, {"max_new_tokens": 0}, "sampling.max_new_tokens=0: must be at least 1"),
    (SamplingConfig, {"top_k": 0}, "sampling.top_k=0: must be at least 1"),
    (SamplingConfig, {"temperature": -0.1}, "sampling.temperature=-0.1: must be at least 0"),
    *((SamplingConfig, {"temperature": x}, f"sampling.temperature={x}: must be a finite number") for x in (NAN, INF)),
    *((SamplingConfig, {"seed": n}, f"sampling.seed={n}: must lie between 0 and 2147483647") for n in (-1, 2**31)),
    (SampleConfig, {"run": ""}, "run is empty"),
    (InspectConfig, {"run": ""}, "run is empty"),
    (InspectConfig, {"run": "r", "text": "a", "file": "b"}, "text and file are both given"),
    (ReportConfig, {"run": ""}, "run is empty"),
    (InspectConfig, {"run": "r", "max_tokens": 257}, "max_tokens=257: must lie between 1 and 256"),
    (SampleConfig, {"run": "r", "max_new_tokens": 0}, "max_new_tokens=0: must be at least 1"),
    (SampleConfig, {"run": "r", "top_k": 0}, "top_k=0: must be at least 1"),
    (SampleConfig, {"run": "r", "num_samples": 0}, "num_samples=0: must be at least 1"),
    (SampleConfig, {"run": "r", "temperature": -1.0}, "temperature=-1.0: must be at least 0"),
    (GenerationConfig, {"min_new_tokens": -1}, "min_new_tokens=-1: must be at least 0"),
    (GenerationConfig, {"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9: is above max_new_tokens=8"),
    *((GenerationConfig, {"top_p": x}, f"top_p={x}: must be above 0 and at most 1") for x in (0.0, 1.01)),
    *((GenerationConfig, {"min_p": x}, f"min_p={x}: must lie between 0 and 1") for x in (-0.1, 1.01)),
    (GenerationConfig, {"repetition_penalty": 0.0}, "repetition_penalty=0.0: must lie in 0.001 to 1000"),
    (GenerationConfig, {"stop": ["a", ""]}, "stop=['a', '']: has an empty string, which matches everywhere"),
    (GenerationConfig, {"stop": ""}, "stop=: has an empty string, which matches everywhere"),
    (SamplingConfig, {"top_p": 2.0}, "sampling.top_p=2.0: must be above 0 and at most 1"),
    (SamplingConfig, {"min_new_tokens": 97}, "sampling.min_new_tokens=97: is above sampling.max_new_tokens=96"),
    *((SampleConfig, {"run": "r", "temperature": x}, f"temperature={x}: must be a finite number") for x in (NAN, INF)),
    *((SampleConfig, {"run": "r", "seed": n}, f"seed={n}: must lie between 0 and 2147483647") for n in (-1, 2**31)),
    *((AttentionConfig, {"max_tokens": n}, f"attention.max_tokens={n}: must lie between 2 and 256") for n in (1, 257)),
    (AttentionConfig, {"max_snapshots": 1}, "attention.max_snapshots=1: must be at least 2"),
    *((TrainerConfig, {"max_steps": n}, f"trainer.max_steps={n}: must be at least 1") for n in (0, -1)),
    (TrainerConfig, {"accumulate_grad_batches": 0}, "trainer.accumulate_grad_batches=0: must be at least 1"),
    (TrainerConfig, {"log_every_n_steps": 0}, "trainer.log_every_n_steps=0: must be at least 1"),
    (TrainerConfig, {"num_nodes": 0}, "trainer.num_nodes=0: must be at least 1"),
    (TrainerConfig, {"gradient_clip_val": -1.0}, "trainer.gradient_clip_val=-1.0: must be at least 0"),
    (TrainerConfig, {"gradient_clip_val": NAN}, "trainer.gradient_clip_val=nan: must be a finite number"),
    (TrainerConfig, {"overfit_batches": -1}, "trainer.overfit_batches=-1: must be at least 0"),
    *((TrainerConfig, {f"limit_{n}_batches": -1}, f"limit_{n}_batches=-1: must be") for n in ("train", "val")),
    (TrainerConfig, {"num_sanity_val_steps": -2}, "trainer.num_sanity_val_steps=-2: must be at least -1"),
    *((TrainerConfig, {"val_check_interval": x}, f"trainer.val_check_interval={x}: a whole number") for x in (0, 1.5)),
    *(
        (TrainerConfig, {"max_time": x}, f"trainer.max_time={x}: must look like 00:00:03:00")
        for x in ("5m", "00:03:00")
    ),
    (TrainerConfig, {"max_time": "00:00:00:00"}, "trainer.max_time=00:00:00:00: must be above zero"),
    *((Config, {"name": x}, f"name={x!r}: use letters, digits") for x in ("", "a/b", "../up", ".hidden", "a b", "a\n")),
    *((Config, {"seed": n}, f"seed={n}: must lie between 0 and 2147483647") for n in (-1, 2**31)),
    (Config, {"runs_dir": ""}, "runs_dir is empty"),
    (Config, {"checkpoint_every_n_steps": 0}, "checkpoint_every_n_steps=0: must be at least 1"),
    (Config, {"keep_every_n_steps": 0}, "keep_every_n_steps=0: must be at least 1"),
    (
        Config,
        {
            "on_non_finite": "rollback",
            "optimizer": OptimizerConfig(name="adamw"),
            "trainer": TrainerConfig(strategy="fsdp"),
        },
        "on_non_finite=rollback: needs whole weights on each device",
    ),
    (
        Config,
        {"optimizer": OptimizerConfig(name="adamw"), "trainer": TrainerConfig(strategy="fsdp")},
        "trainer.gradient_clip_val=1.0: the global gradient norm is not available under trainer.strategy=fsdp: use ",
    ),
]


@pytest.mark.parametrize(
    ("section", "settings", "expected"),
    REFUSED,
    ids=[f"{section.__name__}-{settings}" for section, settings, _ in REFUSED],
)
def test_a_bad_setting_is_refused_in_one_line_that_names_it(
    section: type, settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        section(**settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("section", "settings"),
    [
        (GPTConfig, {"dropout": 0.0, "n_kv_head": 1, "mlp_hidden": 1, "rotary_base": 1.0}),
        (GPTConfig, {"n_embd": 12, "n_head": 4, "position": "learned"}),  # an odd head width, without rotation
        (GPTConfig, {"n_embd": 10, "n_head": 3, "head_dim": 4}),
        (DataConfig, {"tokenizer": "bpe:258"}),
        (DataConfig, {"tokenizer": "runs/demo/tokenizer.json", "source": ["a", "b"]}),
        (OptimizerConfig, {"beta1": 0.0, "final_lr_fraction": 1.0, "warmup_steps": 0}),
        (OptimizerConfig, {"name": "muon", "schedule": "wsd", "decay_fraction": 1.0}),
        (Config, {"optimizer": OptimizerConfig(name="muon"), "trainer": TrainerConfig(strategy="ddp")}),
        (SamplingConfig, {"temperature": 0.0, "top_k": None, "prompts": [], "seed": 2**31 - 1}),
        (AttentionConfig, {"max_tokens": 256, "max_snapshots": 2}),
        (TrainerConfig, {"val_check_interval": 1.0, "gradient_clip_val": None, "num_sanity_val_steps": -1}),
        (TrainerConfig, {"max_time": "100:23:59:59"}),
        (Config, {"name": "a.B_c-2"}),
    ],
)
def test_settings_at_the_edge_are_taken(section: type, settings: dict[str, Any]) -> None:
    section(**settings)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_finite_number_of_every_section_is_checked(section: type) -> None:
    required = {"run": "r"} if section in {ExportConfig, SampleConfig, ShareConfig} else {}
    for name, wanted in get_type_hints(section).items():
        if name != "SECTION" and re.search(r"\bfloat\b", str(wanted)):
            value = [NAN] if "list" in str(wanted) else NAN
            with pytest.raises(UserError, match=rf"{name}=nan: must be a finite number"):
                section(**required, **{name: value})


def test_a_config_comes_back_from_its_dictionary_and_from_json() -> None:
    original = Config(
        model=GPTConfig(n_kv_head=2, tie_embeddings=True),
        data=DataConfig(source=["a.txt", "b.txt"]),
        trainer=TrainerConfig(max_time="00:00:01:00", devices=[0, 1], callbacks=[{"class_path": "a.B"}]),
        sampling=SamplingConfig(prompts=["é", ""]),
        attention=AttentionConfig(text="one"),
        name="other",
    )
    assert Config.from_dict(original.to_dict()) == original
    assert Config.from_dict(json.loads(json.dumps(original.to_dict()))) == original
    assert original != Config()


def test_a_dictionary_with_what_is_missing_takes_the_defaults() -> None:
    assert Config.from_dict({"model": {"n_layer": 3}}) == Config(model=GPTConfig(n_layer=3))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": {"n_layers": 3}}, "model has no setting n_layers"),
        ({"modle": {}}, "config has no setting modle"),
        ({"model": {"dropout": 2.0}}, "model.dropout=2.0"),
    ],
)
def test_a_dictionary_of_another_version_is_refused_by_key(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        Config.from_dict(settings)


def test_a_config_cannot_be_changed_and_its_dictionary_is_a_copy() -> None:
    original = Config(sampling=SamplingConfig(prompts=["a"]))
    before = copy.deepcopy(original)
    original.to_dict()["sampling"]["prompts"].append("changed")
    assert original == before
    with pytest.raises(dataclasses.FrozenInstanceError):
        original.model.n_layer = 5  # type: ignore[misc]


def test_the_trainer_has_every_argument_of_the_installed_lightning_and_no_other() -> None:
    import lightning

    theirs = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    ours = {field.name for field in dataclasses.fields(TrainerConfig)}
    assert theirs - ours == set()
    assert ours - theirs == set()


def settings_classes() -> list[ast.ClassDef]:
    """The dataclasses of all files of config/."""
    files = Path(config.__file__).parent.glob("*.py")
    nodes = [node for file in files for node in ast.parse(file.read_text(encoding="utf-8")).body]
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    return [node for node in classes if any("dataclass" in ast.unparse(each) for each in node.decorator_list)]


def test_every_setting_has_one_line_of_help() -> None:
    without, several = [], []
    for node in settings_classes():
        assert ast.get_docstring(node)
        for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
            if isinstance(statement, ast.AnnAssign):
                name = f"{node.name}.{ast.unparse(statement.target)}"
                value = following.value if isinstance(following, ast.Expr) else None
                if not isinstance(value, ast.Constant) or not isinstance(value.value, str):
                    without.append(name)
                elif "\n" in value.value:
                    several.append(name)
    assert (without, several) == ([], [])


def test_the_check_of_help_sees_every_section() -> None:
    assert {node.name for node in settings_classes()} == {section.__name__ for section in (Section, *SECTIONS)}


def test_the_defaults_are_the_demo_recipe_but_for_its_time_limit() -> None:
    path = ROOT / "configs" / "demo.yaml"
    if not path.exists():
        pytest.skip("there is no configs/demo.yaml")
    recipe = parsing.parse_training([f"--config={path}"])[0].to_dict()
    recipe["trainer"]["max_time"] = None
    recipe["name"] = Config().name
    assert recipe == Config().to_dict()


@pytest.mark.parametrize(
    ("max_time", "seconds"), [(None, None), ("00:00:03:00", 180.0), ("01:02:03:04", 93784.0), ("00:00:00:01", 1.0)]
)
def test_max_time_is_days_hours_minutes_and_seconds(max_time: str | None, seconds: float | None) -> None:
    assert TrainerConfig(max_time=max_time).max_time_seconds == seconds


@pytest.mark.parametrize(
    ("settings", "width"),
    [
        ({"n_embd": 192}, 512),  # 8/3 x 192, a multiple of 64 already
        ({"n_embd": 128}, 384),  # 341.3, rounded up
        ({"n_embd": 128, "mlp": "gelu"}, 512),
        ({"n_embd": 128, "mlp_hidden": 100}, 100),
    ],
)
def test_the_width_of_the_mlp_follows_its_kind(settings: dict[str, Any], width: int) -> None:
    assert GPTConfig(**settings).mlp_width == width


def test_gpt2s_family_is_gpt2s_and_takes_other_sizes() -> None:
    small, large = GPTConfig.gpt2_family(), GPTConfig.gpt2_family(n_layer=36, n_head=20, n_embd=1280)
    assert (small.vocab_size, small.context_length, small.n_layer, small.width_per_head) == (50257, 1024, 12, 64)
    assert (large.n_layer, large.width_per_head, large.position, large.norm) == (36, 64, "learned", "layernorm")
