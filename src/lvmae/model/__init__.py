"""LV-MAE as a transformers model; importing it registers AutoConfig, AutoModel and AutoModelForPreTraining."""

from transformers import AutoConfig, AutoModel, AutoModelForPreTraining

from .configuration_lvmae import LVMAEConfig
from .modeling_lvmae import LVMAEForPreTraining, LVMAEForPreTrainingOutput, LVMAEModel, LVMAEModelOutput

AutoConfig.register(LVMAEConfig.model_type, LVMAEConfig, exist_ok=True)
AutoModel.register(LVMAEConfig, LVMAEModel, exist_ok=True)
AutoModelForPreTraining.register(LVMAEConfig, LVMAEForPreTraining, exist_ok=True)

__all__ = ["LVMAEConfig", "LVMAEForPreTraining", "LVMAEForPreTrainingOutput", "LVMAEModel", "LVMAEModelOutput"]
