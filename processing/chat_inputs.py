"""Chats and rendered texts to model inputs, as transformers' processors of the Qwen-VL family do. Ships with checkpoints."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from transformers import BatchFeature, ProcessorMixin
from transformers.processing_utils import MultiModalData
from transformers.utils.chat_template_utils import _get_template_variables, render_jinja_template

from .call_keywords import OWN, CallKeywords, keyword_names, refuse_other_media, require_known
from .image_inputs import chat_image, is_image_part, part_source, rows_of_images

# transformers marks control tokens in user text with these characters where `sanitize_control_tokens` is asked for; what
# they mark is text.
_MARK = "\U000f0000"

# Keywords of a tokenizer's `decode`.
DECODING = ("skip_special_tokens", "clean_up_tokenization_spaces", "use_source_tokenizer")


class ChatInputs(ProcessorMixin):
    """The part of the processor that any vision-language model has: chats, images from anywhere, assistant masks."""

    # What the methods below use of the whole processor.
    image_token: str
    image_token_id: int
    max_length: int

    def apply_chat_template(  # type: ignore[override]  # the rest of its parameters are keywords here, checked by name
        self,
        conversation: Any,
        chat_template: str | None = None,
        tools: Any = None,
        documents: Any = None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_tensors: Any = None,
        return_assistant_tokens_mask: bool = False,
        processor_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Text of one chat or of a batch of chats, or the model's inputs for them.

        The chats are not changed. Images are those that the chats hold or name (`image`, `url`, `path`, `base64`,
        `image_url`), or `images=` in their order where a chat only marks their places.

        Args:
            conversation: List of messages `{"role", "content"}`, or a list of such lists.
            chat_template: Another Jinja template, or the name of one of the processor's.
            tools, documents: For templates that read them; the default one does not, and refuses them.
            tokenize: Inputs for the model instead of text.
            return_dict: All of the inputs instead of `input_ids` alone.
            return_tensors: "pt", "np", or None for lists.
            return_assistant_tokens_mask: Adds `assistant_masks` (B, L): 1 on the tokens of the assistant's answers with
                their end token, which the template marks by `{% generation %}`.
            processor_kwargs: Keywords of the processor's call; they may also be passed flat.
            kwargs: `add_generation_prompt`, `continue_final_message` and what else transformers' method takes, variables
                of the template, and keywords of the processor's call.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If a keyword has no effect, or an image cannot be read.
        """
        template = self._template(chat_template)
        variables = _get_template_variables(template)
        for name, value in (("tools", tools), ("documents", documents)):
            if value and name not in variables:
                raise ValueError(f"{name}: this chat template does not read them; write them into a message")
        options, call = self._split_template_keywords(kwargs, processor_kwargs, variables)
        if not tokenize and call:
            raise ValueError(f"{next(iter(call))}: acts on tokens; pass tokenize=True, or leave it out")
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError("return_assistant_tokens_mask: needs tokenize=True and return_dict=True")
        if return_tensors is not None:
            call["return_tensors"] = return_tensors
        if not conversation:
            raise ValueError("conversation: expected at least one message, got none")
        batched = isinstance(conversation[0], (list, tuple)) or hasattr(conversation[0], "messages")
        chats = [_plain_chat(chat, "is string" in template) for chat in (conversation if batched else [conversation])]
        if tokenize:
            _place_images(chats, call.pop("images", None), batched)
        masked = return_assistant_tokens_mask and not options.get("sanitize_control_tokens")
        if masked:
            if options.get("continue_final_message"):
                raise ValueError(
                    "return_assistant_tokens_mask: a message that is to be continued has no end; pass one of both"
                )
            call = {**call, "return_offsets_mapping": True, "return_text_replacement_offsets": True}
        out: Any = super().apply_chat_template(
            chats if batched else chats[0],
            chat_template=template,
            tools=tools,
            documents=documents,
            tokenize=tokenize,
            return_dict=return_dict,
            return_assistant_tokens_mask=return_assistant_tokens_mask and not masked,
            processor_kwargs=call,
            **({"return_tensors": call["return_tensors"]} if call.get("return_tensors") else {}),
            **options,
        )
        if masked:
            rendering = {"tools": tools, "documents": documents, **self.tokenizer.special_tokens_map, **options}
            rendered: Any = render_jinja_template(  # a pair, whatever its annotation says
                conversations=chats, chat_template=template, return_assistant_tokens_mask=True, **rendering
            )
            _, spans = rendered
            self._add_assistant_masks(out, spans, call)
        return out

    def _split_template_keywords(
        self, given: Mapping[str, Any], processor_kwargs: Mapping[str, Any] | None, variables: frozenset[str]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Keywords for transformers' method and the template, and those of the processor's call."""
        method = set(inspect.signature(super().apply_chat_template).parameters) - {"kwargs"}
        names = keyword_names(self)
        own = {*names["text"], *names["images"], *OWN, "images", "text_kwargs", "images_kwargs", "common_kwargs"}
        given = dict(given)
        refuse_other_media(given)
        require_known(given, method | variables | own, "apply_chat_template")
        options = {k: v for k, v in given.items() if k in method or k in variables}
        call = {k: v for k, v in given.items() if k not in options}
        twice = [name for name in call if name in (processor_kwargs or {})]
        if twice:
            raise ValueError(
                f"{twice[0]}: passed two times, in processor_kwargs and as a keyword of its own; pass it once"
            )
        return options, {**(processor_kwargs or {}), **call}

    def _template(self, chat_template: str | None) -> str:
        """The template to render: the processor's own, one of its named ones, or the given text."""
        own = self.chat_template
        if not isinstance(own, Mapping):
            return chat_template if chat_template is not None else cast("str", own)  # the processor always has one
        name = "default" if chat_template is None else chat_template
        if chat_template is None and name not in own:
            raise ValueError(
                f"chat_template: expected one of {', '.join(own)}, since none of them is the default; got None"
            )
        return own.get(name, name)

    def _add_assistant_masks(
        self, out: BatchFeature, spans: list[list[tuple[int, int]]], call: Mapping[str, Any]
    ) -> None:
        """Replace the offsets in `out` by `assistant_masks`; `spans` are the answers' characters in the rendered texts."""
        offsets, replaced = out.pop("offset_mapping"), out.pop("text_replacement_offsets")
        masks = []
        for row, answers in enumerate(spans):
            moved = [[_moved(character, replaced[row]) for character in answer] for answer in answers]
            pairs = np.asarray(offsets[row]).reshape(-1, 2).tolist()
            masks.append([int(any(a < end and b > start for start, end in moved)) for a, b in pairs])
        out["assistant_masks"] = masks
        if call.get("return_tensors") is not None:
            out.convert_to_tensors(tensor_type=call["return_tensors"])

    # ------------------------------------------------------------------ decoding and saving

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's own, which forgets keywords that it does not know; they raise TypeError here."""
        require_known(kwargs, ("token_ids", *DECODING), "decode")
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's own, which forgets keywords that it does not know; they raise TypeError here."""
        require_known(kwargs, ("sequences", *DECODING), "batch_decode")
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> Any:
        """Texts of generated ids (B, L), as pipelines ask for them."""
        return self.batch_decode(generated_outputs, skip_special_tokens=skip_special_tokens, **kwargs)

    def save_pretrained(self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any) -> Any:
        """transformers' own; a keyword that neither it nor the Hub reads raises TypeError."""
        hub = set(inspect.signature(self.push_to_hub).parameters) - {"self", "deprecated_kwargs", "kwargs"}
        require_known(kwargs, hub | {"token", "save_jinja_files"}, "save_pretrained")
        return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)

    # ------------------------------------------------------------------ the call without a robot

    def _chat_inputs(self, images: Any, text: Any, keywords: CallKeywords) -> BatchFeature:
        """Inputs for rendered texts and their images: the same tensors as `Qwen2_5_VLProcessor` gives."""
        text_keywords, image_keywords = keywords.merged(self)
        flat, rows = rows_of_images(images)
        rescales = image_keywords.get("do_rescale")
        rescales = self.image_processor.do_rescale if rescales is None else rescales
        flat = [chat_image(image, f"images[{i}]", image_keywords, rescales) for i, image in enumerate(flat)]
        if text is None and not flat:
            raise ValueError("text: missing, and no images either; pass rendered chat text, images or both")
        vision = dict(self.image_processor(images=flat, **image_keywords)) if flat else {}
        tensors = text_keywords.get("return_tensors")
        if text is None:
            return BatchFeature(vision, tensor_type=tensors)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(sample, str) for sample in texts):
            raise ValueError(f"text: expected a string or a list of strings, got {text!r:.80}")
        lengths = [
            math.prod(map(int, grid)) // self.image_processor.merge_size**2 for grid in vision.get("image_grid_thw", ())
        ]
        texts, replaced = self._with_image_pads(texts, lengths, rows)
        encoded = dict(self.tokenizer(texts, **text_keywords))
        self._check_tokens(encoded, texts)
        skipped = []
        if keywords.own.get("return_text_replacement_offsets"):
            encoded["text_replacement_offsets"] = replaced
            skipped = ["text_replacement_offsets"]
        if keywords.own.get("return_mm_token_type_ids", True) is not False:
            encoded["mm_token_type_ids"] = [
                [int(token == self.image_token_id) for token in row] for row in _rows(encoded["input_ids"])
            ]
        return BatchFeature({**encoded, **vision}, tensor_type=tensors, skip_tensor_conversion=skipped)

    def _with_image_pads(
        self, texts: list[str], lengths: Sequence[int], rows: list[int] | None
    ) -> tuple[list[str], list[list[dict[str, Any]]]]:
        """Texts with each image pad repeated for its image's tokens, and for each text where the pads were and are.

        Args:
            texts: Rendered texts with one image pad for each image.
            lengths: Tokens of every image.
            rows: Images of every text; None where the call gives one list for all texts.
        """
        pad = self._pad_pattern()
        needed = [len(pad.findall(text)) for text in texts]
        if sum(needed) != len(lengths) or (rows is not None and rows != needed):
            got = f"{len(lengths)} images" if rows is None or sum(needed) != len(lengths) else f"{rows} images"
            holds = sum(needed) if rows is None or sum(needed) != len(lengths) else needed
            raise ValueError(f"images: the text holds {holds} image placeholders, got {got}")
        left = iter(lengths)
        expanded, replaced = [], []
        for text in texts:
            parts, marks, end, size = [], [], 0, 0
            for match in pad.finditer(text):
                parts.append(text[end : match.start()])
                size += len(parts[-1])
                replacement = self.image_token * next(left)
                parts.append(replacement)
                marks.append(
                    {"type": "image", "span": match.span(), "new_span": (size, size + len(replacement)),
                     "text": match.group(), "replacement": replacement}
                )  # fmt: skip
                end, size = match.end(), size + len(replacement)
            expanded.append("".join([*parts, text[end:]]))
            replaced.append(marks)
        return expanded, replaced

    def _check_tokens(self, encoded: Mapping[str, Any], texts: list[str]) -> None:
        """Raises ValueError if a truncation cut image tokens, or a text is longer than the model's longest."""
        rows = _rows(encoded["input_ids"])
        wanted = [len(self._pad_pattern().findall(text)) for text in texts]
        got = [row.count(self.image_token_id) for row in rows]
        if wanted != got:
            raise ValueError(
                f"truncation: cuts image tokens, of which the texts need {wanted} and {got} would be left; raise max_length, "
                "use smaller images (max_pixels), or leave truncation out"
            )
        masks = _rows(encoded["attention_mask"]) if "attention_mask" in encoded else [[1] * len(row) for row in rows]
        for index, mask in enumerate(masks):
            if sum(mask) > self.max_length:
                raise ValueError(
                    f"sample {index}: {sum(mask)} tokens exceed max_length={self.max_length}; shorten the text, use smaller "
                    "images, pass truncation=True with max_length, or raise processor.max_length"
                )

    def _pad_pattern(self) -> re.Pattern[str]:
        return re.compile(f"(?<!{_MARK}){re.escape(self.image_token)}")

    def _get_num_multimodal_tokens(
        self, image_sizes: Sequence[Sequence[int]] | None = None, video_sizes: Any = None, **kwargs: Any
    ) -> MultiModalData:
        """Tokens and patches of images of sizes (height, width), which inference engines ask for.

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If a keyword has no effect, or there are videos.
        """
        if video_sizes is not None and len(video_sizes):
            raise ValueError("video_sizes: SyVLA reads images only; pass single frames as images")
        _, keywords = CallKeywords(self, kwargs).merged(self)
        if image_sizes is None:
            return MultiModalData()
        keywords = {name: value for name, value in keywords.items() if value is not None}
        patches = [self.image_processor.get_number_of_image_patches(*size, keywords) for size in image_sizes]
        tokens = [count // self.image_processor.merge_size**2 for count in patches]
        return MultiModalData(num_image_tokens=tokens, num_image_patches=patches)


def _plain_chat(chat: Any, lists_for_texts: bool) -> list[Any]:
    """A copy of a chat whose images stand under `image`.

    `lists_for_texts` also makes a list of parts of a content that is a string, which transformers 5.4 cannot tokenize.
    """
    messages = []
    for number, message in enumerate(getattr(chat, "messages", chat)):
        if not isinstance(message, Mapping):
            messages.append(message)  # of a class of its own, which newer versions of transformers take apart
            continue
        content = message.get("content")
        if content is None and lists_for_texts:
            raise ValueError(f"messages[{number}]: holds no content; SyVLA reads text and images, and answers in text")
        if isinstance(content, str) and lists_for_texts:
            content = [{"type": "text", "text": content}]
        if isinstance(content, (list, tuple)):
            content = [_plain_part(part, f"messages[{number}].content[{i}]") for i, part in enumerate(content)]
        messages.append({**message, "content": content})
    return messages


def _plain_part(part: Any, name: str) -> Any:
    if not isinstance(part, Mapping):
        raise ValueError(f'{name}: expected a part such as {{"type": "text", "text": ...}}, got {type(part).__name__}')
    if is_image_part(part):
        source = part_source(part, name)
        return {"type": "image"} if source is None else {"type": "image", "image": source}
    return {"type": "text", **part} if "text" in part else dict(part)


def _place_images(chats: list[list[Any]], images: Any, batched: bool) -> None:
    """Puts `images` into the places that the chats mark for them, in order."""
    places = [[part for message in chat if isinstance(message, Mapping) for part in message.get("content") or []
               if is_image_part(part)] for chat in chats]  # fmt: skip
    if images is not None:
        flat, rows = rows_of_images(images)
        empty = [[part for part in row if part.get("image") is None] for row in places]
        counts = [len(row) for row in empty]
        if sum(counts) != len(flat) or (rows is not None and batched and rows != counts):
            raise ValueError(f"images: the chats leave places for {counts} images, got {rows or len(flat)}")
        for part, image in zip((part for row in empty for part in row), flat, strict=True):
            part["image"] = image


def _moved(character: int, replaced: list[dict[str, Any]]) -> int:
    """Where a character of the rendered text stands after the image pads before it were repeated."""
    before = [mark for mark in replaced if mark["span"][1] <= character]
    return character + (before[-1]["new_span"][1] - before[-1]["span"][1] if before else 0)


def _rows(values: Any) -> list[list[int]]:
    return values.tolist() if hasattr(values, "tolist") else [list(row) for row in values]
