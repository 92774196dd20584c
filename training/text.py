"""The tokenizer and the text encoder: small, but of the kinds a Wan pipeline expects."""

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .captions import vocabulary
from .settings import Settings

PAD, EOS, UNK = 0, 1, 2


def build_tokenizer(settings: Settings) -> PreTrainedTokenizerFast:
    """One token per word of the grammar, lower-cased, marks split off; anything else is <unk>."""
    words = ["<pad>", "<eos>", "<unk>", *vocabulary()]
    core = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=settings.padded_length,
        clean_up_tokenization_spaces=False,
    )


def build_text_encoder(settings: Settings, vocabulary_size: int) -> UMT5EncoderModel:
    """A UMT5 encoder as wide as the denoiser's text input."""
    config = UMT5Config(
        vocab_size=vocabulary_size,
        d_model=settings.text_dim,
        d_kv=32,
        num_heads=settings.text_dim // 32,
        d_ff=settings.text_ff,
        num_layers=settings.text_layers,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=64,
        pad_token_id=PAD,
        eos_token_id=EOS,
        decoder_start_token_id=PAD,
    )
    return UMT5EncoderModel(config)


def tokenize(tokenizer: PreTrainedTokenizerFast, captions: list[str], length: int) -> Tensor:
    """Token ids padded to `length`; captions of the grammar always fit."""
    ids = tokenizer(captions, padding="max_length", max_length=length, truncation=True).input_ids
    return torch.tensor(ids, dtype=torch.int16)


def encode_text(encoder: UMT5EncoderModel, ids: Tensor) -> Tensor:
    """What WanPipeline hands to the denoiser: the rows of real tokens, zeros in the padding."""
    mask = ids != PAD
    states = encoder(ids, mask.long()).last_hidden_state
    return states * mask.unsqueeze(-1)


def padding_bias(ids: Tensor, padded_length: int) -> Tensor:
    """Attention bias that makes a short padding count as much as the pipeline's padding to `padded_length`.

    All padded rows are equal, so their attention weights are equal too: r rows standing for n rows is the same as
    adding log(n / r) to each of the r scores. Training on short rows is then exact and much cheaper.
    """
    pad = ids == PAD
    have = pad.sum(dim=1, keepdim=True)
    want = padded_length - ids.shape[1] + have
    return torch.where(pad, torch.log(want / have.clamp_min(1)), 0.0)[:, None, None, :]
