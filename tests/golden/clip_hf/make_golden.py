"""Makes the files of this folder: a tiny CLIP text model of transformers, its vocabulary, its ids and outputs.

Run in this folder with torch, transformers and tokenizers installed; see README.md for the versions.
"""

import collections
import json

import numpy as np
import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

WORDS = "a an the of on and photo photograph red blue green white cube ball cat dog small with it's don't".split()
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


def byte_letters() -> list[str]:
    """The printable letters that stand for the 256 bytes in byte-level vocabularies, in their order."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def learn_merges(words: list[str], count: int) -> list[tuple[str, str]]:
    """The most frequent pairs, one after the other; ties go to the first in order."""
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    for _ in range(count):
        pairs = collections.Counter(pair for word in pieces for pair in zip(word, word[1:], strict=False))
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in pieces:
            i = 0
            while i < len(word) - 1:
                if (word[i], word[i + 1]) == best:
                    word[i : i + 2] = ["".join(best)]
                i += 1
    return merges


def main() -> None:
    letters, merges = byte_letters(), learn_merges(WORDS, 40)
    tokens = [*letters, *(letter + "</w>" for letter in letters), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    with open("vocab.json", "w") as file:
        json.dump(vocabulary, file)
    with open("merges.txt", "w") as file:
        file.write("#version: 0.2\n" + "".join(f"{one} {other}\n" for one, other in merges))
    tokenizer = CLIPTokenizer(vocabulary, merges)
    tokenizer.backend_tokenizer.save("tokenizer.json")
    ids = [tokenizer(caption)["input_ids"] for caption in CAPTIONS]
    with open("captions.json", "w") as file:
        json.dump([{"caption": caption, "ids": row} for caption, row in zip(CAPTIONS, ids, strict=True)], file)

    torch.manual_seed(0)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=32,
        intermediate_size=48,
        projection_dim=16,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=24,
        bos_token_id=len(tokens) - 2,
        eos_token_id=len(tokens) - 1,
    )
    model = CLIPTextModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(".")
    rng = np.random.default_rng(0)
    arrays = {}
    model = model.double()
    for i, lengths in enumerate(([24, 9, 1], [5, 7])):
        mask = np.arange(max(lengths)) < np.asarray(lengths)[:, None]
        ids = np.where(mask, rng.integers(0, len(tokens), mask.shape), len(tokens) - 1)
        with torch.no_grad():
            out = model(torch.tensor(ids), attention_mask=torch.tensor(mask), output_hidden_states=True)
        arrays[f"tokens_{i}"], arrays[f"mask_{i}"] = ids.astype(np.int32), mask
        arrays[f"penultimate_{i}"] = out.hidden_states[-2].numpy().astype(np.float32)
    np.savez_compressed("io.npz", **arrays)


if __name__ == "__main__":
    main()
