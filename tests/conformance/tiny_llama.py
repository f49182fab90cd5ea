"""Write a Llama of 2 MB with random weights, for engines that load Hugging Face's format.

Run by the engine's own interpreter, which has torch and transformers: ``python tiny_llama.py DIR``.
"""

import sys
from pathlib import Path

TEXT = [
    "Once upon a time there was a tiny model, its name is café and it likes 🙂; say hello world!",
    "every word of 中文 text comes from one token at a time, yes or no, true or false",
    '{"ok": true, "name": "text", "list": [1, 2, 3]} the quick brown fox jumps over the lazy dog',
]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write(home: Path) -> None:
    """Write model and tokenizer into this directory."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXT * 4, vocab_size=512, special_tokens=["<s>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer, bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(home)
    torch.manual_seed(20)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=0,
        # Random weights would end many an answer before there is anything to cancel.
        eos_token_id=len(tokenizer) - 1,
        tie_word_embeddings=False,
    )
    LlamaForCausalLM(config).save_pretrained(home)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
