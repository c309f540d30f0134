"""Qwen2.5-VL's own processor around the tokenizer and the image processor of one of ours: the right value of a call."""

import copy

from transformers import Qwen2_5_VLProcessor


class Qwen2_5_VLProcessorWithoutVideos(Qwen2_5_VLProcessor):
    """Qwen's processor without its video processor, which needs torchvision; images and texts do not reach it."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name != "video_processor":
            super().check_argument_for_proper_class(argument_name, argument)


def qwen_processor(processor):
    """Qwen's processor around copies of the same parts, with the same chat template."""
    parts = copy.deepcopy((processor.image_processor, processor.tokenizer))
    return Qwen2_5_VLProcessorWithoutVideos(*parts, None, chat_template=processor.chat_template)
