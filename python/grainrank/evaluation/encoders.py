"""Models that embed texts and pictures, from a folder or a hub."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Side = Literal["query", "candidate"]
_MANY_TOKENS = 100_000  # tokenizers without a limit give 10**30


class Encoder(NamedTuple):
    """A loaded model; its embeddings are on the CPU."""

    description: str
    #: (texts, side, prompt or None) to `[n, D]`
    texts: Callable[[Sequence[str], Side, str | None], Tensor]
    #: uint8 `[n, height, width, 3]` to `[n, D]`; None: the model has no eyes
    pictures: Callable[[np.ndarray[Any, Any]], Tensor] | None = None


def load_encoder(model: str, device: str, batch_size: int) -> Encoder:
    """With sentence-transformers where the model is one of its own, else with transformers.

    Raises:
        ModuleNotFoundError: these are missing.
        ValueError, OSError: there is no such model, or it has no encoder of texts.
    """
    folder = Path(model).expanduser()
    if folder.exists():
        model = str(folder)
    elif model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise ValueError(
            f"--model must be a folder or the name of a hub model, got {model}: no such folder"
        )
    try:
        import sentence_transformers  # noqa: F401
        from transformers.utils.hub import cached_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "--model needs sentence-transformers: pip install 'grainrank[eval]'"
        ) from error
    try:
        modules = cached_file(model, "modules.json", _raise_exceptions_for_missing_entries=False)
        if modules is not None:
            return _sentence_transformer(model, device, batch_size)
        return _transformer(model, device, batch_size)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--model {model} could not be loaded: {reason}") from error


def _sentence_transformer(model: str, device: str, batch_size: int) -> Encoder:
    from sentence_transformers import SentenceTransformer

    loaded = SentenceTransformer(model, device=device)

    def texts(given: Sequence[str], side: Side, prompt: str | None) -> Tensor:
        encode = loaded.encode_query if side == "query" else loaded.encode_document
        found = encode(
            list(given),
            prompt=prompt,
            batch_size=batch_size,
            convert_to_tensor=True,
            show_progress_bar=False,
        )
        return _plain(found)

    return Encoder(f"{model} (sentence-transformers)", texts)


def _transformer(model: str, device: str, batch_size: int) -> Encoder:
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(model).to(device).eval()
    if hasattr(loaded, "get_image_features"):
        return _two_towers(model, loaded, device, batch_size)
    return _mean_pooled(model, loaded, device, batch_size)


def _mean_pooled(model: str, loaded: Any, device: str, batch_size: int) -> Encoder:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    longest = _longest(tokenizer, loaded.config)

    def batch(given: Sequence[str]) -> Tensor:
        inputs = tokenizer(
            list(given), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(device)
        hidden = loaded(**inputs).last_hidden_state.float()  # [n, T, D]
        mask = inputs["attention_mask"][:, :, None].to(hidden.dtype)
        # A text without a token has no mean: 0.
        mean: Tensor = (hidden * mask).sum(dim=1) / mask.sum(dim=1).clamp_min(1)
        return mean

    def texts(given: Sequence[str], side: Side, prompt: str | None) -> Tensor:
        return _batches(batch, [(prompt or "") + text for text in given], batch_size)

    return Encoder(f"{model} (transformers, mean pooling over the attention mask)", texts)


def _two_towers(model: str, loaded: Any, device: str, batch_size: int) -> Encoder:
    """CLIP, and what is built like it."""
    from PIL import Image
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(model)  # type: ignore[no-untyped-call]
    longest = _longest(processor.tokenizer, loaded.config.text_config)

    def text_batch(given: Sequence[str]) -> Tensor:
        inputs = processor(
            text=list(given),
            padding=True,
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        )
        return _features(loaded.get_text_features(**inputs.to(device)))

    def picture_batch(given: np.ndarray[Any, Any]) -> Tensor:
        drawn = [Image.fromarray(picture) for picture in given]
        inputs = processor(images=drawn, return_tensors="pt")
        return _features(loaded.get_image_features(**inputs.to(device)))

    def texts(given: Sequence[str], side: Side, prompt: str | None) -> Tensor:
        return _batches(text_batch, [(prompt or "") + text for text in given], batch_size)

    def pictures(given: np.ndarray[Any, Any]) -> Tensor:
        return _batches(picture_batch, given, batch_size)

    return Encoder(f"{model} (transformers, text and image features)", texts, pictures)


def _longest(tokenizer: Any, config: Any) -> int:
    """Tokens of a text; longer ones are cut."""
    limit: int = tokenizer.model_max_length
    if limit > _MANY_TOKENS:
        limit = getattr(config, "max_position_embeddings", 512)
    return limit


@torch.no_grad()
def _batches(encode: Callable[[Any], Tensor], items: Any, size: int) -> Tensor:
    parts = [_plain(encode(items[a : a + size])) for a in range(0, len(items), size)]
    return torch.cat(parts)


def _features(output: Any) -> Tensor:
    """Transformers 5 puts the features into an output; 4 gave the tensor."""
    features: Tensor = getattr(output, "pooler_output", output)
    return features


def _plain(embeddings: Tensor) -> Tensor:
    """float32 on the CPU; not an inference tensor."""
    return embeddings.detach().to("cpu", torch.float32, copy=True)
