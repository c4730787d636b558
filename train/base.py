"""Make the base model: import one from a folder or the Hugging Face Hub, or start a Llama from random weights.

python -m posttrain.train.base path=FOLDER pad_token='<|pad|>' chat_template=chatml output=DIR
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

import torch
from posttrain.data.chat import check_tokenizer, prepare_tokenizer, template_digest, tokenizer_digest
from posttrain.data.records import Demonstration, dataset_type, read_records
from posttrain.stage.artifact import copy_or_link
from posttrain.stage.entry import Context, StageResult, stage_main
from posttrain.stage.errors import UsageError
from posttrain.train.checkpoint_files import count_parameters, download, find_weights, model_license, read_dtype
from posttrain.train.config import ArchitectureConfig, BaseConfig
from posttrain.train.tokenizer import train_tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
