"""The training loop: `transformers.Trainer` with our batches, our schedule and our checkpoints.

Where `torch.distributed.run` has started several processes, each computes its share of every step's micro
batches, and accelerate sums their gradients.

Files written: the checkpoint folders under `out`.
"""

import logging
import random
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from clusterucb_core.errors import TrainingDiverged
from clusterucb_core.lm.checkpoints import (
    Checkpoint,
    StepRecord,
    read_checkpoint,
    restore_moments,
    save_checkpoint,
)
from clusterucb_core.lm.lora import load_adapter, new_adapter, resolve_dtype
from clusterucb_core.lm.settings import ModelSettings
from clusterucb_core.lm.token_budget import FEWEST_TOKENS, MEMORY_SHARE, activation_bytes_per_token
from clusterucb_core.pacing import Pace, advance
from clusterucb_core.records import IntArray, TokenizedSample
from clusterucb_core.seeds import child_seed
from clusterucb_core.training.plan import (
    Schedule,
    TrainingPlan,
    learning_rate_factor,
    make_schedule,
    micro_batches,
)

logger = logging.getLogger(__name__)

CPU_MICRO_BATCH_TOKENS = 2048


@dataclass
class _Progress:
    """What the loop has done so far; the trainer appends to it, the callback reads it."""

    plan: TrainingPlan
    ends: list[int]
    out: Path
    trainable: list[torch.nn.Parameter]
    pace: Pace
    history: list[StepRecord] = field(default_factory=list[StepRecord])
    checkpoints: list[Checkpoint] = field(default_factory=list[Checkpoint])


def run_training(
    settings: ModelSettings,
    samples: Sequence[TokenizedSample],
    plan: TrainingPlan,
    *,
    start: Path | None,
    out: Path,
    device: str,
) -> list[Checkpoint]:
    """Train as `clusterucb_core.training.train` says; the checkpoints are those that this process wrote."""
    schedule = make_schedule(plan, len(samples))
    settings = resolve_dtype(settings, device)
    if start is None:
        model = new_adapter(settings, device, plan.seed)
    else:
        read_checkpoint(start)
        model = load_adapter(settings, start, device)
    out.mkdir(parents=True, exist_ok=True)
    # below the draft: where this process is killed, what the Trainer has made goes with it
    with (
        _kept_random_state(device),
        _current_device(device),
        tempfile.TemporaryDirectory(dir=out) as scratch,
    ):
        arguments = _arguments(Path(scratch), plan, settings, steps=len(schedule.batches), device=device)
        optimizer = _optimizer(model, plan, start)
        pace = Pace(logger, "training", "optimiser steps", len(schedule.batches))
        progress = _Progress(plan, schedule.ends, out, _trainable(model), pace)
        trainer = _LoraTrainer(model, arguments, optimizer, progress=progress, data=(samples, schedule))
        trainer.train()
    return progress.checkpoints


