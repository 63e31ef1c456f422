"""The model's vocabulary as an engine `Tokenizer`: text to ids in C, ids to text from a table made once."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from types import MappingProxyType

from server.core.errors import EngineDead, InvalidRequest, ModelFileError
from server.llama.cutting import Cutter
from server.llama.grammar import LlamaGrammars
from server.llama.native import Address, Library

_UNKNOWN = 1 << 0
_CONTROL = 1 << 3
_USER_DEFINED = 1 << 4
_LSTRIP = 1 << 7
_HIDDEN = _UNKNOWN | _CONTROL
"""`llama_token_attr` bits of tokens that have no text in an answer."""

_LONGEST_PIECE = 1024


class LlamaVocab:
    """Everything is precomputed, so that only `encode` calls C; llama.cpp's tokenizer is thread-safe.

    Borrows the model's memory: `close` it before the model is freed.
    """

    def __init__(self, library: Library, vocab: Address) -> None:
        """Read every token. Raises `ModelFileError` for a model without a vocabulary."""
        self._tokenize = library.tokenize
        self._vocab = vocab
        self._users = 0
        self._idle = threading.Condition()
        self.n_vocab: int = library.vocab_n_tokens(vocab)
        self.kind: int = library.vocab_type(vocab)
        """`llama_vocab_type`: how text is cut, by bytes or by pieces say."""
        if self.kind == 0 or self.n_vocab == 0:
            raise ModelFileError(
                "The GGUF has no tokenizer, so it cannot be served as a language model."
            )
        ids = range(self.n_vocab)
        attributes = [library.vocab_get_attr(vocab, token) for token in ids]
        self._shown = _read_pieces(library, vocab, self.n_vocab)
        self.pieces: Sequence[bytes] = [
            b"" if attribute & _HIDDEN else piece
            for piece, attribute in zip(self._shown, attributes, strict=True)
        ]
        self.eog: frozenset[int] = frozenset(
            token for token in ids if library.vocab_is_eog(vocab, token)
        )
        self.control_tokens = self._texts_of(attributes, _CONTROL, _CONTROL)
        # llama.cpp marks some user-defined tokens (`<|fim_pad|>`) as control too: then they are no
        # text.
        self.marker_tokens = self._texts_of(attributes, _USER_DEFINED | _CONTROL, _USER_DEFINED)
        special = self._texts_of(attributes, _LSTRIP, 0, _CONTROL | _USER_DEFINED)
        everything = self._texts_of(attributes, 0, 0, _CONTROL | _USER_DEFINED)
        self._cutters = {
            True: Cutter(special, everything),
            False: Cutter(special.keys() & self.marker_tokens.keys(), everything),
        }
        self.suppressed = _read_suppressed(library, vocab, self.n_vocab)
        """Tokens that the file forbids."""
        self._add_bos = library.vocab_get_add_bos(vocab)
        self.bos_text = self._text_of(library.vocab_bos(vocab))
        self.eos_text = self._text_of(library.vocab_eos(vocab))

    @cached_property
    def grammars(self) -> LlamaGrammars:
        """What compiles grammars over it. Made at the first use, which takes some 0.2 s: not by two threads at once."""
        return LlamaGrammars(self)

    def encode(
        self, text: str, *, add_special: bool = False, parse_special: bool = False
    ) -> list[int]:
        """Token ids of `text`.

        `add_special` adds BOS/EOS as the model wants; `parse_special` reads control tokens.

        Raises `InvalidRequest` for text that UTF-8 cannot carry (lone surrogates), `EngineDead`
        after `close`.
        """
        try:
            pieces = [piece.encode() for piece in self._cutters[parse_special].cut(text)]
        except UnicodeEncodeError as error:
            code = ord(error.object[error.start])
            message = f"The text holds a lone surrogate (U+{code:04X}), which is not valid Unicode."
            raise InvalidRequest(message) from error
        if max(map(len, pieces)) >= 2**31 - 64:
            raise InvalidRequest("The text is over 2 GiB.")
        if len(pieces) == 1:
            return self._encode(pieces[0], (add_special, parse_special))
        ends = self._encode(b"", (True, parse_special)) if add_special else []
        first = int(self._add_bos)
        tokens = ends[:first]
        for piece in pieces:
            tokens += self._encode(piece, (False, parse_special))
        return tokens + ends[first:]

    def text_of(self, token: int) -> bytes:
        """Bytes of a token, a control token's name too; `token` must be in range."""
        return self._shown[token]

    def close(self) -> None:
        """Wait for threads that are in C, let no further one in. Idempotent."""
        with self._idle:
            self._vocab = 0
            self._idle.wait_for(lambda: self._users == 0)

    @contextmanager
    def _borrowed(self) -> Iterator[Address]:
        """Keep the model's memory alive while a thread uses it."""
        with self._idle:
            if not self._vocab:
                raise EngineDead("The model is not loaded any more.")
            self._users += 1
            vocab = self._vocab
        try:
            yield vocab
        finally:
            with self._idle:
                self._users -= 1
                self._idle.notify_all()

    def _encode(self, data: bytes, flags: tuple[bool, bool]) -> list[int]:
        with self._borrowed() as vocab:
            return self._tokens(vocab, data, flags)

    def _tokens(self, vocab: Address, data: bytes, flags: tuple[bool, bool]) -> list[int]:
        # A token is at least a byte; BOS, EOS and a leading space come on top.
        room = len(data) + 16
        while True:
            buffer = (ctypes.c_int32 * room)()
            count = self._tokenize(vocab, data, len(data), buffer, room, *flags)
            if count >= 0:
                return buffer[:count]
            if -count <= room:
                raise InvalidRequest("The text cannot be tokenized.")
            room = -count

    def decode(self, tokens: Sequence[int], *, special: bool = False) -> bytes:
        """Bytes of `tokens`; `special` shows control tokens too.

        Ids out of range raise `InvalidRequest`.
        """
        table = self._shown if special else self.pieces
        n_vocab = self.n_vocab
        for token in tokens:
            if not 0 <= token < n_vocab:
                message = (
                    f"Token id {token} is out of range; this model has ids 0 to {n_vocab - 1}."
                )
                raise InvalidRequest(message, param="tokens")
        return b"".join([table[token] for token in tokens])

    def _texts_of(
        self, attributes: Sequence[int], mask: int, wanted: int, either: int = -1
    ) -> Mapping[str, int]:
        """Text → id of the tokens whose attributes under `mask` are `wanted`, and that have one of `either`."""
        found = {
            self._shown[token].decode("utf-8", "replace"): token
            for token, attribute in enumerate(attributes)
            if attribute & mask == wanted and attribute & either and self._shown[token]
        }
        return MappingProxyType(found)

    def _text_of(self, token: int) -> str:
        return self._shown[token].decode("utf-8", "replace") if 0 <= token < self.n_vocab else ""


def _read_pieces(library: Library, vocab: Address, n_vocab: int) -> list[bytes]:
    """Bytes of every token, control tokens by their names. About 0.1 s for 152,000 tokens."""
    to_piece = library.token_to_piece
    buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
    view = memoryview(buffer)
    pieces: list[bytes] = []
    for token in range(n_vocab):
        length = to_piece(vocab, token, buffer, _LONGEST_PIECE, 0, True)
        if length >= 0:
            pieces.append(view[:length].tobytes())
            continue
        longer = ctypes.create_string_buffer(-length)
        pieces.append(longer.raw[: max(0, to_piece(vocab, token, longer, -length, 0, True))])
    return pieces


def _read_suppressed(library: Library, vocab: Address, n_vocab: int) -> tuple[int, ...]:
    count = ctypes.c_int32(0)
    address = library.vocab_get_suppress_tokens(vocab, ctypes.byref(count))
    if not address or count.value <= 0:
        return ()
    listed = (ctypes.c_int32 * count.value).from_address(address)
    return tuple(token for token in listed if 0 <= token < n_vocab)
