"""How another library names the layers of a Vision Transformer, and which of its layers have no place in ours."""

import dataclasses
import re
from collections.abc import Iterable, Mapping

from model.weights.weights import LazyTensor, WeightsError

NO_PLACE = {  # a pattern of names -> what the layer is; the first match counts
    r"dist_token|distillation_token|head_dist|distillation_classifier": "a distillation token",
    r"reg_token|register_tokens": "register tokens",
    r"relative_position|rel_pos": "relative position embeddings",
    r"rope|rotary|freqs_cis": "rotary position embeddings",
    r"\bls[12]\b|layer_scale|lambda_?[12]\b|gamma_[12]\b": "layer scale",
    r"\b[qk]_norm\b": "norms of queries and keys",
    r"mlp\.(w12|w1|w3|fc1_g|fc1_x|gate_proj|weights_in)\b": "a gated MLP",
    r"\b(attn|mlp)\.norm\b|scale_norm": "norms inside of attention or the MLP",
    r"attn_pool|head\.probe|attentionpool": "attention pooling",
    r"norm_pre|pre_layrnorm|pre_layernorm": "a norm before the encoder",
    r"fc_norm": "a norm after average pooling",
    r"patch_embed\.backbone|patch_embeddings\.backbone|bit\.": "a ResNet before the encoder",
    r"patch_embed\.norm|patch_embeddings\.norm": "a norm of the patches",
    r"text_model|logit_scale|vision_model|transformer\.resblocks": "a model of images and text (CLIP)",
    r"\blayers\.\d+\.(blocks|downsample)|encoder\.layers\.\d+\.blocks|stages?\.": "stages of falling resolution (Swin)",
    r"decoder": "a decoder",
    r"mask_token": "a mask token",
}


@dataclasses.dataclass(frozen=True)
class Naming:
    """One library's names. Layers are named without `.weight` and `.bias`; tensors by their whole name."""

    library: str
    block: str
    """What stands before a block's layers, with {} for its number: `blocks.{}.`."""
    blocks: Mapping[str, str]
    """Layers of a block: our name -> theirs."""
    layers: Mapping[str, str]
    """Layers outside of the blocks: our name -> theirs."""
    tensors: Mapping[str, str]
    """Parameters that belong to no layer: our name -> theirs."""

    def ours(self, state: Mapping[str, LazyTensor], url: str) -> dict[str, LazyTensor]:
        """Their tensors by our names.

        Raises:
            WeightsError: a tensor has no place in our network. The message says what it is, if that is known.
        """
        tensors = {theirs: ours for ours, theirs in self.tensors.items()}
        layers = {theirs: ours for ours, theirs in self.layers.items()}
        blocks = {theirs: ours for ours, theirs in self.blocks.items()}
        pattern = re.compile(re.escape(self.block).replace(r"\{\}", r"(\d+)") + r"(.+)")
        found: dict[str, LazyTensor] = {}
        left = []
        for name, tensor in state.items():
            layer, _, kind = name.rpartition(".")
            in_block = pattern.fullmatch(layer)
            if name in tensors:
                found[tensors[name]] = tensor
            elif kind in ("weight", "bias") and layer in layers:
                found[f"{layers[layer]}.{kind}"] = tensor
            elif kind in ("weight", "bias") and in_block and in_block[2] in blocks:
                found[f"blocks.{int(in_block[1])}.{blocks[in_block[2]]}.{kind}"] = tensor
            else:
                left.append(name)
        if left:
            raise WeightsError(f"{url}: {misfit(left, self.library)}")
        return found

    def theirs(self, name: str) -> str:
        """Their name of one of our tensors. Raises `KeyError` for a tensor that they do not have."""
        if name in self.tensors:
            return self.tensors[name]
        layer, _, kind = name.rpartition(".")
        if layer in self.layers:
            return f"{self.layers[layer]}.{kind}"
        _, number, in_block = layer.split(".", 2)
        return f"{self.block.format(number)}{self.blocks[in_block]}.{kind}"


def misfit(names: Iterable[str], library: str) -> str:
    """What tensors without a place in our network are, in one line."""
    names = sorted(names)
    for pattern, meaning in NO_PLACE.items():
        for name in names:
            if re.search(pattern, name):
                return f"the model has {meaning} ({name}), and this project's Vision Transformer has none"
    if library == "timm" and any("embeddings.patch_embeddings." in name for name in names):
        return "the tensors have Hugging Face's names: give the folder with its config.json, which says the rest"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{library}'s plain Vision Transformer has no tensors of these names: {shown}"