class _LoraTrainer(Trainer):
    """A Trainer whose every step is one batch of the schedule, in micro batches of similar length."""

    def __init__(
        self,
        model: PeftModel,
        args: TrainingArguments,
        optimizer: torch.optim.Optimizer,
        *,
        progress: _Progress,
        data: tuple[Sequence[TokenizedSample], Schedule],
    ):
        plan = progress.plan
        scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(plan, plan.start_step + step)
        )
        super().__init__(
            model=model,
            args=args,
            callbacks=[_CheckpointWriter(model, optimizer, progress)],
            optimizers=(optimizer, scheduler),
        )
        self.remove_callback(PrinterCallback)
        # Trainer would split a step over all visible GPUs by threads; here each has a process, or none.
        args._n_gpu = min(args.n_gpu, 1)  # pyright: ignore[reportPrivateUsage]
        self.progress = progress
        self.samples, self.schedule = data
        self.micro_batch_tokens = _micro_batch_tokens(plan, model, args.device)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return the schedule's batches as they stand."""
        return DataLoader(_Steps(self.schedule.batches), batch_size=None, shuffle=False)

    def floating_point_ops(self, inputs: object) -> int:
        """Return 0: the cost of training is not taken from here."""
        return 0

    def training_step(
        self, model: torch.nn.Module, inputs: dict[str, Any], num_items_in_batch: object = None
    ) -> torch.Tensor:
        """Add up the gradients of one batch; the loss is the mean over its supervised tokens."""
        model.train()
        step = self.progress.plan.start_step + len(self.progress.history) + 1
        batch = [self.samples[int(index)] for index in inputs["indices"]]
        loss = self._accumulated(model, batch, step)
        rate = float(cast("torch.optim.Optimizer", self.optimizer).param_groups[0]["lr"])
        if not bool(loss.isfinite()):
            raise TrainingDiverged(
                f"the loss at optimiser step {step} is {float(loss)} (learning rate {rate:g}, samples "
                f"{', '.join(sample.sample_id for sample in batch[:3])}...); lower the learning rate or use "
                "dtype float32"
            )
        self.progress.history.append(StepRecord(step=step, loss=float(loss), learning_rate=rate))
        return loss

    def _accumulated(self, model: torch.nn.Module, batch: list[TokenizedSample], step: int) -> torch.Tensor:
        """Return the loss of a batch and leave its gradients; micro batches that do not fit are halved."""
        longest = max(sample.input_ids.size for sample in batch)
        while True:
            loss, error = self._tried(model, batch, step)
            # all processes go on together, or none: a sum waits for every one of them
            if not self._anywhere(error is not None):
                return self._summed(loss)
            if self.micro_batch_tokens <= longest:
                raise error or torch.cuda.OutOfMemoryError(
                    "another process of this training ran out of memory"
                )
            del error
            model.zero_grad()
            torch.cuda.empty_cache()
            self.micro_batch_tokens //= 2
            logger.warning("out of GPU memory; micro batches now hold %d tokens", self.micro_batch_tokens)

    def _tried(
        self, model: torch.nn.Module, batch: list[TokenizedSample], step: int
    ) -> tuple[torch.Tensor, torch.cuda.OutOfMemoryError | None]:
        try:
            return self._backward(model, batch, step), None
        except torch.cuda.OutOfMemoryError as error:
            return torch.zeros((), device=self.args.device), error.with_traceback(None)

    def _backward(self, model: torch.nn.Module, batch: list[TokenizedSample], step: int) -> torch.Tensor:
        """Compute this process's share of the micro batches of a step."""
        lengths = np.array([sample.input_ids.size for sample in batch])
        supervised = sum(int((sample.labels[1:] != -100).sum()) for sample in batch)
        total = torch.zeros((), device=self.args.device)
        groups = micro_batches(lengths, self.micro_batch_tokens)
        for number in range(self.args.process_index, len(groups), self.args.world_size):
            # Seeded by step and group, dropout is the same in one go or taken up again, alone or shared.
            torch.manual_seed(child_seed(self.progress.plan.seed, "dropout", f"{step}/{number}"))
            input_ids, labels = _padded([batch[int(index)] for index in groups[number]], self.args.device)
            with self.accelerator.no_sync(model):
                loss = _token_loss(model, input_ids, labels) / supervised
                self.accelerator.backward(loss)
            total += loss.detach().float()
        return total

    def _anywhere(self, failed: bool) -> bool:
        if self.args.world_size == 1:
            return failed
        return bool(self.accelerator.reduce(torch.tensor(float(failed), device=self.args.device), "sum"))

    def _summed(self, loss: torch.Tensor) -> torch.Tensor:
        """Sum losses and gradients over the processes."""
        if self.args.world_size == 1:
            return loss
        for parameter in self.progress.trainable:
            own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = cast("torch.Tensor", self.accelerator.reduce(own, "sum"))
        return cast("torch.Tensor", self.accelerator.reduce(loss, "sum"))


