"""The dense base: loaded from the Hub or a folder, or made small and fresh; and its tokenizer."""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from sprachbund.checksums import check_model
from sprachbund.errors import InputError, SprachbundError, brief, broken_download, out_of_memory
from sprachbund.modeling.checkpoint import Checkpoint
from sprachbund.modeling.ffn import family_of
from sprachbund.recipe import Base, Recipe, Scratch

END_OF_TEXT = "<|endoftext|>"


def device() -> torch.device:
    """Return the accelerator where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def check_arithmetic(dtype: str) -> None:
    """Raise InputError for bfloat16 on an accelerator that does not have it."""
    if dtype == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        raise InputError("train.dtype is bfloat16, which this accelerator does not have; give float32")


def quiet() -> None:
    """Leave progress and warnings to us: transformers and the Hub's client speak only of errors."""
    transformers_logging.set_verbosity_error()
    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> Any:
    """Return a byte-level BPE tokenizer (no text is unknown to it) trained on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def scratch_config(scratch: Scratch, *, vocab_size: int, block_size: int, eos_token_id: int) -> Any:
    """Return the configuration of a small decoder of the family, with tied embeddings.

    Weights have the standard deviation sqrt(2 / 5D) (SmallInit, Nguyen and Salazar 2019): the families' usual 0.02 is
    for large models, and at width 64 it costs a tenth of the perplexity.
    """
    return AutoConfig.for_model(
        scratch.family,
        vocab_size=vocab_size,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.ffn_size,
        num_hidden_layers=scratch.num_layers,
        num_attention_heads=scratch.num_heads,
        num_key_value_heads=scratch.num_heads,
        head_dim=scratch.hidden_size // scratch.num_heads,
        max_position_embeddings=max(2048, 2 * block_size),
        initializer_range=(2 / (5 * scratch.hidden_size)) ** 0.5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=eos_token_id,
    )


def scratch_model(scratch: Scratch, *, vocab_size: int, block_size: int, eos_token_id: int, seed: int) -> Any:
    """Return a freshly initialised small decoder of the family (`scratch_config`)."""
    torch.manual_seed(seed)
    config = scratch_config(scratch, vocab_size=vocab_size, block_size=block_size, eos_token_id=eos_token_id)
    return AutoModelForCausalLM.from_config(config)


def load_model(path: str | Path, *, revision: str = "main", trust_remote_code: bool = False, dtype: str) -> Any:
    """Return a causal model from safetensors; raises InputError in one sentence for what cannot be loaded.

    Raises DamagedError where it is a run's and its bytes are not those that the run wrote.
    """
    quiet()
    if Path(path).is_dir():
        check_model(Path(path))
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path),
            revision=revision,
            trust_remote_code=trust_remote_code,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        if out_of_memory(error):
            raise
        if isinstance(error, SafetensorError) and Path(path).is_dir():
            Checkpoint(Path(path))  # raises an InputError that names the file, and how much of it there is
        raise _unreadable("model", path, error) from error
    if missing := sorted(report["missing_keys"]):  # transformers draws them at random and says so in a warning only
        raise InputError(
            f"base: the checkpoint {str(path)!r} lacks {len(missing)} of its model's tensors, {missing[0]} among them; "
            "give a complete one"
        )
    return model


def load_tokenizer(path: str | Path, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """Return a tokenizer with an end-of-text token; raises InputError for what cannot be loaded."""
    quiet()
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError) as error:
        raise _unreadable("tokenizer", path, error) from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer of {path} has no end-of-text token, which separates documents; set eos_token")
    return tokenizer


def load_config(model: str | Path, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """Return the configuration of a model, a folder or a Hub id; raises InputError where it cannot be read."""
    quiet()
    try:
        return AutoConfig.from_pretrained(str(model), revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, StrictDataclassError) as error:
        raise InputError(
            f"the configuration of {model} cannot be read ({brief(error)}); give the folder of a model, or a Hub id "
            "that you have access to"
        ) from error


def read_config(base: Base) -> Any:
    """Return the configuration of a recipe's base; raises InputError where it cannot be read."""
    try:
        return load_config(base.path or "", revision=base.revision, trust_remote_code=base.trust_remote_code)
    except InputError as error:
        raise _unreadable("model", base.path or "", error.__cause__ or error) from error


def check_base(recipe: Recipe) -> None:
    """Check that a recipe's base can be used, by its configuration alone, before anything is read or trained.

    Raises InputError for a base that is not there, of an unsupported family, quantised, or
    without layers that the recipe names.
    """
    base = recipe.base
    if base.path is None:
        return
    config = read_config(base)
    family_of(config.model_type, config)
    if getattr(config, "quantization_config", None):
        raise InputError(f"the base {base.path} is quantised, which cannot be trained; give the unquantised checkpoint")
    try:
        recipe.check_layers(config.num_hidden_layers)
    except ValueError as error:
        raise InputError(str(error)) from None


def _unreadable(what: str, path: str | Path, error: BaseException) -> SprachbundError:
    if (broken := broken_download(path, error)) is not None:
        return broken
    return InputError(
        f"base: the {what} of {str(path)!r} cannot be loaded ({brief(error)}); give a Hub id that you have access to, "
        "a folder with config.json, safetensors and a tokenizer, or base: {scratch: {...}}"
    )


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """Return a digest of everything that decides how a fast tokenizer splits text."""
    return blake2b(tokenizer.backend_tokenizer.to_str().encode(), digest_size=16).hexdigest()


class _Tokenization:
    """From texts to token ids, without special tokens; `definition` is what a worker process does the same by."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def definition(self) -> str:
        return str(self.tokenizer.backend_tokenizer.to_str())


def tokenize_with(tokenizer: Any) -> Any:
    """Return a function from texts to token ids, without special tokens."""
    return _Tokenization(tokenizer)
