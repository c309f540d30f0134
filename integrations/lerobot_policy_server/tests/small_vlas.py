"""X-VLA, Wall-OSS and GR00T N1.7 of LeRobot at tiny sizes with random weights.

Wall-OSS and GR00T begin from a base model, which their code loads by a name of the Hub before it loads a fine-tuned
checkpoint. Here the base models are folders below the working directory.
"""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.policies.factory import make_policy_config

BART = "facebook/bart-large"
WALL_OSS = "x-square-robot/wall-oss-flow"
COSMOS = "nvidia/Cosmos-Reason2-2B"
GROOT = "nvidia/GR00T-N1.7-3B"
VISION = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
VISION |= {"vision_bos_token": "<|vision_start|>", "vision_eos_token": "<|vision_end|>"}
TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def xvla_configuration(common):
    """Florence-2 of one block a stage."""
    vision = {"embed_dim": [16, 32], "num_heads": [2, 2], "num_groups": [2, 2], "depths": [1, 1], "patch_size": [7, 3]}
    vision |= {"patch_stride": [4, 2], "patch_padding": [3, 1], "patch_prenorm": [False, True], "projection_dim": 32}
    text = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "vocab_size": 300}
    text |= {
        "decoder_attention_heads": 2,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 1024,
    }
    florence = {"vision_config": vision, "text_config": {**text, "pad_token_id": 0, "model_type": "florence2_language"}}
    sizes = {"hidden_size": 64, "depth": 2, "num_heads": 4, "num_domains": 2, "len_soft_prompts": 4}
    steps = {"chunk_size": 10, "n_action_steps": 8, "num_denoising_steps": 3}
    return make_policy_config(
        "xvla", florence_config=florence, tokenizer_name=BART, action_mode="auto", **steps, **sizes, **common
    )


def write_xvla_base(write_tokenizer):
    """The tokenizer alone: X-VLA's own checkpoint has the rest."""
    if not Path(BART).is_dir():
        write_tokenizer(Path(BART))


def wall_x_configuration(common):
    return make_policy_config("wall_x", chunk_size=10, n_action_steps=8, pretrained_name_or_path=WALL_OSS, **common)


def write_wall_x_base(write_tokenizer):
    """Qwen2.5-VL of two layers with Wall-OSS's two experts."""
    from lerobot.policies.wall_x.modeling_wall_x import Qwen2_5_VLConfig, Qwen2_5_VLMoEForAction
    from safetensors.torch import save_model
    from transformers import Qwen2_5_VLProcessor, Qwen2VLImageProcessor, Qwen2VLVideoProcessor

    if Path(WALL_OSS).is_dir():
        return
    extra = {"action_token": "<|action|>", "propri_token": "<|propri|>"}
    tokenizer = write_tokenizer(Path(WALL_OSS), VISION | extra, TEMPLATE)
    expert = {"hidden_size": 64, "intermediate_size": 64, "hidden_act": "silu"}
    text = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 4096, "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}}
    text |= {"num_experts": 2, "experts": [expert, expert], "dim_inputs": [64, 64], "mlp_moe": True}
    text |= {"dof_config": {"all": 20}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"fullatt_block_indexes": [1]}
    ids = {
        name.replace("bos", "start").replace("eos", "end") + "_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in VISION.items()
    }
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, agent_pos_config={"all": 20}, **ids)
    config.save_pretrained(WALL_OSS)
    processor = Qwen2_5_VLProcessor(Qwen2VLImageProcessor(), tokenizer, Qwen2VLVideoProcessor(), chat_template=TEMPLATE)
    processor.save_pretrained(WALL_OSS)
    torch.manual_seed(0)
    save_model(Qwen2_5_VLMoEForAction(config, processor=processor), str(Path(WALL_OSS) / "model.safetensors"))


def groot_configuration(common):
    return make_policy_config(
        "groot", chunk_size=16, n_action_steps=8, base_model_path=str(Path(GROOT).resolve()), use_bf16=False, **common
    )


def write_groot_base(write_tokenizer):
    """Qwen3-VL of two layers; LeRobot's code has the sizes of GR00T's own by its name, which are replaced here."""
    from lerobot.policies.groot import groot_n1_7
    from transformers import Qwen2VLImageProcessor, Qwen3VLConfig, Qwen3VLVideoProcessor

    tokenizer = write_tokenizer(Path(COSMOS), VISION, TEMPLATE)
    Qwen2VLImageProcessor(patch_size=16).save_pretrained(COSMOS)
    Qwen3VLVideoProcessor().save_pretrained(COSMOS)
    text = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 16,
    }
    text |= {"num_key_value_heads": 2, "vocab_size": len(tokenizer), "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "rope_theta": 10000.0}}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64}
    vision |= {"deepstack_visual_indexes": [0], "num_position_embeddings": 64, "patch_size": 16}
    ids = {
        name.replace("bos", "start").replace("eos", "end") + "_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in VISION.items()
    }
    tiny = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **ids)
    groot_n1_7._cosmos_reason2_qwen3_vl_config = lambda: tiny
    if Path(GROOT).is_dir():
        return
    attention = {"num_attention_heads": 4, "attention_head_dim": 16, "dropout": 0.0, "positional_embeddings": None}
    head = {**attention, "num_layers": 2, "norm_type": "ada_norm", "output_dim": 64, "interleave_self_attention": True}
    config = groot_n1_7.GR00TN17Config(
        backbone_embedding_dim=64,
        hidden_size=64,
        input_embedding_dim=64,
        select_layer=2,
        action_horizon=16,
        diffusion_model_cfg={**head, "final_dropout": False},
        max_num_embodiments=32,
        model_dtype="float32",
        vl_self_attention_cfg={**attention, "num_layers": 1, "final_dropout": False},
        dtype="float32",
    )
    torch.manual_seed(0)
    groot_n1_7.GR00TN17(config, load_backbone_weights=False).save_pretrained(GROOT)


BASES = {"xvla": write_xvla_base, "wall_x": write_wall_x_base, "groot": write_groot_base}
