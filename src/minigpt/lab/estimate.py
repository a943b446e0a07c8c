"""A config and the name of a device -> what a run would take there: `minigpt doctor gpt2_124m --for h100`.

Nothing is measured, and neither the device nor the text is needed.
"""

from __future__ import annotations

from minigpt.config import Config
from minigpt.config.commands import DeviceName
from minigpt.lab.doctor import Findings, with_guessed_vocabulary
from minigpt.pages.run_record import duration
from minigpt.training.arithmetic import Memory, flops_per_token, memory, on_meta, update_cost
from minigpt.training.devices import DEVICES, DeviceSpec
from minigpt.training.initial import taken_over
from minigpt.training.loss import CHUNK_LOGITS, chunk_logits_in

MFU = 0.4
"""Share of the peak that training is taken to reach: about what nanoGPT does with GPT-2 small on an A100, compiled."""
USABLE = 0.9
"""Share of a device's memory that tensors can have; CUDA, its libraries and gaps between tensors take the rest."""
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "64": "64-true"}
"""Lightning's short names."""


def estimate(config: Config, name: DeviceName) -> None:
    """Print the run's operations, memory and time on such devices; exit code 2 where it does not fit.

    Raises:
        UserError: `initial_weights` cannot be read.
    """
    config, _ = taken_over(config)
    findings = Findings(verdict="by arithmetic, it fits; nothing was measured")
    _examine(with_guessed_vocabulary(config), DEVICES[name], findings)
    findings.print()


def _examine(config: Config, device: DeviceSpec, findings: Findings) -> None:
    if config.budget is not None:
        findings.add(
            "budget",
            f"{config.budget}: chooses model and length there, by the device's speed; this is of the settings here",
        )
    p, m, rows = config.trainer, config.model, config.data.batch_size
    precision = str(device.precision if p.precision in {"auto", None} else p.precision)
    precision, n_devices = PRECISIONS.get(precision, precision), count_devices(config)
    peak = device.peak(precision)
    findings.add(
        "device",
        f"{n_devices} x {device.name}: {peak / 1e12:,.4g} Tflop/s in {precision}, {device.memory_gb} GB, "
        f"{device.bandwidth:,} GB/s ({device.source})",
    )
    n_parameters = on_meta(m).n_parameters
    findings.add("model", f"{n_parameters:,} parameters, with a vocabulary of {m.vocab_size:,}")
    n_tokens = rows * m.context_length * p.accumulate_grad_batches * n_devices
    findings.add(
        "tokens",
        f"{n_tokens:,} a step: {rows} rows of {m.context_length:,}, {p.accumulate_grad_batches} micro-batches on "
        f"{n_devices} device{'s' * (n_devices > 1)}; {n_tokens * p.max_steps:,} in {p.max_steps:,} steps",
    )
    flops = n_tokens * flops_per_token(m)
    findings.add("operations", f"{flops:.3g} a step: 6 a parameter and token, and 12 L H D T a token for attention")
    if config.lora is not None:
        findings.add("lora", "the figures below are of training all weights; adapters need less memory")
    shards = n_devices if "fsdp" in str(p.strategy).lower() else 1
    chunk = CHUNK_LOGITS if device.is_apple else chunk_logits_in(10**9 * device.memory_gb)
    _say_memory(memory(config, precision, n_shards=shards, chunk_logits=chunk), config, device, findings)
    update_flops, update_bytes = update_cost(config)
    update = (update_flops / (MFU * peak) + update_bytes / (1e9 * device.bandwidth)) / shards
    again = 4 / 3 if config.activation_checkpointing else 1  # the forward pass is a third, and is computed twice
    step = again * flops / (MFU * peak * n_devices) + update
    limit = f"; trainer.max_time={p.max_time} may end it before" if p.max_time else ""
    findings.add(
        "time",
        f"at {MFU:.0%} of the peak: {step:.3g} s a step, {1e3 * update:.2g} ms of it the optimizer's; "
        f"{n_tokens / step:,.0f} tokens/s; {duration(step * p.max_steps)} for {p.max_steps:,} steps{limit}. Not in it: "
        "compiling, validation, samples, exchange of gradients",
    )


def count_devices(config: Config) -> int:
    """Those that the config names; one for auto and -1, as they are not here to be counted."""
    devices = config.trainer.devices
    listed = devices.split(",") if isinstance(devices, str) and "," in devices else devices  # as Lightning reads "0,1"
    named = sum(each != "" for each in listed) if isinstance(listed, list) else listed
    return (int(named) if str(named).isdecimal() else 1) * config.trainer.num_nodes


def _say_memory(need: Memory, config: Config, device: DeviceSpec, findings: Findings) -> None:
    rows, checkpointed = config.data.batch_size, config.activation_checkpointing
    available = USABLE * 1e9 * device.memory_gb
    kinds = {
        "weights": need.weights,
        "gradients": need.gradients,
        "optimizer state": need.optimizer,
        "average": need.average,
        "16-bit copies of matrices": need.copies,
        f"activations of {rows} rows": rows * (need.checkpointed_row if checkpointed else need.row),
        "logits and their gradient": need.loss(rows),
    }
    total = need.total(rows, checkpointed=checkpointed)
    parts = ", ".join(f"{name} {n_bytes / 1e9:.2f}" for name, n_bytes in kinds.items() if n_bytes)
    findings.add(
        "memory", f"{total / 1e9:.1f} GB of {device.memory_gb} on each device: {parts}; compiled, somewhat less"
    )
    plain, recomputed = need.most_rows(available), need.most_rows(available, checkpointed=True)
    findings.add(
        "rows",
        f"{plain:,} would fit into {USABLE:.0%} of the memory; with activation_checkpointing {recomputed:,}, for a "
        "third more work",
    )
    if total > available:
        most = recomputed if checkpointed else plain
        fewer = f"data.batch_size={most} or less, with more trainer.accumulate_grad_batches"
        findings.failures.append(
            f"memory: about {total / 1e9:.1f} GB are needed and {available / 1e9:.1f} GB of {device.name} are usable: "
            f"try {fewer if most else 'a smaller model'}"
        )
