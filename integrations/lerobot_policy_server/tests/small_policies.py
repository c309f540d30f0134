"""Small LeRobot checkpoints with random weights, saved as LeRobot saves them, without a download.

`python small_policies.py OUTPUT tabletop|aloha act smolvla pi0` writes them for one of SyVLA's environments. Names of VLMs and
tokenizers in LeRobot's code are Hub ids; here they are folders of those names below OUTPUT, so the commands run from there.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import small_vlas
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_policy_config, make_pre_post_processors

ROBOTS = {
    "tabletop": {"cameras": ("head", "left_wrist", "right_wrist"), "size": (96, 96)},
    "aloha": {"cameras": ("top", "left_wrist", "right_wrist"), "size": (96, 96)},
}
DIM = 14
SMOLVLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
PALIGEMMA = "google/paligemma-3b-pt-224"


def features(cameras, size):
    """Input and output features of a robot with 14 joints."""
    images = {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size)) for name in cameras}
    return (
        {**images, "observation.state": PolicyFeature(FeatureType.STATE, (DIM,))},
        {"action": PolicyFeature(FeatureType.ACTION, (DIM,))},
    )


def statistics(cameras):
    """Of a robot whose joints spread around 0.2 by 0.1."""
    vector = {"mean": torch.full((DIM,), 0.2), "std": torch.full((DIM,), 0.1)}
    vector |= {"min": vector["mean"] - 0.3, "max": vector["mean"] + 0.3}
    vector |= {"q01": vector["mean"] - 0.25, "q99": vector["mean"] + 0.25}
    image = {"mean": torch.full((3, 1, 1), 0.5), "std": torch.full((3, 1, 1), 0.25)}
    image |= {"min": torch.zeros(3, 1, 1), "max": torch.ones(3, 1, 1)}
    return {"observation.state": vector, "action": vector, **{f"observation.images.{name}": image for name in cameras}}


def configuration(kind, robot):
    """The smallest configuration that the policy's own code takes."""
    inputs, outputs = features(ROBOTS[robot]["cameras"], ROBOTS[robot]["size"])
    common = {"input_features": inputs, "output_features": outputs, "device": "cpu", "push_to_hub": False}
    if kind == "act":
        sizes = {"dim_model": 64, "n_heads": 2, "dim_feedforward": 128, "n_encoder_layers": 1, "use_vae": False}
        return make_policy_config(
            "act", pretrained_backbone_weights=None, chunk_size=20, n_action_steps=10, **sizes, **common
        )
    if kind == "smolvla":
        return make_policy_config(
            "smolvla",
            chunk_size=10,
            n_action_steps=8,
            num_vlm_layers=2,
            num_steps=3,
            resize_imgs_with_padding=(64, 64),
            **common,
        )
    if kind == "diffusion":
        sizes = {"down_dims": (32, 64), "diffusion_step_embed_dim": 32, "spatial_softmax_num_keypoints": 8}
        steps = {"horizon": 16, "n_action_steps": 8, "num_inference_steps": 5, "drop_n_last_frames": 7}
        return make_policy_config("diffusion", pretrained_backbone_weights=None, **steps, **sizes, **common)
    if kind in ("pi0", "pi05"):
        sizes = {"paligemma_variant": "gemma_300m", "action_expert_variant": "gemma_300m"}
        return make_policy_config(kind, chunk_size=10, n_action_steps=8, num_inference_steps=3, **sizes, **common)
    return getattr(small_vlas, f"{kind}_configuration")(common)


def shrink(kind):
    """LeRobot's pi0 and pi0.5 have two sizes by name, the smaller of 0.3 billion, and one vision tower; here all are tiny."""
    modeling_pi0 = importlib.import_module(f"lerobot.policies.{kind}.modeling_{kind}")

    if hasattr(modeling_pi0, "full_size"):
        return
    modeling_pi0.full_size = modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma
    tiny = modeling_pi0.GemmaConfig(width=64, depth=2, mlp_dim=64, num_heads=4, num_kv_heads=1, head_dim=16)

    def small(config):
        vision = {"num_hidden_layers": 1, "hidden_size": 64, "num_attention_heads": 4, "intermediate_size": 64}
        vision["projection_dim"] = config.text_config.hidden_size
        for name, value in vision.items():
            setattr(config.vision_config, name, value)
        config.projection_dim = config.text_config.hidden_size
        return modeling_pi0.full_size(config=config)

    modeling_pi0.get_gemma_config = lambda variant: tiny
    modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma = small


def write_tokenizer(folder, tokens=None, template=None):
    """A byte tokenizer in the files that `AutoTokenizer` reads."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: index for index, token in enumerate(["<pad>", "<unk>", *alphabet])}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "<pad>", "extra_special_tokens": tokens or {}}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)
    fast.chat_template = template
    fast.save_pretrained(folder)
    return fast


def write_smolvlm(folder):
    """A SmolVLM of two layers: its configuration and its processor."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    tokens = {"image_token": "<image>", "fake_image_token": "<fake_token_around_image>"}
    tokens |= {"global_image_token": "<global-img>", "end_of_utterance_token": "<end_of_utterance>"}
    tokenizer = write_tokenizer(folder, tokens)
    text = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 16}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": len(tokenizer), "pad_token_id": 0}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 64, "patch_size": 16}
    config = SmolVLMConfig(
        text_config=text,
        vision_config=vision,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    config.save_pretrained(folder)
    images = SmolVLMImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 64})
    SmolVLMProcessor(images, tokenizer, SmolVLMVideoProcessor(), image_seq_len=4).save_pretrained(folder)


def write_policy(folder, kind, robot):
    """A checkpoint as `lerobot-train` leaves it; the working directory is where VLMs and tokenizers are looked for."""
    if kind == "smolvla" and not Path(SMOLVLM).is_dir():
        write_smolvlm(Path(SMOLVLM))
    if kind in ("pi0", "pi05"):
        shrink(kind)
        if not Path(PALIGEMMA).is_dir():
            write_tokenizer(Path(PALIGEMMA))
    if kind in small_vlas.BASES:
        small_vlas.BASES[kind](write_tokenizer)
    config = configuration(kind, robot)
    torch.manual_seed(0)
    policy = get_policy_class(kind)(config)
    policy.save_pretrained(folder)
    pre, post = make_pre_post_processors(config, dataset_stats=statistics(ROBOTS[robot]["cameras"]))
    pre.save_pretrained(folder)
    post.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    output, robot, *kinds = sys.argv[1:]
    os.makedirs(output, exist_ok=True)
    os.chdir(output)
    for kind in kinds:
        print(write_policy(f"{kind}_{robot}", kind, robot).resolve())
