"""Makes the files of this folder: a tiny BERT of transformers, its vocabulary, its ids and outputs.

Run in this folder with torch, transformers and tokenizers installed; see README.md for the versions.
"""

import json
import string

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizer

WORDS = "a an the of on and photo photo ##graph red blue green white cube ball cat dog small with ##s don it".split()
CAPTIONS = [
    "",
    "a photo of a red cube",
    "A PHOTO OF A Red CUBE",
    "a red cube \U0001f389 on a blue ball \U0001f469\u200d\U0001f680",
    "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd, a cube",
    "\u0645\u0643\u0639\u0628 \u0623\u062d\u0645\u0631",
    "Cafe\u0301 na\u00efve \u2014 it's the cat's 3 balls, 42!",
    "   white\t space \n\u00a0",
    "&amp; <b>html</b> DON'T\x00",
    "a red ball and " * 40,
    "\u65e5\u672c\u306e\u8d64\u3044\u7acb\u65b9\u4f53 and a cube <|endoftext|> [SEP]",
]


def main() -> None:
    special = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [*string.ascii_lowercase, *string.digits, "\u05e9", "\u05dc", "\u05d5", "\u05dd", "\u65e5", "\u8d64"]
    tokens = [*special, *string.punctuation, *letters, *("##" + letter for letter in letters)]
    tokens = list(dict.fromkeys([*tokens, *WORDS]))
    with open("vocab.txt", "w", encoding="utf-8") as file:
        file.writelines(token + "\n" for token in tokens)
    vocabulary = {token: i for i, token in enumerate(tokens)}
    found = {}
    for name, lower in (("uncased", True), ("cased", False)):
        tokenizer = BertTokenizer(vocabulary, do_lower_case=lower)
        found[name] = [tokenizer(caption)["input_ids"] for caption in CAPTIONS]
        if lower:
            tokenizer.backend_tokenizer.save("tokenizer.json")
    with open("captions.json", "w") as file:
        rows = zip(CAPTIONS, found["uncased"], found["cased"], strict=True)
        json.dump([{"caption": caption, "ids": ids, "cased_ids": cased} for caption, ids, cased in rows], file)

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=24,
    )
    model = BertForMaskedLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(".")
    rng = np.random.default_rng(0)
    arrays = {}
    model = model.double()
    for i, lengths in enumerate(([24, 9, 1], [5, 7])):
        mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        ids = np.where(mask, rng.integers(0, len(tokens), mask.shape), 0)
        with torch.no_grad():
            out = model.bert(torch.tensor(ids), attention_mask=torch.tensor(mask))
        arrays[f"tokens_{i}"], arrays[f"mask_{i}"] = ids.astype(np.int32), mask
        arrays[f"last_hidden_state_{i}"] = out.last_hidden_state.numpy().astype(np.float32)
    np.savez_compressed("io.npz", **arrays)


if __name__ == "__main__":
    main()