class _CheckpointWriter(TrainerCallback):
    """Writes a checkpoint where one is due, and logs losses and rates."""

    def __init__(self, model: PeftModel, optimizer: torch.optim.Optimizer, progress: _Progress):
        self.model = model
        self.optimizer = optimizer
        self.progress = progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """See whether a checkpoint is due after this step."""
        progress, done = self.progress, state.global_step
        last = progress.history[-1]
        told = f"loss {last.loss:.4f}, learning rate {last.learning_rate:.3g}"
        if done in progress.ends:
            logger.info("training: checkpoint at optimiser step %d of %d; %s", done, progress.ends[-1], told)
        advance(progress.pace, detail=told)
        if done not in progress.ends or not state.is_world_process_zero:
            return
        place = progress.ends.index(done)
        begin = progress.ends[place - 1] if place else 0
        epoch = progress.plan.first_checkpoint + place
        checkpoint = save_checkpoint(
            progress.out / f"checkpoint-{epoch}",
            self.model,
            self.optimizer,
            epoch=epoch,
            total_steps=progress.plan.total_steps,
            history=progress.history[begin:done],
        )
        progress.checkpoints.append(checkpoint)


class _Steps(torch.utils.data.Dataset[dict[str, IntArray]]):
    def __init__(self, batches: list[IntArray]):
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, IntArray]:
        return {"indices": self.batches[index]}


def _arguments(
    scratch: Path, plan: TrainingPlan, settings: ModelSettings, *, steps: int, device: str
) -> TrainingArguments:
    on_gpu = device.startswith("cuda")
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=steps,
        per_device_train_batch_size=1,
        use_cpu=not on_gpu,
        bf16=on_gpu and settings.dtype == "bfloat16",
        fp16=on_gpu and settings.dtype == "float16",
        seed=child_seed(plan.seed, "trainer") % 2**32,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )


def _trainable(model: PeftModel) -> list[torch.nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _optimizer(model: PeftModel, plan: TrainingPlan, start: Path | None) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW(
        _trainable(model), lr=plan.learning_rate, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
    )
    if start is not None:
        restore_moments(start, model, optimizer)
    return optimizer


def _padded(samples: list[TokenizedSample], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Return input ids and labels [b, t], padded on the right.

    No attention mask goes with them: in a causal model no token sees the padding behind it.
    """
    width = max(sample.input_ids.size for sample in samples)
    input_ids = torch.zeros((len(samples), width), dtype=torch.long)
    labels = torch.full((len(samples), width), -100, dtype=torch.long)
    for row, sample in enumerate(samples):
        length = sample.input_ids.size
        input_ids[row, :length] = torch.from_numpy(sample.input_ids.astype(np.int64))
        labels[row, :length] = torch.from_numpy(sample.labels.astype(np.int64))
    return input_ids.to(device), labels.to(device)


def _token_loss(model: torch.nn.Module, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the loss summed over supervised tokens, in nats."""
    logits = model(input_ids=input_ids, use_cache=False).logits
    targets = labels[:, 1:]
    chosen = targets != -100
    return cross_entropy(logits[:, :-1][chosen].float(), targets[chosen], reduction="sum")


def _micro_batch_tokens(plan: TrainingPlan, model: PeftModel, device: torch.device) -> int:
    if plan.micro_batch_tokens != "auto":
        return plan.micro_batch_tokens
    if device.type != "cuda":
        return CPU_MICRO_BATCH_TOKENS
    config = cast("PreTrainedModel", model.get_base_model()).config
    per_token = activation_bytes_per_token(config, next(model.parameters()).element_size())
    free, _ = torch.cuda.mem_get_info(device)
    return max(FEWEST_TOKENS, int(MEMORY_SHARE * free / per_token))


@contextmanager
def _kept_random_state(device: str) -> Generator[None]:
    """Put the global generators back, which Trainer seeds."""
    python, numpy_state = random.getstate(), np.random.get_state()
    cuda = list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
    try:
        with torch.random.fork_rng(devices=cuda):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)


def _current_device(device: str) -> Any:
    return torch.cuda.device(torch.device(device)) if ":" in device else nullcontext()
