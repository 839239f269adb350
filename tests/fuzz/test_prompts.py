"""Prompts, on the command line and in files, up to their token ids."""

import random

import numpy as np

from imagen_jax.commands.sample import captions_of
from imagen_jax.errors import UserError
from imagen_jax.main import _run, build_parser
from imagen_jax.sampling.request import Request
from imagen_jax.text.encoder import TextConfig, TextEncoder
from imagen_jax.text.encoders.t5 import T5Config
from imagen_jax.text.tokenizer import train_sentencepiece
from tests.fuzz.mutate import damaged, odd_text
from tests.fuzz.running import fuzz

_FILE = "a red cube\nzwei blaue Kugeln, é\n\n  漢字  \n".encode()
