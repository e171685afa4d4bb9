"""Hugging Face's Trainer with a tiny random model."""

from __future__ import annotations

import os

import pytest
import torch

from mofo.torch import MoFO, param_groups
from torch_support import same_parameters, tokens

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

OPTIONS = {"lr": 1e-3, "state_dtype": torch.bfloat16}


class Sequences(torch.utils.data.Dataset):
    def __init__(self) -> None:
        self.rows = torch.cat([tokens(step) for step in range(6)])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.rows[index], "labels": self.rows[index]}


def model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=17, n_positions=12, n_embd=16, n_layer=2, n_head=2))


def arguments(folder, **changes) -> TrainingArguments:
    options = {
        "output_dir": str(folder),
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "save_steps": 6,
        "logging_steps": 3,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "warmup_steps": 2,
        "lr_scheduler_type": "cosine",
    }
    return TrainingArguments(**{**options, **changes})


def train(folder, resume=None, **changes):
    network = model()
    optimizer = MoFO(param_groups(network, update_fraction=0.2, weight_decay=0.01), **OPTIONS)
    trainer = Trainer(
        model=network,
        args=arguments(folder, **changes),
        train_dataset=Sequences(),
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer, optimizer


def test_the_trainer_steps_it_with_its_schedule(tmp_path):
    trainer, optimizer = train(tmp_path)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and losses[-1] < losses[0]
    assert not same_parameters(trainer.model, model())
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-6)
    assert {state["step"].item() for state in optimizer.state.values()} == {12}


def test_a_run_resumed_from_a_checkpoint_ends_with_the_same_bits(tmp_path):
    whole, _ = train(tmp_path / "whole")
    assert (tmp_path / "whole" / "checkpoint-6" / "optimizer.pt").exists()
    resumed, optimizer = train(tmp_path / "resumed", resume=str(tmp_path / "whole" / "checkpoint-6"))
    assert {state["step"].item() for state in optimizer.state.values()} == {12}
    assert same_parameters(whole.model, resumed.model)


def test_the_trainer_can_make_it_itself(tmp_path):
    network = model()
    trainer = Trainer(
        model=network,
        args=arguments(tmp_path, max_steps=2, save_strategy="no"),
        train_dataset=Sequences(),
        optimizer_cls_and_kwargs=(MoFO, {"lr": 1e-3, "update_fraction": 0.1}),
    )
    trainer.train()
    assert not same_parameters(network, model())


def test_gradient_accumulation_and_clipping(tmp_path):
    trainer, optimizer = train(
        tmp_path, max_steps=3, gradient_accumulation_steps=2, max_grad_norm=0.1, save_strategy="no"
    )
    assert {state["step"].item() for state in optimizer.state.values()} == {3}
    assert not same_parameters(trainer.model, model())
