"""SyVLA, the model. Importing the package registers it with the Auto classes of `transformers`."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM

from .configuration_syvla import VIEWS, SyVLAConfig, SyVLAExpertConfig
from .configuration_value import SyVLAValueConfig
from .model_outputs import SyVLAActionOutput, SyVLAOutput
from .modeling_syvla import SyVLAForConditionalGeneration, SyVLAModel
from .modeling_value import SyVLAValueModel, SyVLAValueOutput
from .pretrained import SyVLAPreTrainedModel

AutoConfig.register("syvla", SyVLAConfig, exist_ok=True)
AutoConfig.register("syvla_expert", SyVLAExpertConfig, exist_ok=True)
AutoConfig.register("syvla_value", SyVLAValueConfig, exist_ok=True)
AutoModel.register(SyVLAConfig, SyVLAModel, exist_ok=True)
AutoModel.register(SyVLAValueConfig, SyVLAValueModel, exist_ok=True)
AutoModelForImageTextToText.register(SyVLAConfig, SyVLAForConditionalGeneration, exist_ok=True)
AutoModelForMultimodalLM.register(SyVLAConfig, SyVLAForConditionalGeneration, exist_ok=True)

# A checkpoint then carries these files and loads with trust_remote_code=True where the package is not installed.
SyVLAConfig.register_for_auto_class()
SyVLAValueConfig.register_for_auto_class()
SyVLAModel.register_for_auto_class("AutoModel")
SyVLAValueModel.register_for_auto_class("AutoModel")
SyVLAForConditionalGeneration.register_for_auto_class("AutoModelForImageTextToText")

__all__ = [
    "VIEWS",
    "SyVLAActionOutput",
    "SyVLAConfig",
    "SyVLAExpertConfig",
    "SyVLAForConditionalGeneration",
    "SyVLAModel",
    "SyVLAOutput",
    "SyVLAPreTrainedModel",
    "SyVLAValueConfig",
    "SyVLAValueModel",
    "SyVLAValueOutput",
]
