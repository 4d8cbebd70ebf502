"""Reading the texts or token ids of a request as tokens; long texts are refused rather than cut.

It runs in one thread, since a tokenizer that several threads use at once can fail. It knows nothing
about the model's states.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from llm2vec.encoder.encoder import Encoder
from llm2vec.encoder.tokenization import Tokens, borders, pooled_part, shortened
from llm2vec.errors import UsageError
from llm2vec.serving.refusals import Refusal

Direction = Literal["left", "right"]

_NO_LIMIT = 2**31 - 1


class Reader:
    """A reader of requests for one encoder.

    Args:
        encoder: Encoder with the tokenizer, template, prompts and lengths.
        max_characters: Largest number of characters in a request, where prompts count for each
            text.
    """

    def __init__(self, encoder: Encoder, *, max_characters: int) -> None:
        self._encoder = encoder
        self._max_characters = max_characters
        uncut = replace(
            encoder.settings,
            max_length=_NO_LIMIT,
            doc_max_length=None,
            skip_prompt=True,
            pool_special=False,
        )
        self._uncut = Encoder(encoder.model, encoder.tokenizer)
        self._uncut.settings = uncut  # the constructor would limit it to the model's length
        self._borders = borders(encoder.tokenizer)
        self._vocabulary = int(encoder.model.config.get_text_config().vocab_size)

    def prompt(self, prompt: str | None, prompt_name: str | None) -> str:
        """The prompt before each text, with its separator; empty for none.

        Args:
            prompt: A prompt.
            prompt_name: The name of a prompt in the encoder's settings.

        Raises:
            Refusal: The name is unknown, or both are given.
        """
        settings = self._encoder.settings
        if prompt is not None and prompt_name is not None:
            raise Refusal("invalid", "give prompt or prompt_name, not both", param="prompt_name")
        if prompt_name is not None:
            if prompt_name not in settings.prompts:
                known = ", ".join(settings.prompts) or "none"
                raise Refusal(
                    "invalid", f"there is no such prompt; there are: {known}", param="prompt_name"
                )
            prompt = settings.prompts[prompt_name]
        return settings.before_text(prompt)

    def read(
        self,
        inputs: Sequence[str | list[int]],
        *,
        prompt: str = "",
        truncate: bool = False,
        direction: Direction = "right",
    ) -> list[Tokens]:
        """Read the tokens of each input, in order, with the range that is pooled.

        Args:
            inputs: Texts, or token ids of texts without the special tokens around them.
            prompt: Prompt before each text, from the method `prompt`.
            truncate: Whether long texts are cut instead of refused.
            direction: Side that is cut.

        Raises:
            Refusal: An input is empty, too long, or holds an id beyond the vocabulary.
        """
        characters = sum(len(each) for each in inputs) + len(prompt) * len(inputs)
        if characters > self._max_characters:
            raise Refusal(
                "too_large",
                f"the texts with their prompts come to {characters} characters; at most "
                f"{self._max_characters} are read in one request",
            )
        found = self._whole(inputs, prompt)
        for index, (given, tokens) in enumerate(zip(inputs, found, strict=True)):
            if tokens.first == tokens.end or not given:
                raise Refusal("empty", f"text {index} is empty; there is nothing to encode", index)
            if self._is_long(given, tokens):
                if not truncate:
                    raise self._too_long(index, tokens)
                found[index] = self._cut(given, tokens, prompt, direction, index)
        return [self._pooled(tokens, prompt) for tokens in found]

    def _whole(self, inputs: Sequence[str | list[int]], prompt: str) -> list[Tokens]:
        """The tokens of each input, without a limit on their number."""
        texts = [each for each in inputs if isinstance(each, str)]
        prompts = [prompt] * len(texts) if prompt else None
        of_texts = iter(self._uncut.tokens(texts, prompts=prompts))
        frame = None
        found = []
        for index, given in enumerate(inputs):
            if isinstance(given, str):
                found.append(next(of_texts))
                continue
            if frame is None:
                frame = self._uncut.tokens([""], prompts=[prompt] if prompt else None)[0]
            self._check_ids(given, index)
            row = [*frame.ids[: frame.first], *given, *frame.ids[frame.first :]]
            found.append(Tokens(row, frame.first, frame.end + len(given)))
        return found

    def _check_ids(self, ids: Sequence[int], index: int) -> None:
        for each in ids:
            if not 0 <= each < self._vocabulary:
                raise Refusal(
                    "invalid",
                    f"text {index} holds a token id outside of 0 to {self._vocabulary - 1}, the "
                    "vocabulary of this model",
                    index,
                )

    def _is_long(self, given: str | list[int], tokens: Tokens) -> bool:
        settings = self._encoder.settings
        most = settings.doc_max_length
        if len(tokens.ids) > settings.max_length:
            return True
        if most is None:
            return False
        if isinstance(given, str):
            return shortened(self._encoder.tokenizer, [given], most=most) != [given]
        return len(given) > most

    def _too_long(self, index: int, tokens: Tokens) -> Refusal:
        settings = self._encoder.settings
        most = f"{settings.max_length}"
        if settings.doc_max_length is not None:
            most += f" (and {settings.doc_max_length} without its prompt)"
        return Refusal(
            "too_large",
            f"text {index} has {len(tokens.ids)} tokens; this model reads at most {most}. "
            'Shorten it, or send "truncate": true',
            index,
            code="context_length_exceeded",
        )

    def _cut(
        self, given: str | list[int], tokens: Tokens, prompt: str, direction: Direction, index: int
    ) -> Tokens:
        if isinstance(given, str) and direction == "right":
            try:
                cut = self._encoder.tokens([given], prompts=[prompt] if prompt else None)[0]
            except UsageError as error:
                raise self._no_room(index) from error
            return cut
        around = len(tokens.ids) - (tokens.end - tokens.first)
        most = self._encoder.settings.max_length - around
        if self._encoder.settings.doc_max_length is not None:
            most = min(most, self._encoder.settings.doc_max_length)
        if most < 1:
            raise self._no_room(index)
        own = tokens.ids[tokens.first : tokens.end]
        own = own[:most] if direction == "right" else own[-most:]
        row = [*tokens.ids[: tokens.first], *own, *tokens.ids[tokens.end :]]
        return Tokens(row, tokens.first, tokens.first + len(own))

    def _no_room(self, index: int) -> Refusal:
        most = self._encoder.settings.max_length
        return Refusal(
            "too_large",
            f"the prompt leaves no room for text {index} in {most} tokens; shorten the prompt",
            index,
        )

    def _pooled(self, tokens: Tokens, prompt: str) -> Tokens:
        settings = self._encoder.settings
        wrapped, _ = settings.around
        return pooled_part(
            tokens,
            self._borders,
            skip_prompt=settings.skip_prompt and bool(prompt or wrapped),
            pool_special=settings.pools_special,
        )
