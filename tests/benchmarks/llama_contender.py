"""llama.cpp as a contender of serving.py, by its own batches: all sequences advance by a token in one llama_decode."""

import ctypes
from pathlib import Path
from typing import Any, NamedTuple

import llama_cpp
import numpy as np

F32 = 0  # of ggml's types


class Row(NamedTuple):
    """A token that goes in; `last` asks for logits after it."""

    token: int
    position: int
    sequence: int
    last: bool


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """It writes pages about what it loads."""


class LlamaCpp:
    """On one thread, cache in float32. Flash attention, which it takes by default, has half precision inside."""

    def __init__(self, file: Path, positions: int, unified: bool) -> None:
        llama_cpp.llama_log_set(_silent, None)
        self.model = llama_cpp.llama_model_load_from_file(bytes(file), llama_cpp.llama_model_default_params())
        assert self.model is not None, "llama.cpp does not load the file"
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.positions, self.unified = positions, unified
        self.contexts: dict[int, Any] = {}
        self.record = {
            "version": llama_cpp.__version__,
            "unified": unified,
            "flash_attention": False,
            "cache": "float32",
        }

    def context(self, sequences: int) -> Any:
        """Empty, with room for `positions` tokens of each sequence."""
        if sequences not in self.contexts:
            parameters = llama_cpp.llama_context_default_params()
            parameters.n_ctx = parameters.n_batch = sequences * self.positions
            parameters.n_seq_max = sequences
            parameters.kv_unified = self.unified
            parameters.n_threads = parameters.n_threads_batch = 1
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
            parameters.type_k = parameters.type_v = F32
            self.contexts[sequences] = llama_cpp.llama_init_from_model(self.model, parameters)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.contexts[sequences]), True)
        return self.contexts[sequences]

    def logits(self, context: Any, rows: list[Row]) -> np.ndarray:
        """After the last token of each sequence, [sequences, vocabulary]. They are overwritten by the next call."""
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        batch.n_tokens = len(rows)
        for index, row in enumerate(rows):
            batch.token[index] = row.token
            batch.pos[index] = row.position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = row.sequence
            batch.logits[index] = row.last
        failed = llama_cpp.llama_decode(context, batch)
        llama_cpp.llama_batch_free(batch)
        assert not failed, f"llama_decode ends with {failed}"
        return np.ctypeslib.as_array(
            llama_cpp.llama_get_logits(context), (sum(row.last for row in rows), self.vocabulary)
        )

    def first_logits(self, prompts: list[list[int]]) -> np.ndarray:
        return self.logits(self.context(len(prompts)), prompt_rows(prompts))

    def generate(self, prompts: list[list[int]], new: int) -> list[list[int]]:
        context = self.context(len(prompts))
        rows = prompt_rows(prompts)
        made: list[list[int]] = [[] for _ in prompts]
        for step in range(new):
            tokens = self.logits(context, rows).argmax(1).tolist()
            for text, token in zip(made, tokens, strict=True):
                text.append(token)
            rows = [Row(token, len(prompts[sequence]) + step, sequence, True) for sequence, token in enumerate(tokens)]
        return made


def prompt_rows(prompts: list[list[int]]) -> list[Row]:
    return [
        Row(token, position, sequence, position + 1 == len(prompt))
        for sequence, prompt in enumerate(prompts)
        for position, token in enumerate(prompt)
    ]
