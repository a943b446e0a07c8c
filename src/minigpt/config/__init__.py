"""All settings, as frozen dataclasses that validate their values when built.

The line under a field is its `--help`. Import nothing heavy here: the command line is parsed and checked before torch
is loaded. The defaults are the demo recipe (`configs/demo.yaml`) without its time limit.
"""

from minigpt.config.attention import AttentionConfig
from minigpt.config.commands import (
    AttributeConfig,
    CircuitsConfig,
    CompareConfig,
    DoctorConfig,
    ExportConfig,
    ImportConfig,
    InspectConfig,
    LensConfig,
    LiveConfig,
    PatchConfig,
    ProofConfig,
    ReportConfig,
    SampleConfig,
    ShareConfig,
    StudyConfig,
    Variant,
)
from minigpt.config.data import DataConfig
from minigpt.config.model import GPTConfig, check_attention
from minigpt.config.optimizer import OptimizerConfig
from minigpt.config.run import AUTO, DEFAULT_BUDGET, Config
from minigpt.config.sampling import GenerationConfig, SamplingConfig
from minigpt.config.trainer import TrainerConfig

__all__ = [
    "AUTO",
    "DEFAULT_BUDGET",
    "AttentionConfig",
    "AttributeConfig",
    "CircuitsConfig",
    "CompareConfig",
    "Config",
    "DataConfig",
    "DoctorConfig",
    "ExportConfig",
    "GPTConfig",
    "GenerationConfig",
    "ImportConfig",
    "InspectConfig",
    "LensConfig",
    "LiveConfig",
    "OptimizerConfig",
    "PatchConfig",
    "ProofConfig",
    "ReportConfig",
    "SampleConfig",
    "SamplingConfig",
    "ShareConfig",
    "StudyConfig",
    "TrainerConfig",
    "Variant",
    "check_attention",
]
